"""How many stripes lack shards, and how many more disks they can bear to lose.

The state says where each shard was put, the disks' indexes say whether it is there, the disks' roles
whether it can be read, and the repair queue which ones were found to be damaged. A walk over all stripes, in small pieces between other work, counts
them: after the mount, after each change of a disk, and again while there is something to count,
because repair is at it. A walk that a change of a disk has overtaken is worth nothing; `counted` says
whether the figures are of the disks as they are now.

Walks take at most a twentieth of the time while no disk changes, however many stripes there are,
and at most half of it while disks come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple, Protocol

import trio

from dwfs.ports import DiskListing, StripeCatalog
from dwfs.stripe import StripeHealth, assess
from dwfs.types import DiskId, ShardKey, StripeId, StripeSeal

_BATCH: Final = 256
_PAUSE_SECONDS: Final = 0.005  # between pieces of some milliseconds
_RECOUNT_SECONDS: Final = 10.0
_WALK_SHARE: Final = 0.05
_SETTLE_SECONDS: Final = 0.5  # changes of disks come in crowds


class Changes(Protocol):
    """Tells of changes of the disks; `dwfs.node.disks` has it."""

    @property
    def generation(self) -> int:
        """How many there were."""

    async def after(self, generation: int) -> int:
        """Wait until the generation is another; gives it."""


class Count(NamedTuple):
    """What one walk found."""

    degraded: int  # readable stripes that lack shards
    short_by: int  # of sound shards that the worst stripe lacks
    unreadable: int  # stripes with fewer shards than reading needs


def worst(counted: Count, health: StripeHealth, doubted: int) -> Count:
    """The count with one more stripe; `doubted` of its readable shards are on disks that may fail."""
    lacking = len(health.shards) - health.readable
    return Count(
        counted.degraded + (lacking > 0 and not health.unreadable),
        max(counted.short_by, lacking + doubted),
        counted.unreadable + health.unreadable,
    )


class RedundancyCount:
    """Kept up to date by `run`.

    `doubted` gives the disks that are still read but may fail any moment: their shards don't count
    as sound. `degraded_writes` counts stripes that were written short since the pool was opened.
    `reported` gives the shards that readers and scrubs found bad and that are not mended yet: no index
    tells of them.
    """

    def __init__(
        self,
        catalog: StripeCatalog,
        disks: DiskListing,
        changes: Changes,
        doubted: Callable[[], frozenset[DiskId]],
        degraded_writes: Callable[[], int],
        reported: Callable[[], Mapping[StripeId, Collection[int]]] = dict,
    ) -> None:
        self._reported = reported
        self._catalog = catalog
        self._disks = disks
        self._changes = changes
        self._doubted = doubted
        self._degraded_writes = degraded_writes
        self._count = Count(0, 0, 0)
        self._written_before = 0  # the store's counter when the last count began
        self._generation = -1  # of the disks when the last count began

    @property
    def counted(self) -> bool:
        """Whether all stripes were counted with the disks as they are now."""
        return self._generation == self._changes.generation

    @property
    def short_stripes(self) -> int:
        """Readable stripes with fewer shards than they should have; new ones count at once."""
        return self._count.degraded + self._degraded_writes() - self._written_before

    @property
    def unreadable_stripes(self) -> int:
        """Stripes that can't be read with the disks as they are now."""
        return self._count.unreadable if self.counted else 0

    @property
    def short_by(self) -> int:
        """The largest number of sound shards that one stripe lacks."""
        if self._count.short_by or not self.short_stripes:
            return self._count.short_by
        return 1

    async def run(self) -> None:
        """Count, and again after each change and while there is something to count."""
        while True:
            started = trio.current_time()
            await self.count()
            took = trio.current_time() - started
            with trio.move_on_after(max(_RECOUNT_SECONDS, took / _WALK_SHARE)):
                await self._changes.after(self._generation)
            while self.counted and not (
                self._count.unreadable or self.short_stripes or self._reported()
            ):
                with trio.move_on_after(_RECOUNT_SECONDS):
                    await self._changes.after(self._generation)
            await trio.sleep(max(_SETTLE_SECONDS, took))

    async def count(self) -> None:
        """Walk over all stripes."""
        generation = self._changes.generation
        written_before = self._degraded_writes()
        reported = self._reported()
        counted = Count(0, 0, 0)
        after: StripeId | None = None
        while seals := self._catalog.seals(after, _BATCH):
            after = seals[-1].stripe
            doubted = self._doubted()
            for seal in seals:
                bad = reported.get(seal.stripe, ())
                health = assess(seal, self._disks.role, self._has, bad)
                counted = worst(counted, health, _shards_on(seal, doubted))
            await trio.sleep(_PAUSE_SECONDS)
        self._count, self._written_before = counted, written_before
        self._generation = generation

    def _has(self, disk: DiskId, key: ShardKey) -> bool:
        store = self._disks.get(disk)
        return store is not None and store.has(key)


def _shards_on(seal: StripeSeal, disks: frozenset[DiskId]) -> int:
    return sum(disk in disks for disk in seal.placement) if disks else 0

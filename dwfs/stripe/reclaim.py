"""Giving space back: dead stripes are deleted, sparse ones are emptied so that they die.

A stripe is *dead* when no extent of any file uses it, *sparse* when few of its bytes are used. The
live bytes of a sparse stripe are appended to the open stripe again and the file's extents are
pointed at the copy (`relocate`), only where they still point at the old place: a write that
came in between wins. Order makes it safe: a stripe's shards are deleted only after the command
that drops it is durable, and that command follows the relocations in the log.

How hard to try depends on how full the pool is. With much room only stripes that are nearly
empty are worth moving, at a tenth of the time; with little, any stripe that gives something back.
Between two pieces of work the cleaner sleeps, so that the foreground always has its share: it moves
at most 1 MiB and drops at most 32 stripes at a time. Dropping is work, too: holes are punched on all
disks, and many pass them on to the device as discards, which hold up reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dwfs.errors import PosixError
from dwfs.limits import FUSE_WRITE_SIZE_MAX
from dwfs.ports import Clock
from dwfs.stripe.space import ReclaimSignal
from dwfs.types import Fragment, StripeId

DROP_BATCH = 32  # stripes in one DropStripes command, and in one piece of work
CLEAN_BATCH = 8  # sparse stripes emptied in one round


class LiveRange(NamedTuple):
    """File bytes that still use a stripe."""

    inode: int
    offset: int  # bytes, in the file
    length: int  # bytes
    stripe_offset: int  # bytes


class ReclaimTarget(Protocol):
    """The volumes' state, as reclaim needs it; implemented by the composition root."""

    def dead_stripes(self, limit: int) -> list[StripeId]:
        """Sealed stripes without a live byte."""

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        """Sealed stripes with at most that fraction of live bytes, worst first, none dead."""

    def live_ranges(self, stripe: StripeId) -> list[LiveRange]:
        """What of the stripe's summary the extent maps still use."""

    async def relocate(
        self,
        inode: int,
        offset: int,
        length: int,
        stripe: StripeId,
        stripe_offset: int,
        fragments: Sequence[Fragment],
    ) -> None:
        """Propose Relocate: point file bytes that still map to the old place at `fragments`."""

    async def drop_stripes(self, stripes: Sequence[StripeId]) -> None:
        """Log DropStripes and make it durable: from then on no replay refers to the stripes."""


class ReclaimStore(Protocol):
    """What the cleaner needs of `StripeStore`."""

    async def admit_for_reclaim(self, length: int) -> None:
        """As `DataStore.admit`, but may use the reserve: more is given back than taken."""

    def append(self, inode: int, offset: int, data: bytes | memoryview) -> list[Fragment]:
        """See DataStore."""

    async def read(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """See DataStore."""

    async def drop(self, stripes: Sequence[StripeId]) -> None:
        """See DataStore."""

    def free_fraction(self) -> float:
        """Free share of the pool's capacity, 0.0 to 1.0."""


class Pace(NamedTuple):
    """How hard reclaim tries."""

    live_fraction: float  # stripes with at most this share of live bytes are worth emptying
    duty: float  # share of the time spent on work, 0 < duty ≤ 1
    interval_seconds: float  # between rounds when nobody asks


# Free share of the pool below which a pace holds; the first match counts.
PACES: tuple[tuple[float, Pace], ...] = (
    (0.05, Pace(live_fraction=0.90, duty=0.9, interval_seconds=0.5)),
    (0.10, Pace(live_fraction=0.75, duty=0.6, interval_seconds=1.0)),
    (0.25, Pace(live_fraction=0.50, duty=0.3, interval_seconds=2.0)),
    (2.00, Pace(live_fraction=0.25, duty=0.1, interval_seconds=5.0)),
)


def pace_for(free_fraction: float) -> Pace:
    """The pace for a pool with that share of its capacity free."""
    for bound, pace in PACES:
        if free_fraction < bound:
            return pace
    raise AssertionError("the last bound is above 1")


def split(live: LiveRange, size_max: int) -> list[LiveRange]:
    """The range in pieces of at most `size_max` bytes."""
    return [
        LiveRange(
            live.inode,
            live.offset + done,
            min(size_max, live.length - done),
            live.stripe_offset + done,
        )
        for done in range(0, live.length, size_max)
    ]


class Cleaner:
    """Drives reclaim. `run` is started by the composition root; `run_once` is one round."""

    def __init__(
        self, target: ReclaimTarget, store: ReclaimStore, signal: ReclaimSignal, clock: Clock
    ) -> None:
        self._target = target
        self._store = store
        self._signal = signal
        self._clock = clock
        self.dropped_stripes = 0
        self.moved_bytes = 0
        self.failed_rounds = 0

    async def run(self) -> None:
        """Reclaim for ever, at the pace that free space calls for."""
        self._signal.attend(True)
        try:
            while True:
                pace = pace_for(self._store.free_fraction())
                asked = await self._signal.wait(pace.interval_seconds)
                self._signal.begin()
                try:
                    await self.run_once(hurry=asked)
                except PosixError:
                    # A stripe that can't be read or stored now; the next round tries others too.
                    self.failed_rounds += 1
                finally:
                    self._signal.finish()
        finally:
            self._signal.attend(False)

    async def run_once(self, *, hurry: bool = False) -> None:
        """Drop the dead, empty a few sparse stripes and drop those too.

        With `hurry`, somebody waits for space: the hardest pace, and no pauses.
        """
        pace = PACES[0][1]._replace(duty=1.0) if hurry else pace_for(self._store.free_fraction())
        if await self._drop_dead(pace) and hurry:
            return
        for stripe in self._target.sparse_stripes(pace.live_fraction, CLEAN_BATCH):
            await self._empty(stripe, pace)
        await self._drop_dead(pace)

    async def _drop_dead(self, pace: Pace) -> int:
        dropped = 0
        while dead := self._target.dead_stripes(DROP_BATCH):
            started = self._clock.now()
            await self._target.drop_stripes(dead)
            await self._store.drop(dead)
            dropped += len(dead)
            if len(dead) < DROP_BATCH or self._signal.wanted:
                break
            await self._rest(started, pace)
        self.dropped_stripes += dropped
        return dropped

    async def _empty(self, stripe: StripeId, pace: Pace) -> None:
        for live in self._target.live_ranges(stripe):
            for piece in split(live, FUSE_WRITE_SIZE_MAX):
                started = self._clock.now()
                data = await self._store.read(stripe, piece.stripe_offset, piece.length)
                await self._store.admit_for_reclaim(piece.length)
                # No await between append and relocate's proposal: the copy has its reference
                # before any barrier can see it.
                fragments = self._store.append(piece.inode, piece.offset, data)
                await self._target.relocate(
                    piece.inode, piece.offset, piece.length, stripe, piece.stripe_offset, fragments
                )
                self.moved_bytes += piece.length
                await self._rest(started, pace)

    async def _rest(self, started: float, pace: Pace) -> None:
        """Sleep as long as the pace asks for work since `started`, or until somebody needs space."""
        worked = self._clock.now() - started
        await self._signal.wait(worked * (1.0 / pace.duty - 1.0))

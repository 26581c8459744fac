"""How much more can be stored, and how a lack of it calls for reclaim.

The account looks at free space as the disks report it (less the reserve that keeps deletes possible
for ever), less what was put since the report: reports are cached by the disks' owner, and a
burst of writes must not be admitted twice against one report.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from dwfs.disk.space import reserve_bytes
from dwfs.limits import (
    SEALED_SECTOR_SIZE,
    SECTOR_SIZE,
)
from dwfs.ports import DiskListing, ShardStore
from dwfs.stripe.placement import Candidate, water_level
from dwfs.types import DiskId, DiskSpace, Geometry


def usable_bytes(free: Sequence[int], geometry: Geometry) -> int:
    """Sealed data bytes that fit: k times the largest S with sum(min(f, S)) ≥ (k + m) · S."""
    return geometry.data * water_level(free, geometry.total)


def attainable_geometry(geometry: Geometry, disks: int) -> Geometry | None:
    """The geometry with as much parity as `disks` allow, or None with fewer than k disks."""
    if disks < geometry.data:
        return None
    return Geometry(geometry.data, min(geometry.parity, disks - geometry.data))


def plaintext_bytes(sealed: int) -> int:
    """Plaintext that fits into so many sealed bytes of whole sectors."""
    return sealed * SECTOR_SIZE // SEALED_SECTOR_SIZE


class SpaceAccount:
    """Free space of the pool's disks, as the stripe layer may use it."""

    def __init__(self, disks: DiskListing, geometry: Geometry) -> None:
        self._disks = disks
        self._geometry = geometry
        self._reports: dict[
            DiskId, tuple[DiskSpace, int]
        ] = {}  # report, bytes put less dropped since

    def note_put(self, disk: DiskId, length: int) -> None:
        """A shard of `length` bytes went to the disk."""
        report = self._reports.get(disk)
        if report is not None:
            self._reports[disk] = (report[0], report[1] + length)

    def note_drop(self, disk: DiskId, length: int) -> None:
        """Shards of `length` bytes were deleted from the disk."""
        self.note_put(disk, -length)

    def free_of(self, store: ShardStore, *, into_reserve: bool = False) -> int:
        """Bytes that shards may still take on the disk."""
        space = store.space()
        known, since = self._reports.get(store.disk, (None, 0))
        if known != space:
            since = 0
            self._reports[store.disk] = (space, 0)
        # Half of the reserve is left to the log, which must be able to say what was deleted.
        extra = reserve_bytes(space.size_bytes) // 2 if into_reserve else 0
        return max(0, space.available_bytes - since + extra)

    def candidates(self, exclude: set[DiskId], *, into_reserve: bool = False) -> list[Candidate]:
        """Writable disks but for `exclude`, with their free space."""
        return [
            Candidate(store.disk, self.free_of(store, into_reserve=into_reserve))
            for store in self._disks.writable()
            if store.disk not in exclude
        ]

    def usable(self, *, into_reserve: bool = False) -> int | None:
        """Plaintext bytes that can still be stored, or None when fewer than k disks are there."""
        free = [candidate.free for candidate in self.candidates(set(), into_reserve=into_reserve)]
        geometry = attainable_geometry(self._geometry, len(free))
        return None if geometry is None else plaintext_bytes(usable_bytes(free, geometry))

    def capacity(self) -> int:
        """Plaintext bytes that could be stored were the pool empty; for statfs."""
        sizes = []
        for store in self._disks.writable():
            space = store.space()
            sizes.append(space.available_bytes + space.used_bytes)
        geometry = attainable_geometry(self._geometry, len(sizes))
        return 0 if geometry is None else plaintext_bytes(usable_bytes(sizes, geometry))


class ReclaimSignal:
    """Lets a writer that finds no space wait for one round of reclaim.

    Shared by `StripeStore` and `Cleaner`, so that neither has to know the other. While no cleaner
    attends, a request returns at once.
    """

    def __init__(self, patience_seconds: float = 5.0) -> None:
        self._patience_seconds = patience_seconds
        self._attended = False
        self._wanted = trio.Event()
        self._next = trio.Event()  # set when the round that has not begun yet is over
        self._running = trio.Event()

    async def request(self) -> bool:
        """Wait for a whole round, but not for ever: the waiter may hold what reclaim needs.

        Returns whether a round took place.
        """
        if not self._attended:
            return False
        self._wanted.set()
        finished = self._next
        with trio.move_on_after(self._patience_seconds):
            await finished.wait()
        return finished.is_set()

    def attend(self, present: bool) -> None:
        """The cleaner comes or goes."""
        self._attended = present
        if not present:
            self._running.set()
            self._next.set()

    async def wait(self, seconds: float) -> bool:
        """The cleaner's sleep: True when somebody asked before `seconds` were over."""
        with trio.move_on_after(seconds):
            await self._wanted.wait()
        return self._wanted.is_set()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the next round."""
        return self._wanted.is_set()

    def begin(self) -> None:
        """A round starts; it serves all requests made so far, and none made from now on."""
        self._wanted = trio.Event()
        self._running, self._next = self._next, trio.Event()

    def finish(self) -> None:
        """The round is over."""
        self._running.set()

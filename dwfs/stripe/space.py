"""How much more can be stored, and how a lack of it calls for reclaim.

The account looks at free space as the disks report it, less what was put since the report: reports
are cached by the disks' owner, and a burst of writes must not be admitted twice against one
report. The reserve that keeps deletes possible for ever (`dwfs.disk.space`) is not in the reports; the
disks hold it back, and nobody subtracts it again. Half of it may be used by reclaim, which gives back
more than it takes, and three quarters by stripes that were admitted before the disks filled up: as long
as they can't be stored, nothing can be made durable, deletes neither. The last quarter is always the
log's, which must be able to say what was deleted.

Disks are counted as they will be used: what a shard takes is its record, header and all
(`shard_cost`), and what k + m unequal disks hold together is the water level of `placement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

import trio

from dwfs.disk.record import HEADER_SIZE, align
from dwfs.limits import SEALED_SECTOR_SIZE, SECTOR_SIZE
from dwfs.ports import DiskListing, ShardStore
from dwfs.stripe.placement import Candidate, water_level
from dwfs.types import DiskId, DiskSpace, Geometry

# The stripe layer's own header beside each shard (`shard_header`), at most: ids, salt, lengths.
SHARD_HEADER_BYTES: Final = 96

# Free space is measured once a second; a filesystem may give freed blocks back a little later.
MEASURE_SECONDS: Final = 1.5
# Of the reserve (see above).
RECLAIM_SHARE: Final = 0.5
ADMITTED_SHARE: Final = 0.75


def shard_cost(payload_bytes: int) -> int:
    """Bytes that a shard takes on a disk: its record with both headers, and the padding behind it."""
    return align(HEADER_SIZE + SHARD_HEADER_BYTES + payload_bytes)


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
        # The last report, and bytes put less dropped since.
        self._reports: dict[DiskId, tuple[DiskSpace, int]] = {}
        self._promised: dict[DiskId, int] = {}  # to puts under way
        self._dropped_at = -inf

    def note_put(self, disk: DiskId, length: int) -> None:
        """A shard of `length` bytes went to the disk."""
        self._note(disk, shard_cost(length))

    def note_drop(self, disk: DiskId, length: int) -> None:
        """Shards of `length` bytes were deleted from the disk."""
        self._note(disk, -length)
        self._dropped_at = trio.current_time()

    async def settle(self) -> bool:
        """Wait until the disks have measured what was deleted lately; False if nothing was."""
        left = self._dropped_at + MEASURE_SECONDS - trio.current_time()
        if left <= 0:
            return False
        await trio.sleep(left)
        return True

    def _note(self, disk: DiskId, change: int) -> None:
        report = self._reports.get(disk)
        if report is not None:
            self._reports[disk] = (report[0], report[1] + change)

    def promise(self, disk: DiskId, length: int) -> None:
        """A put of `length` bytes is about to start: later choices count it. `redeem` follows."""
        self._promised[disk] = self._promised.get(disk, 0) + shard_cost(length)

    def redeem(self, disk: DiskId, length: int) -> None:
        """The put is over; `note_put` tells if it succeeded."""
        self._promised[disk] -= shard_cost(length)

    def free_of(self, store: ShardStore, *, reserve_share: float = 0.0) -> int:
        """Bytes that shards may still take on the disk, those of puts under way included."""
        space = store.space()
        known, since = self._reports.get(store.disk, (None, 0))
        if known != space:
            since = 0
            self._reports[store.disk] = (space, 0)
        extra = int(space.reserve_bytes * reserve_share)
        return max(0, space.available_bytes - since + extra)

    def candidates(self, exclude: set[DiskId], *, reserve_share: float = 0.0) -> list[Candidate]:
        """Writable disks but for `exclude`, with the space that is neither used nor promised."""
        return [
            Candidate(
                store.disk,
                max(
                    0,
                    self.free_of(store, reserve_share=reserve_share)
                    - self._promised.get(store.disk, 0),
                ),
            )
            for store in self._disks.writable()
            if store.disk not in exclude
        ]

    def usable(self, *, reserve_share: float = 0.0) -> int | None:
        """Plaintext bytes that can still be stored, or None when fewer than k disks are there.

        Puts under way are not subtracted: whoever asks knows what he has already been granted.
        """
        free = [
            self.free_of(store, reserve_share=reserve_share) for store in self._disks.writable()
        ]
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

    def __init__(self, patience_seconds: float = 30.0) -> None:
        self._patience_seconds = patience_seconds
        self._attended = False
        self._wanted = trio.Event()
        self._next = _Round()  # the one that has not begun yet
        self._running = _Round()

    async def request(self) -> bool:
        """Wait for a whole round, but not for ever: the waiter may hold what reclaim needs.

        Returns whether it gave space back: only then is it worth asking again.
        """
        if not self._attended:
            return False
        self._wanted.set()
        ours = self._next
        with trio.move_on_after(self._patience_seconds):
            await ours.finished.wait()
        return ours.gained

    def attend(self, present: bool) -> None:
        """The cleaner comes or goes."""
        self._attended = present
        if not present:
            self._running.finished.set()
            self._next.finished.set()
            self._next = _Round()

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
        self._running, self._next = self._next, _Round()

    def finish(self, *, gained: bool) -> None:
        """The round is over."""
        self._running.gained = gained
        self._running.finished.set()


class _Round:
    """One round of reclaim, for those who wait for it."""

    __slots__ = ("finished", "gained")

    def __init__(self) -> None:
        self.finished = trio.Event()
        self.gained = False

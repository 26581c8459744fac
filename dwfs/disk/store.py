"""The shards of one disk, in append-only segments: `ShardStore` on a real directory.

The rooms behind this door: `writing` (put, delete, sync), `reading`, `scrubbing` (is what lies there
what should), over `ledger` (where each shard lies) and `access` (the way to the disk). `recovery`
brings the ledger in step at the start.

State is touched on the loop thread only. A store ends in one of two ways: `close` leaves everything
durable and closed; `retire` is for a disk that went away: it waits for nothing, and nothing of what is
still under way touches the index afterwards, so another store may use it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from dwfs import limits
from dwfs.disk.access import DiskAccess
from dwfs.disk.executor import Executor
from dwfs.disk.files import SegmentFiles
from dwfs.disk.index import DiskIndex
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.medium import POSIX_MEDIUM, Medium
from dwfs.disk.reading import ShardReader
from dwfs.disk.recovery import Progress, recover
from dwfs.disk.scrubbing import ShardScrubber
from dwfs.disk.space import FreeSpace, free_space
from dwfs.disk.writing import ShardWriter
from dwfs.errors import MediumError
from dwfs.ports import ScrubFinding, ScrubPiece
from dwfs.types import DiskId, DiskPosition, DiskSpace, ShardKey

_log = logging.getLogger(__name__)


class SegmentStore:
    """One disk's shards. Made by `open`; ended by `close` or `retire`. Keyed puts of one shard must
    not overlap with a delete of the same shard.

    Every operation may raise `DiskTimeoutError`: it was given up because the disk hangs, and may still
    be reading the buffers that it was given.
    """

    def __init__(
        self,
        directory: Path,
        disk: DiskId,
        index: DiskIndex,
        executor: Executor,
        medium: Medium = POSIX_MEDIUM,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Only wires up; `open` is the way to a store that can be used."""
        self.disk = disk
        self.directory = directory
        self._access = DiskAccess(disk, executor, medium, now)
        self._ledger = SegmentLedger(index)
        self._files = SegmentFiles(directory, self._access)
        self._reader = ShardReader(self._access, self._ledger, self._files)
        self._writer = ShardWriter(directory, self._access, self._ledger, self._files)
        self._scrubber = ShardScrubber(directory, self._access, self._ledger, self._writer)
        self._space = FreeSpace(size_bytes=0, available_bytes=0)
        self._grown_at_measure = 0
        self._allocated_bytes = 0  # at the start

    @classmethod
    async def open(
        cls,
        directory: Path,
        disk: DiskId,
        index: DiskIndex,
        executor: Executor,
        *,
        trusted: bool,
        progress: Progress | None = None,
        medium: Medium = POSIX_MEDIUM,
        now: Callable[[], float] = time.monotonic,
        first_number: int = 1,
    ) -> SegmentStore:
        """Open the disk's store, bringing the index in step with the segments.

        `trusted`: the index is at least as of its last commit (clean stop or process crash); if not,
        it is rebuilt. The directory must exist. `first_number`: where the disk had another store in
        this process, its `next_number`; a thread that still hangs in that one knows segments by name,
        and must not meet a new one under an old name. Raises MediumError.
        """
        store = cls(directory, disk, index, executor, medium, now)
        store._writer.next_number = first_number
        await store._recover(trusted=trusted, progress=progress)
        measured = await store._access.run("open", free_space, [directory], medium)
        if directory in measured:
            store.update_space(measured[directory])
        return store

    async def close(self) -> None:
        """Sync, close the open segments with footers, close files. A failing disk is only logged."""
        if self._access.retired:
            return
        with trio.CancelScope(shield=True):
            try:
                await self._writer.close_segments()
            except MediumError as error:
                _log.warning("%s; the index will be brought in step at the next start", error)
        self._writer.release()
        self._files.close()

    def retire(self) -> None:
        """The disk went away. Waits for nothing and does no I/O.

        Everything fails from now on with a MediumError whose operation is `access.RETIRED`, also what
        is under way, and nothing touches the index any more. `next_number` stays to be asked.
        """
        if self._access.retired:
            return
        self._access.fence.down = True
        self._writer.release()
        self._files.close()

    @property
    def next_number(self) -> int:
        """No segment with this number or a greater one was ever begun by this store."""
        return self._writer.next_number

    # --- ShardStore --------------------------------------------------------------------------

    async def put(self, key: ShardKey, header: bytes, payload: memoryview) -> None:
        """Append one shard, replacing any of that key. Raises MediumError, DiskFullError."""
        assert len(header) <= limits.SHARD_HEADER_SIZE_MAX
        await self._writer.put(key, header, payload)

    async def delete(self, keys: Sequence[ShardKey]) -> None:
        """Forget shards and free their space; unknown keys are ignored. Raises MediumError.

        After an error the shards are forgotten, but a rebuild of the index may find some again.
        """
        await self._writer.delete(keys)

    async def sync(self) -> None:
        """Make all puts and deletes durable that returned before this call. Raises MediumError."""
        await self._writer.sync()

    def has(self, key: ShardKey) -> bool:
        """Whether the index knows the shard."""
        return not self._access.retired and self._ledger.index.get(key) is not None

    def length(self, key: ShardKey) -> int:
        """Payload bytes of the shard. Raises ShardMissingError."""
        return self._reader.locate(key).payload_length

    def read_cached(
        self, key: ShardKey, offset: int, length: int, *, patient: bool = True
    ) -> bytes | None:
        """Payload bytes if the segment is open and the page cache has them, else None."""
        return self._reader.read_cached(key, offset, length, patient=patient)

    async def read(self, key: ShardKey, offset: int, length: int) -> bytes:
        """Payload bytes [offset, offset+length), clipped; unchecked. Raises MediumError kinds.

        A cancellation takes effect at once, whatever the disk does.
        """
        return await self._reader.read(key, offset, length)

    async def read_verified(self, key: ShardKey) -> tuple[bytes, bytes]:
        """(header, payload) of the whole shard, checked. Raises MediumError kinds."""
        return await self._reader.read_verified(key)

    async def read_back(self, key: ShardKey) -> tuple[bytes, bytes]:
        """As `read_verified`, from the disk and not from memory: after a `sync`."""
        return await self._reader.read_back(key)

    async def scrub(self, start: DiskPosition, size_bytes: int) -> ScrubPiece:
        """Check about `size_bytes` of records from `start` on, in disk order. Raises MediumError."""
        return await self._scrubber.scrub(start, size_bytes)

    async def erase(self, finding: ScrubFinding) -> None:
        """Free a DUPLICATE or STRAY, unless it is live by now. Raises MediumError."""
        await self._scrubber.erase(finding)

    async def adopt(self, finding: ScrubFinding) -> None:
        """Enter a STRAY into the index, unless the key is known by now. Raises MediumError."""
        await self._scrubber.adopt(finding)

    def keys(self, after: ShardKey | None, limit: int) -> list[ShardKey]:
        """Up to `limit` keys in (stripe, number) order, strictly after `after`."""
        return [] if self._access.retired else self._ledger.index.keys(after, limit)

    # --- for the disk's owner ----------------------------------------------------------------

    def check_accounts(self) -> list[str]:
        """Where the accounts of segments are not the sums over the index: sentences for people.

        Reads the whole index on the loop, some µs a shard: for `dwfs check`.
        """
        return [] if self._access.retired else self._ledger.discrepancies()

    def read_latency(self) -> tuple[float | None, float | None]:
        """Seconds that a read takes: smoothed mean and high quantile; None before the first."""
        return self._access.reads.figures()

    def sync_latency(self) -> tuple[float | None, float | None]:
        """As `read_latency`, of syncs."""
        return self._access.syncs.figures()

    @property
    def used_bytes(self) -> int:
        """What the segment files take on the disk."""
        return max(0, self._allocated_bytes + self._writer.grown_bytes)

    def space(self) -> DiskSpace:
        """Space as last measured, moved on by what was put and deleted since."""
        grown = self._writer.grown_bytes - self._grown_at_measure
        available, reserve = self._space.after(grown)
        return DiskSpace(
            size_bytes=self._space.size_bytes,
            available_bytes=min(available, self._space.size_bytes),
            used_bytes=self.used_bytes,
            reserve_bytes=reserve,
        )

    def space_mark(self) -> int:
        """Take it when a measurement of free space was made, and hand both to `update_space`."""
        return self._writer.grown_bytes

    def update_space(self, space: FreeSpace, mark: int | None = None) -> None:
        """Take a measurement of `free_space` over all the pool's directories; None: made just now."""
        self._space = space
        self._grown_at_measure = self._writer.grown_bytes if mark is None else mark

    async def _recover(self, *, trusted: bool, progress: Progress | None) -> None:
        found = await recover(
            self.directory, self._access, self._ledger, trusted=trusted, progress=progress
        )
        self._allocated_bytes = found.allocated_bytes - self._writer.grown_bytes
        await self._writer.adopt_recovery(found)

"""The shards of one disk, in append-only segments: `ShardStore` on a real directory.

Puts reserve a place on the loop and write there in a worker; the index learns of a shard only when it
is written. Reads go by the index. `sync` makes durable what returned before it was called.

What the order of steps protects:

- *Replacing* a shard writes the new record first. The old one is erased only after a sync that covered
  the new one, or a crash could lose both.
- *A failed fdatasync* is final for what it covered: the kernel has dropped the dirty pages and would
  report the next one as a success. The segment takes no more records; the keys written to it since its
  last good sync become *suspect*, and every `sync` raises MediumError until each of them was put again
  (to another segment) or deleted.
- *Closing* a segment (footer, then fdatasync) happens only in `sync`, with no put under way in it, and
  deletes in it wait meanwhile: else a delete could fall between the table's making and its writing.

State is touched on the loop thread only, and every section between two awaits leaves it consistent;
`_writable` promises its caller that no await lies between its return and the reservation.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import trio

from dwfs import limits
from dwfs.disk.append import ActiveSegment
from dwfs.disk.executor import DiskExecutor
from dwfs.disk.faults import medium_error
from dwfs.disk.files import SegmentFiles
from dwfs.disk.index import DiskIndex
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.reclaim import Reclaim, reclaim
from dwfs.disk.record import HEADER_SIZE, Location
from dwfs.disk.recovery import Progress, Recovery, recover
from dwfs.disk.segment import DIRECTORY_NAME, pack_footer, segment_path
from dwfs.disk.space import FreeSpace, free_space
from dwfs.disk.transfer import (
    Patience,
    SyncOutcome,
    SyncWork,
    create_segment,
    read_range,
    read_range_arriving,
    read_range_cached,
    read_record,
    sync_segments,
    write_record,
)
from dwfs.errors import MediumError, ShardDamagedError, ShardMissingError
from dwfs.types import DiskId, DiskSpace, ShardKey

_log = logging.getLogger(__name__)

PATIENT_SIZE_MAX: Final = 64 * limits.KIB  # larger reads are worth a thread's wake-up
PATIENCE_SECONDS: Final = 200e-6  # little more than the wake-up and the way back cost


class SegmentStore:
    """One disk's shards. Made by `open`; closed by `close`. Keyed puts of one shard must not overlap
    with a delete of the same shard."""

    def __init__(
        self, directory: Path, disk: DiskId, index: DiskIndex, executor: DiskExecutor
    ) -> None:
        """Only wires up; `open` is the way to a store that can be used."""
        self.disk = disk
        self.directory = directory
        self._executor = executor
        self._ledger = SegmentLedger(index)
        self._files = SegmentFiles(directory, executor)
        self._patience = Patience()
        self._active: dict[int, ActiveSegment] = {}
        self._current: ActiveSegment | None = None
        self._creating = trio.Lock()
        self._next_number = 1
        self._superseded: list[
            tuple[ShardKey, Location]
        ] = []  # replaced; erased after the next sync
        self._awaiting_sync: Counter[int] = Counter()  # the same, by segment
        self._suspect: dict[ShardKey, int] = {}  # key → segment whose fdatasync failed
        self._touched: dict[int, bool] = {}  # other segments to sync → holds unsynced records
        self._directory_changed = True
        self._sync_lock = trio.Lock()
        self._sync_asked = 0
        self._sync_covered = 0
        self._space = FreeSpace(size_bytes=0, available_bytes=0)
        self._grown_bytes = 0  # since `_space` was measured
        self._used_bytes = 0

    @classmethod
    async def open(
        cls,
        directory: Path,
        disk: DiskId,
        index: DiskIndex,
        executor: DiskExecutor,
        *,
        trusted: bool,
        progress: Progress | None = None,
    ) -> SegmentStore:
        """Open the disk's store, bringing the index in step with the segments.

        `trusted`: the index is at least as of its last commit (clean stop or process crash); if not,
        it is rebuilt. The directory must exist. Raises MediumError.
        """
        store = cls(directory, disk, index, executor)
        await store._recover(trusted=trusted, progress=progress)
        measured = await executor.run(free_space, [directory])
        if directory in measured:
            store.update_space(measured[directory])
        return store

    async def rebuild_index(self, progress: Progress | None = None) -> None:
        """Forget the index and scan all segments. Nobody else may use the store meanwhile."""
        await self._close_segments()
        await self._recover(trusted=False, progress=progress)

    async def close(self) -> None:
        """Sync, close the open segments with footers, close files. A failing disk is only logged."""
        with trio.CancelScope(shield=True):
            try:
                await self._close_segments()
            except MediumError as error:
                _log.warning("%s; the index will be brought in step at the next start", error)
        for active in self._active.values():
            self._files.release(active.file)
        self._active.clear()
        self._current = None
        self._files.close()

    # --- ShardStore: writing -----------------------------------------------------------------

    async def put(self, key: ShardKey, header: bytes, payload: memoryview) -> None:
        """Append one shard, replacing any of that key. Raises MediumError, DiskFullError."""
        assert len(header) <= limits.SHARD_HEADER_SIZE_MAX
        segment = await self._writable(HEADER_SIZE + len(header) + payload.nbytes)
        place = segment.reserve(key, len(header), payload.nbytes)
        written = False
        try:
            await self._executor.run(
                write_record, segment.file.descriptor, key, place, header, payload
            )
            written = not segment.failed
        except OSError as error:
            raise medium_error(self.disk, "put", error) from error
        finally:
            segment.finish(key, place, written=written)
        if not written:
            raise MediumError(self.disk, "put", "the segment failed to sync meanwhile")
        old = self._ledger.enter(key, place, segment.scanned())
        if old is not None:
            self._supersede([(key, old)])
        self._suspect.pop(key, None)
        self._grow(place.size)

    async def delete(self, keys: Sequence[ShardKey]) -> None:
        """Forget shards and free their space; unknown keys are ignored. Raises MediumError.

        After an error the shards are forgotten, but a rebuild of the index may find some again.
        """
        doomed = self._take_superseded(set(keys)) if self._superseded else []
        for key in keys:
            place = self._ledger.forget(key)
            if place is not None:
                doomed.append(place)
            self._suspect.pop(key, None)
        if doomed:
            await self._reclaim(doomed)

    async def sync(self) -> None:
        """Make all puts and deletes durable that returned before this call. Raises MediumError.

        Callers that come while a sync runs share the next one.
        """
        self._sync_asked += 1
        ticket = self._sync_asked
        async with self._sync_lock:
            if self._sync_covered >= ticket:
                return
            covered = self._sync_asked  # all who asked until now: their puts have returned
            await trio.lowlevel.checkpoint_if_cancelled()
            with trio.CancelScope(shield=True):
                await self._sync_once()
            self._sync_covered = covered

    # --- ShardStore: reading -----------------------------------------------------------------

    def has(self, key: ShardKey) -> bool:
        """Whether the index knows the shard."""
        return self._ledger.index.get(key) is not None

    def length(self, key: ShardKey) -> int:
        """Payload bytes of the shard. Raises ShardMissingError."""
        return self._locate(key).payload_length

    def read_cached(self, key: ShardKey, offset: int, length: int) -> bytes | None:
        """Payload bytes if the segment is open and the page cache has them, else None.

        A small read is given a moment to arrive, if no call to the disk is under way: on a disk
        that hangs there soon is one, so the moment is lost once.
        """
        place = self._ledger.index.get(key)
        if place is None:
            return None
        length = max(0, min(length, place.payload_length - offset))
        file = self._files.peek(place.segment)
        if file is None:
            return None
        position = place.payload_offset + offset
        content = read_range_cached(file.descriptor, position, length)
        if (
            content is not None
            or length > PATIENT_SIZE_MAX
            or self._executor.waiting()
            or not self._patience.worthwhile()
        ):
            return content
        content = read_range_arriving(file.descriptor, position, length, PATIENCE_SECONDS)
        self._patience.learn(arrived=content is not None)
        return content

    async def read(self, key: ShardKey, offset: int, length: int) -> bytes:
        """Payload bytes [offset, offset+length), clipped; unchecked. Raises MediumError kinds."""
        while True:
            place = self._locate(key)
            wanted = max(0, min(length, place.payload_length - offset))
            try:
                file = await self._files.acquire(place.segment)
                try:
                    content = await self._executor.run(
                        read_range, file.descriptor, place.payload_offset + offset, wanted
                    )
                finally:
                    self._files.release(file)
            except OSError as error:
                if self._moved(key, place):
                    continue
                raise medium_error(self.disk, "read", error) from error
            if self._moved(key, place):
                continue  # replaced or deleted while we read: what we got may be zeros
            if len(content) < wanted:
                raise ShardDamagedError(self.disk, "read", "the segment is cut short")
            return content

    async def read_verified(self, key: ShardKey) -> tuple[bytes, bytes]:
        """(header, payload) of the whole shard, checked. Raises MediumError kinds."""
        while True:
            place = self._locate(key)
            try:
                file = await self._files.acquire(place.segment)
                try:
                    result = await self._executor.run(read_record, file.descriptor, key, place)
                finally:
                    self._files.release(file)
            except OSError as error:
                if self._moved(key, place):
                    continue
                raise medium_error(self.disk, "verify", error) from error
            if self._moved(key, place):
                continue
            if isinstance(result, str):
                raise ShardDamagedError(self.disk, "verify", result)
            return result

    def keys(self, after: ShardKey | None, limit: int) -> list[ShardKey]:
        """Up to `limit` keys in (stripe, number) order, strictly after `after`."""
        return self._ledger.index.keys(after, limit)

    def disk_order(self, keys: Sequence[ShardKey]) -> list[ShardKey]:
        """Those of `keys` that are here, in the order in which they lie on the disk: for scrubs."""
        places = [(self._ledger.index.get(key), key) for key in keys]
        found = [(place.segment, place.offset, key) for place, key in places if place is not None]
        return [key for _, _, key in sorted(found, key=lambda item: item[:2])]

    # --- space -------------------------------------------------------------------------------

    def space(self) -> DiskSpace:
        """Space as last measured, moved on by what was put and deleted since."""
        available = self._space.available_bytes - self._grown_bytes
        return DiskSpace(
            size_bytes=self._space.size_bytes,
            available_bytes=min(max(0, available), self._space.size_bytes),
            used_bytes=max(0, self._used_bytes),
        )

    def update_space(self, space: FreeSpace) -> None:
        """Take a fresh measurement of `free_space` over all the pool's directories."""
        self._space = space
        self._grown_bytes = 0

    def _grow(self, size: int) -> None:
        self._grown_bytes += size
        self._used_bytes += size

    # --- segments ----------------------------------------------------------------------------

    async def _writable(self, size: int) -> ActiveSegment:
        """A segment with room for `size` bytes. No await may follow before the reservation."""
        while True:
            current = self._current
            if current is not None and current.accepts(size):
                return current
            async with self._creating:
                if self._current is current:
                    await self._create_segment()

    async def _create_segment(self) -> None:
        number = self._next_number
        self._next_number += 1
        path = segment_path(self.directory, number)
        try:
            descriptor = await self._executor.run(create_segment, path, self.disk, number)
        except FileExistsError:
            return  # a leftover we don't know; the caller tries the next number
        except OSError as error:
            raise medium_error(self.disk, "new segment", error) from error
        if self._current is not None:
            self._current.full = True
        self._directory_changed = True
        self._current = ActiveSegment(number, self._files.adopt(number, descriptor))
        self._active[number] = self._current
        self._ledger.scanned(number, 0, 0)

    def _retire(self, active: ActiveSegment) -> None:
        del self._active[active.number]
        if self._current is active:
            self._current = None
        self._files.release(active.file)

    async def _close_segments(self) -> None:
        for active in self._active.values():
            active.full = True
        self._current = None
        await self.sync()

    async def _recover(self, *, trusted: bool, progress: Progress | None) -> None:
        try:
            found: Recovery = await recover(
                self.directory,
                self.disk,
                self._ledger,
                self._executor,
                trusted=trusted,
                progress=progress,
            )
        except OSError as error:
            raise medium_error(self.disk, "open", error) from error
        self._next_number = max(self._next_number, found.next_number)
        self._touched.update(dict.fromkeys(found.unsynced, True))
        self._superseded.clear()
        self._awaiting_sync.clear()
        self._supersede(found.superseded)
        self._used_bytes = found.allocated_bytes
        empty = [
            segment_path(self.directory, number)
            for number in self._ledger.numbers() - set(found.unreadable)
            if self._drop_if_empty(number)
        ]
        try:
            await self._executor.run(reclaim, [], empty)
        except OSError as error:  # a disk that has turned read-only can still be read from
            _log.warning("%s", medium_error(self.disk, "remove empty segments", error))

    def _supersede(self, places: Sequence[tuple[ShardKey, Location]]) -> None:
        self._superseded.extend(places)
        self._awaiting_sync.update(place.segment for _, place in places)

    def _take_superseded(self, keys: Collection[ShardKey]) -> list[Location]:
        """Older records of deleted shards: they need not wait for a sync, and must not outlive them,
        or a rebuild of the index would find them."""
        taken = [place for key, place in self._superseded if key in keys]
        if taken:
            self._superseded = [item for item in self._superseded if item[0] not in keys]
            self._awaiting_sync.subtract(place.segment for place in taken)
        return taken

    # --- reclaim -----------------------------------------------------------------------------

    async def _reclaim(self, places: Sequence[Location]) -> None:
        """Erase records that the index has forgotten; unlink segments that hold nothing any more."""
        by_segment: defaultdict[int, list[Location]] = defaultdict(list)
        for place in places:
            by_segment[place.segment].append(place)
            self._grow(-place.size)
            if place.segment in self._active:
                self._active[place.segment].dead.add(place.ordinal)
        with trio.CancelScope(shield=True):
            for number in by_segment:
                while (
                    active := self._active.get(number)
                ) is not None and active.closed is not None:
                    await active.closed.wait()
            work, unlink, held = [], [], []
            for number, dead in by_segment.items():
                active = self._active.get(number)
                if active is not None:
                    active.file.users += 1
                    active.changed = True
                    held.append(active.file)
                elif self._drop_if_empty(number):
                    unlink.append(segment_path(self.directory, number))
                    continue
                else:
                    self._touched.setdefault(number, False)
                work.append(self._reclaim_work(number, dead, active))
            try:
                await self._executor.run(reclaim, work, unlink)
            except OSError as error:
                raise medium_error(self.disk, "delete", error) from error
            finally:
                for file in held:
                    self._files.release(file)

    def _reclaim_work(
        self, number: int, dead: list[Location], active: ActiveSegment | None
    ) -> Reclaim:
        liveness = self._ledger.account(number).liveness_offset
        return Reclaim(
            path=segment_path(self.directory, number),
            descriptor=active.file.descriptor if active is not None else None,
            ranges=tuple((place.offset, place.end) for place in dead),
            liveness_offsets=tuple(liveness + place.ordinal for place in dead) if liveness else (),
        )

    def _drop_if_empty(self, number: int) -> bool:
        """Forget a segment that is not being written and holds nothing; its file is to be unlinked.

        A segment with a replaced record that is still to survive a crash holds something.
        """
        if number in self._active or self._awaiting_sync[number]:
            return False
        if self._ledger.account(number).live_records:
            return False
        self._files.forget(number)
        self._ledger.drop_segment(number)
        self._touched.pop(number, None)
        self._directory_changed = True
        return True

    # --- sync --------------------------------------------------------------------------------

    async def _sync_once(self) -> None:
        covered: dict[int, set[ShardKey]] = {}
        work: list[SyncWork] = []
        unlink: list[Path] = []
        for active in list(self._active.values()):
            if active.failed:
                if active.idle() and active.number not in self._suspect.values():
                    self._retire(active)
                    if self._drop_if_empty(active.number):
                        unlink.append(segment_path(self.directory, active.number))
            elif active.full and active.idle() and self._drop_if_dead(active):
                unlink.append(segment_path(self.directory, active.number))
            elif active.changed or not active.named or (active.full and active.idle()):
                covered[active.number] = active.take_unsynced()
                work.append(self._sync_work(active))
        touched, self._touched = self._touched, {}
        work += [
            SyncWork(number, segment_path(self.directory, number), None, b"", 0)
            for number in touched
        ]
        superseded, self._superseded = self._superseded, []
        directory = self.directory / DIRECTORY_NAME if self._directory_changed else None
        self._directory_changed = False
        if not work and directory is None:
            outcome = SyncOutcome({}, None)
        else:
            outcome = await self._executor.run(sync_segments, work, unlink, directory)
        self._settle(covered, outcome, named=directory is not None)
        for number, holds_unsynced in touched.items():
            if number in outcome.failed and holds_unsynced:
                self._suspect.update(dict.fromkeys(self._ledger.keys_in(number), number))
        if outcome.failed or outcome.directory or self._suspect:
            self._superseded[:0] = superseded
            raise self._sync_error(outcome)
        await self._erase_superseded(superseded)

    def _drop_if_dead(self, active: ActiveSegment) -> bool:
        """Drop a full segment without a live record, instead of closing it."""
        if self._ledger.account(active.number).live_records or self._awaiting_sync[active.number]:
            return False
        self._retire(active)
        return self._drop_if_empty(active.number)

    def _sync_work(self, active: ActiveSegment) -> SyncWork:
        footer = b""
        if active.full and active.idle():
            active.closed = trio.Event()
            footer = pack_footer(active.number, active.position, active.entries, active.dead)
        path = segment_path(self.directory, active.number)
        return SyncWork(active.number, path, active.file.descriptor, footer, active.position)

    def _settle(
        self, covered: dict[int, set[ShardKey]], outcome: SyncOutcome, *, named: bool
    ) -> None:
        """After the worker's part of a sync: note what is durable, closed, or suspect."""
        for number, keys in covered.items():
            active = self._active[number]
            if number in outcome.failed or (outcome.directory is not None and not active.named):
                suspects = keys | active.fail()
                if not active.named:  # even what was synced before may not be found by name
                    suspects.update(self._ledger.keys_in(number))
                self._suspect.update(
                    (key, number) for key in suspects if self._lies_in(key, number)
                )
                if active.closed is not None:  # the footer may be there: deletes must mark it
                    self._ledger.scanned(number, active.position, active.liveness_offset())
            elif active.closed is not None:
                self._ledger.scanned(number, active.position, active.liveness_offset())
                self._retire(active)
            else:
                active.named = active.named or named
            if active.closed is not None:
                active.closed.set()
                active.closed = None
        if outcome.directory is not None:
            self._directory_changed = True

    def _sync_error(self, outcome: SyncOutcome) -> MediumError:
        errors = [*outcome.failed.values(), *([outcome.directory] if outcome.directory else [])]
        if errors:
            return medium_error(self.disk, "sync", errors[0])
        return MediumError(
            self.disk, "sync", f"{len(self._suspect)} shards were lost by an earlier failed sync"
        )

    async def _erase_superseded(self, replaced: list[tuple[ShardKey, Location]]) -> None:
        if not replaced:
            return
        places = [place for _, place in replaced]
        self._awaiting_sync.subtract(place.segment for place in places)
        self._awaiting_sync = +self._awaiting_sync
        try:
            await self._reclaim(places)
        except MediumError as error:
            # What the sync promised holds; only space is not given back.
            _log.warning("%s; the space of replaced shards is not freed", error)

    # --- lookups -----------------------------------------------------------------------------

    def _locate(self, key: ShardKey) -> Location:
        place = self._ledger.index.get(key)
        if place is None:
            name = f"{key.stripe.hex()[:8]}/{key.number}"
            raise ShardMissingError(self.disk, "find", f"no shard {name}")
        return place

    def _moved(self, key: ShardKey, place: Location) -> bool:
        return self._ledger.index.get(key) != place

    def _lies_in(self, key: ShardKey, number: int) -> bool:
        place = self._ledger.index.get(key)
        return place is not None and place.segment == number

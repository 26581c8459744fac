"""Writing shards: places are reserved on the loop, filled by workers, made durable by `sync`.

The index learns of a shard only when it is written. `sync` makes durable what returned before it was
called. What the order of steps protects:

- *Replacing* a shard writes the new record first. The old one is erased only after a sync that covered
  the new one, or a crash could lose both.
- *A failed fdatasync* is final for what it covered: the kernel has dropped the dirty pages and would
  report the next one as a success. The segment takes no more records; the keys written to it since its
  last good sync become *suspect*, and every `sync` raises MediumError until each of them was put again
  (to another segment) or deleted. One that was given up because the disk hangs counts as failed: it may
  still succeed, but nobody will hear of it.
- *A put that was given up* may still write its record, into a place that is dead by then: whatever
  reads the segment later takes it for a stray. Its segment gets no more records.
- *Closing* a segment (footer, then fdatasync) happens only in `sync`, with no put under way in it, and
  deletes in it wait meanwhile: else a delete could fall between the table's making and its writing.

State is touched on the loop thread only, and every section between two awaits leaves it consistent;
`_writable` promises its caller that no await lies between its return and the reservation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import trio

from dwfs.disk.access import DiskAccess, Stopwatch
from dwfs.disk.append import ActiveSegment
from dwfs.disk.erasing import Eraser
from dwfs.disk.faults import medium_error
from dwfs.disk.files import SegmentFiles
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.open_segments import OpenSegments
from dwfs.disk.reclaim import reclaim
from dwfs.disk.record import HEADER_SIZE, Location
from dwfs.disk.recovery import Recovery
from dwfs.disk.segment import DIRECTORY_NAME, pack_footer, segment_path
from dwfs.disk.superseded import Replaced
from dwfs.disk.transfer import SyncOutcome, SyncWork, create_segment, sync_segments, write_record
from dwfs.errors import DiskTimeoutError, MediumError
from dwfs.types import ShardKey

_log = logging.getLogger(__name__)


class ShardWriter:
    """The writing half of a store."""

    def __init__(
        self, directory: Path, access: DiskAccess, ledger: SegmentLedger, files: SegmentFiles
    ) -> None:
        self._put_bytes = 0  # since the start
        self.next_number = 1  # of the next segment; grows only
        self._directory = directory
        self._access = access
        self._medium = access.medium
        self._ledger = ledger
        self._files = files
        self._segments = OpenSegments(ledger, files)
        self._superseded = self._segments.superseded
        self.eraser = Eraser(directory, access, ledger, files, self._segments)
        self._creating = trio.Lock()
        self._suspect: dict[ShardKey, int] = {}  # key → segment whose fdatasync failed
        self._sync_lock = trio.Lock()
        self._sync_asked = 0
        self._sync_covered = 0

    @property
    def grown_bytes(self) -> int:
        """Bytes put less bytes erased, since the start."""
        return self._put_bytes - self.eraser.erased_bytes

    # --- the store's operations --------------------------------------------------------------

    async def put(self, key: ShardKey, header: bytes, payload: memoryview) -> None:
        """Append one shard, replacing any of that key. Raises MediumError kinds."""
        segment = await self._writable(HEADER_SIZE + len(header) + payload.nbytes)
        place = segment.reserve(key, len(header), payload.nbytes)
        written = False
        try:
            await self._access.run(
                "put",
                write_record,
                self._medium,
                segment.file.handle,
                key,
                place,
                header,
                payload,
                afterwards=self._files.hold([segment.file]),
            )
            written = not segment.failed
        except DiskTimeoutError:
            segment.full = True
            raise
        finally:
            segment.finish(key, place, written=written)
        if not written:
            raise MediumError(self._access.disk, "put", "the segment failed to sync meanwhile")
        old = self._ledger.enter(key, place, segment.scanned())
        if old is not None:
            self._superseded.add([(key, old)])
        self._suspect.pop(key, None)
        self._put_bytes += place.size

    async def delete(self, keys: Sequence[ShardKey]) -> None:
        """Forget shards and free their space; unknown keys are ignored. Raises MediumError."""
        self._access.check()
        doomed = self._superseded.take_keys(set(keys))
        doomed += self._ledger.forget(keys)
        if self._suspect:
            for key in keys:
                self._suspect.pop(key, None)
        if doomed:
            await self.eraser.erase(doomed)

    async def sync(self) -> None:
        """Make all puts and deletes durable that returned before this call. Raises MediumError.

        Callers that come while a sync runs share the next one.
        """
        self._access.check()
        self._sync_asked += 1
        ticket = self._sync_asked
        async with self._sync_lock:
            self._access.check()
            if self._sync_covered >= ticket:
                return
            covered = self._sync_asked  # all who asked until now: their puts have returned
            await trio.lowlevel.checkpoint_if_cancelled()
            with trio.CancelScope(shield=True):
                await self._sync_once()
            self._sync_covered = covered

    async def close_segments(self) -> None:
        """Write footers to all segments that are open, and sync. Raises MediumError."""
        self._segments.fill()
        await self.sync()

    def release(self) -> None:
        """Let go of all segments: at the end, or when the store is retired."""
        self._segments.release()

    async def adopt_recovery(self, found: Recovery) -> None:
        """Go on from what recovery found; unlink segments that hold nothing."""
        self.next_number = max(self.next_number, found.next_number)
        self._segments.touched.update(dict.fromkeys(found.unsynced, True))
        self._superseded.clear()
        self._superseded.add(found.superseded)
        empty = [
            segment_path(self._directory, number)
            for number in self._ledger.numbers() - set(found.unreadable)
            if self._segments.drop_if_empty(number)
        ]
        try:
            await self._access.run(
                "remove empty segments", reclaim, self._medium, self._access.fence, [], empty
            )
        except MediumError as error:  # a disk that has turned read-only can still be read from
            self._access.check()
            _log.warning("%s", error)

    def is_superseded(self, place: Location) -> bool:
        """Whether a replaced record there waits for the next sync."""
        return self._superseded.contains(place)

    def has_superseded(self, number: int) -> bool:
        """Whether any replaced record in the segment waits for the next sync."""
        return self._superseded.holds(number)

    def touch(self, number: int) -> None:
        """A closed segment was changed: the next sync covers it."""
        self._segments.touched[number] = True

    def active(self, number: int) -> ActiveSegment | None:
        """The segment, if this run of the store writes it."""
        return self._segments.active.get(number)

    # --- segments ----------------------------------------------------------------------------

    async def _writable(self, size: int) -> ActiveSegment:
        """A segment with room for `size` bytes. No await may follow before the reservation."""
        while True:
            self._access.check()
            current = self._segments.current
            if current is not None and current.accepts(size):
                return current
            async with self._creating:
                if self._segments.current is current:
                    await self._create_segment()

    async def _create_segment(self) -> None:
        number = self.next_number
        self.next_number += 1
        path = segment_path(self._directory, number)
        try:
            handle = await self._access.run_raw(
                create_segment,
                self._medium,
                path,
                self._access.disk,
                number,
                discard=self._medium.close,  # an empty file stays; the next start removes it
            )
        except FileExistsError:
            return  # a leftover we don't know; the caller tries the next number
        except OSError as error:
            raise medium_error(self._access.disk, "new segment", error) from error
        self._segments.begin(number, handle)

    # --- sync --------------------------------------------------------------------------------

    async def _sync_once(self) -> None:
        covered: dict[int, set[ShardKey]] = {}
        work: list[SyncWork] = []
        unlink: list[Path] = []
        for active in list(self._segments.active.values()):
            if active.failed:
                if active.idle() and active.number not in self._suspect.values():
                    self._segments.retire(active)
                    if self._segments.drop_if_empty(active.number):
                        unlink.append(segment_path(self._directory, active.number))
            elif active.full and active.idle() and self._segments.drop_if_dead(active):
                unlink.append(segment_path(self._directory, active.number))
            elif active.changed or not active.named or (active.full and active.idle()):
                covered[active.number] = active.take_unsynced()
                work.append(self._sync_work(active))
        touched, self._segments.touched = self._segments.touched, {}
        work += [
            SyncWork(number, segment_path(self._directory, number), None, b"", 0)
            for number in touched
        ]
        superseded = self._superseded.take_for_sync()
        directory = self._directory / DIRECTORY_NAME if self._segments.directory_changed else None
        self._segments.directory_changed = False
        outcome = SyncOutcome({}, None)
        if work or directory is not None:
            outcome = await self._run_sync(work, unlink, directory)
        self._settle(covered, outcome, named=directory is not None)
        for number, holds_unsynced in touched.items():
            if number in outcome.failed and holds_unsynced:
                self._suspect.update(dict.fromkeys(self._ledger.keys_in(number), number))
        if outcome.failed or outcome.directory or self._suspect:
            self._superseded.put_back(superseded)
            raise self._sync_error(outcome)
        await self._erase_superseded(superseded)

    async def _run_sync(
        self, work: list[SyncWork], unlink: list[Path], directory: Path | None
    ) -> SyncOutcome:
        held = [self._segments.active[item.number].file for item in work if item.handle is not None]
        try:
            with Stopwatch(self._access.syncs, self._access.now):
                return await self._access.run_raw(
                    sync_segments,
                    self._medium,
                    self._access.fence,
                    work,
                    unlink,
                    directory,
                    afterwards=self._files.hold(held),
                )
        except OSError as error:  # given up as a whole: each part of it counts as failed
            failed = dict.fromkeys((item.number for item in work), error)
            return SyncOutcome(failed, error if directory is not None else None)

    def _sync_work(self, active: ActiveSegment) -> SyncWork:
        footer = b""
        if active.full and active.idle():
            active.closed = trio.Event()
            footer = pack_footer(active.number, active.position, active.entries, active.dead)
        path = segment_path(self._directory, active.number)
        return SyncWork(active.number, path, active.file.handle, footer, active.position)

    def _settle(
        self, covered: dict[int, set[ShardKey]], outcome: SyncOutcome, *, named: bool
    ) -> None:
        """After the worker's part of a sync: note what is durable, closed, or suspect."""
        for number, keys in covered.items():
            active = self._segments.active[number]
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
                self._segments.retire(active)
            else:
                active.named = active.named or named
            if active.closed is not None:
                active.closed.set()
                active.closed = None
        if outcome.directory is not None:
            self._segments.directory_changed = True

    def _sync_error(self, outcome: SyncOutcome) -> MediumError:
        errors = [*outcome.failed.values(), *([outcome.directory] if outcome.directory else [])]
        if errors:
            return medium_error(self._access.disk, "sync", errors[0])
        return MediumError(
            self._access.disk,
            "sync",
            f"{len(self._suspect)} shards were lost by an earlier failed sync",
        )

    async def _erase_superseded(self, replaced: list[Replaced]) -> None:
        if not replaced:
            return
        self._superseded.erased(replaced)
        try:
            await self.eraser.erase([place for _, place in replaced])
        except MediumError as error:
            self._access.check()
            # What the sync promised holds; only space is not given back.
            _log.warning("%s; the space of replaced shards is not freed", error)

    def _lies_in(self, key: ShardKey, number: int) -> bool:
        place = self._ledger.index.get(key)
        return place is not None and place.segment == number

"""The node's write-ahead log: many streams in one file sequence, each file on several disks.

Intuition: a record is durable when it is written and synced on every member of the current set.
A member that fails, or hangs for longer than the deadline, is dropped, and the record is written again
in a new file on a new set; only when no disk at all takes it does `append` fail. A file is never
written to after a restart: every `open` starts a file of a new incarnation, which declares where each
stream goes on (see `lineage`). Before that declaration, what recovery read is mended to full copies,
so that nothing that was replayed can be lost again with the one disk that held it.

Ownership: `append` has one caller at a time by design; a lock guards it and file changes.
`heal`, `trim` and closing of files exclude one another through a second lock, taken first.
Sections between awaits change the in-memory state only after the disks have answered.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from dwfs import limits
from dwfs.disk.medium import Medium
from dwfs.errors import NotEnoughDisksError, PosixError
from dwfs.log import format as fmt
from dwfs.log.files import ClosedFile, CurrentFile, Framed
from dwfs.log.healing import Healer, HealReport
from dwfs.log.lanes import HungError, Lanes
from dwfs.log.ports import LogDisk, RecordCipher
from dwfs.log.recovery import LogInventory, survey
from dwfs.log.selection import choose_members
from dwfs.log.settings import LogSettings
from dwfs.log.upkeep import Upkeep
from dwfs.log.verification import LogFinding
from dwfs.log.watching import Watch
from dwfs.log.writing import FileWriter
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId

ResultT = TypeVar("ResultT")

_INLINE_SEAL_MAX = 64 * limits.KIB  # larger payloads are sealed in a thread
_DROPPED = 2**64  # trim point of a stream that was forgotten
_ATTEMPTS_MAX = 2 * limits.POOL_DISKS_MAX  # files that one record is tried in


class LogStatus(msgspec.Struct, frozen=True):
    """What `dwfs status` shows of the log."""

    copies: int  # of the newest records
    copies_wanted: int
    members: tuple[DiskId, ...]
    files: int
    files_short: int  # closed files that are needed and have fewer copies than wanted
    size_bytes: int


class MirroredLog:
    """The log of one node. Made by `open`; not thread-safe: belongs to the loop."""

    def __init__(self, settings: LogSettings, inventory: LogInventory) -> None:
        """For `open` only."""
        assert settings.copies >= 1
        self._settings = settings
        self._incarnation = inventory.highest_incarnation + 1
        self._ciphers: dict[VolumeId, RecordCipher] = {}
        self._next = dict(inventory.tails)
        # A mount that could replay has no need of what comes before.
        self._trimmed: dict[VolumeId, int] = {
            stream: sequence - 1 for stream, sequence in inventory.begins.items()
        }
        self._closed = [ClosedFile.surveyed(file) for file in inventory.files]
        started = [file for file in inventory.files if file.facts.started]
        if started:
            # Before another file was begun, every record of this one was durable, or was repeated there.
            self._closed[inventory.files.index(started[-1])].unsettled = True
        self._current: CurrentFile | None = None
        self._rotation = self._incarnation
        self._suspects: set[DiskId] = set()
        self._writing = trio.Lock()
        self._maintenance = trio.Lock()
        self._lanes = Lanes(settings.make_executor, settings.deadline_seconds)
        self._files = FileWriter(settings, self._lanes, inventory.highest_sequence, self._report)
        self._healer = Healer(settings, self._lanes, self._closed, self._suspects, self._report)
        self._upkeep = Upkeep(
            settings, self._lanes, self._closed, self._trimmed, self._incarnation, self._report
        )

    @staticmethod
    def recover(
        directories: Mapping[DiskId, Path],
        pool: PoolId,
        header_cipher: RecordCipher,
        medium: Medium,
    ) -> LogInventory:
        """Find what the disks hold (blocks); then `inventory.replay(...)`, then `open`."""
        return survey(directories, pool, header_cipher, medium)

    @classmethod
    async def open(
        cls,
        settings: LogSettings,
        inventory: LogInventory,
        streams: Mapping[VolumeId, tuple[RecordCipher, LogSequence]],
    ) -> MirroredLog:
        """Mend what recovery found, then begin a file, then remove what nobody needs.

        `streams`: each open volume's cipher and the sequence of its next command.
        Raises PosixError EIO if no disk can take the log.
        """
        log = cls(settings, inventory)
        try:
            for stream, (cipher, sequence) in streams.items():
                log.add_stream(stream, cipher, sequence)
            await log._lanes.watched(log._start)
        except BaseException:  # whatever it was, no thread of the log stays behind
            await log.close()
            raise
        return log

    async def _start(self) -> None:
        async with self._maintenance:
            await self._healer.mend(self._trimmed)
            async with self._writing:
                await self._roll()
            await self._upkeep.remove_useless()

    async def watch(self) -> None:
        """Give up what hangs, for ever: a task that the log's owner runs beside it."""
        await self._lanes.watch()

    def expire(self, now: float) -> None:
        """What `watch` does every quarter of a second; `now`: monotonic seconds."""
        self._lanes.expire(now)

    def add_stream(self, stream: VolumeId, cipher: RecordCipher, sequence: LogSequence) -> None:
        """Let a volume append; its next command has that sequence."""
        assert len(stream) == 16, "a stream is a volume id"
        known = self._next.get(stream)
        if known is None:
            known = fmt.StreamStart(stream, 1, sequence, fmt.NO_IDENTITY)
        assert sequence >= known.sequence, "the volume did not replay its whole log"
        self._next[stream] = msgspec.structs.replace(known, sequence=sequence)
        self._ciphers[stream] = cipher

    def forget_stream(self, stream: VolumeId) -> None:
        """A volume was destroyed: its records may go with the next trim."""
        self._next.pop(stream, None)
        self._ciphers.pop(stream, None)
        self._trimmed[stream] = _DROPPED

    @property
    def size_bytes(self) -> int:
        """Bytes of all log files, counting each file once."""
        current = self._current.size if self._current is not None else 0
        return current + sum(file.size for file in self._closed)

    def status(self) -> LogStatus:
        """How well the log is kept."""
        members = tuple(self._current.handles) if self._current is not None else ()
        listed = {disk.disk for disk in self._settings.disks()}
        return LogStatus(
            copies=len(members),
            copies_wanted=self._settings.copies,
            members=members,
            files=len(self._closed) + (self._current is not None),
            files_short=sum(
                len(file.whole & listed) < self._settings.copies
                for file in self._closed
                if not file.disposable(self._trimmed)  # nobody mends what nobody needs
            ),
            size_bytes=self.size_bytes,
        )

    async def append(
        self, stream: VolumeId, payload: bytes, first: LogSequence, last: LogSequence
    ) -> None:
        """Make a record durable: synced on m+1 disks, or on as many as there are.

        `last == first - 1` for a record without commands. Raises PosixError EIO if not one disk
        could take it; the record then may or may not be there after a crash, and the same
        commands must come first in the next append.
        """
        assert len(payload) <= limits.LOG_RECORD_SIZE_MAX
        assert last >= first - 1
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            following = self._next[stream]
            assert first == following.sequence, "a stream's commands are contiguous"
            identity = self._settings.random_bytes(fmt.IDENTITY_SIZE)
            current = self._current
            if (
                current is None
                or current.size >= self._settings.file_size
                or not current.declares(following)
            ):
                self._suspects.clear()
                await self._guarded(self._roll)
            if self._lanes.is_watched:
                await self._append(following, identity, payload, last)
            else:
                await self._lanes.watched(partial(self._append, following, identity, payload, last))
            self._next[stream] = fmt.StreamStart(
                stream, following.position + 1, LogSequence(last + 1), identity
            )
        finally:
            self._writing.release()

    async def _append(
        self, start: fmt.StreamStart, identity: bytes, payload: bytes, last: LogSequence
    ) -> None:
        excluded: set[DiskId] = set()
        cipher = self._ciphers[start.stream]
        for _ in range(_ATTEMPTS_MAX):
            file = self._current
            assert file is not None
            draft = file.draft(start, identity, last)
            if len(payload) <= _INLINE_SEAL_MAX:
                framed = file.frame(draft, payload, cipher)
            else:
                try:
                    framed = await self._lanes.writer.run(_frame, file, draft, payload, cipher)
                except HungError:
                    self._lanes.replace_writer()
                    continue
            failures = await self._files.write(file, framed)
            if failures is not None:
                if not failures:
                    return
                excluded.update(failures)
                if file.handles and not self._spare(file, excluded):
                    return
            # The record is repeated under its old identity, so it counts once.
            await self._roll(excluded)
        raise PosixError(errno.EIO, "the log could not be written; check the pool's disks")

    def _report(self, failures: Mapping[DiskId, OSError]) -> None:
        self._suspects.update(failures)
        for disk, error in failures.items():
            self._settings.on_disk_failed(disk, error)

    def _disks(self) -> list[LogDisk]:
        """The disks that take copies now."""
        disks = list(self._settings.disks())
        self._lanes.note_listed({disk.disk for disk in disks})
        return disks

    def _spare(self, file: CurrentFile, excluded: set[DiskId]) -> bool:
        """Whether another disk could make up for a lost copy."""
        listed = {disk.disk for disk in self._settings.disks()}
        return len(file.handles) < self._settings.copies and bool(
            listed - excluded - set(file.handles)
        )

    async def _roll(self, excluded: set[DiskId] | None = None) -> None:
        """Close the current file and begin another, on a new set without the excluded disks.

        Takes whatever set works; retries with other disks while there are any. Shielded: a
        cancellation in the middle would lose the new file's handles.
        """
        with trio.CancelScope(shield=True):
            await self._roll_shielded(set() if excluded is None else excluded)

    async def _roll_shielded(self, excluded: set[DiskId]) -> None:
        for _ in range(_ATTEMPTS_MAX):
            self._retire()
            listed = [disk for disk in self._disks() if disk.disk not in excluded]
            self._rotation += 1
            members = choose_members(
                listed,
                self._settings.copies,
                self._rotation,
                self._suspects,
                2 * self._settings.file_size,
            )
            if not members:
                raise PosixError(errno.EIO, "no disk can take the log; check the pool's disks")
            file, failures = await self._begin(members)
            if file is not None:
                self._current = file
                if not failures:
                    framed = file.frame(file.draft_start(), b"", self._settings.header_cipher)
                    failures = await self._files.write(file, framed) or {}
                    if file.handles and not failures:
                        return
            excluded.update(failures)

        raise PosixError(errno.EIO, "no disk takes a new log file; check the pool's disks")

    async def _begin(
        self, members: list[LogDisk]
    ) -> tuple[CurrentFile | None, dict[DiskId, OSError]]:
        header = fmt.FileHeader(
            pool=self._settings.pool,
            file_id=self._settings.random_bytes(16),
            sequence=0,
            incarnation=self._incarnation,
            members=tuple(member.disk for member in members),
            starts=tuple(self._next[stream] for stream in sorted(self._next)),
        )
        self._upkeep.note_own(header.file_id)
        return await self._files.begin(members, header)

    def _retire(self) -> None:
        """Close the current file, if there is one."""
        file, self._current = self._current, None
        if file is not None:
            self._closed.append(ClosedFile.retired(file))
            self._files.finish(file)

    async def _guarded(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Make a call that a disk which hangs can't hold up, whether `watch` runs or not."""
        if self._lanes.is_watched:
            return await call()
        return await self._lanes.watched(call)

    async def close_current(self) -> None:
        """Begin a new file, so that all records so far can be trimmed."""
        async with self._maintenance, self._writing:
            if self._current is None or self._current.reach:
                self._suspects.clear()
                await self._guarded(self._roll)

    async def trim(self, stream: VolumeId, upto: LogSequence) -> None:
        """The stream's commands up to `upto` are elsewhere; remove the files nobody needs."""
        async with self._maintenance:
            self._trimmed[stream] = max(self._trimmed.get(stream, 0), upto)
            await self._guarded(self._upkeep.remove_useless)

    async def heal(self) -> HealReport:
        """Give every needed file its m+1 copies on the disks that are there now, and no others.

        Called whenever a disk failed, left, came back or is to leave. Adopts or removes what a disk
        brings that was away. Safe beside appends.
        """
        return await self._guarded(self._heal)

    async def _heal(self) -> HealReport:
        async with self._maintenance:
            async with self._writing:
                listed = {disk.disk for disk in self._disks()}
                file = self._current
                members = set(file.handles) if file is not None else set()
                if not members <= listed or len(members) < min(self._settings.copies, len(listed)):
                    await self._roll()
                header = self._current.header if self._current is not None else None
                horizon = self._upkeep.horizon(header, self._files.highest_sequence)
            useless = await self._upkeep.remove_useless()
            removed, notes = await self._upkeep.welcome(horizon)
            report = await self._healer.mend(self._trimmed)
        return msgspec.structs.replace(report, files_removed=useless + removed, notes=tuple(notes))

    def needs(self, disk: DiskId) -> int:
        """How many files would have too few copies without the disk. 0: it's dispensable."""
        current = self._current
        return self._upkeep.needs(disk) + (current is not None and disk in current.handles)

    async def drop_copies(self, disk: LogDisk) -> None:
        """Remove the log from a disk that is being removed. Call `heal` before.

        Raises NotEnoughDisksError if that would leave a file with fewer copies than the other disks
        can hold, MediumError if the disk fails.
        """
        async with self._maintenance:
            async with self._writing:
                if any(listed.disk == disk.disk for listed in self._settings.disks()):
                    raise NotEnoughDisksError(
                        f"disk {disk.disk.hex()[:8]} still takes new log files: it isn't being removed"
                    )
                if count := self.needs(disk.disk):
                    raise NotEnoughDisksError(
                        f"{count} log files still need their copies on disk {disk.disk.hex()[:8]}; "
                        "wait until the others have copies, or attach another disk"
                    )
            await self._guarded(partial(self._upkeep.drop, disk))

    def used_bytes(self, disk: DiskId) -> int:
        """What the log takes on a disk, as far as it knows."""
        used = sum(file.size for file in self._closed if disk in file.holders)
        current = self._current
        if current is not None and disk in current.handles:
            used += max(current.size, current.preallocation.ready)
        return used

    async def verify(self) -> list[LogFinding]:
        """Read and compare every copy of every file that is needed. Safe beside appends.

        The next `heal` mends the copies that were found bad. A file that grows is closed for that.
        """
        async with self._maintenance:
            async with self._writing:
                # Between appends every record is on all members.
                current = None if self._current is None else ClosedFile.retired(self._current)
            findings = await self._guarded(partial(self._upkeep.verify, current))
            if current is not None and current.doubted:
                await self._close_damaged(current)
            return findings

    async def _close_damaged(self, found: ClosedFile) -> None:
        """Close the current file, if it is still the one in which damaged copies were found."""
        async with self._writing:
            if self._current is not None and self._current.header.file_id == found.file_id:
                await self._guarded(self._roll)
            for file in self._closed:
                if file.file_id == found.file_id:
                    # Appends went on during the check, and may have lost members of their own.
                    file.whole &= found.whole
                    file.damaged |= found.damaged

    async def close(self) -> None:
        """Close files and join the threads. Everything appended is durable already.

        A disk that hangs delays it by the deadline at most; its thread is left behind.
        """
        with trio.CancelScope(shield=True):
            await self._lanes.watched(self._close)

    async def _close(self) -> None:
        async with self._maintenance, self._writing:
            self._retire()
            await self._lanes.close({disk.disk for disk in self._settings.disks()})


def _frame(
    _watch: Watch, file: CurrentFile, draft: fmt.RecordHeader, payload: bytes, cipher: RecordCipher
) -> Framed:
    return file.frame(draft, payload, cipher)

"""The node's write-ahead log: many streams in one file sequence, each file on several disks.

Intuition: a record is durable when it is written and synced on every member of the current set.
A member that fails is dropped, and the record is written again in a new file on a new set; only
when no disk at all takes it does `append` fail. A file is never written to after a restart: every
`open` starts a file of a new incarnation, which declares where each stream goes on (see
`lineage`). Before that declaration, what recovery read is mended to full copies, so that nothing
that was replayed can be lost again with the one disk that held it.

Ownership: `append` has one caller at a time by design; a lock guards it and file changes.
`heal`, `trim` and closing of files exclude one another through a second lock, taken first.
Sections between awaits change the in-memory state only after the disks have answered.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.log import copies as disk_copies
from dwfs.log import format as fmt
from dwfs.log.files import ClosedFile, CurrentFile, Framed
from dwfs.log.healing import Healer, HealReport
from dwfs.log.medium import Medium
from dwfs.log.ports import (
    Executor,
    LogDisk,
    RecordCipher,
)
from dwfs.log.preallocation import RECORD_SIZE_MAX as PREALLOCATING_RECORD_SIZE_MAX
from dwfs.log.preallocation import SPACE_SHARE
from dwfs.log.recovery import LogInventory, survey
from dwfs.log.selection import SyncEstimator, choose_members
from dwfs.log.settings import LogSettings
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId

_INLINE_SEAL_MAX = 64 * limits.KIB  # larger payloads are sealed in a thread
_DROPPED = 2**64  # trim point of a stream that was forgotten


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
        self._medium = settings.medium
        self._incarnation = inventory.highest_incarnation + 1
        self._highest_sequence = inventory.highest_sequence
        self._ciphers: dict[VolumeId, RecordCipher] = {}
        self._next = dict(inventory.tails)
        self._trimmed: dict[VolumeId, int] = {}
        self._closed = [ClosedFile.surveyed(file) for file in inventory.files]
        self._current: CurrentFile | None = None
        self._rotation = self._incarnation
        self._suspects: set[DiskId] = set()
        self._estimator = SyncEstimator()
        self._writing = trio.Lock()
        self._maintenance = trio.Lock()
        self._writer = settings.make_executor("log")
        self._maintainer = settings.make_executor("log-maintenance")
        self._parallel: dict[DiskId, Executor] = {}
        self._healer = Healer(
            settings, self._maintainer, self._closed, self._suspects, self._report
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
        """Mend what recovery found, then begin a file.

        `streams`: each open volume's cipher and the sequence of its next command.
        Raises PosixError EIO if no disk can take the log.
        """
        log = cls(settings, inventory)
        try:
            for stream, (cipher, sequence) in streams.items():
                log.add_stream(stream, cipher, sequence)
            await log._healer.mend(log._trimmed)
            async with log._writing:
                await log._roll()
        except BaseException:
            await log.close()
            raise
        return log

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
                await self._roll()
            await self._append(following, identity, payload, last)
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
        while True:
            file = self._current
            assert file is not None
            draft = file.draft(start, identity, last)
            if len(payload) <= _INLINE_SEAL_MAX:
                framed = file.frame(draft, payload, cipher)
            else:
                framed = await self._writer.run(file.frame, draft, payload, cipher)
            failures = await self._write(file, framed)
            if not failures:
                return
            excluded.update(failures)
            if file.handles and not self._spare(file, excluded):
                return
            # The record is repeated under its old identity, so it counts once.
            await self._roll(excluded)

    async def _write(self, file: CurrentFile, framed: Framed) -> dict[DiskId, OSError]:
        """Write a record to all members; those that fail are dropped, reported and returned."""
        buffers = (framed.head, framed.sealed)
        if len(file.handles) == 1 or self._estimator.sequential(file.handles, framed.length):
            alone = True
            results = await self._writer.run(
                disk_copies.write_copies,
                self._medium,
                file.handles,
                file.size,
                buffers,
                file.preallocation,
            )
        else:
            alone = False
            results = await self._write_parallel(file, buffers)
        failures: dict[DiskId, OSError] = {}
        for disk, seconds, error in results:
            if error is None:
                self._estimator.observe(disk, seconds, framed.length, alone=alone)
            else:
                failures[disk] = error
        if failures:
            disk_copies.close_handles(self._medium, [file.handles.pop(disk) for disk in failures])
            self._report(failures)
        if file.handles:
            file.advance(framed)
            if (
                file.preallocation.is_short(file.size, self._settings.preallocation_size)
                and framed.length <= PREALLOCATING_RECORD_SIZE_MAX
            ):
                self._preallocate(file)
        else:
            file.last_holders = frozenset(failures)
        return failures

    async def _write_parallel(
        self, file: CurrentFile, buffers: tuple[bytes, bytes]
    ) -> list[tuple[DiskId, float, OSError | None]]:
        results: list[tuple[DiskId, float, OSError | None]] = []

        async def write_one(disk: DiskId, handle: int) -> None:
            if disk not in self._parallel:
                self._parallel[disk] = self._settings.make_executor(f"log-{disk.hex()[:8]}")
            results.extend(
                await self._parallel[disk].run(
                    disk_copies.write_copies,
                    self._medium,
                    {disk: handle},
                    file.size,
                    buffers,
                    file.preallocation,
                )
            )

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for disk, handle in file.handles.items():
                    nursery.start_soon(write_one, disk, handle)
        return results

    def _preallocate(self, file: CurrentFile) -> None:
        """Have the next zeros written, as many as the fullest member has room for."""
        room = min(
            (disk.available_bytes for disk in self._settings.disks() if disk.disk in file.handles),
            default=0,
        )
        step = min(self._settings.preallocation_size, room // SPACE_SHARE)
        if end := file.preallocation.plan(file.size, step):
            self._maintainer.post(file.preallocation.fill, self._medium, end)

    def _report(self, failures: Mapping[DiskId, OSError]) -> None:
        self._suspects.update(failures)
        for disk, error in failures.items():
            self._settings.on_disk_failed(disk, error)

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
        while True:
            await self._retire()
            listed = [disk for disk in self._settings.disks() if disk.disk not in excluded]
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
            if not failures:
                framed = file.frame(file.draft_start(), b"", self._settings.header_cipher)
                failures = await self._write(file, framed)
            self._current = file if file.handles else None
            if self._current is not None and not failures:
                return
            excluded.update(failures)

    async def _begin(self, members: list[LogDisk]) -> tuple[CurrentFile, dict[DiskId, OSError]]:
        header = fmt.FileHeader(
            pool=self._settings.pool,
            file_id=self._settings.random_bytes(16),
            sequence=0,
            incarnation=self._incarnation,
            members=tuple(member.disk for member in members),
            starts=tuple(self._next[stream] for stream in sorted(self._next)),
        )
        cipher = self._settings.header_cipher

        def encode(sequence: int) -> tuple[bytes, bytes]:
            numbered = msgspec.structs.replace(header, sequence=sequence)
            # The tag's length is part of what it authenticates; sealing nothing tells it.
            length = len(cipher.seal(b"", b""))
            aad = fmt.file_header_aad(numbered, length)
            return fmt.encode_file_header(aad, cipher.seal(b"", aad))

        begun = await self._writer.run(
            disk_copies.begin_file, self._medium, members, self._highest_sequence, encode
        )
        self._highest_sequence = begun.sequence
        header = msgspec.structs.replace(header, sequence=begun.sequence)
        file = CurrentFile(header, begun, self._settings.file_size)
        if begun.failures:
            self._report(begun.failures)
        return file, begun.failures

    async def _retire(self) -> None:
        """Close the current file, if there is one."""
        file, self._current = self._current, None
        if file is not None:
            self._closed.append(ClosedFile.retired(file))
            handles = list(file.handles.values())
            await self._writer.run(
                disk_copies.finish_file, self._medium, handles, file.size, file.preallocation
            )

    async def close_current(self) -> None:
        """Begin a new file, so that all records so far can be trimmed."""
        async with self._maintenance, self._writing:
            if self._current is None or self._current.reach:
                self._suspects.clear()
                await self._roll()

    async def trim(self, stream: VolumeId, upto: LogSequence) -> None:
        """The stream's commands up to `upto` are elsewhere; remove the files nobody needs."""
        async with self._maintenance:
            self._trimmed[stream] = max(self._trimmed.get(stream, 0), upto)
            useless = [file for file in self._closed if file.disposable(self._trimmed)]
            if not useless:
                return
            # A disk that was away may have brought another file of the same name.
            kept = {file.sequence for file in self._closed if file not in useless}
            gone = {file.sequence for file in useless} - kept
            with trio.CancelScope(shield=True):
                failures = await self._maintainer.run(
                    disk_copies.remove_files,
                    self._medium,
                    sorted(gone),
                    list(self._settings.disks()),
                )
            self._closed[:] = [file for file in self._closed if file.sequence not in gone]
            if failures:
                self._report(failures)

    async def heal(self) -> HealReport:
        """Give every needed file its m+1 copies again on the disks that are there now.

        Called when a disk failed, left or came. Safe beside appends.
        """
        async with self._maintenance:
            async with self._writing:
                listed = {disk.disk for disk in self._settings.disks()}
                file = self._current
                members = set(file.handles) if file is not None else set()
                if not members <= listed or len(members) < min(self._settings.copies, len(listed)):
                    await self._roll()
            return await self._healer.mend(self._trimmed)

    async def close(self) -> None:
        """Close files and join the threads. Everything appended is durable already."""
        with trio.CancelScope(shield=True):
            async with self._maintenance, self._writing:
                await self._retire()
        for executor in (self._writer, self._maintainer, *self._parallel.values()):
            executor.close()

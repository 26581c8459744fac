"""The file that grows: beginning it on its members, writing records to it, letting it go.

A member that fails or hangs is dropped and reported; what then becomes of the record is the log's
decision. Records go to fast disks one after another in one thread, to slow disks in parallel (see
`selection`). If the one thread hangs, it does so with the handles of all members, so the whole file is
given up: its members keep what was acknowledged, and all but the one that hung may take part in the
next file.

Every handle is closed by the thread that may still be using it, in its turn.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import trio

from dwfs.log import copies as disk_copies
from dwfs.log import format as fmt
from dwfs.log.copies import Begun
from dwfs.log.files import CurrentFile, Framed
from dwfs.log.lanes import HungError, Lanes
from dwfs.log.ports import LogDisk
from dwfs.log.preallocation import RECORD_SIZE_MAX as PREALLOCATING_RECORD_SIZE_MAX
from dwfs.log.preallocation import SPACE_SHARE
from dwfs.log.selection import SyncEstimator
from dwfs.log.settings import LogSettings
from dwfs.types import DiskId

ResultT = TypeVar("ResultT")
Failures = dict[DiskId, OSError]


class FileWriter:
    """Does the log's writing. Its user sees to it that there is one call at a time."""

    def __init__(
        self,
        settings: LogSettings,
        lanes: Lanes,
        highest_sequence: int,
        report: Callable[[Mapping[DiskId, OSError]], None],
    ) -> None:
        self._settings = settings
        self._medium = settings.medium
        self._lanes = lanes
        self.highest_sequence = highest_sequence  # of all files that were ever seen
        self._report = report
        self._estimator = SyncEstimator()

    async def begin(
        self, members: Sequence[LogDisk], header: fmt.FileHeader
    ) -> tuple[CurrentFile | None, Failures]:
        """Create a file on the members, durably; None if none took it. Reports failures.

        Its sequence is above all that were ever seen; the header's is ignored.
        """
        found, failures = await self._on_each(
            members,
            lambda member: self._lanes.of(member.disk).run(
                disk_copies.highest_sequence, self._medium, member.directory
            ),
        )
        self.highest_sequence = max([self.highest_sequence, *found.values()]) + 1
        header = msgspec.structs.replace(header, sequence=self.highest_sequence)
        encoded, digest = self._encode(header)
        paths = {
            member.disk: disk_copies.log_path(member.directory, header.sequence)
            for member in members
            if member.disk in found
        }
        handles, more = await self._on_each(
            [member for member in members if member.disk in found],
            lambda member: self._lanes.of(member.disk).run(
                disk_copies.begin_copy, self._medium, paths[member.disk], encoded
            ),
        )
        failures.update(more)
        if failures:
            self._report(failures)
        if not handles:
            return None, failures
        begun = Begun(
            header.sequence,
            len(encoded),
            digest,
            {member.disk: handles[member.disk] for member in members if member.disk in handles},
            {disk: paths[disk] for disk in handles},
        )
        return CurrentFile(header, begun, self._settings.file_size), failures

    async def write(self, file: CurrentFile, framed: Framed) -> Failures | None:
        """Write a record to all members, durably.

        Those that fail are dropped, reported and returned. None: nothing failed, but the thread got
        no turn for so long that the file was given up.
        """
        buffers = (framed.head, framed.sealed)
        if len(file.handles) == 1 or self._estimator.sequential(file.handles, framed.length):
            alone = True
            try:
                results = await self._lanes.writer.run(
                    disk_copies.write_copies,
                    self._medium,
                    file.handles,
                    file.size,
                    buffers,
                    file.preallocation,
                    self._settings.stopwatch,
                )
            except HungError as hung:
                return self._give_up(file, hung)
        else:
            alone = False
            results = await self._write_parallel(file, buffers)
        failures: Failures = {}
        for disk, seconds, error in results:
            if error is None:
                self._estimator.observe(disk, seconds, framed.length, alone=alone)
            else:
                failures[disk] = error
        if failures:
            self._drop(file, failures)
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

    def finish(self, file: CurrentFile) -> None:
        """The file gets no more records. Its handles are closed in the background."""
        file.preallocation.close()
        for disk, handle in file.handles.items():
            self._lanes.of(disk).post(
                disk_copies.finish_copy,
                self._medium,
                disk,
                handle,
                file.size,
                file.preallocation,
            )

    def _encode(self, header: fmt.FileHeader) -> tuple[bytes, bytes]:
        """(bytes of the header, its digest)."""
        cipher = self._settings.header_cipher
        # The tag's length is part of what it authenticates; sealing nothing tells it.
        length = len(cipher.seal(b"", b""))
        aad = fmt.file_header_aad(header, length)
        return fmt.encode_file_header(aad, cipher.seal(b"", aad))

    async def _on_each(
        self, members: Sequence[LogDisk], call: Callable[[LogDisk], Awaitable[ResultT]]
    ) -> tuple[dict[DiskId, ResultT], Failures]:
        """Call it for all members at once: results and failures."""
        results: dict[DiskId, ResultT] = {}
        failures: Failures = {}

        async def call_one(member: LogDisk) -> None:
            try:
                results[member.disk] = await call(member)
            except HungError as hung:
                failures[member.disk] = hung.cause
            except OSError as error:
                failures[member.disk] = error

        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(call_one, member)
        return results, failures

    async def _write_parallel(
        self, file: CurrentFile, buffers: tuple[bytes, bytes]
    ) -> list[tuple[DiskId, float, OSError | None]]:
        results: list[tuple[DiskId, float, OSError | None]] = []

        async def write_one(disk: DiskId, handle: int) -> None:
            try:
                results.extend(
                    await self._lanes.of(disk).run(
                        disk_copies.write_copies,
                        self._medium,
                        {disk: handle},
                        file.size,
                        buffers,
                        file.preallocation,
                        self._settings.stopwatch,
                    )
                )
            except HungError as hung:
                results.append((disk, 0.0, hung.cause))

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for disk, handle in file.handles.items():
                    nursery.start_soon(write_one, disk, handle)
        return results

    def _drop(self, file: CurrentFile, failures: Failures) -> None:
        """Go on without the disks that failed."""
        if any(error.errno == errno.ETIMEDOUT for error in failures.values()):
            self._lanes.replace_filler()  # it may hang there, too
        for disk in failures:
            self._lanes.of(disk).post(self._medium.close, file.handles.pop(disk))
        self._report(failures)

    def _give_up(self, file: CurrentFile, hung: HungError) -> Failures | None:
        """The one thread hangs, and with it all handles of the file.

        They are closed when it comes back, and nothing is cut off then: that may be after another
        mount has found the record there and counts on it.
        """
        file.preallocation.close()
        file.last_holders = frozenset(file.handles)
        stuck = self._lanes.writer
        for handle in file.handles.values():
            stuck.post(self._medium.close, handle)
        file.handles = {}
        self._lanes.replace_writer()
        self._lanes.replace_filler()
        if hung.disk is None:
            return None
        failures = {hung.disk: hung.cause}
        self._report(failures)
        return failures

    def _preallocate(self, file: CurrentFile) -> None:
        """Have the next zeros written, as many as the fullest member has room for."""
        room = min(
            (disk.available_bytes for disk in self._settings.disks() if disk.disk in file.handles),
            default=0,
        )
        step = min(self._settings.preallocation_size, room // SPACE_SHARE)
        if end := file.preallocation.plan(file.size, step):
            disks = list(file.handles)
            self._lanes.filler.post(file.preallocation.fill, self._medium, disks, end)

"""State snapshots of one volume, as their owner on the loop uses them.

Everything blocks in one worker thread under the same watch as the log's (`dwfs.log.lanes`): a disk that
hangs is reported and left out, and the work is done again with the others, in a new thread. One call
at a time; the keeper's lock sees to it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import msgspec
import trio

from dwfs.disk.medium import Medium
from dwfs.errors import MediumError, NotEnoughDisksError, PosixError
from dwfs.log import snapshot_format as fmt
from dwfs.log.lanes import HungError, Lane
from dwfs.log.ports import LogDisk, RecordCipher
from dwfs.log.selection import choose_members
from dwfs.log.settings import LogSettings
from dwfs.log.snapshot_copies import SnapshotReport, mend_snapshot, remove_snapshots
from dwfs.log.snapshot_reader import remove_older
from dwfs.log.snapshot_writer import SnapshotResult, write_snapshot
from dwfs.log.watching import Watch
from dwfs.types import DiskId, LogSequence, VolumeId

ResultT = TypeVar("ResultT")
ArgumentTs = TypeVarTuple("ArgumentTs")
Pairs = Callable[[], Iterable[tuple[bytes, bytes]]]


class SnapshotKeeper:
    """Writes, mends and removes a volume's snapshots on the disks that the log uses, too."""

    def __init__(self, settings: LogSettings, volume: VolumeId, cipher: RecordCipher) -> None:
        self._settings = settings
        self._volume = volume
        self._cipher = cipher
        self._lane = Lane(settings.make_executor("snapshots"))
        self._busy = trio.Lock()
        self._holders: frozenset[DiskId] | None = None  # None: not known yet
        self._size_bytes = 0

    async def write(
        self,
        header: fmt.SnapshotHeader,
        pairs: Pairs,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> SnapshotResult:
        """Write a snapshot to m+1 disks, or as many as there are; `pairs` is called in the thread.

        `header.snapshot_id` is replaced. Failing disks are reported. Raises NoSpaceError if no disk
        takes it, SnapshotStoppedError if asked to stop.
        """
        async with self._busy:
            excluded: dict[DiskId, OSError] = {}
            while True:
                listed = [one for one in self._settings.disks() if one.disk not in excluded]
                ranked = choose_members(
                    listed, len(listed), header.sequence, set(), 2 * self._size_bytes
                )
                # Of its own for each attempt: two of them differ in every sealed byte.
                unique = msgspec.structs.replace(
                    header, snapshot_id=self._settings.random_bytes(16)
                )
                try:
                    result = await self._run(self._write, unique, pairs, ranked, should_stop)
                    break
                except HungError as hung:
                    self._note(hung, excluded)
            for disk, error in result.failures.items():
                self._settings.on_disk_failed(disk, error)
            self._holders = frozenset(result.disks)
            self._size_bytes = result.size_bytes
            return msgspec.structs.replace(result, failures=excluded | result.failures)

    async def heal(self, *, thorough: bool = False) -> SnapshotReport:
        """Give the newest snapshot m+1 copies on the disks that are there, and drop older ones.

        Call it after mounting, and whenever a disk failed, left, came back or is to be removed. Reads
        the snapshot only if copies are wanting, or if `thorough`: then damaged ones are found, too.
        """
        async with self._busy:
            excluded: dict[DiskId, OSError] = {}
            while True:
                disks = [one for one in self._settings.disks() if one.disk not in excluded]
                readable = {
                    disk: one.directory
                    for disk, one in self._settings.readable_disks().items()
                    if disk not in excluded
                }
                try:
                    report = await self._run(
                        mend_snapshot,
                        self._settings.medium,
                        readable,
                        disks,
                        self._settings.copies,
                        (self._settings.pool, self._volume),
                        self._cipher,
                        thorough,
                    )
                    break
                except HungError as hung:
                    self._note(hung, excluded)
            for disk, error in report.failures.items():
                self._settings.on_disk_failed(disk, error)
            self._holders = frozenset(report.holders)
            self._size_bytes = report.size_bytes
            if report.sequence is not None and not report.short:
                await self._remove_older(report.sequence)
            return msgspec.structs.replace(report, failures=excluded | report.failures)

    async def remove_older(self, sequence: LogSequence) -> None:
        """Remove snapshots below that sequence, and unfinished ones; failures are reported."""
        async with self._busy:
            await self._remove_older(sequence)

    def needs(self, disk: DiskId) -> bool:
        """Whether the newest snapshot would have too few copies without the disk.

        True until `heal` or `write` has told where they are.
        """
        if self._holders is None:
            return True
        others = {one.disk for one in self._settings.disks()} - {disk}
        enough = max(1, min(self._settings.copies, len(others)))
        return bool(self._size_bytes) and len(self._holders & others) < enough

    async def drop_copies(self, disk: LogDisk) -> None:
        """Remove all snapshots from a disk that is being removed. Call `heal` before.

        Raises NotEnoughDisksError if they are needed there, MediumError if the disk fails.
        """
        async with self._busy:
            if self.needs(disk.disk):
                raise NotEnoughDisksError(
                    f"the state snapshot needs its copy on disk {disk.disk.hex()[:8]}; wait until the "
                    "others have copies, or attach another disk"
                )
            try:
                await self._run(remove_snapshots, self._settings.medium, disk, self._volume)
            except HungError as hung:
                self._replace_lane()
                raise MediumError(disk.disk, "removing snapshots", str(hung)) from hung
            except OSError as error:
                raise MediumError(disk.disk, "removing snapshots", str(error)) from error
            self._holders = (self._holders or frozenset()) - {disk.disk}

    def used_bytes(self, disk: DiskId) -> int:
        """What the newest snapshot takes on a disk, as far as the keeper knows."""
        return self._size_bytes if self._holders is not None and disk in self._holders else 0

    async def close(self) -> None:
        """End the thread, or leave it behind if it hangs. Have a running `write` stopped before."""
        with trio.CancelScope(shield=True):
            async with self._busy:
                await self._lane.close(self._settings.deadline_seconds)

    async def _remove_older(self, sequence: LogSequence) -> None:
        excluded: dict[DiskId, OSError] = {}
        while True:
            directories = {
                one.disk: one.directory
                for one in self._settings.disks()
                if one.disk not in excluded
            }
            try:
                failures = await self._run(
                    _remove_older, directories, self._volume, sequence, self._settings.medium
                )
                break
            except HungError as hung:
                self._note(hung, excluded)
        for disk, error in failures.items():
            self._settings.on_disk_failed(disk, error)

    async def _run(
        self, function: Callable[[Watch, *ArgumentTs], ResultT], *arguments: *ArgumentTs
    ) -> ResultT:
        return await self._lane.run_watched(self._settings.deadline_seconds, function, *arguments)

    def _write(
        self,
        watch: Watch,
        header: fmt.SnapshotHeader,
        pairs: Pairs,
        disks: list[LogDisk],
        should_stop: Callable[[], bool],
    ) -> SnapshotResult:
        """In the thread."""
        return write_snapshot(
            header,
            pairs(),
            self._cipher,
            disks,
            self._settings.copies,
            medium=self._settings.medium,
            should_stop=should_stop,
            watch=watch,
        )

    def _note(self, hung: HungError, excluded: dict[DiskId, OSError]) -> None:
        """Go on in a new thread, without the disk that hangs."""
        self._replace_lane()
        if hung.disk is None:
            raise PosixError(
                errno.EIO, "the state snapshot made no progress; it is tried again later"
            )
        excluded[hung.disk] = hung.cause
        self._settings.on_disk_failed(hung.disk, hung.cause)

    def _replace_lane(self) -> None:
        self._lane.abandon()
        self._lane = Lane(self._settings.make_executor("snapshots"))


def _remove_older(
    watch: Watch,
    directories: dict[DiskId, Path],
    volume: VolumeId,
    sequence: LogSequence,
    medium: Medium,
) -> dict[DiskId, OSError]:
    return remove_older(directories, volume, sequence, medium, watch)

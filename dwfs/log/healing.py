"""Giving closed files back the copies they lost, from what the other copies still hold.

A file is mended until it has m+1 whole copies on disks that are there, or no disk is left to take
one. Disks that fail on the way are reported and left out. A file broken in the middle on all
copies is not touched: it is evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import trio

from dwfs.log import copies as disk_copies
from dwfs.log import format as fmt
from dwfs.log.files import ClosedFile
from dwfs.log.ports import Executor, LogDisk
from dwfs.log.selection import choose_members
from dwfs.log.settings import LogSettings
from dwfs.types import DiskId, VolumeId


class HealReport(msgspec.Struct, frozen=True):
    """What `heal` did and could not do."""

    files_mended: int
    files_short: int  # still with fewer copies than wanted
    files_unreadable: int  # no longer readable from the disks that are there


class Healer:
    """Works on the log's own list of closed files; the log sees to it that `trim` waits."""

    def __init__(
        self,
        settings: LogSettings,
        executor: Executor,
        closed: list[ClosedFile],
        suspects: set[DiskId],
        report: Callable[[Mapping[DiskId, OSError]], None],
    ) -> None:
        self._settings = settings
        self._medium = settings.medium
        self._executor = executor
        self._closed = closed
        self._suspects = suspects
        self._report = report

    async def mend(self, trimmed: Mapping[VolumeId, int]) -> HealReport:
        """Mend all files that some stream still needs; `trimmed` tells the streams' trim points."""
        mended = short = unreadable = 0
        for file in list(self._closed):
            if file.broken or file.disposable(trimmed):
                continue
            changed, readable = await self._mend_file(file)
            listed = {disk.disk for disk in self._settings.disks()}
            mended += changed
            unreadable += not readable
            short += len(file.whole & listed) < self._settings.copies
        return HealReport(mended, short, unreadable)

    async def _mend_file(self, file: ClosedFile) -> tuple[bool, bool]:
        """(whether anything was written, whether the file can be read)."""
        failed: set[DiskId] = set()
        changed = False
        while True:
            listed = {disk.disk: disk for disk in self._settings.disks()}
            usable = {disk: item for disk, item in listed.items() if disk not in failed}
            sources = (file.whole | file.damaged) & set(usable)
            wanted = min(self._settings.copies, len(usable)) - len(sources)
            namesakes = {
                disk
                for other in self._closed
                if other is not file and other.sequence == file.sequence
                for disk in other.whole | other.damaged
            }
            taken = sources | namesakes
            spare = [item for disk, item in usable.items() if disk not in taken]
            targets = choose_members(
                spare, max(wanted, 0), file.sequence, self._suspects, 2 * file.size
            )
            if not sources:
                return changed, bool(file.whole & set(listed))
            if not targets and not file.damaged & sources:
                return changed, True
            name = fmt.file_name(file.sequence)
            with trio.CancelScope(shield=True):
                result = await self._executor.run(
                    disk_copies.mend_file,
                    self._medium,
                    {disk: file_path(usable[disk], name) for disk in sources},
                    {target.disk: file_path(target, name) for target in targets},
                    file.size,
                )
            if not result.complete:
                return changed, False
            changed = True
            file.whole = (file.whole - sources) | result.whole
            file.damaged -= result.whole
            failed.update(result.failures)
            failed.update(sources - result.whole)
            if result.failures:
                self._report(result.failures)


def file_path(disk: LogDisk, name: str) -> Path:
    """Where a disk keeps a log file."""
    return disk.directory / disk_copies.LOG_DIRECTORY / name

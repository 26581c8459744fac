"""Giving closed files back the copies they lost, from what the other copies still hold.

A file is mended until it has m+1 whole copies on disks that take copies, or no disk is left to take
one. Disks that are failing or on their way out are read, and count for nothing. Disks that fail or
hang on the way are reported and left out. A file broken in the middle on all copies is not touched:
it is evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import trio

from dwfs.log.copies import log_path
from dwfs.log.files import ClosedFile
from dwfs.log.lanes import HungError, Lanes
from dwfs.log.mending import Mended, mend_file
from dwfs.log.ports import LogDisk
from dwfs.log.selection import choose_members
from dwfs.log.settings import LogSettings
from dwfs.types import DiskId, VolumeId

_SURRENDERS_MAX = 3  # attempts at one file that ended though no disk was to blame


class HealReport(msgspec.Struct, frozen=True):
    """What `heal` did and could not do."""

    files_mended: int
    files_short: int  # still with fewer copies than wanted
    files_unreadable: int  # no longer readable from the disks that are there
    files_removed: int = 0  # that nobody needs, or that a disk which was away brought back
    notes: tuple[str, ...] = ()  # what was left alone, for the operator


class Healer:
    """Works on the log's own list of closed files; the log sees to it that `trim` waits."""

    def __init__(
        self,
        settings: LogSettings,
        lanes: Lanes,
        closed: list[ClosedFile],
        suspects: set[DiskId],
        report: Callable[[Mapping[DiskId, OSError]], None],
    ) -> None:
        self._settings = settings
        self._lanes = lanes
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
        surrenders = 0
        while True:
            listed = {disk.disk: disk for disk in self._settings.disks()}
            readable = self._settings.readable_disks()
            for disk in failed:
                listed.pop(disk, None)
                readable.pop(disk, None)
            sources = file.holders & set(readable)
            kept = sources & set(listed)
            wanted = min(self._settings.copies, len(listed)) - len(kept)
            taken = sources | self._namesakes(file)
            spare = [item for disk, item in listed.items() if disk not in taken]
            targets = choose_members(
                spare, max(wanted, 0), file.sequence, self._suspects, 2 * file.size
            )
            if not sources:
                # Disks that just failed may work again tomorrow; they aren't the file's end.
                return changed, bool(file.whole & failed)
            if not targets and not file.damaged & kept and not file.unsettled:
                return changed, True
            try:
                result = await self._attempt(file, sources, kept, targets, readable)
            except HungError as hung:
                self._lanes.replace_maintainer()
                surrenders += 1
                if hung.disk is not None:
                    failed.add(hung.disk)
                    self._report({hung.disk: hung.cause})
                elif surrenders >= _SURRENDERS_MAX:
                    return changed, True  # the machine is too busy; `heal` comes again
                continue
            if not result.complete:
                return changed, False
            changed = True
            file.unsettled = False
            file.whole = (file.whole - kept) | (result.whole - (sources - kept))
            file.damaged -= result.whole
            failed.update(result.failures)
            failed.update(kept - result.whole)
            if result.failures:
                self._report(result.failures)

    def _namesakes(self, file: ClosedFile) -> set[DiskId]:
        """Disks where another file bears the same name."""
        return {
            disk
            for other in self._closed
            if other is not file and other.sequence == file.sequence
            for disk in other.holders
        }

    async def _attempt(
        self,
        file: ClosedFile,
        sources: frozenset[DiskId],
        kept: frozenset[DiskId],
        targets: list[LogDisk],
        readable: Mapping[DiskId, LogDisk],
    ) -> Mended:
        with trio.CancelScope(shield=True):
            result = await self._lanes.maintainer.run(
                mend_file,
                self._settings.medium,
                {disk: log_path(readable[disk].directory, file.sequence) for disk in sources},
                sources - kept,
                {target.disk: log_path(target.directory, file.sequence) for target in targets},
                file.size,
                file.unsettled,
            )
        return result

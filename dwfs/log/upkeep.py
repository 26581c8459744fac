"""The closed files: which are needed, where their copies are, and what goes from which disk.

All work is done in the disks' background lanes, one file a call, so that one disk that hangs delays
the rest by the deadline at most, and then no more. Nothing is removed from a disk that does not take
copies; what it keeps is found and judged when it comes back (see `returning`).

The log's maintenance lock is held throughout: there is one call at a time, and no closed file is
mended meanwhile.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from dwfs.disk.medium import Medium
from dwfs.errors import MediumError, PosixError
from dwfs.log import copies as disk_copies
from dwfs.log import format as fmt
from dwfs.log.copies import LOG_DIRECTORY
from dwfs.log.files import ClosedFile
from dwfs.log.lanes import HungError, Lanes
from dwfs.log.ports import LogDisk
from dwfs.log.returning import Found, look, reason_to_keep, reason_to_keep_headless
from dwfs.log.settings import LogSettings
from dwfs.log.verification import CopyState, LogFinding, describe, examine_copies
from dwfs.log.watching import Watch
from dwfs.types import DiskId, VolumeId

ItemT = TypeVar("ItemT")


class Horizon(msgspec.Struct, frozen=True):
    """The files of this log at one moment: what was begun later is nobody's to judge."""

    live_ids: frozenset[bytes]  # closed and needed, or growing
    useless_ids: frozenset[bytes]  # made and done with
    highest_sequence: int

    def hides(self, found: Found, own_ids: Set[bytes]) -> bool:
        """Whether the file is live, or may be one that is just being begun."""
        if found.file_id is None:
            sequence = fmt.parse_file_name(found.name)
            return sequence is not None and sequence > self.highest_sequence
        return found.file_id in self.live_ids or found.file_id in own_ids - self.useless_ids


class Upkeep:
    """Works on the log's own list of closed files and trim points."""

    def __init__(
        self,
        settings: LogSettings,
        lanes: Lanes,
        closed: list[ClosedFile],
        trimmed: dict[VolumeId, int],
        incarnation: int,
        report: Callable[[Mapping[DiskId, OSError]], None],
    ) -> None:
        self._settings = settings
        self._lanes = lanes
        self._closed = closed
        self._trimmed = trimmed
        self._incarnation = incarnation
        self._report = report
        self._own_ids: set[bytes] = set()

    def note_own(self, file_id: bytes) -> None:
        """This log has made a file."""
        self._own_ids.add(file_id)

    def needed(self) -> list[ClosedFile]:
        """Files that some stream still needs."""
        return [file for file in self._closed if not file.disposable(self._trimmed)]

    def needs(self, disk: DiskId) -> int:
        """Needed files that would have too few copies without the disk."""
        others = {listed.disk for listed in self._settings.disks()} - {disk}
        enough = max(1, min(self._settings.copies, len(others)))
        return sum(
            disk in file.holders and len(file.whole & others) < enough for file in self.needed()
        )

    async def remove_useless(self) -> int:
        """Remove the files nobody needs from the disks that take copies; returns how many."""
        needed = self.needed()
        useless = [file for file in self._closed if file not in needed]
        if not useless:
            return 0
        # A disk that was away may have brought another file of the same name.
        kept = {(file.sequence, disk) for file in needed for disk in file.holders}
        names = {file.sequence for file in needed}

        def doomed(disk: LogDisk) -> list[Path]:
            return [
                disk_copies.log_path(disk.directory, file.sequence)
                for file in sorted(useless, key=lambda file: file.sequence)
                if (file.sequence, disk.disk) not in kept
                and (file.sequence not in names or disk.disk in file.holders)
            ]

        listed = self._settings.disks()
        await self._remove({disk.disk: doomed(disk) for disk in listed})
        # An append may have closed another file meanwhile.
        self._closed[:] = [file for file in self._closed if file not in useless]
        return len(useless)

    def horizon(self, current: fmt.FileHeader | None, highest_sequence: int) -> Horizon:
        """What `welcome` may judge; call it while no file is being begun."""
        ids = {file.file_id for file in self._closed}
        if current is not None:
            ids.add(current.file_id)
        return Horizon(frozenset(ids), frozenset(self._own_ids - ids), highest_sequence)

    async def welcome(self, horizon: Horizon) -> tuple[int, list[str]]:
        """Adopt or remove what disks brought that were away: (files removed, notes).

        Appends go on meanwhile and begin files; those are beyond the horizon.
        """
        known = {file.file_id: file for file in self._closed}
        listed = {disk.disk: disk for disk in self._settings.disks()}
        found: dict[DiskId, list[Found]] = {}
        failures: dict[DiskId, OSError] = {}

        async def look_at(disk: LogDisk) -> None:
            familiar = {
                fmt.file_name(file.sequence) for file in self._closed if disk.disk in file.holders
            }
            try:
                found[disk.disk] = await self._lanes.background(disk.disk).run(
                    look,
                    self._settings.medium,
                    disk.disk,
                    disk.directory,
                    self._settings.pool,
                    self._settings.header_cipher,
                    familiar,
                    horizon.live_ids,
                )
            except HungError as hung:
                failures[disk.disk] = hung.cause
            except OSError as error:
                failures[disk.disk] = error

        await self._for_each(look_at, listed.values())
        doomed: dict[DiskId, list[Path]] = {}
        notes: list[str] = []
        for disk, files in found.items():
            for one in files:
                path = listed[disk].directory / LOG_DIRECTORY / one.name
                file = self._owner(one, disk, known)
                if file is not None:
                    if file.file_id not in self._own_ids:
                        file.damaged |= {disk}
                elif horizon.hides(one, self._own_ids):
                    continue
                elif reason := self._reason_to_keep(one, horizon):
                    notes.append(f"{path} {reason}; it was left alone")
                else:
                    doomed.setdefault(disk, []).append(path)
        if failures:
            self._report(failures)
        await self._remove(doomed)
        return sum(map(len, doomed.values())), notes

    async def drop(self, disk: LogDisk) -> None:
        """Remove all of the log from the disk, which nobody needs there. Raises MediumError."""
        lane = self._lanes.background(disk.disk)
        try:
            for name in await lane.run(_log_names, self._settings.medium, disk.directory):
                await lane.run(
                    disk_copies.remove_copy,
                    self._settings.medium,
                    disk.directory / LOG_DIRECTORY / name,
                )
        except (HungError, OSError) as error:
            raise MediumError(disk.disk, "removing the log's files", str(error)) from error
        for file in self._closed:
            file.whole -= {disk.disk}
            file.damaged -= {disk.disk}

    async def verify(self, current: ClosedFile | None) -> list[LogFinding]:
        """Read every copy of every needed file, and of the one that grows as it was just now.

        Notes which copies are to be mended, if the others have everything.
        """
        findings: list[LogFinding] = []
        for file in [*self.needed(), *([current] if current is not None else [])]:
            state = await self._examine(file)
            if state.complete:
                file.note_findings(state.lacking, state.absent)
            wanted = min(self._settings.copies, len(self._settings.disks()))
            findings.extend(describe(file.sequence, state, wanted, file.broken))
        return findings

    async def _examine(self, file: ClosedFile) -> CopyState:
        """Read and compare a file's copies, without those on disks that hang."""
        hanging: set[DiskId] = set()
        while True:
            readable = self._settings.readable_disks()
            paths = {
                disk: disk_copies.log_path(readable[disk].directory, file.sequence)
                for disk in sorted((file.holders & set(readable)) - hanging)
            }
            try:
                with trio.CancelScope(shield=True):
                    return await self._lanes.maintainer.run(
                        examine_copies, self._settings.medium, paths, file.size
                    )
            except HungError as hung:
                self._lanes.replace_maintainer()
                if hung.disk is None:
                    raise PosixError(
                        errno.EIO, "the check of the log made no progress; try it again later"
                    ) from hung
                hanging.add(hung.disk)
                self._report({hung.disk: hung.cause})

    def _owner(
        self, found: Found, disk: DiskId, known: Mapping[bytes, ClosedFile]
    ) -> ClosedFile | None:
        """The closed file that it is a copy of."""
        if found.file_id is not None or found.beyond is None:
            return known.get(found.file_id or b"")
        sequence = fmt.parse_file_name(found.name)
        namesakes = [file for file in self._closed if file.sequence == sequence]
        if len(namesakes) == 1 and disk not in namesakes[0].holders:
            return namesakes[0]  # what its header said can be mended, as `survey` would have it
        return None

    def _reason_to_keep(self, found: Found, horizon: Horizon) -> str:
        if found.problem:
            return found.problem
        if found.beyond is not None:
            return reason_to_keep_headless(found.beyond, self._trimmed)
        if found.facts is None:
            return ""  # an unfinished copy, or a file that was never begun
        return reason_to_keep(found.facts, self._incarnation, horizon.useless_ids, self._trimmed)

    async def _remove(self, doomed: Mapping[DiskId, Sequence[Path]]) -> None:
        """Remove the files, oldest first on each disk; failures are reported."""
        failures: dict[DiskId, OSError] = {}

        async def remove_from(disk: DiskId) -> None:
            try:
                for path in doomed[disk]:
                    await self._lanes.background(disk).run(
                        disk_copies.remove_copy, self._settings.medium, path
                    )
            except HungError as hung:
                failures[disk] = hung.cause
            except OSError as error:
                failures[disk] = error

        await self._for_each(remove_from, [disk for disk in doomed if doomed[disk]])
        if failures:
            self._report(failures)

    async def _for_each(
        self, call: Callable[[ItemT], Awaitable[None]], items: Iterable[ItemT]
    ) -> None:
        """Call it for all at once; shielded, for what is begun has to be noted."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for item in items:
                    nursery.start_soon(call, item)


def _log_names(_watch: Watch, medium: Medium, directory: Path) -> list[str]:
    return sorted(medium.names(directory / LOG_DIRECTORY))

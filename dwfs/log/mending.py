"""Mending one closed log file: new copies, and the ranges that old ones lack. Runs in a worker.

Ranges are mended in place: only bytes that are not part of a valid chain are overwritten, and with
the bytes that belong there, so a crash in the middle harms nothing. New copies get their name when
they are durable; what a crash leaves of one is removed by `heal`.

A file that was growing when its process died is read from the page cache, and its last record may be
nowhere else: the process died between writing and syncing it, or the sync failed, after which the
kernel may take the page for clean. So of such a file the last record of each copy is written again,
not just synced.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import ExitStack
from pathlib import Path

import msgspec

from dwfs.disk.medium import Medium
from dwfs.log.chain import ChainWalk, Piece
from dwfs.log.copies import create_part, open_sources, part_path
from dwfs.log.watching import Watch
from dwfs.types import DiskId


class Mended(msgspec.Struct):
    """What became of a file's copies."""

    whole: frozenset[DiskId]  # disks with a durable, complete copy now
    failures: dict[DiskId, OSError]
    complete: bool  # the sources, merged, still had everything


def mend_file(
    watch: Watch,
    medium: Medium,
    sources: Mapping[DiskId, Path],
    read_only: Set[DiskId],
    targets: Mapping[DiskId, Path],
    end: int,
    unsettled: bool,
) -> Mended:
    """Give every target a copy and every source the ranges it lacks, from the merged sources.

    Sources in `read_only` are read but not mended: of disks that are failing or on their way out.
    `unsettled`: write the last record of each source again.
    """
    with ExitStack() as stack:
        work = _Mending(watch, medium, targets, stack)
        opened = open_sources(medium, sources, stack, watch)
        walk = ChainWalk(opened)
        lacking: set[DiskId] = set()
        last: dict[DiskId, Piece] = {}
        for piece in walk.pieces(upto=end):
            lacking.update(piece.lacking)
            last.update((disk, piece) for disk in opened if disk not in piece.lacking)
            mended = {disk: sources[disk] for disk in piece.lacking if disk not in read_only}
            work.take_piece(piece.offset, piece.raw, mended)
        if unsettled:
            for disk in sorted(last.keys() - read_only):
                work.write(disk, sources[disk], last[disk].offset, last[disk].raw)
        complete = walk.end >= end
        work.finish(complete)
    good = (set(opened) | set(targets)) - set(work.failures) - (lacking & read_only)
    return Mended(frozenset(good if complete else ()), work.failures, complete)


class _Mending:
    """Write handles of one `mend_file`, opened as they are needed; the stack closes them."""

    def __init__(
        self, watch: Watch, medium: Medium, targets: Mapping[DiskId, Path], stack: ExitStack
    ) -> None:
        self._watch = watch
        self._medium = medium
        self._targets = dict(targets)
        self._stack = stack
        self._handles: dict[DiskId, int] = {}
        self.failures: dict[DiskId, OSError] = {}
        for disk, path in targets.items():
            watch.enter(disk)
            try:
                medium.make_directory(path.parent)
                self._keep(disk, create_part(medium, path))
            except OSError as error:
                self.failures[disk] = error

    def take_piece(self, offset: int, raw: bytes, lacking: Mapping[DiskId, Path]) -> None:
        """Write a run to the targets and to the sources that lack it."""
        for disk, path in {**self._targets, **lacking}.items():
            self.write(disk, path, offset, raw)

    def write(self, disk: DiskId, path: Path, offset: int, raw: bytes) -> None:
        """Write a run to one copy; the path is that of a source, if the disk isn't a target."""
        if disk in self.failures:
            return
        self._watch.enter(disk)
        try:
            if disk not in self._handles:
                self._keep(disk, self._medium.open(path, write=True))
            self._medium.write(self._handles[disk], offset, (raw,))
        except OSError as error:
            self.failures[disk] = error

    def finish(self, complete: bool) -> None:
        """Make durable, and name the targets, if they are complete."""
        for disk, handle in self._handles.items():
            if disk in self.failures:
                continue
            try:
                self._watch.enter(disk)
                self._medium.sync(handle)
                path = self._targets.get(disk)
                if path is not None and complete:
                    self._watch.enter(disk)
                    self._medium.rename(part_path(path), path)
                    self._medium.sync_directory(path.parent)
            except OSError as error:
                self.failures[disk] = error

    def _keep(self, disk: DiskId, handle: int) -> None:
        self._handles[disk] = handle
        self._stack.callback(self._medium.close, handle)

"""Blocking work on the copies of log files; every function here runs in a worker thread.

Nothing is decided here. A disk's failure is returned, not raised, since the other copies go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from dwfs.log import format as fmt
from dwfs.log.chain import ChainWalk
from dwfs.log.medium import Buffer, Medium
from dwfs.log.ports import LogDisk
from dwfs.log.preallocation import Preallocation
from dwfs.types import DiskId

LOG_DIRECTORY = "log"
_PART_SUFFIX = ".part"


class CopySource:
    """One copy read through the medium; unreadable ranges read as nothing."""

    def __init__(self, medium: Medium, handle: int) -> None:
        self._medium = medium
        self._handle = handle

    def read(self, offset: int, length: int) -> bytes:
        """See `ByteSource`."""
        try:
            return self._medium.read(self._handle, offset, length)
        except OSError:
            return b""  # the other copies answer; a scrub or the next write reports the disk


def open_sources(
    medium: Medium, paths: Mapping[DiskId, Path], stack: ExitStack
) -> dict[DiskId, CopySource]:
    """Readers of those copies that open; the stack closes them."""
    sources = {}
    for disk, path in paths.items():
        try:
            handle = medium.open(path)
        except OSError:
            continue
        stack.callback(medium.close, handle)
        sources[disk] = CopySource(medium, handle)
    return sources


class Begun(msgspec.Struct):
    """A new file: its durable copies and the disks that failed to take one."""

    sequence: int
    header_size: int
    digest: bytes
    handles: dict[DiskId, int]
    paths: dict[DiskId, Path]  # of the copies
    failures: dict[DiskId, OSError]


def begin_file(
    medium: Medium,
    members: Sequence[LogDisk],
    floor: int,
    encode: Callable[[int], tuple[bytes, bytes]],
) -> Begun:
    """Create a file on all members, durably, with a sequence above `floor` and all that are there.

    `encode(sequence)` gives the header's bytes and digest.
    """
    failures: dict[DiskId, OSError] = {}
    highest = floor
    for member in members:
        directory = member.directory / LOG_DIRECTORY
        try:
            medium.make_directory(directory)
            names = medium.names(directory)
        except OSError as error:
            failures[member.disk] = error
            continue
        highest = max([highest, *(fmt.parse_file_name(name) or 0 for name in names)])
    sequence = highest + 1
    header, digest = encode(sequence)
    handles: dict[DiskId, int] = {}
    paths: dict[DiskId, Path] = {}
    for member in members:
        if member.disk in failures:
            continue
        path = member.directory / LOG_DIRECTORY / fmt.file_name(sequence)
        try:
            handles[member.disk] = _begin_copy(medium, path, header)
            paths[member.disk] = path
        except OSError as error:
            failures[member.disk] = error
    return Begun(sequence, len(header), digest, handles, paths, failures)


def _begin_copy(medium: Medium, path: Path, header: bytes) -> int:
    handle = medium.create(path)
    try:
        medium.write(handle, 0, (header,))
        medium.sync(handle)
        medium.sync_directory(path.parent)
    except OSError:
        medium.close(handle)
        raise
    return handle


def write_copies(
    medium: Medium,
    handles: Mapping[DiskId, int],
    offset: int,
    buffers: Sequence[Buffer],
    preallocation: Preallocation,
) -> list[tuple[DiskId, float, OSError | None]]:
    """Write one record on each handle, then sync each: (disk, seconds, error).

    All writes come first: disks that share a filesystem then share its journal commit, too.
    """
    preallocation.claim(offset + sum(map(len, buffers)))
    seconds: dict[DiskId, float] = {}
    failures: dict[DiskId, OSError] = {}
    before = time.perf_counter()
    for disk, handle in handles.items():
        try:
            medium.write(handle, offset, buffers)
        except OSError as error:
            failures[disk] = error
        after = time.perf_counter()
        seconds[disk] = after - before
        before = after
    for disk, handle in handles.items():
        if disk in failures:
            continue
        try:
            medium.sync(handle)
        except OSError as error:
            failures[disk] = error
        after = time.perf_counter()
        seconds[disk] += after - before
        before = after
    return [(disk, seconds[disk], failures.get(disk)) for disk in handles]


def close_handles(medium: Medium, handles: Sequence[int]) -> None:
    """Close them all."""
    for handle in handles:
        medium.close(handle)


def finish_file(
    medium: Medium, handles: Sequence[int], size: int, preallocation: Preallocation
) -> None:
    """Cut the unused zeros off, and close. It's no harm if a crash brings zeros back."""
    preallocation.close()
    for handle in handles:
        with contextlib.suppress(OSError):
            medium.truncate(handle, size)
    close_handles(medium, handles)


def remove_files(
    medium: Medium, sequences: Sequence[int], disks: Sequence[LogDisk]
) -> dict[DiskId, OSError]:
    """Remove files, oldest first, from all disks. Returns the failures."""
    failures: dict[DiskId, OSError] = {}
    for disk in disks:
        try:
            for sequence in sorted(sequences):
                medium.remove(disk.directory / LOG_DIRECTORY / fmt.file_name(sequence))
        except OSError as error:
            failures[disk.disk] = error
    return failures


class Mended(msgspec.Struct):
    """What became of a file's copies."""

    whole: frozenset[DiskId]  # disks with a durable, complete copy now
    failures: dict[DiskId, OSError]
    complete: bool  # the sources, merged, still had everything


def mend_file(
    medium: Medium, sources: Mapping[DiskId, Path], targets: Mapping[DiskId, Path], end: int
) -> Mended:
    """Give every target a copy and every source the ranges it lacks, from the merged sources.

    Ranges are mended in place: only bytes that are not part of a valid chain are overwritten, so a
    crash in the middle harms nothing. New copies get their name when they are durable.
    """
    work = _Mending(medium, targets)
    with ExitStack() as stack:
        opened = open_sources(medium, sources, stack)
        walk = ChainWalk(opened)
        for piece in walk.pieces(upto=end):
            work.take_piece(
                piece.offset, piece.raw, {disk: sources[disk] for disk in piece.lacking}
            )
    complete = walk.end >= end
    work.finish(complete)
    good = (set(opened) | set(targets)) - set(work.failures) if complete else set()
    return Mended(frozenset(good), work.failures, complete)


class _Mending:
    """Write handles of one `mend_file`, opened as they are needed."""

    def __init__(self, medium: Medium, targets: Mapping[DiskId, Path]) -> None:
        self._medium = medium
        self._targets = dict(targets)
        self._handles: dict[DiskId, int] = {}
        self.failures: dict[DiskId, OSError] = {}
        for disk, path in targets.items():
            try:
                medium.make_directory(path.parent)
                self._handles[disk] = medium.create(part_path(path), replace=True)
            except OSError as error:
                self.failures[disk] = error

    def take_piece(self, offset: int, raw: bytes, lacking: Mapping[DiskId, Path]) -> None:
        """Write a run to the targets and to the sources that lack it."""
        for disk in [*self._targets, *lacking]:
            if disk in self.failures:
                continue
            try:
                if disk not in self._handles:
                    self._handles[disk] = self._medium.open(lacking[disk], write=True)
                self._medium.write(self._handles[disk], offset, (raw,))
            except OSError as error:
                self.failures[disk] = error

    def finish(self, complete: bool) -> None:
        """Make durable, and name the targets, if they are complete."""
        for disk, handle in self._handles.items():
            try:
                if disk not in self.failures:
                    self._medium.sync(handle)
                    path = self._targets.get(disk)
                    if path is not None and complete:
                        self._medium.rename(part_path(path), path)
                        self._medium.sync_directory(path.parent)
            except OSError as error:
                self.failures[disk] = error
            finally:
                self._medium.close(handle)


def part_path(path: Path) -> Path:
    """The name of an unfinished copy."""
    return path.with_name(path.name + _PART_SUFFIX)

"""Blocking work on the copies of log files; every function here runs in a worker thread.

Nothing is decided here. Each takes the `Watch` of its job and tells it the disk before each operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from dwfs.disk.medium import Buffer, Medium
from dwfs.log import format as fmt
from dwfs.log.preallocation import Preallocation
from dwfs.log.watching import GivenUpError, Watch
from dwfs.types import DiskId

LOG_DIRECTORY = "log"
PART_SUFFIX = ".part"


class CopySource:
    """One copy read through the medium; unreadable ranges read as nothing."""

    def __init__(self, medium: Medium, handle: int, watch: Watch, disk: DiskId) -> None:
        self._medium = medium
        self._handle = handle
        self._watch = watch
        self._disk = disk

    def read(self, offset: int, length: int) -> bytes:
        """See `ByteSource`."""
        self._watch.enter(self._disk)
        try:
            return self._medium.read(self._handle, offset, length)
        except OSError:
            return b""  # the other copies answer; a scrub or the next write reports the disk

    def probe(self) -> None:
        """Read the first bytes for nothing. Raises OSError if the disk can't."""
        self._watch.enter(self._disk)
        self._medium.read(self._handle, 0, fmt.FILE_PREFIX_SIZE)

    @property
    def size(self) -> int:
        """Bytes in the file; 0 if the disk can't tell."""
        self._watch.enter(self._disk)
        try:
            return self._medium.size(self._handle)
        except OSError:
            return 0


def open_sources(
    medium: Medium, paths: Mapping[DiskId, Path], stack: ExitStack, watch: Watch | None = None
) -> dict[DiskId, CopySource]:
    """Readers of those copies that open; the stack closes them."""
    watch = watch if watch is not None else Watch()
    sources = {}
    for disk, path in paths.items():
        watch.enter(disk)
        try:
            handle = medium.open(path)
        except OSError:
            continue
        stack.callback(medium.close, handle)
        sources[disk] = CopySource(medium, handle, watch, disk)
    return sources


def log_path(directory: Path, sequence: int) -> Path:
    """Where a disk with that directory keeps a log file."""
    return directory / LOG_DIRECTORY / fmt.file_name(sequence)


def part_path(path: Path) -> Path:
    """The name of an unfinished copy."""
    return path.with_name(path.name + PART_SUFFIX)


def create_part(medium: Medium, path: Path) -> int:
    """A new, empty file for an unfinished copy; returns its handle.

    What an attempt that was given up left there is removed, not emptied: the thread that hangs may
    still write to it.
    """
    part = part_path(path)
    medium.remove(part)
    return medium.create(part)


class Begun(msgspec.Struct):
    """A new file: its durable copies."""

    sequence: int
    header_size: int
    digest: bytes
    handles: dict[DiskId, int]
    paths: dict[DiskId, Path]


def highest_sequence(_watch: Watch, medium: Medium, directory: Path) -> int:
    """The highest sequence of the log files in a disk's directory; makes the place for them."""
    place = directory / LOG_DIRECTORY
    medium.make_directory(place)
    return max((fmt.parse_file_name(name) or 0 for name in medium.names(place)), default=0)


def begin_copy(watch: Watch, medium: Medium, path: Path, header: bytes) -> int:
    """Create a file with that header, durably; returns its handle."""
    handle = medium.create(path)
    try:
        medium.write(handle, 0, (header,))
        medium.sync(handle)
        medium.sync_directory(path.parent)
        if not watch.finish():
            raise GivenUpError
    except (OSError, GivenUpError):
        medium.close(handle)
        raise
    return handle


def write_copies(
    watch: Watch,
    medium: Medium,
    handles: Mapping[DiskId, int],
    offset: int,
    buffers: Sequence[Buffer],
    preallocation: Preallocation,
    stopwatch: Callable[[], float],
) -> list[tuple[DiskId, float, OSError | None]]:
    """Write one record on each handle, then sync each: (disk, seconds, error).

    All writes come first: disks that share a filesystem then share its journal commit, too.
    """
    end = offset + sum(map(len, buffers))
    seconds: dict[DiskId, float] = {}
    failures: dict[DiskId, OSError] = {}
    before = stopwatch()
    for disk, handle in handles.items():
        watch.enter(disk)
        try:
            preallocation.claim(disk, end)
            medium.write(handle, offset, buffers)
        except OSError as error:
            failures[disk] = error
        after = stopwatch()
        seconds[disk] = after - before
        before = after
    for disk, handle in handles.items():
        if disk in failures:
            continue
        watch.enter(disk)
        try:
            medium.sync(handle)
        except OSError as error:
            failures[disk] = error
        after = stopwatch()
        seconds[disk] += after - before
        before = after
    return [(disk, seconds[disk], failures.get(disk)) for disk in handles]


def finish_copy(
    medium: Medium, disk: DiskId, handle: int, size: int, preallocation: Preallocation
) -> None:
    """Cut the unused zeros off, and close. It's no harm if a crash brings zeros back.

    Only for a file whose members hold nothing beyond `size`: this may come late, when a disk hangs.
    """
    preallocation.seal(disk)
    with contextlib.suppress(OSError):
        medium.truncate(handle, size)
    medium.close(handle)


def remove_copy(_watch: Watch, medium: Medium, path: Path) -> None:
    """Remove one copy of a file, or what is left of one."""
    medium.remove(path)

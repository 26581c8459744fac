"""The few file operations on which everything that lies on a disk rests: segments, headers, log.

All calls block and belong in worker threads, but for `read_cached` and `close`. They are a `Protocol`,
so that simulations can lose what was not synced, rot, fill up and hang; `PosixMedium` is the real one.
Every call raises `OSError` when the disk fails, and says in its docstring when it does not.

The medium keeps no state of its own beside the handles, so one object serves all disks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

Buffer = bytes | bytearray | memoryview

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_KEEP_SIZE: Final = 0x01  # FALLOC_FL_KEEP_SIZE
_PUNCH_HOLE: Final = 0x02  # FALLOC_FL_PUNCH_HOLE

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


class MediumSpace(msgspec.Struct, frozen=True):
    """The filesystem that a directory lies on."""

    device: int  # equal for directories that share one filesystem
    size_bytes: int
    available_bytes: int  # to us, with nothing kept in reserve
    read_only: bool


class Medium(Protocol):
    """Files named by path, handled by integers. Writes last only after a sync that returned."""

    def names(self, directory: Path) -> list[str]:
        """Entries of the directory; none if it does not exist."""

    def is_directory(self, path: Path) -> bool:
        """Whether there is a directory of that name; False also if nobody can tell."""

    def make_directory(self, directory: Path) -> None:
        """Make the directory durably, unless it is there. Never makes its parents."""

    def remove_directory(self, directory: Path) -> None:
        """Remove the directory if it is there and empty; else leave it, which is no error."""

    def create(self, path: Path, *, replace: bool = False) -> int:
        """A new, empty file open for writing. FileExistsError, or emptied first with `replace`."""

    def open(self, path: Path, *, write: bool = False) -> int:
        """An existing file, for reading, or for reading and writing."""

    def size(self, handle: int) -> int:
        """Bytes in the file."""

    def allocated_bytes(self, path: Path) -> int:
        """Bytes that the file takes on the disk: holes take none."""

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer than `length` only at the file's end."""

    def read_cached(
        self, handle: int, offset: int, length: int, patience_seconds: float = 0.0
    ) -> bytes | None:
        """Exactly `length` bytes if they are in memory or arrive within the patience, else None.

        Never waits for the disk, and raises nothing: what is wrong shows in the `read` that follows.
        """

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after another, all of them."""

    def punch(self, handle: int, start: int, end: int) -> bool:
        """Make [start, end) zeros and free its whole blocks; the file's length stays.

        Returns False, with nothing changed, where that can't be had: a filesystem without holes, or
        one without room for the metadata of a hole. Overwriting with zeros needs neither.
        """

    def next_data(self, handle: int, offset: int) -> int | None:
        """The first position at or after `offset` that is no hole; None if nothing follows."""

    def expect_random_reads(self, handle: int) -> None:
        """Read what is asked for, and no more, from this file."""

    def forget_cached(self, handle: int, offset: int = 0, length: int = 0) -> None:
        """Have the next read of the range come from the disk; `length` 0: to the file's end.

        Only what has been synced can be forgotten.
        """

    def truncate(self, handle: int, size: int) -> None:
        """Cut the file off; lasts, like a write, only after a sync."""

    def sync(self, handle: int) -> None:
        """Make the file's content and length durable."""

    def sync_directory(self, directory: Path) -> None:
        """Make creations, renames and removals in the directory durable."""

    def close(self, handle: int) -> None:
        """Give the handle back; never fails."""

    def rename(self, source: Path, target: Path) -> None:
        """Atomic rename that replaces `target`."""

    def remove(self, path: Path) -> None:
        """Remove the file; it is no error if it is not there."""

    def space(self, directory: Path) -> MediumSpace:
        """Room on the filesystem that the directory lies on."""


class PosixMedium:
    """The operating system's files."""

    def names(self, directory: Path) -> list[str]:
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []

    def is_directory(self, path: Path) -> bool:
        return os.path.isdir(path)

    def make_directory(self, directory: Path) -> None:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            return
        self.sync_directory(directory.parent)

    def remove_directory(self, directory: Path) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(directory)

    def create(self, path: Path, *, replace: bool = False) -> int:
        kind = os.O_TRUNC if replace else os.O_EXCL
        return os.open(path, os.O_RDWR | os.O_CREAT | kind | _FLAGS, 0o600)

    def open(self, path: Path, *, write: bool = False) -> int:
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _FLAGS)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def allocated_bytes(self, path: Path) -> int:
        return os.stat(path).st_blocks * 512

    def read(self, handle: int, offset: int, length: int) -> bytes:
        data = os.pread(handle, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length and (data := os.pread(handle, length - got, offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def read_cached(
        self, handle: int, offset: int, length: int, patience_seconds: float = 0.0
    ) -> bytes | None:
        buffer = bytearray(length)
        buffers = [buffer]
        try:
            if os.preadv(handle, buffers, offset, os.RWF_NOWAIT) == length:
                return bytes(buffer)
        except OSError:  # EAGAIN: not cached
            pass
        if not patience_seconds:
            return None
        # A read that may not wait has the kernel begin to fetch what it misses (since Linux 5.10),
        # and a flash disk delivers that sooner than a thread can be woken and answer.
        give_up = time.perf_counter() + patience_seconds
        while time.perf_counter() < give_up:
            try:
                if os.preadv(handle, buffers, offset, os.RWF_NOWAIT) == length:
                    return bytes(buffer)
            except BlockingIOError:
                continue
            except OSError:
                return None
        return None

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        total = 0
        for buffer in buffers:
            total += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        written = os.pwritev(handle, buffers, offset)
        if written == total:
            return
        parts = [memoryview(buffer).cast("B") for buffer in buffers]
        while written < total:  # never so on a healthy disk: the room ends here
            offset += written
            total -= written
            while parts and written >= parts[0].nbytes:
                written -= parts.pop(0).nbytes
            parts[0] = parts[0][written:]
            written = os.pwritev(handle, parts, offset)

    def punch(self, handle: int, start: int, end: int) -> bool:
        if start >= end:
            return True
        return bool(_fallocate(handle, _KEEP_SIZE | _PUNCH_HOLE, start, end - start) == 0)

    def next_data(self, handle: int, offset: int) -> int | None:
        try:
            return os.lseek(handle, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: behind the last data of the file there is nothing but a hole
            return None

    def expect_random_reads(self, handle: int) -> None:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)

    def forget_cached(self, handle: int, offset: int = 0, length: int = 0) -> None:
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def sync(self, handle: int) -> None:
        os.fdatasync(handle)

    def sync_directory(self, directory: Path) -> None:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self, handle: int) -> None:
        with contextlib.suppress(OSError):  # all that matters was synced before
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def space(self, directory: Path) -> MediumSpace:
        status = os.statvfs(directory)
        return MediumSpace(
            device=os.stat(directory).st_dev,
            size_bytes=status.f_blocks * status.f_frsize,
            available_bytes=status.f_bavail * status.f_frsize,
            read_only=bool(status.f_flag & os.ST_RDONLY),
        )


POSIX_MEDIUM: Final[Medium] = PosixMedium()

"""The few file operations on which the log and the snapshots rest.

All calls block and belong in worker threads. They are a `Protocol`, so that simulations can lose
what was not synced; `PosixMedium` is the real one. Every call raises `OSError` when the disk fails.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Buffer = bytes | bytearray | memoryview

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


class Medium(Protocol):
    """Files named by path, handled by integers. Writes last only after a sync that returned."""

    def names(self, directory: Path) -> list[str]:
        """Entries of the directory; none if it does not exist."""

    def make_directory(self, directory: Path) -> None:
        """Make the directory durably, unless it is there."""

    def create(self, path: Path, *, replace: bool = False) -> int:
        """A new, empty file open for writing. FileExistsError, or emptied first with `replace`."""

    def open(self, path: Path, *, write: bool = False) -> int:
        """An existing file, for reading, or for reading and writing."""

    def size(self, handle: int) -> int:
        """Bytes in the file."""

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer than `length` only at the file's end."""

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after another, all of them."""

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


class PosixMedium:
    """The operating system's files."""

    def names(self, directory: Path) -> list[str]:
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []

    def make_directory(self, directory: Path) -> None:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            return
        self.sync_directory(directory.parent)

    def create(self, path: Path, *, replace: bool = False) -> int:
        kind = os.O_TRUNC if replace else os.O_EXCL
        return os.open(path, os.O_RDWR | os.O_CREAT | kind | _FLAGS, 0o600)

    def open(self, path: Path, *, write: bool = False) -> int:
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _FLAGS)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

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

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        total = sum(len(buffer) for buffer in buffers)
        written = os.pwritev(handle, buffers, offset)
        if written == total:
            return
        rest = memoryview(b"".join(buffers))
        while written < total:
            written += os.pwrite(handle, rest[written:], offset + written)

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

"""Open files and directories.

A handle is a number outside and an object inside. It holds what belongs to one open: the flags, the
state that is read from (the current one or a snapshot's), the position up to which a sequential
reader's stripes were asked for, and the pace of a listing.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import trio

from dwfs.errors import PosixError
from dwfs.types import InodeNumber
from dwfs.vfs.readers import Reader
from dwfs.vfs.references import References

READDIR_ENTRIES_FIRST: Final = 32  # what fits the smallest reply, one page


class FileHandle:
    """One open of a file."""

    __slots__ = (
        "append",
        "direct",
        "inode",
        "next_offset",
        "number",
        "prefetched_to",
        "privileged",
        "readable",
        "reader",
        "refused",
        "run_bytes",
        "synchronous",
        "writable",
    )

    def __init__(
        self, number: int, inode: InodeNumber, reader: Reader, flags: int, *, privileged: bool
    ) -> None:
        access = flags & os.O_ACCMODE
        self.number = number
        self.inode = inode
        self.reader = reader
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)
        self.direct = bool(flags & os.O_DIRECT)
        self.synchronous = bool(flags & (os.O_SYNC | os.O_DSYNC))
        self.privileged = privileged  # opened by root: its writes leave set-user-id alone
        self.refused = False  # a write was put off as refused, and nobody told through this handle
        self.next_offset = 0  # where the next read of a sequential reader starts
        self.run_bytes = 0  # bytes read in sequence so far
        self.prefetched_to = 0  # file offset up to which stripes were asked for


class DirectoryHandle:
    """One open of a directory."""

    __slots__ = ("batch", "inode", "number", "reader")

    def __init__(self, number: int, inode: InodeNumber, reader: Reader) -> None:
        self.number = number
        self.inode = inode
        self.reader = reader
        self.batch = READDIR_ENTRIES_FIRST  # entries to read at a time


class HandleTable:
    """All open handles. Numbers are never reused within a session."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._append_locks: dict[InodeNumber, trio.Lock] = {}
        self._last = 0

    def open_file(
        self, inode: InodeNumber, reader: Reader, flags: int, *, privileged: bool
    ) -> FileHandle:
        """A new handle. The caller has checked that the inode is there."""
        self._last += 1
        handle = FileHandle(self._last, inode, reader, flags, privileged=privileged)
        self._files[self._last] = handle
        self._references.opened(inode)
        return handle

    def open_directory(self, inode: InodeNumber, reader: Reader) -> DirectoryHandle:
        """As `open_file`, for a directory."""
        self._last += 1
        handle = DirectoryHandle(self._last, inode, reader)
        self._directories[self._last] = handle
        self._references.opened(inode)
        return handle

    def file(self, number: int) -> FileHandle:
        """The handle of that number. Raises PosixError EBADF."""
        handle = self._files.get(number)
        if handle is None:
            raise PosixError(errno.EBADF)
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        """As `file`, for a directory."""
        handle = self._directories.get(number)
        if handle is None:
            raise PosixError(errno.EBADF)
        return handle

    def close_file(self, number: int) -> None:
        """Raises PosixError EBADF."""
        handle = self._files.pop(number, None)
        if handle is None:
            raise PosixError(errno.EBADF)
        self._references.closed(handle.inode)
        if handle.append and not self._references.is_open(handle.inode):
            self._append_locks.pop(handle.inode, None)

    def close_directory(self, number: int) -> None:
        """Raises PosixError EBADF."""
        handle = self._directories.pop(number, None)
        if handle is None:
            raise PosixError(errno.EBADF)
        self._references.closed(handle.inode)

    def put_off_refusal(self, number: int) -> bool:
        """A write through the handle was refused; note it for `take_refusal` instead of saying so.

        False if the handle was opened with O_DIRECT: its writer waits for the answer. The kernel
        writes the pages of all writers back through any one of their handles, so all writers are told.
        """
        handle = self.file(number)
        if handle.direct:
            return False
        for other in self._files.values():
            if other.inode == handle.inode and other.writable:
                other.refused = True
        return True

    def take_refusal(self, number: int) -> bool:
        """Whether a write was refused that this handle's owner has not been told of; tells once."""
        handle = self.file(number)
        refused, handle.refused = handle.refused, False
        return refused

    def append_lock(self, inode: InodeNumber) -> trio.Lock:
        """Serialises appends to one file: finding its end and writing there is one step."""
        lock = self._append_locks.get(inode)
        if lock is None:
            lock = self._append_locks[inode] = trio.Lock()
        return lock

    def close_all(self) -> None:
        """The session has ended without closing what it had open."""
        self._files.clear()
        self._directories.clear()
        self._append_locks.clear()

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

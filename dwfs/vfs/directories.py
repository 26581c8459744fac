"""Listing directories.

A position in a listing is a cookie that belongs to a name and does not move when other names come
or go: what is there throughout is listed exactly once. Each call reads afresh, because the kernel
believes every entry that it is given; nothing is buffered between calls.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import Final

from dwfs.errors import PosixError
from dwfs.types import InodeNumber
from dwfs.vfs.attributes import Attributes
from dwfs.vfs.handles import DirectoryHandle, HandleTable
from dwfs.vfs.references import References
from dwfs.volume.records import DirectoryEntry, Inode
from dwfs.volume.volume import Volume

SELF_COOKIE: Final = 1
PARENT_COOKIE: Final = 2
READDIR_ENTRIES_MAX: Final = 128  # read from the state at a time
_DIRECTORY_TYPE: Final = stat.S_IFDIR >> 12


class Directories:
    """Opens and lists directories."""

    def __init__(
        self, volume: Volume, references: References, handles: HandleTable, attributes: Attributes
    ) -> None:
        self._volume = volume
        self._references = references
        self._handles = handles
        self._attributes = attributes

    def opendir(self, number: InodeNumber) -> int:
        """A handle for `readdir`. Raises PosixError ENOTDIR."""
        if not stat.S_ISDIR(self._volume.inode(number).mode):
            raise PosixError(errno.ENOTDIR)
        return self._handles.open_directory(number).number

    def releasedir(self, handle: int) -> None:
        """Close it."""
        self._handles.close_directory(handle)

    async def mark_read(self, handle: int) -> None:
        """Set the directory's access time if the mount options ask for it."""
        inode = self._volume.inode(self._handles.directory(handle).inode)
        due = self._attributes.access_due(inode)
        if due is not None and inode.nlink:
            await self._attributes.touch(inode.number, due)

    def entries(self, handle: int, after: int) -> Iterator[tuple[DirectoryEntry, Inode]]:
        """Entries after cookie `after` (0: from the start), "." and ".." first, with their inodes.

        Consume it without awaiting. What the caller passes on to a kernel it must `remember`,
        except "." and "..".
        """
        directory = self._handles.directory(handle)
        inode = self._volume.inode(directory.inode)
        if inode.nlink == 0:
            return  # removed while open: not even "." is left
        if after < SELF_COOKIE:
            own = inode.number
            yield DirectoryEntry(SELF_COOKIE, b".", own, _DIRECTORY_TYPE), inode
        if after < PARENT_COOKIE:
            parent = self._volume.inode(inode.parent or inode.number)
            yield DirectoryEntry(PARENT_COOKIE, b"..", parent.number, _DIRECTORY_TYPE), parent
        yield from self._named(directory, max(after, PARENT_COOKIE))

    def remember(self, number: InodeNumber) -> None:
        """An entry was passed to the kernel, which now has one more lookup to give back."""
        self._references.remember(number)

    def _named(
        self, directory: DirectoryHandle, after: int
    ) -> Iterator[tuple[DirectoryEntry, Inode]]:
        number = directory.inode
        batch = directory.batch
        while True:
            entries = self._volume.read_directory(number, after, batch)
            for entry in entries:
                yield entry, self._volume.inode(entry.inode)
            if len(entries) < batch:
                return
            after = entries[-1].cookie
            # The caller has room for more than was guessed: it will have next time.
            batch = directory.batch = min(2 * batch, READDIR_ENTRIES_MAX)

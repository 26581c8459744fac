"""Which state answers for an inode: the volume's current one, or that of a snapshot.

The current state's inode numbers are small; those of a snapshot have its slot in their upper bits
(`dwfs.vfs.snapshots`). So one comparison tells them apart, and `Readers` is the one place where the
choice is made. An open file or directory keeps the reader that it was opened with: reading from it
chooses nothing, and a file of a snapshot that was destroyed never turns into another's.

Only the current state can be changed: `check_change` refuses for names, and whoever changes an inode
compares its number with `FIRST_SNAPSHOT_INODE` first.
"""

from __future__ import annotations

import errno
from typing import Protocol

from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE, Extent, InodeNumber
from dwfs.vfs.snapshots import FIRST_SNAPSHOT_INODE, SNAPSHOTS_NAME, Snapshots
from dwfs.volume.records import DirectoryPage, Inode
from dwfs.volume.volume import Volume


class Reader(Protocol):
    """The reading half of `Volume`; see there. Takes and returns numbers as the kernel knows them."""

    def inode(self, number: InodeNumber) -> Inode:
        """The inode. Raises PosixError ENOENT."""

    def lookup(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """The inode called `name` in directory `parent`, or None."""

    def directory_page(self, parent: InodeNumber, after_cookie: int, limit: int) -> DirectoryPage:
        """Up to `limit` entries after the cookie, in cookie order, in bounded time."""

    def get_xattr(self, number: InodeNumber, name: bytes) -> bytes | None:
        """An extended attribute's value, or None."""

    def list_xattrs(self, number: InodeNumber) -> list[bytes]:
        """Names of all extended attributes."""

    def extents(self, number: InodeNumber, offset: int, length: int) -> list[Extent]:
        """Extents within [offset, offset+length): clipped, sorted, holes absent."""

    def next_data(self, number: InodeNumber, offset: int) -> int | None:
        """The first mapped byte at or after `offset`, or None."""

    def next_hole(self, number: InodeNumber, offset: int) -> int:
        """The first unmapped byte at or after `offset`, at most the size."""


class Readers:
    """Chooses the reader. Raises PosixError ESTALE for what belongs to no snapshot any more."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._snapshots = Snapshots(volume)

    def of(self, number: InodeNumber) -> Reader:
        """Who answers for the inode."""
        return self._volume if number < FIRST_SNAPSHOT_INODE else self._snapshots.reader(number)

    def inode(self, number: InodeNumber) -> Inode:
        """The inode, wherever it is. Raises PosixError ENOENT or ESTALE."""
        if number < FIRST_SNAPSHOT_INODE:
            return self._volume.inode(number)
        return self._snapshots.reader(number).inode(number)

    def check_change(self, parent: InodeNumber, name: bytes) -> None:
        """Raise PosixError EROFS if `name` in `parent` is not for anybody to make or remove."""
        if parent >= FIRST_SNAPSHOT_INODE or (name == SNAPSHOTS_NAME and parent == ROOT_INODE):
            raise PosixError(errno.EROFS, "snapshots can't be changed")

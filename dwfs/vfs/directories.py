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

import trio

from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.vfs.attributes import Attributes
from dwfs.vfs.handles import DirectoryHandle, HandleTable
from dwfs.vfs.readers import Readers
from dwfs.vfs.references import References
from dwfs.vfs.snapshots import SNAPSHOTS_INODE, SNAPSHOTS_NAME
from dwfs.volume.records import DirectoryEntry, Inode
from dwfs.volume.volume import Volume

SELF_COOKIE: Final = 1
PARENT_COOKIE: Final = 2
SNAPSHOTS_COOKIE: Final = 3  # in the root; names that are stored come after it
READDIR_ENTRIES_MAX: Final = 128  # read from the state at a time
_DIRECTORY_TYPE: Final = stat.S_IFDIR >> 12


class Directories:
    """Opens and lists directories."""

    def __init__(
        self,
        volume: Volume,
        readers: Readers,
        references: References,
        handles: HandleTable,
        attributes: Attributes,
    ) -> None:
        self._volume = volume
        self._readers = readers
        self._references = references
        self._handles = handles
        self._attributes = attributes

    def opendir(self, number: InodeNumber) -> int:
        """A handle for `readdir`. Raises PosixError ENOTDIR."""
        reader = self._readers.of(number)
        if not stat.S_ISDIR(reader.inode(number).mode):
            raise PosixError(errno.ENOTDIR)
        return self._handles.open_directory(number, reader).number

    def releasedir(self, handle: int) -> None:
        """Close it."""
        self._handles.close_directory(handle)

    async def mark_read(self, handle: int) -> None:
        """Set the directory's access time if the mount options ask for it."""
        directory = self._handles.directory(handle)
        inode = directory.reader.inode(directory.inode)
        due = self._attributes.access_due(inode)
        if due is not None and inode.nlink:
            await self._attributes.touch(inode.number, due)

    def entries(self, handle: int, after: int) -> Iterator[tuple[DirectoryEntry, Inode]]:
        """Entries after cookie `after` (0: from the start), "." and ".." first, with their inodes.

        Consume it without awaiting. What the caller passes on to a kernel it must `remember`,
        except "." and "..".
        """
        directory = self._handles.directory(handle)
        inode = directory.reader.inode(directory.inode)
        if inode.nlink == 0:
            return  # removed while open: not even "." is left
        if after < SELF_COOKIE:
            own = inode.number
            yield DirectoryEntry(SELF_COOKIE, b".", own, _DIRECTORY_TYPE), inode
        if after < PARENT_COOKIE:
            parent = self._readers.inode(inode.parent or inode.number)
            yield DirectoryEntry(PARENT_COOKIE, b"..", parent.number, _DIRECTORY_TYPE), parent
        if (
            after < SNAPSHOTS_COOKIE
            and directory.inode == ROOT_INODE
            and self._volume.properties.snapshots_visible
        ):
            entry = DirectoryEntry(
                SNAPSHOTS_COOKIE, SNAPSHOTS_NAME, SNAPSHOTS_INODE, _DIRECTORY_TYPE
            )
            yield entry, self._readers.inode(SNAPSHOTS_INODE)
        yield from self._named(directory, max(after, PARENT_COOKIE), after < PARENT_COOKIE)

    async def find_entry(self, handle: int, after: int) -> int:
        """The cookie, or a later one with no entry in between, from which `entries` need not search.

        Names that are gone may lie in between by the million, for snapshots. They are passed here,
        with pauses, as long as no entry comes.
        """
        directory = self._handles.directory(handle)
        if after < (SNAPSHOTS_COOKIE if directory.inode == ROOT_INODE else PARENT_COOKIE):
            return after
        while True:
            page = directory.reader.directory_page(directory.inode, after, 1)
            if page.entries or page.following is None:
                return after
            after = page.following
            await trio.lowlevel.checkpoint()

    def remember(self, number: InodeNumber) -> None:
        """An entry was passed to the kernel, which now has one more lookup to give back."""
        self._references.remember(number)

    def _named(
        self, directory: DirectoryHandle, after: int, begun: bool
    ) -> Iterator[tuple[DirectoryEntry, Inode]]:
        """Those with names of their own. `begun`: others came before them.

        Whoever asked has to ask again after what he got, and is told of the end by nothing at all.
        So a search that takes long is broken off if he has anything, and else not.
        """
        number = directory.inode
        batch = directory.batch
        inode = self._readers.inode
        while True:
            entries, following = directory.reader.directory_page(number, after, batch)
            for entry in entries:
                yield entry, inode(entry.inode)
            begun = begun or bool(entries)
            if following is None or (begun and len(entries) < batch):
                return
            after = following
            # The caller has room for more than was guessed: it will have next time.
            batch = directory.batch = min(2 * batch, READDIR_ENTRIES_MAX)

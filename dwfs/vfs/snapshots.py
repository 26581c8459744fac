"""Snapshots as directories: `.snapshots/NAME` at the volume's root, read-only.

Inode numbers. A snapshot's inode is `slot << 48 | number`, where `number` is what it is in the volume
and `slot` what the snapshot keeps for life; the directory of snapshots has a slot of its own. Nothing
else is virtual: a snapshot's root is the volume's root as it was, with that directory as its "..".

The kernel caches what it is told, and is not told when a snapshot is destroyed. So it is told to
look again after a second for the names of snapshots, and after a minute for what is in them; until
then it may still show what was there, which was right. It can't take one snapshot for another: an
inode's generation is its snapshot's epoch, and the volume gives slots out in turn, so that 32 766
more snapshots are taken before a slot is used again.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

import msgspec

from dwfs.errors import PosixError
from dwfs.limits import (
    SNAPSHOT_CONTENT_CACHE_SECONDS,
    SNAPSHOT_NAME_CACHE_SECONDS,
    SNAPSHOT_SLOTS_MAX,
    SNAPSHOTS_MAX,
)
from dwfs.types import INODE_NUMBER_BITS, ROOT_INODE, Extent, InodeNumber
from dwfs.volume.records import DirectoryEntry, DirectoryPage, Inode, Snapshot
from dwfs.volume.view import SnapshotView
from dwfs.volume.volume import Volume

SNAPSHOTS_NAME: Final = b".snapshots"
FIRST_SNAPSHOT_INODE: Final = InodeNumber(1 << INODE_NUMBER_BITS)  # the volume's own are below

DIRECTORY_SLOT: Final = 0x7FFF  # no snapshot's; the highest that keeps numbers positive as off_t
SNAPSHOTS_INODE: Final = InodeNumber(DIRECTORY_SLOT << INODE_NUMBER_BITS | ROOT_INODE)
READERS_MAX: Final = SNAPSHOTS_MAX  # beyond it some are of destroyed ones: begin anew

assert DIRECTORY_SLOT > SNAPSHOT_SLOTS_MAX, "no snapshot has the directory's"

_NUMBER_MASK: Final = FIRST_SNAPSHOT_INODE - 1
_FIRST_COOKIE: Final = 16  # added to a snapshot's epoch, to be above the cookies of "." and ".."
_DIRECTORY_TYPE: Final = stat.S_IFDIR >> 12


class SnapshotInode(Inode, array_like=True, eq=False):
    """An inode that is not the volume's current one, and how a kernel may keep it."""

    generation: int = 0  # distinguishes inodes that have one number at different times
    cache_seconds: float = SNAPSHOT_CONTENT_CACHE_SECONDS


class SnapshotReader:
    """A `Reader` of one snapshot."""

    def __init__(self, snapshot: Snapshot, view: SnapshotView) -> None:
        self.epoch = snapshot.epoch
        self.root = InodeNumber(snapshot.slot << INODE_NUMBER_BITS | ROOT_INODE)
        self._base = snapshot.slot << INODE_NUMBER_BITS
        self._view = view

    def inode(self, number: InodeNumber) -> Inode:
        """A copy: the inode as the snapshot shows it."""
        inode = SnapshotInode(*msgspec.structs.astuple(self._view.inode(_plain(number))))
        inode.number = number
        inode.generation = self.epoch
        if number == self.root:
            inode.parent = SNAPSHOTS_INODE
            inode.cache_seconds = SNAPSHOT_NAME_CACHE_SECONDS
        elif inode.parent:
            inode.parent = InodeNumber(self._base | inode.parent)
        return inode

    def lookup(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """The inode called `name` in directory `parent`, or None."""
        number = self._view.lookup(_plain(parent), name)
        return None if number is None else InodeNumber(self._base | number)

    def directory_page(self, parent: InodeNumber, after_cookie: int, limit: int) -> DirectoryPage:
        """Up to `limit` entries after the cookie, in cookie order, in bounded time."""
        base = self._base
        entries, following = self._view.directory_page(_plain(parent), after_cookie, limit)
        found = [
            DirectoryEntry(cookie, name, InodeNumber(base | number), file_type)
            for cookie, name, number, file_type in entries
        ]
        return DirectoryPage(found, following)

    def get_xattr(self, number: InodeNumber, name: bytes) -> bytes | None:
        """An extended attribute's value, or None."""
        return self._view.get_xattr(_plain(number), name)

    def list_xattrs(self, number: InodeNumber) -> list[bytes]:
        """Names of all extended attributes."""
        return self._view.list_xattrs(_plain(number))

    def extents(self, number: InodeNumber, offset: int, length: int) -> list[Extent]:
        """Extents within [offset, offset+length): clipped, sorted, holes absent."""
        return self._view.extents(_plain(number), offset, length)

    def next_data(self, number: InodeNumber, offset: int) -> int | None:
        """The first mapped byte at or after `offset`, or None."""
        return self._view.next_data(_plain(number), offset)

    def next_hole(self, number: InodeNumber, offset: int) -> int:
        """The first unmapped byte at or after `offset`, at most the size."""
        return self._view.next_hole(_plain(number), offset)


class Snapshots:
    """The readers of all snapshots, and a `Reader` of the directory that lists them."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._readers: dict[int, SnapshotReader] = {}  # by slot

    def reader(self, number: InodeNumber) -> SnapshotReader | Snapshots:
        """Who answers for an inode that is not the volume's own. Raises PosixError ESTALE."""
        slot = number >> INODE_NUMBER_BITS
        if slot == DIRECTORY_SLOT:
            return self
        reader = self._readers.get(slot)
        if reader is not None:
            return reader
        # Nobody asked for it by name: a file handle (NFS) of an earlier session, or of long ago.
        for snapshot in self._volume.snapshots():
            if snapshot.slot == slot:
                return self._open(snapshot)
        raise PosixError(errno.ESTALE, "the snapshot was destroyed")

    def directory(self) -> Inode:
        """The directory that lists them."""
        snapshots = self._volume.snapshots()
        birth_ns = self._volume.inode(ROOT_INODE).birth_ns
        changed_ns = max((snapshot.time_ns for snapshot in snapshots), default=birth_ns)
        return SnapshotInode(
            number=SNAPSHOTS_INODE,
            mode=stat.S_IFDIR | 0o555,
            nlink=2 + len(snapshots),
            uid=0,
            gid=0,
            device=0,
            size=0,
            atime_ns=changed_ns,
            mtime_ns=changed_ns,
            ctime_ns=changed_ns,
            birth_ns=birth_ns,
            parent=ROOT_INODE,
            entry_count=len(snapshots),
            cache_seconds=SNAPSHOT_NAME_CACHE_SECONDS,
        )

    def inode(self, number: InodeNumber) -> Inode:
        """The directory itself. Raises PosixError ENOENT."""
        if number != SNAPSHOTS_INODE:
            raise PosixError(errno.ENOENT, f"inode {number}")
        return self.directory()

    def lookup(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """The root of the snapshot called `name`, or None."""
        try:
            snapshot = self._volume.snapshot(name.decode())
        except (PosixError, UnicodeDecodeError):
            return None
        return self._open(snapshot).root

    def directory_page(self, parent: InodeNumber, after_cookie: int, limit: int) -> DirectoryPage:
        """Snapshots in the order of their making. One that stays is returned exactly once."""
        entries = []
        for snapshot in self._volume.snapshots():
            cookie = _FIRST_COOKIE + snapshot.epoch
            if cookie > after_cookie:
                root = self._open(snapshot).root
                entries.append(
                    DirectoryEntry(cookie, snapshot.name.encode(), root, _DIRECTORY_TYPE)
                )
                if len(entries) == limit:
                    return DirectoryPage(entries, cookie)
        return DirectoryPage(entries, None)

    def get_xattr(self, number: InodeNumber, name: bytes) -> bytes | None:
        """None: it has no extended attributes."""
        return None

    def list_xattrs(self, number: InodeNumber) -> list[bytes]:
        """None of them."""
        return []

    def extents(self, number: InodeNumber, offset: int, length: int) -> list[Extent]:
        """None: a directory maps no data."""
        return []

    def next_data(self, number: InodeNumber, offset: int) -> int | None:
        """None: a directory maps no data."""
        return None

    def next_hole(self, number: InodeNumber, offset: int) -> int:
        """At once: a directory maps no data."""
        return offset

    def _open(self, snapshot: Snapshot) -> SnapshotReader:
        """The reader of a live snapshot."""
        reader = self._readers.get(snapshot.slot)
        if reader is None or reader.epoch != snapshot.epoch:
            if len(self._readers) >= READERS_MAX:
                self._readers.clear()
            reader = SnapshotReader(snapshot, self._volume.view(snapshot))
            self._readers[snapshot.slot] = reader
        return reader


def _plain(number: InodeNumber) -> InodeNumber:
    """The number that the inode has in the volume."""
    return InodeNumber(number & _NUMBER_MASK)

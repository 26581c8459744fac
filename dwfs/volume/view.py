"""`SnapshotView`: the volume as a snapshot keeps it, to be read like the volume itself.

Costs nothing until it is read, and holds nothing. When its snapshot is destroyed all methods raise
ESTALE; data that a reader looked up before may be gone (see `Volume.extents`).
"""

from __future__ import annotations

import errno
from typing import Final

from dwfs.errors import PosixError
from dwfs.types import Epoch, Extent, InodeNumber
from dwfs.volume import filemap, xattrs
from dwfs.volume.directories import (
    PAGE_KEYS_MAX,
    dentry_key,
    directory_prefix,
    entries_in,
    find_in,
    first_key,
    page_of,
)
from dwfs.volume.frozen import FrozenTable, Pairs
from dwfs.volume.records import DirectoryEntry, DirectoryPage, Inode, Snapshot, Usage
from dwfs.volume.state import VolumeState, xattr_prefix


class _Nodes:
    """Extent nodes at one epoch, as `filemap` reads them."""

    def __init__(
        self, table: FrozenTable[tuple[InodeNumber, int], list[Extent]], epoch: Epoch
    ) -> None:
        self._table = table
        self._epoch = epoch

    def get(self, key: tuple[InodeNumber, int], /) -> list[Extent] | None:
        """The node, or None."""
        return self._table.get(key, self._epoch)


class _XattrBuckets:
    """Attributes at one epoch, as `xattrs` reads them."""

    def __init__(self, table: FrozenTable[bytes, Pairs], epoch: Epoch) -> None:
        self._table = table
        self._epoch = epoch

    def get(self, key: bytes, /) -> Pairs | None:
        """The bucket, or None."""
        return self._table.get(key, self._epoch)


class _Frozen:
    """What reading maps and attributes needs of a state."""

    def __init__(self, state: VolumeState, epoch: Epoch) -> None:
        self.nodes: Final = _Nodes(state.frozen.nodes, epoch)
        self.xattrs: Final = _XattrBuckets(state.frozen.xattrs, epoch)
        self.xattr_key: Final = state.xattr_key


class SnapshotView:
    """Read-only; numbers are the volume's own. Raises PosixError as `Volume` does, and ESTALE."""

    def __init__(self, state: VolumeState, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._state = state
        self._epoch = snapshot.epoch
        self._frozen = _Frozen(state, snapshot.epoch)

    def _check(self) -> None:
        if not self._state.snapshots.has(self._epoch):
            raise PosixError(errno.ESTALE, f"snapshot {self.snapshot.name} was destroyed")

    def inode(self, number: InodeNumber) -> Inode:
        """The inode as it was. Raises PosixError ENOENT."""
        self._check()
        inode = self._state.frozen.inodes.get(number, self._epoch)
        if inode is None:
            raise PosixError(errno.ENOENT, f"inode {number}")
        return inode

    def lookup(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """The inode that was called `name` in directory `parent`, or None."""
        self._check()
        key = dentry_key(parent, self._state.store.names.dentry(parent, name))
        bucket = self._state.frozen.buckets.get(key, self._epoch)
        dentry = None if bucket is None else find_in(bucket, name)
        return None if dentry is None else dentry[2]

    def read_directory(
        self, parent: InodeNumber, after_cookie: int, limit: int
    ) -> list[DirectoryEntry]:
        """As `Volume.read_directory`."""
        self._check()
        found = self._state.versions.scan(
            directory_prefix(parent), first_key(parent, after_cookie), self._epoch
        )
        decode = self._state.frozen.buckets.decode
        return entries_in(
            ((key, decode(key, sealed)) for key, sealed in found), after_cookie, limit
        )

    def directory_page(self, parent: InodeNumber, after_cookie: int, limit: int) -> DirectoryPage:
        """As `Volume.directory_page`."""
        self._check()
        found = self._state.versions.scan(
            directory_prefix(parent), first_key(parent, after_cookie), self._epoch, PAGE_KEYS_MAX
        )
        return page_of(found, self._state.frozen.buckets.decode, after_cookie, limit)

    def get_xattr(self, number: InodeNumber, name: bytes) -> bytes | None:
        """An extended attribute's value, or None. Raises PosixError ENOENT."""
        return xattrs.get(self._frozen, self.inode(number), name)

    def list_xattrs(self, number: InodeNumber) -> list[bytes]:
        """Names of all extended attributes. Raises PosixError ENOENT."""
        if not self.inode(number).xattr_count:
            return []
        decode = self._state.frozen.xattrs.decode
        return [
            name
            for key, sealed in self._state.versions.scan(xattr_prefix(number), epoch=self._epoch)
            for name, _ in decode(key, sealed)
        ]

    def extents(self, number: InodeNumber, offset: int, length: int) -> list[Extent]:
        """As `Volume.extents`; what it says there about relocation holds here, too."""
        inode = self.inode(number)
        return filemap.read(self._frozen, inode, offset, length) if length > 0 else []

    def next_data(self, number: InodeNumber, offset: int) -> int | None:
        """SEEK_DATA: as `Volume.next_data`."""
        return filemap.next_data(self._frozen, self.inode(number), offset)

    def next_hole(self, number: InodeNumber, offset: int) -> int:
        """SEEK_HOLE: as `Volume.next_hole`."""
        return filemap.next_hole(self._frozen, self.inode(number), offset)

    def usage(self) -> Usage:
        """Totals of the volume when the snapshot was taken."""
        self._check()
        return Usage(self.snapshot.inode_count, self.snapshot.allocated_bytes)

"""`Filesystem`: everything an adapter may ask of a volume, in POSIX terms.

The facade composes the parts and lends their methods; a request reaches the part that answers it
without a call in between, because at some twenty microseconds a request each call counts.

Conventions:

* Failures are `PosixError`s, and then nothing was changed.
* Methods that only look are plain functions; those that change something, or may have to wait for a
  disk, are coroutines.
* An `Inode` that is handed out is the state's own record: read it before the next await.
* Lookup counts: `lookup`, `mknod`, `mkdir`, `symlink`, `create` and `link` count one reference to
  the inode they return, `remember_entry` one for a listed entry; `forget` gives them back. An
  adapter without a kernel behind it calls `forget` itself or lets `close` end them all.
* Permission checks are the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from dwfs.ports import Clock, DataStore
from dwfs.types import InodeNumber
from dwfs.vfs.attributes import AccessTime, Attributes
from dwfs.vfs.caller import GroupsOf, no_groups
from dwfs.vfs.capacity import Capacity, Space
from dwfs.vfs.clones import Clones
from dwfs.vfs.content import Content
from dwfs.vfs.directories import Directories
from dwfs.vfs.handles import HandleTable
from dwfs.vfs.namespace import Namespace
from dwfs.vfs.readers import Readers
from dwfs.vfs.references import References, forget_all
from dwfs.vfs.trash import Trash
from dwfs.vfs.xattrs import ExtendedAttributes
from dwfs.volume.records import Inode
from dwfs.volume.volume import Volume


class FilesystemOptions(msgspec.Struct, frozen=True):
    """What a mount decides."""

    access_time: AccessTime = "relatime"
    groups_of: GroupsOf = no_groups  # for set-group-id rules: the FUSE adapter reads /proc


class Filesystem:
    """POSIX semantics over one volume."""

    def __init__(
        self,
        volume: Volume,
        data: DataStore,
        clock: Clock,
        space: Callable[[], Space],
        options: FilesystemOptions | None = None,
    ) -> None:
        if options is None:
            options = FilesystemOptions()
        self._volume = volume
        self._readers = readers = Readers(volume)
        self._references = references = References(volume)
        self._handles = handles = HandleTable(references)
        self._attributes = attributes = Attributes(volume, clock, references, options.access_time)
        self.trash = trash = Trash(volume, clock, references, space)
        names = Namespace(volume, readers, clock, references, handles, attributes, trash)
        content = Content(volume, readers, data, clock, handles, attributes, references)
        directories = Directories(volume, readers, references, handles, attributes)
        xattrs = ExtendedAttributes(volume, readers, clock, options.groups_of)

        self.getattr = readers.inode
        self.setattr = attributes.setattr

        self.lookup = names.lookup
        self.mknod = names.mknod
        self.mkdir = names.mkdir
        self.symlink = names.symlink
        self.link = names.link
        self.unlink = names.unlink
        self.rmdir = names.rmdir
        self.rename = names.rename
        self.create = names.create
        self.open = names.open

        self.read = content.read
        self.read_inode = content.read_inode
        self.write = content.write
        self.fsync = content.fsync
        self.fallocate = content.fallocate
        self.seek = content.seek
        self.copy_range = content.copy_range
        self.clone = Clones(volume, clock, references, trash).clone
        self.release = handles.close_file
        self.put_off_refusal = handles.put_off_refusal
        self.take_refusal = handles.take_refusal

        self.opendir = directories.opendir
        self.find_directory_entry = directories.find_entry
        self.directory_entries = directories.entries
        self.mark_directory_read = directories.mark_read
        self.remember_entry = directories.remember
        self.releasedir = directories.releasedir

        self.getxattr = xattrs.getxattr
        self.listxattr = xattrs.listxattr
        self.setxattr = xattrs.setxattr
        self.removexattr = xattrs.removexattr

        self.statfs = Capacity(volume, space).statfs
        self.sync = volume.barrier
        self.run_purger = references.run_purger

    def readlink(self, number: InodeNumber) -> bytes:
        """A symbolic link's target."""
        return self._readers.inode(number).target

    @property
    def has_byte_quota(self) -> bool:
        """Whether writes may be refused with EDQUOT."""
        return self._volume.properties.quota_bytes is not None

    def access_due(self, inode: Inode) -> int | None:
        """The new access time if reading `inode` now should set one."""
        return self._attributes.access_due(inode)

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Give back lookups: (inode, count) pairs. Never raises."""
        forget_all(self._references, forgotten)

    def set_access_time(self, policy: AccessTime) -> None:
        """Follow a remount."""
        self._attributes.access_time = policy

    @property
    def open_handles(self) -> int:
        """Files and directories open now."""
        return len(self._handles)

    @property
    def orphans_waiting(self) -> int:
        """Orphans that nobody refers to and that have not been purged yet."""
        return self._references.waiting()

    async def close(self) -> None:
        """The session is over: nothing is open any more; release all orphans.

        Call it before the volume's last barrier.
        """
        self._handles.close_all()
        self._references.drop_all()
        await self._references.purge_all()

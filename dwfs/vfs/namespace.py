"""Names: finding, making, removing and moving them.

The machine re-validates every command against the state to which it is applied, so the checks here
only serve what the machine can't know: who asks, the umask and default ACLs, open handles and the
kernel's lookups. Nothing is awaited between reading a parent's attributes and the proposal.
"""

from __future__ import annotations

import errno
import os
import stat

from dwfs.errors import PosixError
from dwfs.limits import NAME_LENGTH_MAX, SYMLINK_LENGTH_MAX
from dwfs.ports import Clock
from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.vfs import acl
from dwfs.vfs.attributes import Attributes, without_set_id
from dwfs.vfs.caller import Caller
from dwfs.vfs.handles import FileHandle, HandleTable
from dwfs.vfs.readers import Readers
from dwfs.vfs.references import References
from dwfs.vfs.snapshots import FIRST_SNAPSHOT_INODE, SNAPSHOTS_INODE, SNAPSHOTS_NAME
from dwfs.vfs.trash import TRASH_NAME, Trash
from dwfs.volume.commands import Create, Link, RemoveDirectory, Rename, Unlink
from dwfs.volume.records import ACL_DEFAULT, Inode
from dwfs.volume.volume import Volume


class Namespace:
    """Directory entries. What returns an `Inode` from a name has counted one kernel lookup."""

    def __init__(
        self,
        volume: Volume,
        readers: Readers,
        clock: Clock,
        references: References,
        handles: HandleTable,
        attributes: Attributes,
        trash: Trash,
    ) -> None:
        self._volume = volume
        self._readers = readers
        self._clock = clock
        self._references = references
        self._handles = handles
        self._attributes = attributes
        self._trash = trash

    def lookup(self, parent: InodeNumber, name: bytes) -> Inode | None:
        """The inode of a name, or None if there is none.

        "." gives the inode `parent` itself, of any type, and ".." a directory's parent: so the
        kernel finds an inode that it knows by number only (NFS export, open by handle).
        """
        if len(name) > NAME_LENGTH_MAX:
            raise PosixError(errno.ENAMETOOLONG)
        if parent >= FIRST_SNAPSHOT_INODE:
            return self._lookup_in_snapshots(parent, name)
        if name == b".":
            number: InodeNumber | None = parent
        elif name == b"..":
            number = self._volume.inode(parent).parent or None
        else:
            number = self._volume.lookup(parent, name)
        if number is None:
            if name == SNAPSHOTS_NAME and parent == ROOT_INODE:
                return self._lookup_in_snapshots(SNAPSHOTS_INODE, b".")
            if name == TRASH_NAME and parent == ROOT_INODE:
                raise PosixError(errno.ENOENT)  # not for the kernel to keep: it is made by `unlink`
            return None
        inode = self._volume.inode(number)
        self._references.remember(number)
        return inode

    async def mknod(
        self, parent: InodeNumber, name: bytes, mode: int, device: int, caller: Caller
    ) -> Inode:
        """Make a regular file, fifo, socket or device node."""
        if stat.S_IFMT(mode) == 0:
            mode |= stat.S_IFREG
        elif stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise PosixError(errno.EINVAL)
        return await self._make(parent, name, mode, caller, device=device)

    async def mkdir(self, parent: InodeNumber, name: bytes, mode: int, caller: Caller) -> Inode:
        """Make a directory."""
        return await self._make(parent, name, stat.S_IFDIR | mode & 0o7777, caller)

    async def symlink(
        self, parent: InodeNumber, name: bytes, target: bytes, caller: Caller
    ) -> Inode:
        """Make a symbolic link."""
        if not target:
            raise PosixError(errno.ENOENT)
        if len(target) > SYMLINK_LENGTH_MAX:
            raise PosixError(errno.ENAMETOOLONG)
        return await self._make(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    async def create(
        self, parent: InodeNumber, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileHandle, Inode]:
        """open(2) with O_CREAT."""
        try:
            inode = await self._make(parent, name, stat.S_IFREG | mode & 0o7777, caller)
        except PosixError as error:
            if error.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            return await self._open_existing(parent, name, flags, caller)
        # Not by `open`: the creator may write whatever mode it gave the file.
        privileged = caller.uid == 0
        handle = self._handles.open_file(inode.number, self._volume, flags, privileged=privileged)
        return handle, inode

    async def open(
        self, number: InodeNumber, flags: int, caller: Caller, *, times: bool = True
    ) -> FileHandle:
        """open(2) without O_CREAT, O_TRUNC included.

        `times`: what O_TRUNC empties gets a new mtime and ctime; as for `Content.write`.
        """
        reader = self._readers.of(number)
        inode = reader.inode(number)
        if stat.S_ISDIR(inode.mode):
            raise PosixError(errno.EISDIR)
        if number >= FIRST_SNAPSHOT_INODE and (
            flags & os.O_TRUNC or flags & os.O_ACCMODE != os.O_RDONLY
        ):
            raise PosixError(errno.EROFS)
        handle = self._handles.open_file(number, reader, flags, privileged=caller.uid == 0)
        if flags & os.O_TRUNC:
            mode = inode.mode if caller.uid == 0 else without_set_id(inode.mode)
            try:
                await self._attributes.setattr(
                    number,
                    size=0,
                    mode=None if mode == inode.mode else mode,
                    mtime_ns=None if times else inode.mtime_ns,
                    ctime_ns=None if times else inode.ctime_ns,
                )
            except BaseException:  # whatever it was: the caller gets no handle, so it closes none
                self._handles.close_file(handle.number)
                raise
        return handle

    async def link(self, number: InodeNumber, parent: InodeNumber, name: bytes) -> Inode:
        """Give a file one more name."""
        self._readers.check_change(parent, name)
        if number >= FIRST_SNAPSHOT_INODE:
            raise PosixError(errno.EXDEV)
        inode = await self._volume.propose(Link(number, parent, name, self._clock.wall_ns()))
        self._references.remember(number)
        return inode

    async def unlink(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name of anything but a directory; a file's last one may move to the trash."""
        self._readers.check_change(parent, name)
        if self._volume.properties.trash_days and await self._trash.receive(parent, name):
            return
        inode = await self._volume.propose(Unlink(parent, name, self._clock.wall_ns()))
        if not inode.nlink:
            self._references.orphaned(inode.number)

    async def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        """Remove an empty directory."""
        if name == b".":
            raise PosixError(errno.EINVAL)
        if name == b"..":
            raise PosixError(errno.ENOTEMPTY)
        self._readers.check_change(parent, name)
        inode = await self._volume.propose(RemoveDirectory(parent, name, self._clock.wall_ns()))
        self._references.orphaned(inode.number)

    async def rename(
        self, parent: InodeNumber, name: bytes, new_parent: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        """renameat2(2); `flags` is 0, RENAME_NOREPLACE or RENAME_EXCHANGE."""
        self._readers.check_change(parent, name)
        self._readers.check_change(new_parent, new_name)
        replaced = await self._volume.propose(
            Rename(parent, name, new_parent, new_name, flags, self._clock.wall_ns())
        )
        if replaced is not None and not replaced.nlink:
            self._references.orphaned(replaced.number)

    async def _make(
        self,
        parent: InodeNumber,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        device: int = 0,
        target: bytes = b"",
    ) -> Inode:
        self._readers.check_change(parent, name)
        directory = self._volume.inode(parent)
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if not target:
            if directory.acl_flags & ACL_DEFAULT:
                mode, xattrs = self._inherit(parent, mode, caller.umask)
            else:
                mode &= ~caller.umask
        number = self._volume.allocate_inode()
        now = self._clock.wall_ns()
        command = Create(parent, name, number, mode, caller.uid, gid, device, target, xattrs, now)
        try:
            inode = await self._volume.propose(command)
        except PosixError as error:
            if error.errno != errno.EDQUOT or not await self._references.relieve():
                raise
            inode = await self._volume.propose(command)
        self._references.remember(number)
        return inode

    def _inherit(
        self, parent: InodeNumber, mode: int, umask: int
    ) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
        """(mode, xattrs) of a new file in a directory with a default ACL."""
        value = self._volume.get_xattr(parent, acl.DEFAULT_NAME)
        if value is None:
            return mode & ~umask, ()
        access, mode = acl.inherit(acl.decode(value), mode)
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if not acl.is_trivial(access):
            xattrs = ((acl.ACCESS_NAME, acl.encode(access)),)
        if stat.S_ISDIR(mode):
            xattrs += ((acl.DEFAULT_NAME, value),)
        return mode, xattrs

    async def _open_existing(
        self, parent: InodeNumber, name: bytes, flags: int, caller: Caller
    ) -> tuple[FileHandle, Inode]:
        """O_CREAT without O_EXCL met a name that was made since the kernel looked."""
        inode = self.lookup(parent, name)
        if inode is None:
            raise PosixError(errno.ENOENT)
        number = inode.number
        try:
            handle = await self.open(number, flags, caller)
        except BaseException:  # whatever it was: the kernel is not told of the inode
            self._references.forget(number, 1)
            raise
        return handle, self._volume.inode(number)

    def _lookup_in_snapshots(self, parent: InodeNumber, name: bytes) -> Inode:
        """As `lookup`. Raises PosixError ENOENT, because the kernel shall not keep that there is none."""
        if name == b".":
            number: InodeNumber | None = parent
        elif name == b"..":
            number = self._readers.inode(parent).parent or None
        else:
            number = self._readers.of(parent).lookup(parent, name)
        if number is None:
            raise PosixError(errno.ENOENT)
        inode = self._readers.inode(number)
        self._references.remember(number)
        return inode

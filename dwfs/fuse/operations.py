"""FUSE requests → `Filesystem` calls, and their results → what the kernel is told.

Nothing is decided here except how to use the kernel well. We are the filesystem's only owner, so
the kernel may cache names, attributes and the absence of names as long as it likes (not so in
snapshots, which are destroyed without it), and collects writes (writeback cache). In that mode the
kernel is the authority on the size and times of regular files while it caches them, turns O_APPEND
into offsets, and follows a write to an O_SYNC file with an fsync request. The adapter therefore
keeps those flags from `Filesystem`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Final

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from dwfs.errors import PosixError
from dwfs.fuse.gateway import Gateway
from dwfs.fuse.kernel_caches import MountedKernel
from dwfs.limits import KERNEL_CACHE_SECONDS, NAME_LENGTH_MAX
from dwfs.types import InodeNumber
from dwfs.vfs import BLOCK_SIZE, FIRST_SNAPSHOT_INODE, Filesystem, SnapshotInode
from dwfs.volume.records import Inode

_PARENT_COOKIE: Final = 2  # up to this one, listed entries ("." and "..") count no lookup
_FLAGS_FOR_US: Final = ~(os.O_APPEND | os.O_SYNC | os.O_DSYNC)
_STAT_BLOCK: Final = 512  # unit of st_blocks, whatever the block size (stat(2))

_REQUESTS: Final = [
    "lookup",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "releasedir",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "access",
]


def entry_attributes(inode: Inode) -> EntryAttributes:
    """What the kernel is told of an inode."""
    entry = EntryAttributes()
    number = entry.st_ino = inode.number
    if number < FIRST_SNAPSHOT_INODE:
        entry.entry_timeout = entry.attr_timeout = KERNEL_CACHE_SECONDS
    else:
        assert isinstance(inode, SnapshotInode), "only those have such a number"
        entry.generation = inode.generation
        entry.entry_timeout = entry.attr_timeout = inode.cache_seconds
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    if inode.device:
        entry.st_rdev = inode.device
    entry.st_size = inode.size
    entry.st_blocks = (inode.allocated_bytes + _STAT_BLOCK - 1) // _STAT_BLOCK
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def _absent_entry() -> EntryAttributes:
    """Inode 0 tells the kernel that there is no such name, and that it may remember that."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = KERNEL_CACHE_SECONDS
    return entry


class DwfsOperations(pyfuse3.Operations):
    """The handlers of one session. Build it, hand it to `FuseSession`."""

    enable_writeback_cache = True
    supports_dot_lookup = True
    enable_acl = True

    def __init__(self, filesystem: Filesystem, gateway: Gateway | None = None) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._gateway = Gateway() if gateway is None else gateway
        self._absent = _absent_entry()
        self._asks_at_close: bool | None = None  # whether FUSE_FLUSH comes; None: none came yet
        self.initialised = trio.Event()  # the kernel and libfuse have agreed
        # Wrapped here rather than by decorators: one gateway per session holds the counters.
        for name in _REQUESTS:
            setattr(self, name, self._gateway.guard(getattr(self, name), name))
        forget = self._gateway.guard_silent(self.forget, "forget")
        setattr(self, "forget", forget)  # noqa: B010  # mypy forbids assigning to a method

    @property
    def unforeseen_errors(self) -> int:
        """Requests answered with EIO because of a bug of ours."""
        return self._gateway.unforeseen_errors

    @contextlib.contextmanager
    def telling_kernel(self) -> Iterator[None]:
        """While in the block, the kernel is told of what the filesystem changes by itself."""
        self._filesystem.trash.kernel = MountedKernel()
        try:
            yield
        finally:
            self._filesystem.trash.kernel = None

    def is_waiting(self) -> bool:
        """Whether a request was begun and is not answered: between requests, it is suspended."""
        return self._gateway.under_way > 0

    def init(self) -> None:
        """libfuse is about to answer the kernel's first request."""
        self.initialised.set()

    # --- names ---------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """FUSE_LOOKUP."""
        inode = self._filesystem.lookup(InodeNumber(parent), name)
        return self._absent if inode is None else entry_attributes(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FUSE_FORGET and FUSE_BATCH_FORGET."""
        self._filesystem.forget(inode_list)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """FUSE_MKNOD."""
        return entry_attributes(
            await self._filesystem.mknod(InodeNumber(parent), name, mode, rdev, ctx)
        )

    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """FUSE_MKDIR."""
        return entry_attributes(await self._filesystem.mkdir(InodeNumber(parent), name, mode, ctx))

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """FUSE_SYMLINK."""
        return entry_attributes(
            await self._filesystem.symlink(InodeNumber(parent), name, target, ctx)
        )

    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """FUSE_LINK."""
        return entry_attributes(
            await self._filesystem.link(InodeNumber(inode), InodeNumber(new_parent), new_name)
        )

    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        """FUSE_UNLINK."""
        await self._filesystem.unlink(InodeNumber(parent), name)

    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        """FUSE_RMDIR."""
        await self._filesystem.rmdir(InodeNumber(parent), name)

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """FUSE_RENAME2."""
        await self._filesystem.rename(
            InodeNumber(parent), name, InodeNumber(new_parent), new_name, flags
        )

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """FUSE_READLINK."""
        return self._filesystem.readlink(InodeNumber(inode))

    # --- attributes ----------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """FUSE_GETATTR."""
        return entry_attributes(self._filesystem.getattr(InodeNumber(inode)))

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """FUSE_SETATTR. pyfuse3 has resolved UTIME_NOW."""
        return entry_attributes(
            await self._filesystem.setattr(
                InodeNumber(inode),
                mode=attr.st_mode if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                size=attr.st_size if fields.update_size else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
                ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
                clear_set_id=ctx.uid != 0,  # FUSE_HANDLE_KILLPRIV_V2, see `handshake`
            )
        )

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Never sent: the kernel checks by itself (`default_permissions`)."""
        return True

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """FUSE_GETXATTR."""
        return self._filesystem.getxattr(InodeNumber(inode), name)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """FUSE_LISTXATTR."""
        return self._filesystem.listxattr(InodeNumber(inode))

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """FUSE_SETXATTR; pyfuse3 has seen to XATTR_CREATE and XATTR_REPLACE."""
        await self._filesystem.setxattr(InodeNumber(inode), name, value, 0, ctx)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """FUSE_REMOVEXATTR."""
        await self._filesystem.removexattr(InodeNumber(inode), name)

    # --- files ---------------------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """FUSE_CREATE."""
        handle, inode = await self._filesystem.create(
            InodeNumber(parent), name, mode, flags & _FLAGS_FOR_US, ctx
        )
        return FileInfo(fh=handle.number, keep_cache=True), entry_attributes(inode)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """FUSE_OPEN.

        O_DIRECT needs no `direct_io`: the kernel bypasses its cache by itself, keeps it coherent,
        and still allows shared mappings. What O_TRUNC does to the times the kernel sends by itself, as
        with a write; its clock is coarser, and a time of ours would show when its cache is gone.
        """
        handle = await self._filesystem.open(
            InodeNumber(inode), flags & _FLAGS_FOR_US, ctx, times=False
        )
        return FileInfo(fh=handle.number, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """FUSE_READ."""
        return await self._filesystem.read(fh, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """FUSE_WRITE.

        To close(2) the kernel would report a quota that is full as EIO: of what fails when pages
        are written back it knows ENOSPC only. So, if it asks at close, it is told then.
        """
        try:
            return await self._filesystem.write(fh, off, buf, times=False)
        except PosixError as error:
            if (
                error.errno != errno.EDQUOT
                or self._asks_at_close is False
                or not self._filesystem.put_off_refusal(fh)
            ):
                raise
            self._asks_at_close = True
            return len(buf)

    async def flush(self, fh: int) -> None:
        """FUSE_FLUSH: nothing to do at close(2), and ENOSYS spares us all further requests.

        The kernel still writes back what the file has dirty, and reports errors of that. Where there
        is a quota when it asks first, it goes on asking (see `write`).
        """
        self._tell_refusal(fh)
        if self._asks_at_close is None:
            self._asks_at_close = self._filesystem.has_byte_quota
        if not self._asks_at_close:
            raise FUSEError(errno.ENOSYS)

    def _tell_refusal(self, fh: int) -> None:
        if self._filesystem.take_refusal(fh):
            raise PosixError(errno.EDQUOT)

    async def release(self, fh: int) -> None:
        """FUSE_RELEASE."""
        self._filesystem.release(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """FUSE_FSYNC."""
        await self._filesystem.fsync(fh)
        self._tell_refusal(fh)

    # --- directories ---------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """FUSE_OPENDIR."""
        return self._filesystem.opendir(InodeNumber(inode))

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """FUSE_READDIRPLUS: fill one reply with names and attributes."""
        filesystem = self._filesystem
        if not start_id:
            await filesystem.mark_directory_read(fh)
        start_id = await filesystem.find_directory_entry(fh, start_id)
        # From here no await: what is listed is the state of one moment.
        for entry, inode in filesystem.directory_entries(fh, start_id):
            if not pyfuse3.readdir_reply(token, entry.name, entry_attributes(inode), entry.cookie):
                return
            if entry.cookie > _PARENT_COOKIE:
                filesystem.remember_entry(inode.number)

    async def releasedir(self, fh: int) -> None:
        """FUSE_RELEASEDIR."""
        self._filesystem.releasedir(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """FUSE_FSYNCDIR."""
        await self._filesystem.sync()

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """FUSE_STATFS."""
        statistics = self._filesystem.statfs()
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = reply.f_frsize = BLOCK_SIZE
        reply.f_blocks = statistics.blocks
        reply.f_bfree = reply.f_bavail = statistics.free_blocks
        reply.f_files = statistics.inodes
        reply.f_ffree = reply.f_favail = statistics.free_inodes
        reply.f_namemax = NAME_LENGTH_MAX
        return reply

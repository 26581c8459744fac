"""Attributes: reading them, changing them, and the rules that tie them together.

Rules kept here (chmod(2), chown(2), truncate(2), utimensat(2), inode(7)):

* chown of anything but a directory clears set-user-id, and set-group-id if the group may execute.
* chmod of a file with an access ACL changes the list's mask; both change in one command.
* Any change sets ctime; a change of size sets mtime too.
* Access times follow the mount option; such an update changes no ctime.

The kernel's FUSE client in writeback mode is the authority on the times of regular files while it
caches them, and sends them with an explicit ctime; it also decides when a write clears set-user-id.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, Literal, TypeAlias

from dwfs.errors import PosixError
from dwfs.limits import FILE_SIZE_MAX
from dwfs.ports import Clock
from dwfs.types import InodeNumber
from dwfs.vfs import acl
from dwfs.vfs.references import References
from dwfs.vfs.snapshots import FIRST_SNAPSHOT_INODE
from dwfs.volume.commands import SetAttributes, SetXattr
from dwfs.volume.records import ACL_ACCESS, Inode
from dwfs.volume.volume import Volume

AccessTime: TypeAlias = Literal["relatime", "noatime", "strictatime"]

# relatime: a file read again and again still gets a new access time once a day (mount(8)).
RELATIME_SECONDS: Final = 24 * 60 * 60
_NANOSECONDS: Final = 1_000_000_000


def without_set_id(mode: int) -> int:
    """The mode after somebody without privilege wrote the file, or anybody changed its owner."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:  # without it the bit once meant mandatory locking, and is kept
        mode &= ~stat.S_ISGID
    return mode


class Attributes:
    """Reads and changes inodes' attributes."""

    def __init__(
        self, volume: Volume, clock: Clock, references: References, access_time: AccessTime
    ) -> None:
        self._volume = volume
        self._clock = clock
        self._references = references
        self.access_time: AccessTime = access_time  # changes with a remount

    async def setattr(
        self,
        number: InodeNumber,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        clear_set_id: bool = False,
    ) -> Inode:
        """Change what is not None; returns the inode as it is then.

        `mode`: permission bits (other bits are ignored). `ctime_ns`: None for now. UTIME_NOW is the
        adapter's to resolve, UTIME_OMIT is None. `clear_set_id`: a change of size is made by
        somebody without privilege, and nobody else clears the bits.
        """
        if number >= FIRST_SNAPSHOT_INODE:
            raise PosixError(errno.EROFS)
        inode = self._volume.inode(number)
        if mode is None and uid is None and gid is None and size is None:
            if inode.nlink == 0 and not self._references.is_open(number):
                return inode  # the kernel flushes times of an orphan that nobody can see any more
        else:
            if size is not None:
                _check_size(inode, size)
                if clear_set_id:
                    mode = without_set_id(inode.mode if mode is None else mode)
            owned_anew = uid is not None or gid is not None
            if owned_anew and mode is None and not stat.S_ISDIR(inode.mode):
                mode = without_set_id(inode.mode)
            if mode is not None:
                mode &= 0o7777
        now = self._clock.wall_ns() if ctime_ns is None else ctime_ns
        if mode is not None and inode.acl_flags & ACL_ACCESS:
            inode = await self._chmod_with_acl(number, mode, now)
            mode = None
            if uid is None and gid is None and size is None and atime_ns is mtime_ns is None:
                return inode
        command = SetAttributes(number, mode, uid, gid, size, atime_ns, mtime_ns, now)
        if size is not None:
            return await self._volume.truncate(command)
        return await self._volume.propose(command)

    async def _chmod_with_acl(self, number: InodeNumber, mode: int, now: int) -> Inode:
        value = self._volume.get_xattr(number, acl.ACCESS_NAME)
        if value is None:
            return await self._volume.propose(
                SetAttributes(number, mode, None, None, None, None, None, now)
            )
        changed = acl.encode(acl.with_permissions(acl.decode(value), mode))
        return await self._volume.propose(SetXattr(number, acl.ACCESS_NAME, changed, 0, now, mode))

    def access_due(self, inode: Inode) -> int | None:
        """The new access time if reading the inode now should set one, else None."""
        policy = self.access_time
        if policy == "noatime":
            return None
        atime = inode.atime_ns
        if policy == "relatime" and atime > inode.mtime_ns and atime > inode.ctime_ns:
            now = self._clock.wall_ns()
            return now if now - atime >= RELATIME_SECONDS * _NANOSECONDS else None
        return self._clock.wall_ns()

    async def touch(self, number: InodeNumber, atime_ns: int) -> None:
        """Set the access time; a failure is nobody's concern but the log's."""
        if number >= FIRST_SNAPSHOT_INODE:
            return
        try:
            await self._volume.propose(
                SetAttributes(number, None, None, None, None, atime_ns, None, None)
            )
        except PosixError:
            return  # the file is gone or the pool full: what was read is right all the same


def _check_size(inode: Inode, size: int) -> None:
    if stat.S_ISDIR(inode.mode):
        raise PosixError(errno.EISDIR)
    if not stat.S_ISREG(inode.mode) or size < 0:
        raise PosixError(errno.EINVAL)
    if size > FILE_SIZE_MAX:
        raise PosixError(errno.EFBIG)

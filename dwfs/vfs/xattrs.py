"""Extended attributes: the rules of xattr(7), and what setting an ACL does besides.

Namespaces: `user` (regular files and directories only), `trusted` and `security` (whose privilege
checks are the kernel's), and of `system` the two ACLs. Others are not supported.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from dwfs.errors import PosixError
from dwfs.limits import XATTR_NAME_LENGTH_MAX, XATTR_VALUE_SIZE_MAX
from dwfs.ports import Clock
from dwfs.types import InodeNumber
from dwfs.vfs import acl
from dwfs.vfs.caller import Caller, GroupsOf, is_in_group
from dwfs.vfs.readers import Readers
from dwfs.vfs.snapshots import FIRST_SNAPSHOT_INODE
from dwfs.volume.commands import RemoveXattr, SetAttributes, SetXattr
from dwfs.volume.records import ACL_ACCESS, ACL_DEFAULT, Inode
from dwfs.volume.volume import Volume

_ACL_FLAGS: Final = {acl.ACCESS_NAME: ACL_ACCESS, acl.DEFAULT_NAME: ACL_DEFAULT}
_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")


class ExtendedAttributes:
    """Extended attributes of every kind of file."""

    def __init__(self, volume: Volume, readers: Readers, clock: Clock, groups_of: GroupsOf) -> None:
        self._volume = volume
        self._readers = readers
        self._clock = clock
        self._groups_of = groups_of

    def getxattr(self, number: InodeNumber, name: bytes) -> bytes:
        """The value. Raises PosixError ENODATA."""
        reader = self._readers.of(number)
        # Most files have none, and the kernel asks of each written file for security.capability.
        value = reader.get_xattr(number, name) if reader.inode(number).xattr_count else None
        if value is None:
            raise PosixError(errno.ENODATA if _is_supported(name) else errno.EOPNOTSUPP)
        return value

    def listxattr(self, number: InodeNumber) -> list[bytes]:
        """All names, in no particular order."""
        reader = self._readers.of(number)
        return reader.list_xattrs(number) if reader.inode(number).xattr_count else []

    async def setxattr(
        self, number: InodeNumber, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        """Set a value; `flags` is 0, XATTR_CREATE or XATTR_REPLACE."""
        inode = self._changeable(number)
        self._check(inode, name)
        if len(value) > XATTR_VALUE_SIZE_MAX:
            raise PosixError(errno.E2BIG)
        if name in _ACL_FLAGS:
            await self._set_acl(inode, name, value, caller)
            return
        now = self._clock.wall_ns()
        await self._volume.propose(SetXattr(number, name, value, flags, now, None))

    async def removexattr(self, number: InodeNumber, name: bytes) -> None:
        """Remove an attribute. Raises PosixError ENODATA."""
        self._check(self._changeable(number), name)
        await self._volume.propose(RemoveXattr(number, name, self._clock.wall_ns()))

    async def _set_acl(self, inode: Inode, name: bytes, value: bytes, caller: Caller) -> None:
        """Store a list, with the mode that belongs to it."""
        number = inode.number
        entries = acl.decode(value)
        now = self._clock.wall_ns()
        if name == acl.DEFAULT_NAME:
            if entries and not stat.S_ISDIR(inode.mode):
                raise PosixError(errno.EACCES)
            mode = None
        elif entries:
            mode = inode.mode & 0o7000 | acl.permissions_of(entries)
            if mode & stat.S_ISGID and not is_in_group(caller, inode.gid, self._groups_of):
                mode &= ~stat.S_ISGID  # as chmod by somebody outside the group
        else:
            mode = None
        present = inode.acl_flags & _ACL_FLAGS[name]
        if entries and not (name == acl.ACCESS_NAME and acl.is_trivial(entries)):
            await self._volume.propose(SetXattr(number, name, acl.encode(entries), 0, now, mode))
            return
        # The list goes first: without it the old mode grants what it granted before, no more.
        if present:
            await self._volume.propose(RemoveXattr(number, name, now))
        if mode is not None:
            await self._volume.propose(
                SetAttributes(number, mode, None, None, None, None, None, now)
            )

    def _changeable(self, number: InodeNumber) -> Inode:
        if number >= FIRST_SNAPSHOT_INODE:
            raise PosixError(errno.EROFS)
        return self._volume.inode(number)

    def _check(self, inode: Inode, name: bytes) -> None:
        if len(name) > XATTR_NAME_LENGTH_MAX:
            raise PosixError(errno.ERANGE)
        if not _is_supported(name):
            raise PosixError(errno.EOPNOTSUPP)
        if name.startswith(b"user.") and not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
            raise PosixError(errno.EPERM)
        if name in _ACL_FLAGS and stat.S_ISLNK(inode.mode):
            raise PosixError(errno.EOPNOTSUPP)


def _is_supported(name: bytes) -> bool:
    return name in _ACL_FLAGS or any(
        name.startswith(prefix) and len(name) > len(prefix) for prefix in _NAMESPACES
    )

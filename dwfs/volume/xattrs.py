"""Commands and reads on extended attributes.

Attributes lie in buckets under a keyed hash of their name. The inode counts them and knows whether
it has ACLs, so that the most frequent question ("any ACL? any security.capability?") on the most
frequent file (none at all) needs no look-up.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, Protocol

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.volume.commands import XATTR_CREATE, XATTR_REPLACE, RemoveXattr, SetXattr
from dwfs.volume.records import ACL_ACCESS, ACL_DEFAULT, Inode
from dwfs.volume.state import VolumeState, xattr_prefix
from dwfs.volume.versions import SUFFIX_SIZE

XATTRS_MAX: Final = 256  # an inode; with names ≤ 255 bytes a listing fits the kernel's 64 KiB
_ACL_FLAGS: Final = {
    b"system.posix_acl_access": ACL_ACCESS,
    b"system.posix_acl_default": ACL_DEFAULT,
}

assert XATTRS_MAX * (limits.XATTR_NAME_LENGTH_MAX + 1) <= 64 * limits.KIB


class BucketReader(Protocol):
    """Buckets of attributes by their logical keys."""

    def get(self, key: bytes, /) -> list[tuple[bytes, bytes]] | None:
        """The bucket, or None."""


class XattrReader(Protocol):
    """What reading attributes needs of a state: the current one, or one that a snapshot keeps."""

    @property
    def xattrs(self) -> BucketReader:
        """All buckets."""

    @property
    def xattr_key(self) -> Callable[[int, bytes], bytes]:
        """Key of the bucket that holds an inode's attribute."""


def check(name: bytes, value: bytes) -> None:
    """Raises PosixError ERANGE, EINVAL, E2BIG."""
    if not 0 < len(name) <= limits.XATTR_NAME_LENGTH_MAX:
        raise PosixError(errno.ERANGE)
    if b"\0" in name:
        raise PosixError(errno.EINVAL)
    if len(value) > limits.XATTR_VALUE_SIZE_MAX:
        raise PosixError(errno.E2BIG)


def get(state: XattrReader, inode: Inode, name: bytes) -> bytes | None:
    """The attribute's value, or None."""
    if not inode.xattr_count:
        return None
    flag = _ACL_FLAGS.get(name)
    if flag is not None and not inode.acl_flags & flag:
        return None
    bucket = state.xattrs.get(state.xattr_key(inode.number, name))
    if bucket is not None:
        for known, value in bucket:
            if known == name:
                return value
    return None


def names(state: VolumeState, inode: Inode) -> list[bytes]:
    """The names of all attributes, in the order of their hashes."""
    if not inode.xattr_count:
        return []
    prefix = xattr_prefix(inode.number)
    table = state.xattrs
    table.flush([key for key in table.dirty if key.startswith(prefix)])
    found: list[bytes] = []
    for key, sealed in state.versions.scan(prefix):
        bucket = table.peek(key[:-SUFFIX_SIZE]) or table.decode(key, sealed)
        found.extend(name for name, _ in bucket)
    return found


def put(state: VolumeState, inode: Inode, name: bytes, value: bytes) -> None:
    """Set an attribute. The inode is to be put afterwards."""
    key = state.xattr_key(inode.number, name)
    bucket = state.xattrs.get(key) or []
    kept = [pair for pair in bucket if pair[0] != name]
    if len(kept) == len(bucket):
        inode.xattr_count += 1
    kept.append((name, value))
    state.xattrs.put(key, kept)
    inode.acl_flags |= _ACL_FLAGS.get(name, 0)


def remove(state: VolumeState, inode: Inode, name: bytes) -> None:
    """Remove an attribute that is there. The inode is to be put afterwards."""
    key = state.xattr_key(inode.number, name)
    kept = [pair for pair in state.xattrs.get(key) or () if pair[0] != name]
    if kept:
        state.xattrs.put(key, kept)
    else:
        state.xattrs.delete(key)
    inode.xattr_count -= 1
    inode.acl_flags &= ~_ACL_FLAGS.get(name, 0)


def check_initial(xattrs: tuple[tuple[bytes, bytes], ...]) -> None:
    """Validate the attributes of a `Create`."""
    if xattrs:
        if len(xattrs) > XATTRS_MAX:
            raise PosixError(errno.ENOSPC, "too many extended attributes")
        for name, value in xattrs:
            check(name, value)


def add_initial(state: VolumeState, inode: Inode, xattrs: tuple[tuple[bytes, bytes], ...]) -> None:
    """Give a new inode its attributes."""
    for name, value in xattrs:
        put(state, inode, name, value)


def set_xattr(state: VolumeState, command: SetXattr) -> Inode:
    """ENOENT, ERANGE, E2BIG, EINVAL, EEXIST and ENODATA by `flags`, ENOSPC."""
    inode = state.inodes.get(command.inode)
    if inode is None:
        raise PosixError(errno.ENOENT)
    check(command.name, command.value)
    if command.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise PosixError(errno.EINVAL)
    exists = get(state, inode, command.name) is not None
    if exists and command.flags == XATTR_CREATE:
        raise PosixError(errno.EEXIST)
    if not exists and command.flags == XATTR_REPLACE:
        raise PosixError(errno.ENODATA)
    if not exists and inode.xattr_count >= XATTRS_MAX:
        raise PosixError(errno.ENOSPC, "too many extended attributes")
    put(state, inode, command.name, command.value)
    if command.mode is not None:
        inode.mode = inode.mode & ~0o7777 | command.mode & 0o7777
    inode.ctime_ns = command.time_ns
    state.inodes.put(inode.number, inode)
    return inode


def remove_xattr(state: VolumeState, command: RemoveXattr) -> Inode:
    """ENOENT, ENODATA."""
    inode = state.inodes.get(command.inode)
    if inode is None:
        raise PosixError(errno.ENOENT)
    if get(state, inode, command.name) is None:
        raise PosixError(errno.ENODATA)
    remove(state, inode, command.name)
    inode.ctime_ns = command.time_ns
    state.inodes.put(inode.number, inode)
    return inode


def remove_all(state: VolumeState, inode: Inode) -> None:
    """The inode is being purged."""
    for name in names(state, inode):
        state.xattrs.delete(state.xattr_key(inode.number, name))

"""Commands on attributes, truncation included, and the release of orphans."""

from __future__ import annotations

import errno
import stat

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.volume import filemap, xattrs
from dwfs.volume.commands import Purge, SetAttributes
from dwfs.volume.extents import Balance
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState


def _resize(state: VolumeState, inode: Inode, size: int) -> None:
    kind = inode.mode & 0o170000
    if kind != stat.S_IFREG:
        raise PosixError(errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL)
    if size < 0:
        raise PosixError(errno.EINVAL)
    if size > limits.FILE_SIZE_MAX:
        raise PosixError(errno.EFBIG)
    if size < inode.size:
        filemap.check_bounded(inode, size, limits.FILE_SIZE_MAX)
        balance: Balance = {}
        kept = state.new_kept()
        filemap.truncate(state, inode, size, balance, kept)
        filemap.settle(state, inode, balance, kept)
    inode.size = size


def set_attributes(state: VolumeState, command: SetAttributes) -> Inode:
    """ENOENT; for a size: EISDIR, EINVAL, EFBIG, E2BIG (use `Volume.truncate`)."""
    inode = state.inodes.get(command.inode)
    if inode is None:
        raise PosixError(errno.ENOENT)
    if command.size is not None:
        _resize(state, inode, command.size)
        if command.mtime_ns is None and command.ctime_ns is not None:
            inode.mtime_ns = command.ctime_ns
    if command.mode is not None:
        inode.mode = inode.mode & ~0o7777 | command.mode & 0o7777
    if command.uid is not None:
        inode.uid = command.uid
    if command.gid is not None:
        inode.gid = command.gid
    if command.atime_ns is not None:
        inode.atime_ns = command.atime_ns
    if command.mtime_ns is not None:
        inode.mtime_ns = command.mtime_ns
    if command.ctime_ns is not None:
        inode.ctime_ns = command.ctime_ns
    state.inodes.put(inode.number, inode)
    return inode


def purge(state: VolumeState, command: Purge) -> None:
    """Release orphans, as far as one command may go; numbers that are no orphans are ignored.

    A file with more nodes than that loses them from its end and stays an orphan.
    """
    budget = filemap.NODES_MAX
    for number in command.inodes:
        if number not in state.orphans:
            continue
        if budget <= 0:
            return
        inode = state.inodes.get(number)
        assert inode is not None, "an orphan has an inode"
        budget -= 1
        if inode.inline or inode.extent_runs:
            floor = filemap.truncation_floor(inode, budget)
            budget -= filemap.node_count(inode, floor)
            balance: Balance = {}
            kept = state.new_kept()
            filemap.truncate(state, inode, floor, balance, kept)
            filemap.settle(state, inode, balance, kept)
            if floor:
                inode.size = min(inode.size, floor)
                state.inodes.put(number, inode)
                return
        if inode.xattr_count:
            xattrs.remove_all(state, inode)
        state.inodes.delete(number)
        state.remove_orphan(number)
        state.meta.inode_count -= 1

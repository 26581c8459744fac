"""Commands on file data: writes, holes, and dropped or moved stripes."""

from __future__ import annotations

import errno
import stat

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import Extent, InodeNumber
from dwfs.volume import filemap, quota
from dwfs.volume.commands import DropStripes, MoveShards, PunchHole, WriteExtents
from dwfs.volume.extents import Balance
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState


def regular_file(state: VolumeState, number: InodeNumber) -> Inode:
    """Raises PosixError ENOENT, EISDIR, EINVAL."""
    inode = state.inodes.get(number)
    if inode is None:
        raise PosixError(errno.ENOENT)
    if inode.mode & 0o170000 != stat.S_IFREG:
        raise PosixError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL)
    return inode


def check_extent(extent: Extent) -> None:
    """Raises PosixError EINVAL or EFBIG."""
    offset, length = extent.offset, extent.length
    if offset < 0 or length <= 0 or extent.stripe_offset < 0 or len(extent.stripe) != 16:
        raise PosixError(errno.EINVAL, "not an extent")
    if offset + length > limits.FILE_SIZE_MAX:
        raise PosixError(errno.EFBIG)


def write_extents(state: VolumeState, command: WriteExtents) -> Inode:
    """ENOENT, EISDIR, EINVAL, EFBIG, EDQUOT."""
    inode = regular_file(state, command.inode)
    for extent in command.extents:
        check_extent(extent)
    if state.properties.quota_bytes is not None:
        quota.check_write(state, inode, command.extents)
    balance: Balance = {}
    kept = state.new_kept()
    epoch = state.extent_epoch
    for extent in command.extents:
        if extent.epoch != epoch:
            extent = Extent(
                extent.offset, extent.length, extent.stripe, extent.stripe_offset, epoch
            )
        filemap.write(state, inode, extent, balance, kept)
        end = extent.offset + extent.length
        if end > inode.size:
            inode.size = end
    filemap.settle(state, inode, balance, kept)
    if command.mtime_ns is not None:
        inode.mtime_ns = inode.ctime_ns = command.mtime_ns
    if command.mode is not None:
        inode.mode = inode.mode & ~0o7777 | command.mode & 0o7777
    state.inodes.put(inode.number, inode)
    return inode


def punch_hole(state: VolumeState, command: PunchHole) -> Inode:
    """ENOENT, EISDIR, EINVAL, E2BIG (use `Volume.punch_hole`)."""
    inode = regular_file(state, command.inode)
    if command.offset < 0 or command.length <= 0:
        raise PosixError(errno.EINVAL)
    end = min(command.offset + command.length, inode.size)
    if command.offset < end:
        filemap.check_bounded(inode, command.offset, end)
        balance: Balance = {}
        kept = state.new_kept()
        filemap.unmap(state, inode, command.offset, end, balance, kept)
        filemap.settle(state, inode, balance, kept)
    inode.mtime_ns = inode.ctime_ns = command.time_ns
    state.inodes.put(inode.number, inode)
    return inode


def drop_stripes(state: VolumeState, command: DropStripes) -> None:
    """Forget those of the stripes that are sealed and dead."""
    for stripe in command.stripes:
        state.stripes.drop(stripe)


def move_shards(state: VolumeState, command: MoveShards) -> None:
    """Note new places of shards, where the seals still name the old ones."""
    for move in command.moves:
        state.stripes.move(move)

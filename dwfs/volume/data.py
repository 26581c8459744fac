"""Commands on file data: writes, holes, the cleaner's relocations, and dropped stripes."""

from __future__ import annotations

import errno
import stat

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import Extent
from dwfs.volume import filemap
from dwfs.volume.commands import DropStripes, MoveShards, PunchHole, Relocate, WriteExtents
from dwfs.volume.extents import Balance
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState


def _file(state: VolumeState, command: WriteExtents | PunchHole) -> Inode:
    inode = state.inodes.get(command.inode)
    if inode is None:
        raise PosixError(errno.ENOENT)
    if inode.mode & 0o170000 != stat.S_IFREG:
        raise PosixError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL)
    return inode


def _check_extent(extent: Extent) -> None:
    offset, length = extent.offset, extent.length
    if offset < 0 or length <= 0 or extent.stripe_offset < 0 or len(extent.stripe) != 16:
        raise PosixError(errno.EINVAL, "not an extent")
    if offset + length > limits.FILE_SIZE_MAX:
        raise PosixError(errno.EFBIG)


def write_extents(state: VolumeState, command: WriteExtents) -> Inode:
    """ENOENT, EISDIR, EINVAL, EFBIG."""
    inode = _file(state, command)
    for extent in command.extents:
        _check_extent(extent)
    balance: Balance = {}
    for extent in command.extents:
        filemap.write(state, inode, extent, balance)
        end = extent.offset + extent.length
        if end > inode.size:
            inode.size = end
    filemap.settle(state, inode, balance)
    if command.mtime_ns is not None:
        inode.mtime_ns = inode.ctime_ns = command.mtime_ns
    if command.mode is not None:
        inode.mode = inode.mode & ~0o7777 | command.mode & 0o7777
    state.inodes.put(inode.number, inode)
    return inode


def punch_hole(state: VolumeState, command: PunchHole) -> Inode:
    """ENOENT, EISDIR, EINVAL, E2BIG (use `Volume.punch_hole`)."""
    inode = _file(state, command)
    if command.offset < 0 or command.length <= 0:
        raise PosixError(errno.EINVAL)
    end = min(command.offset + command.length, inode.size)
    if command.offset < end:
        filemap.check_bounded(inode, command.offset, end)
        balance: Balance = {}
        filemap.unmap(state, inode, command.offset, end, balance)
        filemap.settle(state, inode, balance)
    inode.mtime_ns = inode.ctime_ns = command.time_ns
    state.inodes.put(inode.number, inode)
    return inode


def relocate(state: VolumeState, command: Relocate) -> None:
    """EINVAL for extents outside the range. A file that is gone needs nothing."""
    end = command.offset + command.length
    for extent in command.extents:
        _check_extent(extent)
        if extent.offset < command.offset or extent.offset + extent.length > end:
            raise PosixError(errno.EINVAL, "an extent outside the relocated range")
    inode = state.inodes.get(command.inode)
    if inode is None:
        return
    balance: Balance = {}
    old_shift = command.stripe_offset - command.offset
    for extent in command.extents:
        filemap.relocate(state, inode, extent, command.stripe, old_shift, balance)
    if balance:
        filemap.settle(state, inode, balance)
        state.inodes.put(inode.number, inode)


def drop_stripes(state: VolumeState, command: DropStripes) -> None:
    """Forget those of the stripes that are sealed and dead."""
    for stripe in command.stripes:
        state.stripes.drop(stripe)


def move_shards(state: VolumeState, command: MoveShards) -> None:
    """Note new places of shards, where the seals still name the old ones."""
    for move in command.moves:
        state.stripes.move(move)

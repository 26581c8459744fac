"""Cloning: a file range that shares its stripe bytes with another one.

Each reference counts by itself in the stripe's live bytes, so a clone is to its stripes as a file that
was written: overwriting or deleting either side leaves the other as it is, and snapshots need not
know. A clone's extents are of the epoch in which it was made. The cleaner finds them by notes that are
kept beside the stripe's summary; what it moves is copied for each reference, so it is no longer shared then.
"""

from __future__ import annotations

import errno
from typing import Final

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import BackReference, Extent
from dwfs.volume import filemap, quota
from dwfs.volume.commands import CloneRange
from dwfs.volume.data import regular_file
from dwfs.volume.extents import Balance
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState

LENGTH_MAX: Final = 4 * limits.EXTENT_NODE_SPAN  # of one command: some thousand extents


def check_ranges(state: VolumeState, command: CloneRange) -> tuple[Inode, Inode]:
    """Source and target. ENOENT, EISDIR; EINVAL beyond the source's end or onto itself; EFBIG."""
    source = regular_file(state, command.source)
    target = regular_file(state, command.target)
    if command.offset < 0 or command.length <= 0 or command.target_offset < 0:
        raise PosixError(errno.EINVAL, "not a range")
    if command.offset + command.length > source.size:
        raise PosixError(errno.EINVAL, "beyond the end of the file to be cloned")
    if command.target_offset + command.length > limits.FILE_SIZE_MAX:
        raise PosixError(errno.EFBIG)
    distance = abs(command.target_offset - command.offset)
    if source is target and distance < command.length:
        raise PosixError(errno.EINVAL, "a range can't be cloned onto a part of itself")
    return source, target


def clone_range(state: VolumeState, command: CloneRange) -> Inode:
    """The target. What `check_ranges` raises, EDQUOT, E2BIG (use `Volume.clone_range`)."""
    source, target = check_ranges(state, command)
    if command.length > LENGTH_MAX:
        raise PosixError(errno.E2BIG, "more than one command may clone")
    shift = command.target_offset - command.offset
    extents = [
        Extent(
            extent.offset + shift,
            extent.length,
            extent.stripe,
            extent.stripe_offset,
            state.extent_epoch,
        )
        for extent in filemap.read(state, source, command.offset, command.length)
    ]
    end = command.target_offset + command.length
    quota.check_replace(state, target, command.target_offset, end, extents)
    balance: Balance = {}
    kept = state.new_kept()
    filemap.unmap(state, target, command.target_offset, end, balance, kept)
    for extent in extents:
        for piece in filemap.split_at_nodes(extent):
            filemap.write(state, target, piece, balance, kept)
            reference = BackReference(
                target.number, piece.offset, piece.length, piece.stripe_offset
            )
            state.stripes.refer(piece.stripe, reference)
    target.size = max(target.size, end)
    filemap.settle(state, target, balance, kept)
    target.mtime_ns = target.ctime_ns = command.time_ns
    if command.mode is not None:
        target.mode = target.mode & ~0o7777 | command.mode & 0o7777
    state.inodes.put(target.number, target)
    return target

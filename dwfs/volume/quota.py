"""Quotas: what a volume may grow to, enforced when a command is applied.

The bytes of a quota are the logical bytes that files map to stripes now (`Meta.allocated_bytes`):
holes cost nothing, a file with several names costs once, and neither redundancy nor compression nor
what only snapshots hold counts. Inodes are counted as `Meta.inode_count` does. Both include orphans
until they are purged; the VFS has those purged that it can before it lets a refusal out.

The rule is about growth: a command that would make the count larger *and* leave it above the quota
is refused. So a quota may be set below what is used: nothing is lost, everything can be read,
overwritten in place, cut and deleted, and only growth waits until there is room again.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from dwfs.errors import PosixError
from dwfs.types import Extent
from dwfs.volume import filemap
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState


def check_create(state: VolumeState, count: int = 1) -> None:
    """EDQUOT if so many more inodes are too many."""
    quota = state.properties.quota_inodes
    if quota is not None and state.meta.inode_count + count > quota:
        raise PosixError(errno.EDQUOT, f"the volume may have {quota} inodes")


def check_write(state: VolumeState, inode: Inode, extents: Sequence[Extent]) -> None:
    """EDQUOT if mapping these extents makes the volume larger than it may be."""
    room = room_of(state)
    if room is None or sum(extent.length for extent in extents) <= room:
        return
    _check_growth(state, room, _growth(state, inode, extents))


def check_replace(
    state: VolumeState, inode: Inode, start: int, end: int, extents: Sequence[Extent]
) -> None:
    """As `check_write`, where the extents take the place of all that [start, end) maps."""
    room, added = room_of(state), sum(extent.length for extent in extents)
    if room is None or added <= room:
        return
    removed = sum(extent.length for extent in filemap.read(state, inode, start, end - start))
    _check_growth(state, room, added - removed)


def _check_growth(state: VolumeState, room: int, growth: int) -> None:
    if growth > max(room, 0):
        raise PosixError(errno.EDQUOT, f"the volume may hold {state.properties.quota_bytes} bytes")


def room_of(state: VolumeState) -> int | None:
    """Bytes that may still be added, below 0 if there are too many already; None: no quota."""
    quota = state.properties.quota_bytes
    return None if quota is None else quota - state.meta.allocated_bytes


def next_fitting(
    state: VolumeState, inode: Inode, offset: int, length: int
) -> tuple[int, int] | None:
    """(offset, length) of the first part of a write that may be made now; None if none may.

    A writer's bytes come in pieces that the kernel has put together out of several write(2)s. Each
    of those that fits by itself is to succeed: what overwrites mapped bytes always does, and of
    what fills holes as much as there is room for, from the front.
    """
    room = room_of(state)
    if room is None or length <= room:
        return offset, length
    room = max(room, 0)
    end = offset + length
    start = stop = offset  # [start, stop) fits
    for extent in filemap.read(state, inode, offset, length):
        hole = min(extent.offset - stop, room)
        room -= hole
        stop += hole
        if stop < extent.offset:  # the rest of the hole does not fit
            if stop > start:
                return start, stop - start
            start = extent.offset
        stop = extent.end
    stop += min(end - stop, room)
    return (start, stop - start) if stop > start else None


def _growth(state: VolumeState, inode: Inode, extents: Sequence[Extent]) -> int:
    """Bytes of these extents' ranges that are not mapped yet; what overlaps counts once."""
    growth, position = 0, 0
    for extent in sorted(extents, key=lambda extent: extent.offset):
        start = max(extent.offset, position)
        if start >= extent.end:
            continue
        position = extent.end
        mapped = filemap.read(state, inode, start, position - start)
        growth += position - start - sum(piece.length for piece in mapped)
    return growth

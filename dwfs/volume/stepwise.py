"""Changes that may concern too much for one command, in as many as it takes.

What one command may visit is bounded, so that nobody waits long for it. A crash in between leaves the
file as the steps so far have made it.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from dwfs.errors import PosixError
from dwfs.types import InodeNumber, StripeId
from dwfs.volume import cloning, filemap, relocation
from dwfs.volume.commands import CloneRange, InodeCommand, PunchHole, SetAttributes
from dwfs.volume.records import Inode
from dwfs.volume.relocation import MappedRange
from dwfs.volume.state import VolumeState

NODES_TOGETHER: Final = 64  # versions of extent nodes looked through between pauses, at least
Propose: TypeAlias = Callable[[InodeCommand], Awaitable[Inode]]


def inode_of(state: VolumeState, number: InodeNumber) -> Inode:
    """The inode; orphans too. Raises PosixError ENOENT."""
    inode = state.inodes.get(number)
    if inode is None:
        raise PosixError(errno.ENOENT, f"inode {number}")
    return inode


async def truncate(state: VolumeState, propose: Propose, command: SetAttributes) -> Inode:
    """Propose a `SetAttributes` with a size, after lowering it stepwise if the file is huge."""
    assert command.size is not None, "a truncation has a size"
    target = max(command.size, 0)
    while True:
        inode = inode_of(state, command.inode)
        floor = filemap.truncation_floor(inode)
        if not target < floor < inode.size:
            return await propose(command)
        time_ns = command.ctime_ns
        step = SetAttributes(command.inode, None, None, None, floor, None, time_ns, time_ns)
        await propose(step)


async def punch_hole(state: VolumeState, propose: Propose, command: PunchHole) -> Inode:
    """Propose a `PunchHole`, in several pieces if it concerns very much."""
    offset, end = command.offset, command.offset + command.length
    while True:
        inode = inode_of(state, command.inode)
        stop = filemap.punch_ceiling(inode, offset, min(end, max(inode.size, offset + 1)))
        result = await propose(PunchHole(command.inode, offset, stop - offset, command.time_ns))
        if stop >= min(end, result.size):
            return result
        offset = stop


async def clone_range(state: VolumeState, propose: Propose, command: CloneRange) -> Inode:
    """Propose a `CloneRange` of any length, its holes as holes."""
    cloning.check_ranges(state, command)
    source, target, time_ns = command.source, command.target, command.time_ns
    shift = command.target_offset - command.offset
    offset, end = command.offset, command.offset + command.length
    while offset < end:
        data = filemap.next_data(state, inode_of(state, source), offset)
        stop = end if data is None else min(data, end)
        if stop > offset:
            hole = PunchHole(target, offset + shift, stop - offset, time_ns)
            await punch_hole(state, propose, hole)
        else:
            stop = min(offset + cloning.LENGTH_MAX, end)
            place, length = offset + shift, stop - offset
            await propose(CloneRange(source, offset, length, target, place, time_ns, command.mode))
            await trio.lowlevel.checkpoint()  # a large file has very many pieces
        offset = stop
    size = end + shift if inode_of(state, target).size < end + shift else None
    return await propose(
        SetAttributes(target, command.mode, None, None, size, None, time_ns, time_ns)
    )


async def mapped_ranges(state: VolumeState, stripe: StripeId) -> list[MappedRange]:
    """What of a sealed stripe the current state and the snapshots map.

    Each extent node has as many versions as snapshots see it change, so there are pauses; what is
    changed meanwhile may be found as it was, or as it is.
    """
    found: list[MappedRange] = []
    together = max(1, NODES_TOGETHER // (1 + len(state.snapshots.epochs)))
    for count, place in enumerate(relocation.places_of(state, stripe), 1):
        found += relocation.mapped_at(state, place, stripe)
        if count % together == 0:
            await trio.lowlevel.checkpoint()
    return found

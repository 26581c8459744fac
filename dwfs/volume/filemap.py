"""The map of one file: from file bytes to stripe bytes, kept in nodes of EXTENT_NODE_SPAN each.

The first node's extents ride in the inode record while they are few (`Inode.inline`), so a small
file costs one record. All other nodes are records under a keyed hash of (inode, node number);
`Inode.extent_runs` tells which may exist.

These functions change the map and account the change in a `Balance` and, where there are snapshots,
in what they keep (`VolumeState.new_kept`); `settle` then brings live bytes, the inode's allocation and the volume's total in line. Nothing here touches times or size.
"""

from __future__ import annotations

import errno
from typing import Final, Protocol

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import Extent, InodeNumber
from dwfs.volume import extents as extent_list
from dwfs.volume import runs as node_runs
from dwfs.volume.extents import Balance, Kept
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState


class NodeReader(Protocol):
    """Extent nodes by inode and number."""

    def get(self, key: tuple[InodeNumber, int], /) -> list[Extent] | None:
        """The node, or None."""


class MapReader(Protocol):
    """What reading a map needs of a state: the current one, or one that a snapshot keeps."""

    @property
    def nodes(self) -> NodeReader:
        """All extent nodes."""


SPAN: Final = limits.EXTENT_NODE_SPAN
NODES_MAX: Final = 1024  # nodes that one command may visit: bounds its time to milliseconds
LAST_NODE: Final = limits.FILE_SIZE_MAX // SPAN

assert SPAN * NODES_MAX >= 4 * limits.GIB, "files up to 4 GiB are truncated by one command"


def settle(state: VolumeState, inode: Inode, balance: Balance, kept: Kept | None) -> None:
    """Bring the counters in line with changes of the map. The inode is to be put afterwards."""
    adjust = state.stripes.adjust
    total = 0
    for stripe, change in balance.items():
        if change:
            adjust(stripe, change)
            total += change
    if kept is not None:
        for (epoch, stripe), length in kept.lengths.items():
            state.kept.adjust(kept.seen_by, epoch, stripe, length)
            total -= length
    inode.allocated_bytes += total
    state.meta.allocated_bytes += total


def load(state: MapReader, inode: Inode, index: int) -> list[Extent] | None:
    """Node `index`, or None."""
    if index == 0 and inode.inline is not None:
        return inode.inline
    return state.nodes.get((inode.number, index))


def store(state: VolumeState, inode: Inode, index: int, node: list[Extent]) -> None:
    """Take a changed node. The inode is to be put afterwards."""
    if index == 0 and inode.inline is not None:
        if len(node) <= limits.EXTENTS_INLINE_MAX:
            inode.inline = node
            return
        inode.inline = None
    state.nodes.put((inode.number, index), node)
    node_runs.add(inode.extent_runs, index)


def _erase(state: VolumeState, inode: Inode, index: int) -> None:
    """Node `index` has become empty. `extent_runs` is the caller's to mend."""
    if index == 0:
        if inode.inline is None:
            state.nodes.delete((inode.number, 0))
        inode.inline = []
    else:
        state.nodes.delete((inode.number, index))


def split_at_nodes(extent: Extent) -> list[Extent]:
    """The extent cut where it crosses from one node to the next."""
    pieces: list[Extent] = []
    offset, end = extent.offset, extent.offset + extent.length
    while offset < end:
        stop = min(end, (offset // SPAN + 1) * SPAN)
        pieces.append(extent_list.clip(extent, offset, stop))
        offset = stop
    return pieces


def write(
    state: VolumeState, inode: Inode, extent: Extent, balance: Balance, kept: Kept | None
) -> None:
    """Map the extent's range to its stripe bytes."""
    index = extent.offset // SPAN
    if extent.offset + extent.length <= (index + 1) * SPAN:
        node = load(state, inode, index)
        if node is None:
            node = []
        extent_list.insert(node, extent, balance, kept)
        store(state, inode, index, node)
        return
    for piece in split_at_nodes(extent):
        write(state, inode, piece, balance, kept)


def read(state: MapReader, inode: Inode, offset: int, length: int) -> list[Extent]:
    """The extents within [offset, offset+length): clipped, sorted, holes absent."""
    end = offset + length
    first, last = offset // SPAN, (end - 1) // SPAN
    if first == last:
        node = load(state, inode, first)
        return extent_list.slice_range(node, offset, end) if node else []
    found: list[Extent] = []
    if first == 0 and inode.inline:
        found = extent_list.slice_range(inode.inline, offset, end)
    for index in node_runs.within(inode.extent_runs, first, last):
        node = state.nodes.get((inode.number, index))
        if node:
            found += extent_list.slice_range(node, offset, end)
    return found


def node_count(inode: Inode, start: int, end: int = limits.FILE_SIZE_MAX) -> int:
    """How many nodes a command on file bytes [start, end) visits, at most."""
    return node_runs.count(inode.extent_runs, start // SPAN, (end - 1) // SPAN)


def check_bounded(inode: Inode, start: int, end: int) -> None:
    """Raises PosixError E2BIG if a command on [start, end) would visit too many nodes."""
    if node_count(inode, start, end) > NODES_MAX:
        raise PosixError(errno.E2BIG, "touches too many extent nodes for one command")


def unmap(
    state: VolumeState, inode: Inode, start: int, end: int, balance: Balance, kept: Kept | None
) -> None:
    """Unmap [start, end). The caller has called `check_bounded`."""
    first, last = start // SPAN, (end - 1) // SPAN
    visited = list(node_runs.within(inode.extent_runs, first, last))
    if first == 0 and inode.inline:
        visited.insert(0, 0)
    for index in visited:
        node = load(state, inode, index)
        if not node:
            continue
        extent_list.remove(node, start, end, balance, kept)
        if node:
            store(state, inode, index, node)
        else:
            _erase(state, inode, index)
    # Nodes that lie wholly inside are gone; the two at the edges may be, too.
    inner_first = first if start % SPAN == 0 else first + 1
    inner_last = last if end % SPAN == 0 else last - 1
    if visited and inner_first <= inner_last:
        node_runs.discard(inode.extent_runs, inner_first, inner_last)
    for index in {first, last}:
        if index in visited and not load(state, inode, index):
            node_runs.discard(inode.extent_runs, index, index)


def truncate(
    state: VolumeState, inode: Inode, size: int, balance: Balance, kept: Kept | None
) -> None:
    """Unmap everything from `size` on."""
    unmap(state, inode, size, (LAST_NODE + 1) * SPAN, balance, kept)


def truncation_floor(inode: Inode, nodes: int = NODES_MAX) -> int:
    """The smallest size to which the file can be truncated by visiting so many nodes."""
    return node_runs.descend(inode.extent_runs, nodes) * SPAN


def punch_ceiling(inode: Inode, offset: int, end: int) -> int:
    """The highest end ≤ `end` for which one command can punch [offset, end)."""
    last = node_runs.ascend(inode.extent_runs, offset // SPAN, NODES_MAX)
    return end if last < 0 else min(end, (last + 1) * SPAN)


def next_data(state: MapReader, inode: Inode, offset: int) -> int | None:
    """File offset of the first mapped byte at or after `offset`, or None."""
    first = offset // SPAN
    if first == 0 and inode.inline:
        found = extent_list.slice_range(inode.inline, offset, SPAN)
        if found:
            return found[0].offset
    for index in node_runs.within(inode.extent_runs, first, LAST_NODE):
        node = state.nodes.get((inode.number, index))
        found = extent_list.slice_range(node, offset, (index + 1) * SPAN) if node else []
        if found:
            return found[0].offset
    return None


def next_hole(state: MapReader, inode: Inode, offset: int) -> int:
    """File offset of the first unmapped byte at or after `offset`; at most the file's size."""
    while offset < inode.size:
        index = offset // SPAN
        node = load(state, inode, index)
        if not node:
            return offset
        for extent in extent_list.slice_range(node, offset, (index + 1) * SPAN):
            if extent.offset > offset:
                return offset
            offset = extent.offset + extent.length
        if offset % SPAN:
            break
        if offset // SPAN == index:
            return offset
    return min(offset, inode.size)

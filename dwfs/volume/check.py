"""Consistency check of a volume's state: a second, dumb derivation of everything that the machine
keeps incrementally. Used by `dwfs check` and by the property tests after every run.

What stands here is about the current state; `check_versions` adds what snapshots see.

Findings are sentences for an operator. None is expected, ever, short of a damaged state database.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator

from dwfs.types import ROOT_INODE, Extent
from dwfs.volume import filemap
from dwfs.volume import runs as node_runs
from dwfs.volume.check_versions import check_versions
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState
from dwfs.volume.store import (
    KIND_DENTRY,
    KIND_INODE,
    KIND_NODE,
    KIND_ORPHAN,
    KIND_XATTR,
)


def check(state: VolumeState) -> Iterator[str]:
    """Findings about the whole state; nothing may change it meanwhile.

    Memory grows with the number of inodes (a few hundred bytes each).
    """
    state.flush()
    if state.meta.rolling_back:
        yield "a rollback is not finished; it goes on when the pool is opened for writing"
        return
    inodes = {
        int.from_bytes(key[1:9], "big"): state.inodes.decode(key, sealed)
        for key, sealed in state.versions.scan(KIND_INODE)
    }
    for number, inode in inodes.items():
        if inode.number != number:
            yield f"inode {number} calls itself {inode.number}"
    yield from _check_names(state, inodes)
    yield from _check_orphans(state, inodes)
    yield from _check_xattrs(state, inodes)
    yield from _check_extents(state, inodes)
    yield from check_versions(state)
    if state.meta.inode_count != len(inodes):
        yield f"volume counts {state.meta.inode_count} inodes, there are {len(inodes)}"
    if inodes and max(inodes) >= state.meta.next_inode:
        yield f"inode {max(inodes)} is beyond next inode {state.meta.next_inode}"


def _check_names(state: VolumeState, inodes: dict[int, Inode]) -> Iterator[str]:
    names: Counter[int] = Counter()
    entries: Counter[int] = Counter()
    subdirectories: Counter[int] = Counter()
    for key, sealed in state.versions.scan(KIND_DENTRY):
        parent = int.from_bytes(key[1:9], "big")
        for _, name, target, d_type in state.directories.table.decode(key, sealed):
            entries[parent] += 1
            names[target] += 1
            inode = inodes.get(target)
            if inode is None:
                yield f"{name!r} in directory {parent} names missing inode {target}"
                continue
            if inode.mode >> 12 != d_type:
                yield f"{name!r} in directory {parent} has type {d_type}, not its inode's"
            if stat.S_ISDIR(inode.mode):
                subdirectories[parent] += 1
                if inode.parent != parent:
                    yield f"directory {target} is in {parent}, but its parent is {inode.parent}"
    for parent, count in entries.items():
        if parent not in inodes or not stat.S_ISDIR(inodes[parent].mode):
            yield f"{count} names lie in {parent}, which is no directory"
    for number, inode in inodes.items():
        links = names[number]
        if stat.S_ISDIR(inode.mode):
            if inode.entry_count != entries[number]:
                yield f"directory {number} counts {inode.entry_count}, has {entries[number]} names"
            if links > 1 or (links == 0) != (inode.nlink == 0 or number == ROOT_INODE):
                yield f"directory {number} has {links} names"
            links = 2 + subdirectories[number] if inode.nlink else 0
        if inode.nlink != links:
            yield f"inode {number} has link count {inode.nlink}, should be {links}"


def _check_orphans(state: VolumeState, inodes: dict[int, Inode]) -> Iterator[str]:
    stored = {int.from_bytes(key[1:9], "big") for key, _ in state.store.scan(KIND_ORPHAN)}
    nameless = {number for number, inode in inodes.items() if inode.nlink == 0}
    for number in sorted(nameless ^ stored):
        yield f"inode {number} is an orphan in one place only"
    if stored != set(state.orphans):
        yield "the orphans in memory are not those stored"


def _check_xattrs(state: VolumeState, inodes: dict[int, Inode]) -> Iterator[str]:
    counts: Counter[int] = Counter()
    for key, sealed in state.versions.scan(KIND_XATTR):
        counts[int.from_bytes(key[1:9], "big")] += len(state.xattrs.decode(key, sealed))
    for number in counts.keys() - inodes.keys():
        yield f"extended attributes of missing inode {number}"
    for number, inode in inodes.items():
        if inode.xattr_count != counts[number]:
            yield f"inode {number} counts {inode.xattr_count} attributes, has {counts[number]}"


def _nodes(state: VolumeState, inode: Inode) -> Iterator[tuple[int, list[Extent]]]:
    if inode.inline:
        yield 0, inode.inline
    for index in node_runs.within(inode.extent_runs, 0, filemap.LAST_NODE):
        node = state.nodes.get((inode.number, index))
        if node is not None:
            yield index, node


def _check_extents(state: VolumeState, inodes: dict[int, Inode]) -> Iterator[str]:
    visited, total = 0, 0
    for number, inode in inodes.items():
        allocated = 0
        position = 0
        for index, node in _nodes(state, inode):
            visited += not (index == 0 and inode.inline)
            position = max(position, index * filemap.SPAN)
            if not node:
                yield f"inode {number}: extent node {index} is empty"
            for extent in node:
                if extent.offset < position or extent.length <= 0:
                    yield f"inode {number}: extent at {extent.offset} is out of order"
                position = extent.offset + extent.length
                allocated += extent.length
                seal = state.stripes.seal_of(extent.stripe)
                if seal is not None and extent.stripe_offset + extent.length > seal.length:
                    yield f"inode {number}: extent at {extent.offset} exceeds its stripe"
            if position > (index + 1) * filemap.SPAN:
                yield f"inode {number}: extent node {index} exceeds its span"
        if position > inode.size:
            yield f"inode {number}: extents to {position} exceed its size {inode.size}"
        if allocated != inode.allocated_bytes:
            yield f"inode {number} counts {inode.allocated_bytes} bytes, has {allocated}"
        total += allocated
    stored = sum(1 for _ in state.versions.scan(KIND_NODE))
    if stored != visited:
        yield f"{stored} extent nodes are stored, files refer to {visited}"
    if total != state.meta.allocated_bytes:
        yield f"volume counts {state.meta.allocated_bytes} allocated bytes, has {total}"

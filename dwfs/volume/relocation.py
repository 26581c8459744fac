"""The cleaner's view of the maps: who uses a stripe's bytes, and pointing them at a copy.

Snapshots share bytes with the current state and with each other, so the question is put to all
versions of an extent node that somebody sees, and all of them are changed, in place: when the bytes
have moved, nobody maps the old ones. What one epoch wrote to one byte of a file is mapped to one
place, in however many versions; it counts once. It is accounted to the newest that sees it: the
current state, or a snapshot's kept bytes.

A file's first node has two homes, the inode record and a record of its own. Of their versions each
snapshot sees one at most, so both are looked through together, newest first.

While destroyed snapshots' bytes are being settled, it is not known what still counts. Relocation
does nothing then, and the cleaner does not begin with it; settling is quick.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from dwfs.errors import PosixError
from dwfs.types import NO_EPOCH, Epoch, Extent, InodeNumber, StripeId
from dwfs.volume import extents as extent_list
from dwfs.volume import filemap
from dwfs.volume.commands import Relocate
from dwfs.volume.data import check_extent
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState, inode_key
from dwfs.volume.versions import CURRENT, Version

_encoder = msgspec.msgpack.Encoder()


class MappedRange(NamedTuple):
    """File bytes that the current state or a snapshot maps to a stripe."""

    inode: InodeNumber
    offset: int  # bytes, in the file
    length: int  # bytes
    stripe_offset: int  # bytes
    newest: Epoch  # of the newest snapshot that maps them; NO_EPOCH: the current state does


class _Node(NamedTuple):
    """One version of an extent node that somebody sees."""

    seen_by: Epoch  # CURRENT, or the newest snapshot that sees it
    key: bytes  # as stored
    extents: list[Extent]
    inode: Inode | None  # the record that they ride in, if it is not their own


class _Coverage:
    """Which file bytes, by epoch of writing, were met before in newer versions."""

    def __init__(self) -> None:
        self._pieces: set[tuple[int, int, int]] = set()  # the usual case: the same piece again
        self._ranges: dict[int, list[tuple[int, int]]] = {}

    def add(self, piece: Extent) -> list[tuple[int, int]]:
        """The (start, end) parts of the piece that are new."""
        exact = (piece.epoch, piece.offset, piece.length)
        if exact in self._pieces:
            return []
        self._pieces.add(exact)
        known = self._ranges.setdefault(piece.epoch, [])
        fresh: list[tuple[int, int]] = []
        position = piece.offset
        for start, end in sorted(known):
            if end <= position:
                continue
            if start >= piece.end:
                break
            if start > position:
                fresh.append((position, start))
            position = end
        if position < piece.end:
            fresh.append((position, piece.end))
        known += fresh
        return fresh


def relocate(state: VolumeState, command: Relocate) -> None:
    """EINVAL for extents outside the range. Nothing happens to bytes that are mapped elsewhere."""
    end = command.offset + command.length
    for extent in command.extents:
        check_extent(extent)
        if extent.offset < command.offset or extent.offset + extent.length > end:
            raise PosixError(errno.EINVAL, "an extent outside the relocated range")
    if state.meta.reaping:
        return
    shift = command.stripe_offset - command.offset
    move = _move_everywhere if state.snapshots.epochs else _move_current
    for extent in command.extents:
        for piece in filemap.split_at_nodes(extent):
            moved = move(state, command.inode, piece, command.stripe, shift)
            if moved:
                state.stripes.adjust(piece.stripe, moved)
                state.stripes.adjust(command.stripe, -moved)


def _move_current(
    state: VolumeState, number: InodeNumber, new: Extent, stripe: StripeId, shift: int
) -> int:
    """Without snapshots: the current map is the only one. Returns how many bytes have moved."""
    inode = state.inodes.get(number)
    if inode is None:
        return 0
    index = new.offset // filemap.SPAN
    node = filemap.load(state, inode, index)
    if not node:
        return 0
    moved = extent_list.relocate(node, new, stripe, shift)
    if moved:
        filemap.store(state, inode, index, node)
        state.inodes.put(number, inode)
    return sum(piece.length for piece in moved)


def _move_everywhere(
    state: VolumeState, number: InodeNumber, new: Extent, stripe: StripeId, shift: int
) -> int:
    """In all versions of the node in which `new` lies. Returns how many bytes have moved."""
    index = new.offset // filemap.SPAN
    coverage = _Coverage()
    total = 0
    for node in _versions_of(state, number, index):
        moved = extent_list.relocate(node.extents, new, stripe, shift)
        if not moved:
            continue
        _rewrite(state, node, (number, index))
        for piece in moved:
            fresh = sum(end - start for start, end in coverage.add(piece))
            total += fresh
            if fresh and node.seen_by != CURRENT:
                state.kept.adjust(node.seen_by, piece.epoch, stripe, -fresh)
                state.kept.adjust(node.seen_by, piece.epoch, new.stripe, fresh)
    if total:
        state.frozen.clear()
    return total


def _rewrite(state: VolumeState, node: _Node, place: tuple[InodeNumber, int]) -> None:
    """Store the version with its changed extents, and change what is cached of it."""
    record: Inode | list[Extent] = node.extents
    if node.inode is not None:
        node.inode.inline = node.extents
        record = node.inode
    state.store.put(node.key, _encoder.encode(record))
    if node.seen_by == CURRENT:
        if node.inode is not None:
            inode = state.inodes.peek(place[0])
            if inode is not None:
                inode.inline = list(node.extents)
        else:
            cached = state.nodes.peek(place)
            if cached is not None:
                cached[:] = node.extents


def _versions_of(state: VolumeState, number: InodeNumber, index: int) -> Iterator[_Node]:
    """All versions of a node that somebody sees, newest first; the extents are the caller's.

    One after the other: decoded they may take a hundred megabytes. Each may be changed when it is there.
    """
    state.nodes.write_back((number, index))
    found = [(*one, False) for one in _seen(state, state.node_key(number, index))]
    if index == 0:
        state.inodes.write_back(number)
        found += [(*one, True) for one in _seen(state, inode_key(number))]
        found.sort(key=lambda one: one[0], reverse=True)
    for seen_by, version, rides in found:
        if not rides:
            extents = state.nodes.decode(version.key, version.sealed)
            yield _Node(seen_by, version.key, extents, None)
            continue
        inode = state.inodes.decode(version.key, version.sealed)
        if inode.inline:
            yield _Node(seen_by, version.key, inode.inline, inode)


def _seen(state: VolumeState, logical: bytes) -> Iterator[tuple[Epoch, Version]]:
    """The versions with a value that somebody sees, newest first, and the newest who does."""
    until = CURRENT
    for version in state.versions.all_of(logical):
        seen_by = until
        if until != CURRENT:
            seen_by = state.snapshots.newest_within(version.born, until)
        if seen_by != NO_EPOCH and version.sealed:
            yield seen_by, version
        until = Epoch(version.born - 1)


def places_of(state: VolumeState, stripe: StripeId) -> list[tuple[InodeNumber, int]]:
    """The extent nodes that may map bytes of a sealed stripe, by the stripe's summary."""
    places: dict[tuple[InodeNumber, int], None] = {}
    for reference in state.stripes.summary_of(stripe):
        first = reference.offset // filemap.SPAN
        last = (reference.offset + max(reference.length, 1) - 1) // filemap.SPAN
        for index in range(first, last + 1):
            places[reference.inode, index] = None
    return list(places)


def mapped_at(
    state: VolumeState, place: tuple[InodeNumber, int], stripe: StripeId
) -> list[MappedRange]:
    """What of a stripe the current state and the snapshots map in one extent node."""
    find = _mapped_everywhere if state.snapshots.epochs else _mapped_now
    return list(find(state, *place, stripe))


def _mapped_now(
    state: VolumeState, number: InodeNumber, index: int, stripe: StripeId
) -> Iterator[MappedRange]:
    inode = state.inodes.get(number)
    node = None if inode is None else filemap.load(state, inode, index)
    for one in node or ():
        if one.stripe == stripe:
            yield MappedRange(number, one.offset, one.length, one.stripe_offset, NO_EPOCH)


def _mapped_everywhere(
    state: VolumeState, number: InodeNumber, index: int, stripe: StripeId
) -> Iterator[MappedRange]:
    coverage = _Coverage()
    for node in _versions_of(state, number, index):
        newest = NO_EPOCH if node.seen_by == CURRENT else node.seen_by
        for extent in node.extents:
            if extent.stripe == stripe:
                shift = extent.stripe_offset - extent.offset
                for start, end in coverage.add(extent):
                    yield MappedRange(number, start, end - start, start + shift, newest)

"""What changed from one snapshot to a later one, or what is in one: page by page.

A key whose version at the later snapshot was born after the earlier one has changed; all others have not, and
are passed over without being opened. Both snapshots stay as they are, so pages may be fetched with
anything else in between. Finding changes takes time with the number of files, some 2 µs each; what is
delivered is as large as the change.

Bytes that were written after the earlier snapshot are new; what it mapped and the later one does not is
a hole now. Nothing else can happen to a map, as nothing but writing maps bytes.

Orphans are left out on both sides: they have no name, and whoever had them open is elsewhere.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from heapq import merge
from typing import Final, NamedTuple, cast

import lmdb

from dwfs.errors import PosixError
from dwfs.types import NO_EPOCH, Epoch, Extent, InodeNumber
from dwfs.volume import filemap
from dwfs.volume import runs as node_runs
from dwfs.volume.records import Dentry, Inode, Snapshot
from dwfs.volume.state import VolumeState
from dwfs.volume.store import KIND_DENTRY, KIND_INODE
from dwfs.volume.transfer import NameRecord
from dwfs.volume.versions import SUFFIX_SIZE, VERSIONED_KINDS, born_of, suffix
from dwfs.volume.view import SnapshotView

_AFTER_VERSIONS: Final = b"\xff" * SUFFIX_SIZE  # of epoch 0, in which nothing is born

Pair = tuple[bytes, bytes]  # stored key and sealed value


class KeyChange(NamedTuple):
    """A logical key whose value differs, or may; None: there is nothing."""

    before: Pair | None
    after: Pair | None


class InodeChange(NamedTuple):
    """An inode that was made, changed or removed."""

    number: InodeNumber
    before: Inode | None
    after: Inode | None


class Span(NamedTuple):
    """File bytes [start, end), within one extent node."""

    start: int
    end: int


class MapChange(NamedTuple):
    """What happened to some nodes of a file's map."""

    written: list[Span]
    unmapped: list[Span]


class Changes:
    """From `base` (None: from nothing) to `target`. All methods raise PosixError ESTALE if one is gone."""

    def __init__(self, state: VolumeState, base: Snapshot | None, target: Snapshot) -> None:
        assert base is None or base.epoch < target.epoch
        self._state = state
        self._base: Epoch = NO_EPOCH if base is None else base.epoch
        self._target = target.epoch
        self.since = -1 if base is None else base.epoch  # what was written later is new
        self._before = None if base is None else SnapshotView(state, base)
        self._after = SnapshotView(state, target)

    def _check(self) -> None:
        snapshots = self._state.snapshots
        if not snapshots.has(self._target) or (self._base and not snapshots.has(self._base)):
            raise PosixError(errno.ESTALE, "a snapshot that is being sent was destroyed")

    def inodes(self, start: bytes, limit: int) -> tuple[list[InodeChange], bytes]:
        """Changes among the next `limit` inodes, and where to go on; b"": to begin with, and at the end."""
        page, following = self._page(KIND_INODE, start, limit)
        decode = self._state.frozen.inodes.decode
        found = []
        for before, after in page:
            old = None if before is None else decode(*before)
            new = None if after is None else decode(*after)
            old = None if old is None or not old.nlink else old
            new = None if new is None or not new.nlink else new
            if old is not None or new is not None:
                number = (old or new).number  # type: ignore[union-attr]  # one of them is there
                found.append(InodeChange(number, old, new))
        return found, following

    def names(self, start: bytes, limit: int) -> tuple[list[NameRecord], bytes]:
        """Changes among the next `limit` buckets of names, as `inodes`."""
        page, following = self._page(KIND_DENTRY, start, limit)
        found: list[NameRecord] = []
        for change in page:
            before, after = self._bucket(change.before), self._bucket(change.after)
            stored = (change.before or change.after or (b"", b""))[0]
            parent = InodeNumber(int.from_bytes(stored[1:9], "big"))
            found += [
                NameRecord(parent, name, InodeNumber(0), 0) for name in before if name not in after
            ]
            for name, dentry in after.items():
                if name not in before or before[name][2:] != dentry[2:]:
                    found.append(NameRecord(parent, name, dentry[2], dentry[3]))
        return found, following

    def xattrs(self, change: InodeChange) -> list[tuple[bytes, bytes | None]]:
        """Attributes of a changed inode that were set, or removed (None), in order."""
        before = self._attributes(self._before, change.before)
        after = self._attributes(self._after, change.after)
        removed = [(name, None) for name in before if name not in after]
        changed = [(name, value) for name, value in after.items() if before.get(name) != value]
        return [*removed, *changed]

    def map(self, change: InodeChange, first: int, limit: int) -> tuple[MapChange, int]:
        """What happened to the next `limit` nodes of an inode's map; where to go on, -1 at the end."""
        self._check()
        result = MapChange([], [])
        # An inode that the receiver has not got is new to it, whenever it was written.
        since = self._base if change.before is not None else -1
        for count, index in enumerate(_nodes(change, first)):
            if count == limit:
                return result, index
            if self._is_unchanged(change, index):
                continue
            before = self._node(change.before, index, self._base)
            after = self._node(change.after, index, self._target)
            result.written.extend(_joined(one for one in after if one.epoch > since))
            result.unmapped.extend(_without(_joined(before), _joined(after)))
        return result, -1

    def extents(self, number: InodeNumber, offset: int, length: int) -> list[Extent]:
        """Where bytes of the later snapshot lie now; see `Volume.extents`."""
        return self._after.extents(number, offset, length)

    def _page(self, kind: bytes, start: bytes, limit: int) -> tuple[list[KeyChange], bytes]:
        self._check()
        base, target = self._base, self._target
        found: list[KeyChange] = []
        cursor = self._state.store.cursor()
        present = cursor.set_range(start or kind)
        looked = 0
        while present:
            stored = _item(cursor)[0]
            if stored[:1] != kind:
                break
            logical = stored[:-SUFFIX_SIZE]
            if looked == limit:
                return found, logical
            looked += 1
            if born_of(stored) > target:
                present = cursor.set_range(logical + suffix(target))
                if not present or _item(cursor)[0][:-SUFFIX_SIZE] != logical:
                    continue  # nothing that old; at the next logical key, which is looked at now
            after = _item(cursor)
            if born_of(after[0]) > base:
                before: Pair | None = None
                if base and cursor.set_range(logical + suffix(base)):
                    older = _item(cursor)
                    if older[0][:-SUFFIX_SIZE] == logical and older[1]:
                        before = older
                if before is not None or after[1]:
                    found.append(KeyChange(before, after if after[1] else None))
            present = cursor.set_range(logical + _AFTER_VERSIONS)
        return found, b""

    def _bucket(self, pair: Pair | None) -> dict[bytes, Dentry]:
        if pair is None:
            return {}
        return {dentry[1]: dentry for dentry in self._state.frozen.buckets.decode(*pair)}

    def _attributes(self, view: SnapshotView | None, inode: Inode | None) -> dict[bytes, bytes]:
        if view is None or inode is None or not inode.xattr_count:
            return {}
        found = {}
        for name in view.list_xattrs(inode.number):
            value = view.get_xattr(inode.number, name)
            assert value is not None, "an attribute that is listed has a value"
            found[name] = value
        return found

    def _node(self, inode: Inode | None, index: int, epoch: Epoch) -> list[Extent]:
        if inode is None:
            return []
        if index == 0 and inode.inline is not None:
            return inode.inline
        return self._state.frozen.nodes.get((inode.number, index), epoch) or []

    def _is_unchanged(self, change: InodeChange, index: int) -> bool:
        """Whether a node is the same on both sides, as far as can be told without opening it."""
        before, after = change.before, change.after
        if before is None or after is None:
            return False
        if index == 0 and (before.inline is not None or after.inline is not None):
            return False
        key = self._state.node_key(change.number, index)
        found = self._state.versions.find(key, self._target)
        return found is not None and born_of(found[0]) <= self._base


def _item(cursor: lmdb.Cursor) -> Pair:
    return cast("Pair", cursor.item())  # the store's transactions copy: never views


def has_changed(state: VolumeState, epoch: Epoch, start: bytes, limit: int) -> tuple[bool, bytes]:
    """Whether one of the next `limit` versions was born after `epoch`; where to go on, b"" at the end.

    Rewriting what is there in another place (the cleaner) is no change, reading with access times is.
    """
    if not start:
        state.flush_current()
    cursor = state.store.cursor()
    for kind in sorted(VERSIONED_KINDS):
        if start > kind + b"\xff" * 64:
            continue
        present = cursor.set_range(max(start, kind))
        while present:
            stored = _item(cursor)[0]
            if stored[:1] != kind:
                break
            if not limit:
                return False, stored
            limit -= 1
            if born_of(stored) > epoch:
                return True, b""
            present = cursor.next()
    return False, b""


def _nodes(change: InodeChange, first: int) -> Iterator[int]:
    """Numbers of nodes from `first` on that either side may have, ascending."""
    inodes = [inode for inode in (change.before, change.after) if inode is not None]
    sources = [node_runs.within(inode.extent_runs, first, filemap.LAST_NODE) for inode in inodes]
    if first == 0 and any(inode.inline for inode in inodes):
        sources.append(iter((0,)))
    last = -1
    for index in merge(*sources):
        if index != last:
            last = index
            yield index


def _joined(extents: Iterator[Extent] | list[Extent]) -> list[Span]:
    """The bytes that extents map, touching ones as one: where they lie does not matter.

    The cleaner may split extents at any time; what is sent must not depend on that.
    """
    spans: list[Span] = []
    for extent in extents:
        if spans and spans[-1].end == extent.offset:
            spans[-1] = Span(spans[-1].start, extent.end)
        else:
            spans.append(Span(extent.offset, extent.end))
    return spans


def _without(spans: list[Span], others: list[Span]) -> list[Span]:
    """What of `spans` is in none of `others`; both sorted and disjoint."""
    left: list[Span] = []
    place = 0
    for start, end in spans:
        while place < len(others) and others[place].end <= start:
            place += 1
        position = start
        for other in others[place:]:
            if other.start >= end:
                break
            if other.start > position:
                left.append(Span(position, other.start))
            position = max(position, other.end)
        if position < end:
            left.append(Span(position, end))
    return left

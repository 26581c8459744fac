"""Rollback: the newest snapshot becomes the current state.

Everything that was born after it is removed, in bounded steps that are commands: a crash in between
goes on at the next opening, and until it is done no other command applies. A step goes through the
keys of the store in order. Bytes that were written later die; what the snapshot alone kept is current
again, so its records of kept bytes and its notes go, and those of destroyed snapshots after it. The snapshot stays, as
do older ones. Destroyed snapshots' bytes must have been settled before.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from dwfs.errors import PosixError
from dwfs.types import NO_EPOCH, Epoch, InodeNumber
from dwfs.volume.commands import Rollback, RollbackStep
from dwfs.volume.state import VolumeState
from dwfs.volume.store import (
    KIND_INODE,
    KIND_KEPT_BYTES,
    KIND_KEPT_VERSION,
    KIND_NODE,
    KIND_ORPHAN,
)
from dwfs.volume.versions import SUFFIX_SIZE, VERSIONED_KINDS, born_of, parse_note

# Orphans after inodes: those that the snapshot has not are found to be none.
_WALKED: Final = sorted((*VERSIONED_KINDS, KIND_KEPT_BYTES, KIND_KEPT_VERSION, KIND_ORPHAN))
assert _WALKED.index(KIND_INODE) < _WALKED.index(KIND_ORPHAN)

Pair = tuple[bytes, bytes]


def begin(state: VolumeState, command: Rollback) -> None:
    """ENOENT; EBUSY if there are newer snapshots, or destroyed ones whose bytes are not settled."""
    snapshot = state.snapshots.by_name.get(command.name)
    if snapshot is None:
        raise PosixError(errno.ENOENT, f"snapshot {command.name}")
    if snapshot.epoch != state.snapshots.newest():
        raise PosixError(errno.EBUSY, "there are newer snapshots")
    if state.meta.reaping:
        raise PosixError(errno.EBUSY, "destroyed snapshots are not settled yet")
    state.flush()
    state.forget_current()
    state.frozen.clear()
    state.meta.rolling_back = snapshot.epoch
    state.meta.rollback_cursor = b""


def step(state: VolumeState, command: RollbackStep) -> None:
    """EINVAL if no rollback has begun."""
    meta = state.meta
    if meta.rolling_back == NO_EPOCH:
        raise PosixError(errno.EINVAL, "no rollback has begun")
    state.kept.table.flush()
    state.flush_orphans()
    pairs = list(_walk(state, meta.rollback_cursor, command.until))
    for logical, group in groupby(pairs, key=lambda pair: _logical(pair[0])):
        _undo(state, logical, list(group), meta.rolling_back)
    if command.until:
        meta.rollback_cursor = max(meta.rollback_cursor, command.until)
    else:
        _finish(state)


def next_stop(state: VolumeState, limit: int) -> tuple[bytes, int]:
    """Up to which key the next step should go for about `limit` records, and how many they are."""
    state.kept.table.flush()
    state.flush_orphans()
    count, before = 0, b""
    for key, _ in _walk(state, state.meta.rollback_cursor, b""):
        logical = _logical(key)
        if count >= limit and logical != before:
            return logical, count
        count, before = count + 1, logical
    return b"", count


def _walk(state: VolumeState, start: bytes, until: bytes) -> Iterator[Pair]:
    """The records of all kinds that a rollback looks at, with keys in [start, until)."""
    for kind in _WALKED:
        if start < kind + b"\xff" * 64:
            for key, sealed in state.store.scan(kind, max(start, kind)):
                if until and key >= until:
                    return
                yield key, sealed


def _logical(key: bytes) -> bytes:
    return key[:-SUFFIX_SIZE] if key[:1] in VERSIONED_KINDS else key


def _undo(state: VolumeState, logical: bytes, records: list[Pair], target: Epoch) -> None:
    """Bring one logical key, or one record of another kind, back to the snapshot."""
    kind = logical[:1]
    if kind == KIND_KEPT_BYTES:
        record = state.kept.parse(*records[0])
        if record.seen_by >= target:
            state.kept.adjust(record.seen_by, record.written, record.stripe, -record.length)
    elif kind == KIND_KEPT_VERSION:
        if parse_note(logical)[0] >= target:
            state.store.delete(logical)
    elif kind == KIND_ORPHAN:
        number = InodeNumber(int.from_bytes(logical[1:9], "big"))
        inode = state.inodes.get(number)
        if inode is None or inode.nlink:
            state.remove_orphan(number)
    else:
        _undo_versions(state, logical, records, target)


def _undo_versions(state: VolumeState, logical: bytes, records: list[Pair], target: Epoch) -> None:
    newest, sealed = records[0]
    if born_of(newest) <= target:
        return  # unchanged since
    if sealed:
        _release_later_bytes(state, newest, sealed, target)
    for key, _ in records:
        if born_of(key) > target:
            state.store.delete(key)
    if logical[:1] == KIND_INODE:
        number = InodeNumber(int.from_bytes(logical[1:9], "big"))
        inode = state.inodes.get(number)
        if inode is not None and not inode.nlink and number not in state.orphans:
            state.add_orphan(number)


def _release_later_bytes(state: VolumeState, key: bytes, sealed: bytes, target: Epoch) -> None:
    """The current version goes, and with it what was written after the snapshot."""
    if key[:1] == KIND_NODE:
        extents = state.nodes.decode(key, sealed)
    elif key[:1] == KIND_INODE:
        extents = state.inodes.decode(key, sealed).inline or []
    else:
        return
    for extent in extents:
        if extent.epoch > target:
            state.stripes.adjust(extent.stripe, -extent.length)


def _finish(state: VolumeState) -> None:
    meta = state.meta
    snapshot = state.snapshots.at(meta.rolling_back)
    meta.inode_count = snapshot.inode_count
    meta.allocated_bytes = snapshot.allocated_bytes
    meta.sweeping = [epoch for epoch in meta.sweeping if epoch < snapshot.epoch]
    meta.rolling_back = NO_EPOCH
    meta.rollback_cursor = b""
    state.forget_current()

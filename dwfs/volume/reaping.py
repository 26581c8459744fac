"""Reaping: giving back what only destroyed snapshots kept, a few records at a time.

First their bytes are settled, snapshot by snapshot in the order in which they were destroyed: a
record of kept bytes written after the snapshot before was kept by the destroyed one alone, so the
bytes are dead; any other goes to the snapshot before, which maps them, too. That is quick, and decided by the
commands alone.

Then their versions are swept, by the notes (`dwfs.volume.versions`), in the same manner. How many there
are depends on when records were flushed, so nothing that is decided may depend on how far a sweep is.
A tombstone below which nothing is left goes with the last version that it hid.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from itertools import islice

from dwfs.errors import PosixError
from dwfs.types import NO_EPOCH, Epoch
from dwfs.volume.commands import ReapSnapshots
from dwfs.volume.records import Snapshot
from dwfs.volume.state import VolumeState
from dwfs.volume.versions import note_key, note_prefix, parse_note, suffix


def reap(state: VolumeState, command: ReapSnapshots) -> None:
    """EINVAL for a limit below 1."""
    if command.limit < 1:
        raise PosixError(errno.EINVAL, "nothing to do")
    left = _settle(state, command.limit)
    if left:
        _sweep(state, left)


def unique_bytes(state: VolumeState, snapshot: Snapshot) -> int:
    """Bytes that would be given back if only this snapshot were destroyed.

    Its own records and those that destroyed snapshots right after it have yet to leave to it.
    """
    before = state.snapshots.before(snapshot.epoch)
    first = before + 1 if before != NO_EPOCH else 0
    heirs = [
        epoch for epoch in state.meta.reaping if state.snapshots.before(epoch) == snapshot.epoch
    ]
    return sum(state.kept.total(epoch, first, snapshot.epoch) for epoch in (snapshot.epoch, *heirs))


def _settle(state: VolumeState, limit: int) -> int:
    """Settle bytes; returns how much of the limit is left."""
    meta, kept = state.meta, state.kept
    while meta.reaping and limit:
        doomed = meta.reaping[0]
        before = state.snapshots.before(doomed)
        records = list(islice(kept.under(doomed), limit))
        for record in records:
            kept.adjust(doomed, record.written, record.stripe, -record.length)
            if before == NO_EPOCH or record.written > before:
                state.stripes.adjust(record.stripe, -record.length)
            else:
                kept.adjust(before, record.written, record.stripe, record.length)
        limit -= len(records)
        if limit:
            meta.sweeping.append(meta.reaping.pop(0))
            limit -= 1  # looking takes time, too: there may be thousands of them
    return limit


def _sweep(state: VolumeState, limit: int) -> None:
    meta, store = state.meta, state.store
    destroyed = sorted({*meta.reaping, *meta.sweeping})
    while meta.sweeping and limit:
        doomed = meta.sweeping[0]
        before = state.snapshots.before(doomed)
        notes = [key for key, _ in islice(store.scan(note_prefix(doomed)), limit)]
        for note in notes:
            _, born, logical = parse_note(note)
            store.delete(note)
            if before != NO_EPOCH and born <= before:
                store.mark(note_key(before, born, logical))
            else:
                _remove(state, logical, born, destroyed)
        limit -= len(notes)
        if limit:
            meta.sweeping.pop(0)
            limit -= 1


def _remove(state: VolumeState, logical: bytes, born: Epoch, destroyed: list[Epoch]) -> None:
    """Remove a version that nobody sees, and tombstones that hide nothing any more."""
    stored = logical + suffix(born)
    state.store.delete(stored)
    if state.versions.older(stored) is not None:
        return
    while True:
        newer = state.versions.newer(stored)
        if newer is None or newer.sealed:
            return
        above = state.versions.newer(newer.key)
        if above is not None:
            _remove_note(state, (newer.born, Epoch(above.born - 1)), logical, destroyed)
        state.store.delete(newer.key)
        stored = newer.key


def _remove_note(
    state: VolumeState, good: tuple[Epoch, Epoch], logical: bytes, destroyed: list[Epoch]
) -> None:
    """Remove the note of a version that was good from one epoch to another.

    It is under the newest snapshot of that time, or under a newer one that is destroyed.
    """
    born, until = good
    live = state.snapshots.newest_within(born, until)
    first = bisect_left(destroyed, max(born, live))
    candidates = destroyed[first : bisect_right(destroyed, until)]
    for epoch in (*reversed(candidates), live):
        note = note_key(epoch, born, logical)
        if state.store.has(note):
            state.store.delete(note)
            return

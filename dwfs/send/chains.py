"""Streams kept as files: which belong together, which one comes next, which may go. Sans I/O.

A full stream and the increments that follow it are a *chain*: each starts from the snapshot with which the
one before it ends. To have a snapshot back, its file is needed and all before it in its chain.

What is decided here rests on headers, which are not authenticated before a stream is opened. So a
forged file can make a backup useless or too large, but never a restore wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from dwfs.errors import UsageError
from dwfs.volume.transfer import Origin


class Backup(msgspec.Struct, frozen=True):
    """A stream in a file, as its header tells."""

    path: Path
    snapshot: Origin  # with which it ends
    base: Origin | None  # from which it starts; None: it is full
    size_bytes: int  # of the file
    inode_count: int  # of the snapshot
    allocated_bytes: int  # likewise


def in_order(backups: Sequence[Backup]) -> list[Backup]:
    """By the time of their snapshots, oldest first."""
    return sorted(backups, key=lambda one: (one.snapshot.time_ns, one.snapshot.epoch, one.path))


def chain_of(backups: Sequence[Backup], wanted: Backup) -> list[Backup] | None:
    """The files that are needed to have a snapshot back, the full one first; None: one is missing."""
    by_snapshot = {one.snapshot: one for one in backups if one.base is None}
    # An increment can't end with the same snapshot as a full stream and be of more use than that.
    for one in backups:
        by_snapshot.setdefault(one.snapshot, one)
    chain = [wanted]
    while chain[-1].base is not None:
        before = by_snapshot.get(chain[-1].base)
        if before is None or before.snapshot.epoch >= chain[-1].snapshot.epoch:
            return None
        chain.append(before)
    return chain[::-1]


def next_base(
    backups: Sequence[Backup], present: Collection[tuple[str, int]], full_every: int
) -> Backup | None:
    """From which file's snapshot the next increment should start; None: it should be a full stream.

    `present`: names and times of the snapshots that the pool has. Every `full_every`th is full.
    """
    for one in reversed(in_order(backups)):
        chain = chain_of(backups, one)
        if chain is not None:
            usable = (one.snapshot.name, one.snapshot.time_ns) in present
            return one if usable and len(chain) < full_every else None
    return None


def surplus(backups: Sequence[Backup], keep: int) -> list[Backup]:
    """Files that the newest `keep` snapshots do not need; what is no whole chain counts for nothing."""
    needed: set[Path] = set()
    kept = 0
    for one in reversed(in_order(backups)):
        chain = chain_of(backups, one)
        if chain is not None and kept < keep:
            kept += 1
            needed.update(part.path for part in chain)
    return [one for one in in_order(backups) if one.path not in needed] if kept else []


def select(backups: Sequence[Backup], name: str | None) -> list[Backup]:
    """The files to receive for a snapshot, the newest whole one without a name. Raises UsageError."""
    origins = {(one.snapshot.pool, one.snapshot.volume) for one in backups}
    if len(origins) > 1:
        raise UsageError(
            f"there are backups of {len(origins)} pools in one directory: put each pool's in one of its own"
        )
    incomplete = False
    for one in reversed(in_order(backups)):
        if name is None or one.snapshot.name == name:
            chain = chain_of(backups, one)
            if chain is not None:
                return chain
            incomplete = True
    what = "there" if name is None else f"of @{name} there"
    if incomplete:
        raise UsageError(f"no backup {what} is whole: files that it starts from are missing")
    raise UsageError(f"there is no backup {what}")

"""Checking the log without changing it: is every copy of every needed file there, whole and equal?

Findings are sentences for `dwfs check`. A *shortage* is mended by `heal`; *damage* is beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import msgspec

from dwfs.disk.medium import Medium
from dwfs.log.chain import ChainWalk
from dwfs.log.copies import open_sources
from dwfs.log.recovery import LogInventory
from dwfs.log.watching import Watch
from dwfs.types import DiskId, LogSequence, VolumeId


class LogFinding(msgspec.Struct, frozen=True):
    """One thing that is wrong, in words."""

    kind: Literal["shortage", "damage"]
    detail: str


class CopyState(msgspec.Struct, frozen=True):
    """What became of reading all copies of one file."""

    whole: frozenset[DiskId]
    lacking: frozenset[DiskId]  # bytes are unreadable, missing or different
    absent: frozenset[DiskId]  # can't be opened
    complete: bool  # merged, they have everything


def examine_copies(
    watch: Watch, medium: Medium, paths: Mapping[DiskId, Path], end: int
) -> CopyState:
    """In a worker: read all copies of a file up to `end` and compare them."""
    with ExitStack() as stack:
        opened = open_sources(medium, paths, stack, watch)
        walk = ChainWalk(opened)
        lacking: set[DiskId] = set()
        for piece in walk.pieces(upto=end):
            lacking.update(piece.lacking)
    complete = walk.end >= end
    good = frozenset(set(opened) - lacking) if complete else frozenset()
    return CopyState(good, frozenset(lacking), frozenset(set(paths) - set(opened)), complete)


def describe(sequence: int, state: CopyState, copies_wanted: int, broken: bool) -> list[LogFinding]:
    """What is to be said of one needed file. Pure."""
    name = f"log file {sequence:016x}"
    if broken or not state.complete:
        lost = "is damaged in the middle on all copies" if broken else "can't be read to its end"
        return [LogFinding("damage", f"{name} {lost}; attach the missing disks, if there are any")]
    findings = [
        LogFinding("shortage", f"{name}: the copy on disk {disk.hex()[:8]} {what}")
        for disks, what in (
            (state.lacking, "is damaged or incomplete"),
            (state.absent, "can't be opened"),
        )
        for disk in sorted(disks)
    ]
    if len(state.whole) < copies_wanted:
        findings.append(
            LogFinding("shortage", f"{name} has {len(state.whole)} of {copies_wanted} whole copies")
        )
    return findings


def verify(
    inventory: LogInventory, replay_from: Mapping[VolumeId, LogSequence], copies_wanted: int
) -> list[LogFinding]:
    """What is wrong with the log of a pool that is not open, as `MirroredLog.recover` read it.

    `replay_from`: the first command of each stream that the state lacks. A file that was never
    finished for a crash may lack its last record on some copies: that is said, and mended at the
    next mount.
    """
    findings = [LogFinding("damage", problem) for problem in inventory.problems(replay_from)]
    for file in inventory.files:
        reaches = {stream: run.reach for stream, run in file.facts.runs.items()}
        if not any(reach >= replay_from.get(stream, 1) for stream, reach in reaches.items()):
            continue
        whole = frozenset(file.copies) - file.damaged
        state = CopyState(whole, file.damaged, frozenset(), True)
        findings.extend(
            describe(file.sequence, state, copies_wanted, file.facts.beyond is not None)
        )
    return findings

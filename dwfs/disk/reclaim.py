"""Giving the space of deleted records back. Runs in worker threads.

A deleted record's bytes become zeros: a punched hole frees whole blocks and zeroes the rest, so the
record's header vanishes with its payload and no scan can bring it back. Where holes can't be had, the
header alone is overwritten, which needs no room; the space then returns when the segment's last record
dies and the file is unlinked.

Records share blocks at their edges. When a neighbour in the edge block is dead as well, that part of
the block is zeros; punching zeros changes nothing, so the range may be widened over them, and the block
is freed with the last record in it. Not in a segment that is still being written: zeros there may be a
place where a put is about to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from dwfs.disk.access import Fence
from dwfs.disk.medium import Medium
from dwfs.disk.record import ALIGNMENT, HEADER_SIZE
from dwfs.disk.segment import DEAD

BLOCK_SIZE: Final = 4096  # what hole punching frees on the usual filesystems


class Reclaim(msgspec.Struct, frozen=True):
    """What is to be done in one segment."""

    path: Path
    handle: int | None  # of a segment being written; None: open it
    ranges: tuple[tuple[int, int], ...]  # [start, end) of dead records
    liveness_offsets: tuple[int, ...]  # of their liveness bytes, if the segment has a footer


def reclaim(medium: Medium, fence: Fence, work: Sequence[Reclaim], unlink: Sequence[Path]) -> None:
    """Do it all; blocking. Raises OSError after the first failure, with the rest not done.

    Segments that are gone already are passed over, unless their whole directory is gone. A worker
    that wakes up after its store was retired leaves the rest: the disk may have another store by now.
    """
    for item in work:
        if fence.down:
            return
        if item.handle is not None:
            _reclaim_in(medium, item.handle, item, widen=False)
            continue
        try:
            handle = medium.open(item.path, write=True)
        except FileNotFoundError:
            if medium.is_directory(item.path.parent):
                continue
            raise
        try:
            _reclaim_in(medium, handle, item, widen=True)
        finally:
            medium.close(handle)
    for path in unlink:
        if fence.down:
            return
        medium.remove(path)


def erase(medium: Medium, handle: int, start: int, end: int) -> None:
    """Zero [start, end) and free its blocks where possible. Raises OSError if not even the header
    of a record at `start` could be zeroed."""
    if not medium.punch(handle, start, end):
        medium.write(handle, start, [bytes(min(HEADER_SIZE, end - start))])


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that touch, but for alignment padding."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start - merged[-1][1] < ALIGNMENT:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _reclaim_in(medium: Medium, handle: int, item: Reclaim, *, widen: bool) -> None:
    for offset in item.liveness_offsets:
        medium.write(handle, offset, [bytes([DEAD])])
    # Merging would hide the headers inside a range from `erase`'s second way; so only for holes.
    for start, end in merge(item.ranges):
        low, high = _widened(medium, handle, start, end) if widen else (start, end)
        if not medium.punch(handle, low, high):
            for inner_start, inner_end in item.ranges:
                if start <= inner_start < end:
                    erase(medium, handle, inner_start, inner_end)


def _widened(medium: Medium, handle: int, start: int, end: int) -> tuple[int, int]:
    low = start - start % BLOCK_SIZE
    high = end + -end % BLOCK_SIZE
    if not _is_zero(medium.read(handle, low, start - low)):
        low = start
    if not _is_zero(medium.read(handle, end, high - end)):
        high = end
    return low, high


def _is_zero(content: bytes) -> bool:
    return content.count(0) == len(content)

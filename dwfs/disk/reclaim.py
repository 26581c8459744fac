"""Giving the space of deleted records back. Runs in worker threads.

A deleted record's bytes become zeros: `fallocate` punches a hole, which frees whole blocks and zeroes
the rest, so the record's header vanishes with its payload and no scan can bring it back. On a filesystem
that can't punch, the header alone is overwritten; the space then returns when the segment's last record
dies and the file is unlinked.

Records share blocks at their edges. When a neighbour in the edge block is dead as well, that part of
the block is zeros; punching zeros changes nothing, so the range may be widened over them, and the block
is freed with the last record in it. Not in a segment that is still being written: zeros there may be a
place where a put is about to write.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from dwfs.disk.record import ALIGNMENT, HEADER_SIZE
from dwfs.disk.segment import DEAD

BLOCK_SIZE: Final = 4096  # what hole punching frees on the usual filesystems
_KEEP_SIZE: Final = 0x01  # FALLOC_FL_KEEP_SIZE
_PUNCH_HOLE: Final = 0x02  # FALLOC_FL_PUNCH_HOLE

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


class Reclaim(msgspec.Struct, frozen=True):
    """What is to be done in one segment."""

    path: Path
    descriptor: int | None  # of a segment being written; None: open it
    ranges: tuple[tuple[int, int], ...]  # [start, end) of dead records
    liveness_offsets: tuple[int, ...]  # of their liveness bytes, if the segment has a footer


def reclaim(work: Sequence[Reclaim], unlink: Sequence[Path]) -> None:
    """Do it all; blocking. Raises OSError after the first failure, with the rest not done.

    Segments that are gone already are passed over, unless their whole directory is gone.
    """
    for item in work:
        if item.descriptor is not None:
            _reclaim_in(item.descriptor, item, widen=False)
            continue
        try:
            descriptor = os.open(item.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if item.path.parent.is_dir():
                continue
            raise
        try:
            _reclaim_in(descriptor, item, widen=True)
        finally:
            os.close(descriptor)
    for path in unlink:
        path.unlink(missing_ok=path.parent.is_dir())


def erase(descriptor: int, start: int, end: int) -> None:
    """Zero [start, end) and free its blocks where possible. Raises OSError if not even the header
    of a record at `start` could be zeroed."""
    if _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, end - start) == 0:
        return
    # No support, or no room for the metadata of a hole: overwriting in place needs neither.
    zeros = bytes(min(HEADER_SIZE, end - start))
    if os.pwrite(descriptor, zeros, start) != len(zeros):
        raise OSError(ctypes.get_errno(), "a record's header could not be erased")


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that touch, but for alignment padding."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start - merged[-1][1] < ALIGNMENT:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _reclaim_in(descriptor: int, item: Reclaim, *, widen: bool) -> None:
    for offset in item.liveness_offsets:
        os.pwrite(descriptor, bytes([DEAD]), offset)
    # Merging would hide the headers inside a range from `erase`'s second way; so only for holes.
    ranges = merge(item.ranges)
    for start, end in ranges:
        low, high = _widened(descriptor, start, end) if widen else (start, end)
        if _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, low, high - low) != 0:
            for inner_start, inner_end in item.ranges:
                if start <= inner_start < end:
                    erase(descriptor, inner_start, inner_end)


def _widened(descriptor: int, start: int, end: int) -> tuple[int, int]:
    low = start - start % BLOCK_SIZE
    high = end + -end % BLOCK_SIZE
    if not _is_zero(os.pread(descriptor, start - low, low)):
        low = start
    if not _is_zero(os.pread(descriptor, high - end, end)):
        high = end
    return low, high


def _is_zero(content: bytes) -> bool:
    return content.count(0) == len(content)

"""Runs of extent nodes: which nodes of a file *may* exist.

Node keys are keyed hashes, so a file's nodes can't be found by scanning. The inode therefore keeps
sorted, disjoint (first, last) ranges of node numbers. They over-approximate: a range may span nodes
that do not exist, never the reverse. At most `RUNS_MAX` ranges are kept; the two that lie closest
are joined when there would be more. The cost of that is paid by truncation of files with hundreds of
far scattered pieces only: it looks for nodes that aren't there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, TypeAlias

RUNS_MAX: Final = 256  # 256 ranges are some 3 KiB in the inode record

Runs: TypeAlias = list[tuple[int, int]]


def add(runs: Runs, index: int) -> bool:
    """Include node `index`; tells whether that changed anything."""
    place = bisect_right(runs, (index, index))
    # runs[place] is the first that starts after (index, index), unless one starts at index itself.
    if place < len(runs) and runs[place][0] == index:
        return False
    first = last = index
    low = high = place
    if place:
        before = runs[place - 1]
        if before[1] >= index:
            return False
        if before[1] == index - 1:
            first = before[0]
            low = place - 1
    if place < len(runs) and runs[place][0] == index + 1:
        last = runs[place][1]
        high = place + 1
    runs[low:high] = [(first, last)]
    if len(runs) > RUNS_MAX:
        _join_closest(runs)
    return True


def _join_closest(runs: Runs) -> None:
    closest = min(range(1, len(runs)), key=lambda place: runs[place][0] - runs[place - 1][1])
    runs[closest - 1 : closest + 1] = [(runs[closest - 1][0], runs[closest][1])]


def discard(runs: Runs, first: int, last: int) -> None:
    """Exclude nodes first … last, none of which exists any more."""
    kept: Runs = []
    for run in runs:
        if run[1] < first or run[0] > last:
            kept.append(run)
            continue
        if run[0] < first:
            kept.append((run[0], first - 1))
        if run[1] > last:
            kept.append((last + 1, run[1]))
    runs[:] = kept
    if len(runs) > RUNS_MAX:
        _join_closest(runs)


def within(runs: Runs, first: int, last: int) -> Iterator[int]:
    """Nodes of [first, last] that may exist, ascending."""
    for low, high in runs:
        if high >= first:
            if low > last:
                return
            yield from range(max(low, first), min(high, last) + 1)


def count(runs: Runs, first: int, last: int) -> int:
    """How many nodes `within` would yield."""
    total = 0
    for low, high in runs:
        if high >= first and low <= last:
            total += min(high, last) - max(low, first) + 1
    return total


def ascend(runs: Runs, first: int, limit: int) -> int:
    """The highest `last` for which `within(first, last)` has at most `limit` nodes, or -1 if all."""
    for low, high in runs:
        if high >= first:
            low = max(low, first)
            if high - low + 1 > limit:
                return low + limit - 1
            limit -= high - low + 1
    return -1


def descend(runs: Runs, limit: int) -> int:
    """The lowest `first` for which at most `limit` nodes lie at or after it; 0 if all do."""
    for low, high in reversed(runs):
        if high - low + 1 > limit:
            return high - limit + 1
        limit -= high - low + 1
    return 0

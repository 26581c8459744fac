"""Decisions of the log's writer: which disks, and one thread or several. Pure.

A sync of a page-cache-backed virtual disk costs ~50 µs, and so does a thread hop; three parallel
hops cost ~380 µs. So fast disks are written one after another in a single hop, slow disks (where a
sync is milliseconds) in parallel. Measured times decide, smoothed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Final

from dwfs import limits
from dwfs.log.ports import LogDisk
from dwfs.types import DiskId

PARALLEL_COST_SECONDS: Final = 330e-6  # three parallel hops, less the one that is always paid
SEQUENTIAL_SIZE_MAX: Final = 128 * limits.KIB  # larger records profit from parallel copies
TRIAL_EVERY: Final = 16  # records written in parallel before the other way is measured again
SLOW_TRIAL_EVERY: Final = 256  # the same if that measurement costs more than the bound below
TRIAL_SECONDS_MAX: Final = 4e-3
# Of a new measurement. A disk can seem slow by chance, when our thread waited for the processor or
# the interpreter's lock, but it can't seem fast: what is followed is a low quantile.
_WEIGHT_SLOWER: Final = 0.05
_WEIGHT_FASTER: Final = 0.4


def choose_members(
    candidates: Sequence[LogDisk], copies: int, rotation: int, avoid: Set[DiskId], room: int
) -> list[LogDisk]:
    """Up to `copies` distinct disks, the healthy and roomy first, rotating among equals."""
    ordered = sorted({candidate.disk: candidate for candidate in candidates}.items())
    count = len(ordered)
    ranked = sorted(
        range(count),
        key=lambda index: (
            ordered[index][0] in avoid,
            ordered[index][1].available_bytes < room,
            (index - rotation) % count,
        ),
    )
    return [ordered[index][1] for index in ranked[:copies]]


class SyncEstimator:
    """Smoothed time of one small write and sync, by disk."""

    def __init__(self) -> None:
        self._seconds: dict[DiskId, float] = {}
        self._until_trial = TRIAL_EVERY

    def observe(self, disk: DiskId, seconds: float, size: int, *, alone: bool = True) -> None:
        """Take a measurement; those of large records say nothing of a sync's cost.

        Copies that are written at the same time (not `alone`) wait for each other, so they look
        slow; taking that for the disk's cost would keep fast disks on the parallel way for ever.
        """
        if alone and size <= SEQUENTIAL_SIZE_MAX:
            before = self._seconds.get(disk, 0.0)
            # One hiccup must not send the next dozens of appends the slow way.
            seconds = min(seconds, 4 * before + 100e-6)
            weight = _WEIGHT_SLOWER if seconds >= before else _WEIGHT_FASTER
            self._seconds[disk] = before + weight * (seconds - before)

    def seconds(self, disk: DiskId) -> float:
        """The estimate; 0 for a disk that was never measured, so that it gets measured."""
        return self._seconds.get(disk, 0.0)

    def sequential(self, disks: Iterable[DiskId], size: int) -> bool:
        """Whether to write the copies one after another in one thread."""
        if size > SEQUENTIAL_SIZE_MAX:
            return False
        estimates = [self._seconds.get(disk, 0.0) for disk in disks]
        extra = sum(estimates) - max(estimates)
        if extra < PARALLEL_COST_SECONDS:
            return True
        self._until_trial -= 1
        if self._until_trial > 0:
            return False
        self._until_trial = TRIAL_EVERY if extra < TRIAL_SECONDS_MAX else SLOW_TRIAL_EVERY
        return True

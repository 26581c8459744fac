"""Which disk is much slower than the others, and how long a reader should wait for each.

A disk that is dying, overheating or behind a bad cable often answers correctly but late, and every
stripe waits for its slowest disk. Disks of one pool do similar work, so each is judged by the
others: slow is one whose smoothed read latency is several times their median, and noticeable at all,
for some time without a break. It is only said (in status): what to do about it is for people to decide,
and the readers' patience already keeps such a disk from delaying them.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Final

from dwfs.limits import HEDGE_SECONDS_MAX, HEDGE_SECONDS_MIN
from dwfs.types import DiskId

SLOW_RATIO: Final = 5.0
SLOW_SECONDS_MIN: Final = 0.020  # faster than this is never slow, whatever the others do
SLOW_FOR_SECONDS: Final = 30.0
_PATIENCE_RATIO: Final = 4.0  # of what few reads exceed


def patience_seconds(high_seconds: float | None) -> float:
    """How long a read may take before others are asked, by what few of the disk's reads exceed."""
    if high_seconds is None:  # nothing was read yet
        return HEDGE_SECONDS_MAX
    return min(max(_PATIENCE_RATIO * high_seconds, HEDGE_SECONDS_MIN), HEDGE_SECONDS_MAX)


class SlownessJudge:
    """Judges all disks of a pool, from measurements a few seconds apart."""

    def __init__(self) -> None:
        self._since: dict[DiskId, float] = {}
        self._notes: dict[DiskId, str] = {}

    def judge(self, means: Mapping[DiskId, float], now: float) -> None:
        """Take the disks' smoothed latencies, in seconds, as they are now."""
        for disk in self._since.keys() - means.keys():
            self.forget(disk)
        for disk, mean in means.items():
            others = [other for key, other in means.items() if key != disk]
            usual = median(others) if others else mean
            if mean < SLOW_SECONDS_MIN or mean < SLOW_RATIO * usual:
                self.forget(disk)
                continue
            since = self._since.setdefault(disk, now)
            if now - since >= SLOW_FOR_SECONDS:
                self._notes[disk] = (
                    f"it answers in {mean * 1000:.0f} ms, the others in {usual * 1000:.1f} ms"
                )

    def forget(self, disk: DiskId) -> None:
        """The disk is as fast as others, or gone."""
        self._since.pop(disk, None)
        self._notes.pop(disk, None)

    def note(self, disk: DiskId) -> str:
        """A sentence about a slow disk, or nothing."""
        return self._notes.get(disk, "")

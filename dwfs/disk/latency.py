"""How long a disk takes, in two numbers that cost two multiplications a sample.

The mean is an exponentially weighted one. The high quantile is followed by steps in proportion to
itself: a sample above it moves it up by a large step, one below by a small one, in the ratio in which
they must occur for it to stay where it is (a Robbins-Monro iteration in the logarithm). It needs no
memory of samples, and forgets a bad day within a few hundred operations.
"""

from __future__ import annotations

from typing import Final

QUANTILE: Final = 0.98
_WEIGHT: Final = 1 / 32  # of a new sample in the mean
_STEP: Final = 0.1
_UP: Final = 1 + _STEP * QUANTILE
_DOWN: Final = 1 - _STEP * (1 - QUANTILE)
_FLOOR_SECONDS: Final = 1e-6  # or a quantile of zero could never rise again


class Latency:
    """Smoothed mean and high quantile of a stream of durations. Loop thread only."""

    __slots__ = ("mean_seconds", "quantile_seconds")

    def __init__(self) -> None:
        self.mean_seconds: float | None = None  # None: nothing was measured yet
        self.quantile_seconds: float | None = None

    def learn(self, seconds: float) -> None:
        """One more operation took so long (or was given up after it)."""
        mean, quantile = self.mean_seconds, self.quantile_seconds
        if mean is None or quantile is None:
            self.mean_seconds = seconds
            self.quantile_seconds = max(seconds, _FLOOR_SECONDS)
            return
        self.mean_seconds = mean + (seconds - mean) * _WEIGHT
        self.quantile_seconds = quantile * (_UP if seconds > quantile else _DOWN)

    def figures(self) -> tuple[float | None, float | None]:
        """(mean, high quantile), both None before the first sample."""
        return self.mean_seconds, self.quantile_seconds

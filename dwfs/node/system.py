"""The real clock and the real randomness, as the ports want them."""

from __future__ import annotations

import os
import time


class SystemClock:
    """Implements `ports.Clock`."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return time.time_ns()


class SystemRandomness:
    """Implements `ports.Randomness` with the kernel's generator."""

    def bytes(self, count: int) -> bytes:
        """`count` fresh random bytes."""
        return os.urandom(count)

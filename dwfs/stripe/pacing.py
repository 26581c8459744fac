"""How background work leaves room for the foreground, and how fast it goes.

Repair, scrub and balancing use the same disks as the people who wait for their files. A piece of
such work is followed by a rest in proportion to its length, so that it takes at most a given share
of the time (its *duty*) while anybody is using the pool, and none while nobody is: idle disks
should mend at full speed. Whether somebody is there is told by a counter of foreground operations
that moves or does not; a short silence between two requests doesn't count as idle.

On top of that comes an optional ceiling in bytes a second, for disks whose noise or wear matters
more than the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from dwfs.limits import KIB
from dwfs.ports import Clock

IDLE_AFTER_SECONDS: Final = 0.5  # without a foreground operation for so long, nobody is there
REST_SECONDS_MAX: Final = 2.0  # after a very slow piece, look again whether anybody is still there
_PIECE_BYTES_MIN: Final = 64 * KIB
_RATE_WINDOW_SECONDS: Final = 30.0


class Pacer:
    """One for each kind of background work. Belongs to the loop thread.

    `activity` counts the foreground's operations, and only grows.
    """

    def __init__(
        self,
        clock: Clock,
        activity: Callable[[], int],
        *,
        duty_busy: float = 0.5,
        bytes_per_second: float | None = None,
    ) -> None:
        assert 0.0 < duty_busy <= 1.0
        self._clock = clock
        self._activity = activity
        self._duty_busy = duty_busy
        self._bytes_per_second = bytes_per_second
        self._seen = activity()
        self._active_until = clock.now()  # idle until somebody shows up
        self._earliest = clock.now()  # when the ceiling allows the next piece

    def busy(self) -> bool:
        """Whether the foreground is active."""
        count, now = self._activity(), self._clock.now()
        if count != self._seen:
            self._seen = count
            self._active_until = now + IDLE_AFTER_SECONDS
        return now < self._active_until

    def piece_bytes(self, usual_bytes: int) -> int:
        """How much to do before the next rest: under a ceiling no more than a second's worth."""
        if self._bytes_per_second is None:
            return usual_bytes
        return min(usual_bytes, max(_PIECE_BYTES_MIN, int(self._bytes_per_second)))

    async def rest(self, worked_seconds: float, size_bytes: int = 0) -> None:
        """Rest after a piece of work that took so long and moved so many bytes."""
        now = self._clock.now()
        wait = 0.0
        if self.busy():
            wait = min(worked_seconds * (1.0 / self._duty_busy - 1.0), REST_SECONDS_MAX)
        if self._bytes_per_second:
            # Time that was not used is not saved up: a ceiling is one at every moment.
            since = max(self._earliest, now - worked_seconds)
            self._earliest = since + size_bytes / self._bytes_per_second
            wait = max(wait, self._earliest - now)
        await trio.sleep(max(0.0, wait))


class RateMeter:
    """Bytes a second over the last half minute or so, for people who wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock.now(), 0)])
        self.total_bytes = 0

    def add(self, size_bytes: int) -> None:
        """So much was done."""
        self.total_bytes += size_bytes
        now = self._clock.now()
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, self.total_bytes))
            while len(self._marks) > 2 and now - self._marks[1][0] > _RATE_WINDOW_SECONDS:
                self._marks.popleft()

    def restart(self) -> None:
        """A new job begins; what was done before it does not count."""
        self.total_bytes = 0
        self._marks = deque([(self._clock.now(), 0)])

    def bytes_per_second(self) -> float:
        """The rate; 0.0 while nothing can be said."""
        started, before = self._marks[0]
        elapsed = self._clock.now() - started
        return (self.total_bytes - before) / elapsed if elapsed > 0 else 0.0

    def seconds_left(self, left_bytes: int) -> float | None:
        """How long so many bytes still take at this rate; None while nothing can be said."""
        rate = self.bytes_per_second()
        return left_bytes / rate if rate > 0 else None

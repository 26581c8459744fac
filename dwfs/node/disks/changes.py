"""Telling everyone who waits that something about the disks has changed."""

from __future__ import annotations

import trio


class Changes:
    """A counter that can be waited for, by any number of tasks.

    Whoever waits says which count it has acted on, so a change between two waits is never missed.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def note(self) -> None:
        """Something has changed. Callable from the loop thread only; never awaits."""
        self.generation += 1
        self._waiting.unpark_all()

    async def after(self, generation: int) -> int:
        """Wait until the count differs from `generation`; returns the count."""
        if self.generation != generation:
            await trio.lowlevel.checkpoint()
        while self.generation == generation:
            await self._waiting.park()
        return self.generation

"""What the node takes from the machine: time, chance, files, threads. `SYSTEM_PLATFORM` is the real one.

Everything that a simulation must control comes through one `Platform`, handed down from `open_pool`,
so that the very same composition runs on simulated disks in simulated time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar, TypeVarTuple

import trio

from dwfs.disk import POSIX_MEDIUM, DiskExecutor, Executor, Medium
from dwfs.ports import Clock, Randomness

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


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


class Platform(Protocol):
    """The machine below a pool."""

    @property
    def clock(self) -> Clock:
        """Time; the same that `trio.sleep` goes by."""

    @property
    def randomness(self) -> Randomness:
        """Chance."""

    @property
    def medium(self) -> Medium:
        """The files on the pool's disks."""

    def make_executor(self, name: str, threads: int = 2) -> Executor:
        """Worker threads for one purpose, on the loop that runs now."""

    async def run_blocking(
        self, function: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT
    ) -> ResultT:
        """Call a function that blocks without blocking the loop. Not for what may hang."""


class SystemPlatform:
    """The machine itself."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.randomness = SystemRandomness()
        self.medium = POSIX_MEDIUM

    def make_executor(self, name: str, threads: int = 2) -> Executor:
        """Threads of the operating system."""
        return DiskExecutor(name, threads)

    async def run_blocking(
        self, function: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT
    ) -> ResultT:
        """In one of trio's worker threads."""
        return await trio.to_thread.run_sync(function, *arguments)


SYSTEM_PLATFORM: Final[Platform] = SystemPlatform()

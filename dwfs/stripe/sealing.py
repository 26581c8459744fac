"""What the stripe layer needs of cryptography, and the buffers that sealed stripes live in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple

from dwfs.types import StripeId

ArgumentsT = TypeVarTuple("ArgumentsT")
ResultT = TypeVar("ResultT")


class StripeCipher(Protocol):
    """The one-stripe key: seals each sector number exactly once."""

    def seal_sector(self, number: int, plaintext: memoryview, out: memoryview) -> object:
        """Write ciphertext and tag to `out` (16 bytes longer than `plaintext`)."""

    def open_sector(self, number: int, sealed: memoryview) -> bytes:
        """The plaintext. Raises AuthenticationError."""

    def open_sector_into(self, number: int, sealed: memoryview, out: memoryview) -> object:
        """As `open_sector`, into the front of `out`."""


# (stripe, salt, key version) → cipher; tens of microseconds, so results are kept.
CipherFactory = Callable[[StripeId, bytes, int], StripeCipher]


class ThreadRunner(Protocol):
    """Runs a function that releases the GIL in a worker thread."""

    async def run(
        self, function: Callable[[*ArgumentsT], ResultT], /, *arguments: *ArgumentsT
    ) -> ResultT:
        """The function's result; not cancelled in the middle."""


class BufferPool:
    """A few large buffers kept for reuse: the first touch of fresh memory costs a page fault
    every 4 KiB, which is half the price of sealing.

    A buffer must come back only when nobody can still read it.
    """

    def __init__(self, size: int, keep: int) -> None:
        self.size = size
        self._keep = keep
        self._free: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """A buffer of at least `size` bytes with any content."""
        if size > self.size:
            return bytearray(size)
        return self._free.pop() if self._free else bytearray(self.size)

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back; one of another size, or one too many, is simply freed."""
        if len(buffer) == self.size and len(self._free) < self._keep:
            self._free.append(buffer)

    def drop(self) -> None:
        """Free the kept buffers; those in use are kept when they come back."""
        self._free.clear()

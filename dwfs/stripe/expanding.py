"""Reading compressed stripes: the stored bytes of the wanted frames, expanded.

A read of any size expands whole frames, and reads no more stored bytes than they take. The frame in
which a read stops is kept: the next read of the same file, or of the next small file that was
written with it, is likely to want the rest of it.

One frame is expanded on the loop, as that takes no longer than to hand it over; more in a thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from errno import EIO

from dwfs.codec import CODEC_ZSTD, expand_frame
from dwfs.errors import ExpansionError, PosixError
from dwfs.limits import CODING_INLINE_MAX, FRAME_CACHE_ENTRIES
from dwfs.stripe.frames import Cut, FrameMap
from dwfs.stripe.opened import OpenedStripe
from dwfs.stripe.sealing import ThreadRunner
from dwfs.types import StripeId

StoredNow = Callable[[OpenedStripe, int, int], bytes | None]
StoredReader = Callable[[OpenedStripe, int, int], Awaitable[bytes]]


class FrameExpander:
    """Plaintext of compressed stripes. `stored_now` and `read_stored` give the bytes as sealed."""

    def __init__(
        self, threads: ThreadRunner, stored_now: StoredNow, read_stored: StoredReader
    ) -> None:
        self._threads = threads
        self._stored_now = stored_now
        self._read_stored = read_stored
        self._kept: OrderedDict[tuple[StripeId, int], bytes] = OrderedDict()

    def forget(self, stripe: StripeId) -> None:
        """The stripe is gone or has moved; drop its frames."""
        for key in [key for key in self._kept if key[0] == stripe]:
            del self._kept[key]

    def clear(self) -> None:
        """Drop all frames."""
        self._kept.clear()

    def read_now(
        self, opened: OpenedStripe, frames: FrameMap, offset: int, length: int
    ) -> bytes | None:
        """Plaintext, if neither a disk nor a thread has to be waited for."""
        wanted = _Wanted(self._kept, opened, frames, offset, length)
        if wanted.packed_bytes > CODING_INLINE_MAX:
            return None
        if wanted.cuts:
            stored = self._stored_now(opened, wanted.start, wanted.length)
            if stored is None:
                return None
            try:
                wanted.fill(expand(stored, wanted.start, wanted.cuts, frames.codec))
            except ExpansionError:
                return None  # the waiting path meets it too, and tells
        return self._cut(wanted, offset, length)

    async def read(self, opened: OpenedStripe, frames: FrameMap, offset: int, length: int) -> bytes:
        """Plaintext. Raises PosixError EIO if redundancy can't give it."""
        wanted = _Wanted(self._kept, opened, frames, offset, length)
        if wanted.cuts:
            stored = None
            if wanted.packed_bytes > CODING_INLINE_MAX:
                # `read_now` has not even looked.
                stored = self._stored_now(opened, wanted.start, wanted.length)
            if stored is None:
                stored = await self._read_stored(opened, wanted.start, wanted.length)
            arguments = (stored, wanted.start, wanted.cuts, frames.codec)
            try:
                if wanted.packed_bytes > CODING_INLINE_MAX:
                    wanted.fill(await self._threads.run(expand, *arguments))
                else:
                    wanted.fill(expand(*arguments))
            except ExpansionError as error:
                stripe = opened.seal.stripe.hex()
                raise PosixError(EIO, f"stripe {stripe} can't be expanded: {error}") from error
        return self._cut(wanted, offset, length)

    def _cut(self, wanted: _Wanted, offset: int, length: int) -> bytes:
        """Plaintext [offset, offset+length); keeps the last frame if it is not read to its end."""
        parts = wanted.parts
        start = offset - wanted.first * wanted.frame_size
        last = parts[-1]
        rest = sum(map(len, parts)) - start - length
        if rest:
            key = (wanted.stripe, wanted.first + len(parts) - 1)
            self._kept[key] = last
            self._kept.move_to_end(key)
            if len(self._kept) > FRAME_CACHE_ENTRIES:
                self._kept.popitem(last=False)
        if len(parts) == 1:
            return last if len(last) == length else last[start : start + length]
        parts[0] = parts[0][start:]
        if rest:
            parts[-1] = last[:-rest]
        return b"".join(parts)


class _Wanted:
    """The frames that a read needs, as far as they are known."""

    __slots__ = (
        "cuts",
        "first",
        "frame_size",
        "length",
        "packed_bytes",
        "parts",
        "start",
        "stripe",
    )

    def __init__(
        self,
        kept: OrderedDict[tuple[StripeId, int], bytes],
        opened: OpenedStripe,
        frames: FrameMap,
        offset: int,
        length: int,
    ) -> None:
        self.stripe = opened.seal.stripe
        self.frame_size = frames.frame_size
        self.first = offset // self.frame_size
        last = (offset + length - 1) // self.frame_size
        self.parts = [kept.get((self.stripe, n), b"") for n in range(self.first, last + 1)]
        # What lies between two frames that are missing is read, but not expanded again.
        self.cuts = [frames.cut(self.first + i) for i, part in enumerate(self.parts) if not part]
        self.packed_bytes = sum(cut.plain_length for cut in self.cuts if cut.packed)
        self.start = self.cuts[0].start if self.cuts else 0  # of the stored bytes to be read
        self.length = self.cuts[-1].start + self.cuts[-1].length - self.start if self.cuts else 0

    def fill(self, plaintexts: Sequence[bytes]) -> None:
        """Those of `cuts`, in order."""
        rest = iter(plaintexts)
        self.parts = [part or next(rest) for part in self.parts]


def expand(stored: bytes, base: int, cuts: Sequence[Cut], codec: int) -> list[bytes]:
    """The plaintext of each frame; `stored` begins at stored byte `base`. Raises ExpansionError."""
    if codec != CODEC_ZSTD:
        raise ExpansionError("it was compressed by a newer version of dwfs")
    view = memoryview(stored)
    plaintexts = []
    for cut in cuts:
        piece = view[cut.start - base : cut.start - base + cut.length]
        plaintexts.append(expand_frame(piece, cut.plain_length) if cut.packed else bytes(piece))
    return plaintexts

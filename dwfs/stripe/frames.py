"""Where the frames of a compressed stripe lie.

Offsets in a stripe always count plaintext. The plaintext of a compressed stripe is cut into frames
of `frame_size` bytes (the last may be short); what each of them became, smaller or the same, stands
end to end, and those *stored* bytes are what `layout` cuts into sectors and shards. Whoever moves,
checks or rebuilds shards therefore needs to know nothing of frames.

Everything here is arithmetic on integers.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from dwfs.codec import CODEC_ZSTD
from dwfs.limits import FRAME_SIZE
from dwfs.types import StripeFrames


class Cut(NamedTuple):
    """One frame among the stored bytes."""

    start: int  # bytes
    length: int  # stored bytes
    plain_length: int
    packed: bool  # False: stored as it is


class FrameMap:
    """The frames of a stripe of `length` plaintext bytes, ready to be looked up."""

    __slots__ = ("_starts", "codec", "frame_size", "length", "stored_length")

    def __init__(self, frames: StripeFrames, length: int) -> None:
        self.codec = frames.codec
        self.frame_size = frames.frame_size
        self.length = length
        self.stored_length = frames.stored_length
        count = -(-length // self.frame_size)
        assert len(frames.lengths) == 2 * count, "each frame has a length"
        self._starts = array("I")
        start = 0
        for number, stored in enumerate(struct.unpack(f"<{count}H", frames.lengths)):
            self._starts.append(start)
            start += stored or self.plain_length(number)
        assert start == self.stored_length
        self._starts.append(start)

    def plain_length(self, number: int) -> int:
        """Plaintext bytes of a frame."""
        return min(self.frame_size, self.length - number * self.frame_size)

    def cut(self, number: int) -> Cut:
        """Where the frame is stored."""
        start = self._starts[number]
        length = self._starts[number + 1] - start
        plain_length = self.plain_length(number)
        # A packed frame is always shorter.
        return Cut(start, length, plain_length, length != plain_length)


def frames_of(lengths: list[int], plain_length: int) -> StripeFrames | None:
    """The frames of a stripe that is stored in such lengths (0: kept); None if all were kept."""
    if not any(lengths):
        return None
    stored = 0
    for number, length in enumerate(lengths):
        stored += length or min(FRAME_SIZE, plain_length - number * FRAME_SIZE)
    return StripeFrames(CODEC_ZSTD, FRAME_SIZE, stored, struct.pack(f"<{len(lengths)}H", *lengths))

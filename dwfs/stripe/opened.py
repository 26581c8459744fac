"""A sealed stripe made ready for reading, and what a reader may find wrong with its shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dwfs.ports import ShardFault
from dwfs.stripe.frames import FrameMap
from dwfs.stripe.layout import StripeLayout, layout_of
from dwfs.stripe.sealing import StripeCipher
from dwfs.types import DiskId, ShardKey, StripeId, StripeSeal


class Damage(NamedTuple):
    """A shard that should be there and sound, but is not."""

    stripe: StripeId
    shard: int
    disk: DiskId
    fault: ShardFault  # MISSING, UNREADABLE or ROTTEN: a reader can't tell more


DamageObserver = Callable[[Damage], None]


class OpenedStripe:
    """A sealed stripe made ready for reading."""

    __slots__ = ("cipher", "frames", "keys", "layout", "seal")

    def __init__(self, seal: StripeSeal, cipher: StripeCipher) -> None:
        self.seal = seal
        self.cipher = cipher
        self.layout: StripeLayout = layout_of(seal)
        self.frames = None if seal.frames is None else FrameMap(seal.frames, seal.length)
        self.keys = tuple(ShardKey(seal.stripe, shard) for shard in range(self.layout.total))

    def covers(self, offset: int, length: int) -> bool:
        """Whether plaintext [offset, offset+length) is a non-empty range inside the stripe."""
        return offset >= 0 and length > 0 and offset + length <= self.seal.length


def padded(raw: bytes | memoryview, length: int) -> memoryview:
    """`raw` continued with zeros to `length` bytes; no copy if it is long enough."""
    if len(raw) == length:
        return memoryview(raw)
    return memoryview(bytes(raw).ljust(length, b"\0"))

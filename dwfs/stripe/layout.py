"""Where the bytes of a stripe lie: sectors, shards and their lengths.

A stripe's plaintext is cut into sectors of `sector_size` bytes (the last may be short). A sealed
sector is its ciphertext followed by a 16-byte tag; sealed sectors stand back to back. With
`n = ceil(sectors / k)` sectors a shard, data shard i is the sealed sectors [i·n, (i+1)·n): a
sector never straddles two shards, so that one `pread` and one AEAD open serve a small read.

The code works column by column over k shards of one length L, the length of shard 0. Shorter data
shards count as padded with zeros for the code, but the padding is never stored; a shard without
a single sector is not stored at all, and every reader knows it to be zeros. A stripe of one small
sector therefore costs that sector and m parity shards of the same size.

Everything here is arithmetic on integers; the property test compares it with a model that really
cuts bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from dwfs.limits import AEAD_TAG_SIZE
from dwfs.types import Geometry, StripeSeal


class Run(NamedTuple):
    """Consecutive sealed sectors inside one data shard."""

    shard: int
    sector: int  # first sector, counted in the stripe
    sectors: int
    offset: int  # bytes, in the shard's payload
    length: int  # sealed bytes


class StripeLayout:
    """The arithmetic of one stripe of `length` plaintext bytes."""

    __slots__ = (
        "data",
        "last_sealed_size",
        "length",
        "parity",
        "sealed_length",
        "sealed_size",
        "sector_size",
        "sectors",
        "shard_length",
        "shard_sectors",
    )

    def __init__(self, length: int, geometry: Geometry, sector_size: int) -> None:
        assert length > 0
        self.length = length
        self.data = geometry.data
        self.parity = geometry.parity
        self.sector_size = sector_size
        self.sealed_size = sector_size + AEAD_TAG_SIZE
        self.sectors = -(-length // sector_size)
        self.sealed_length = length + self.sectors * AEAD_TAG_SIZE
        self.last_sealed_size = self.sealed_length - (self.sectors - 1) * self.sealed_size
        self.shard_sectors = -(-self.sectors // geometry.data)
        self.shard_length = min(self.shard_sectors * self.sealed_size, self.sealed_length)

    @property
    def total(self) -> int:
        """k + m."""
        return self.data + self.parity

    def payload_length(self, shard: int) -> int:
        """Bytes stored for a shard; 0 for a data shard that holds no sector."""
        if shard >= self.data:
            return self.shard_length
        start = shard * self.shard_sectors * self.sealed_size
        return max(0, min(self.shard_length, self.sealed_length - start))

    def stored_shards(self) -> list[int]:
        """Numbers of the shards that are stored: all but the empty data shards."""
        return [shard for shard in range(self.total) if self.payload_length(shard) > 0]

    def stored_bytes(self) -> int:
        """Payload bytes of all shards together."""
        return self.sealed_length + self.parity * self.shard_length

    def sealed_span(self, sector: int, count: int) -> int:
        """Sealed bytes of `count` sectors from `sector` on."""
        if sector + count == self.sectors:
            return (count - 1) * self.sealed_size + self.last_sealed_size
        return count * self.sealed_size

    def runs(self, first: int, last: int) -> list[Run]:
        """The pieces, one a shard, that hold sectors `first` to `last` (both included)."""
        assert 0 <= first <= last < self.sectors
        runs = []
        shard_sectors = self.shard_sectors
        for shard in range(first // shard_sectors, last // shard_sectors + 1):
            base = shard * shard_sectors
            start = max(first, base)
            count = min(last + 1, base + shard_sectors) - start
            offset = (start - base) * self.sealed_size
            runs.append(Run(shard, start, count, offset, self.sealed_span(start, count)))
        return runs

    def covers(self, offset: int, length: int) -> bool:
        """Whether plaintext [offset, offset+length) is a non-empty range inside the stripe."""
        return offset >= 0 and length > 0 and offset + length <= self.length


def layout_of(seal: StripeSeal) -> StripeLayout:
    """The layout of a sealed stripe: of its stored bytes, if it is compressed (see `frames`)."""
    return StripeLayout(seal.stored_length, seal.geometry, seal.sector_size)


def absent_shards(seal: StripeSeal) -> list[int]:
    """Shards that ought to be stored but were not: the stripe was written degraded.

    Empty data shards have no place either, but nothing is lost with them.
    """
    return [shard for shard in layout_of(seal).stored_shards() if not seal.placement[shard]]


def buffer_capacity(data_shards: int, sectors: int, sector_size: int) -> int:
    """Bytes of a stripe buffer for up to `sectors` sectors, with room for the code's padding."""
    return data_shards * -(-sectors // data_shards) * (sector_size + AEAD_TAG_SIZE)

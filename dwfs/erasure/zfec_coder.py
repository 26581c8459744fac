"""The reference coder: zfec, whose output *is* the format.

zfec is systematic: its first k blocks are the data, its last m blocks are linear combinations of
them over GF(256). `generator_matrix` reads the coefficients off zfec itself by encoding unit vectors,
so that a faster implementation can be driven with the same matrix and need not know how it arose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import zfec  # ships no stubs: the two calls that we use are typed below

from dwfs.erasure.field import Matrix
from dwfs.types import Geometry


class _Encoder(Protocol):
    def encode(
        self, blocks: Sequence[memoryview | bytes], wanted: Sequence[int]
    ) -> list[bytes]: ...


class _Decoder(Protocol):
    def decode(
        self, blocks: Sequence[memoryview | bytes], numbers: Sequence[int]
    ) -> list[bytes | memoryview]: ...


def generator_matrix(geometry: Geometry) -> Matrix:
    """The (k+m) x k matrix of zfec's code: identity rows first, then the parity rows."""
    encoder = cast(_Encoder, zfec.Encoder(geometry.data, geometry.total))
    columns = []
    for unit in range(geometry.data):
        blocks = [b"\x01" if column == unit else b"\x00" for column in range(geometry.data)]
        columns.append([block[0] for block in encoder.encode(blocks, range(geometry.total))])
    return tuple(zip(*columns, strict=True))


class ZfecCoder:
    """`ErasureCoder` by zfec: slow, portable, and right by definition."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._encoder = cast(_Encoder, zfec.Encoder(geometry.data, geometry.total))
        self._decoder = cast(_Decoder, zfec.Decoder(geometry.data, geometry.total))

    def encode(self, data: Sequence[memoryview], parity: Sequence[memoryview]) -> None:
        """Fill `parity` (m writable views) from `data` (k views), all of one length."""
        check_shapes(self.geometry, data, parity)
        if not parity or not len(data[0]):
            return
        numbers = range(self.geometry.data, self.geometry.total)
        for view, block in zip(parity, self._encoder.encode(data, numbers), strict=True):
            view[:] = block

    def decode(
        self, present: dict[int, memoryview], wanted: Sequence[int], length: int
    ) -> list[bytes]:
        """Rebuild shards `wanted` from any k of `present`; ValueError if there are fewer."""
        sources = choose_sources(self.geometry, present, length)
        if not length:
            return [b""] * len(wanted)
        rebuilt = [number for number in wanted if number not in present]
        blocks: dict[int, bytes | memoryview] = dict(present)
        if rebuilt:
            data = self._decoder.decode([present[number] for number in sources], sources)
            blocks.update(enumerate(data))
        coded = [number for number in rebuilt if number >= self.geometry.data]
        if coded:
            every = [blocks[number] for number in range(self.geometry.data)]
            blocks.update(zip(coded, self._encoder.encode(every, coded), strict=True))
        return [bytes(blocks[number]) for number in wanted]


def check_shapes(
    geometry: Geometry, data: Sequence[memoryview], parity: Sequence[memoryview]
) -> None:
    """Reject a call whose buffers don't fit the geometry: native code would trust them."""
    if len(data) != geometry.data or len(parity) != geometry.parity:
        raise ValueError(f"expected {geometry.data} + {geometry.parity} shards")
    length = data[0].nbytes
    if any(view.nbytes != length for view in data) or any(v.nbytes != length for v in parity):
        raise ValueError("shards differ in length")


def choose_sources(
    geometry: Geometry, present: dict[int, memoryview], length: int
) -> tuple[int, ...]:
    """The k shards to decode from: data shards first, since each of them saves a row of work."""
    if len(present) < geometry.data:
        raise ValueError(f"{len(present)} shards present, {geometry.data} needed")
    sources = tuple(sorted(present))[: geometry.data]
    if not all(0 <= number < geometry.total for number in present):
        raise ValueError("shard number outside the geometry")
    if any(view.nbytes != length for view in present.values()):
        raise ValueError("shards differ in length")
    return sources

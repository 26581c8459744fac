"""The opaque header that the stripe layer keeps beside each shard.

It says what the payload is, so that a disk on its own tells which stripes it holds pieces of, and
above all it carries the salt: a stripe sealed again after a crash has the same id but another
salt, and a shard of the earlier sealing must not be mixed with shards of the later one. A shard
whose header differs from what its stripe's seal calls for is treated as damaged.

The header is not secret and not authenticated by itself. The shard store checks it against bit
rot; forging it gains nothing, since sectors open only under the key that the salt derives.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dwfs.types import Geometry, PoolId, StripeSeal, VolumeId

SHARD_FORMAT: Final = 1


class ShardHeader(msgspec.Struct, frozen=True, array_like=True):
    """See docs/formats-stripe.md for widths and meaning."""

    format: int
    pool: PoolId
    volume: VolumeId
    key_version: int
    geometry: Geometry
    salt: bytes
    length: int
    sector_size: int
    number: int


# Made once, here: msgspec (0.22) builds what it needs of a type at the type's first use, and two
# threads that do so at the same time crash the process.
_DECODER: Final = msgspec.msgpack.Decoder(ShardHeader)


def encode_header(pool: PoolId, volume: VolumeId, seal: StripeSeal, number: int) -> bytes:
    """The header of shard `number`; the stripe id itself is in the shard's key."""
    return msgspec.msgpack.encode(
        ShardHeader(
            format=SHARD_FORMAT,
            pool=pool,
            volume=volume,
            key_version=seal.key_version,
            geometry=seal.geometry,
            salt=seal.salt,
            length=seal.length,
            sector_size=seal.sector_size,
            number=number,
        )
    )


def decode_header(header: bytes) -> ShardHeader | None:
    """The header, or None if it is not one that this version understands."""
    try:
        decoded = _DECODER.decode(header)
    except msgspec.DecodeError:
        return None
    return decoded if decoded.format == SHARD_FORMAT else None


def header_fits(header: bytes, seal: StripeSeal, number: int) -> bool:
    """Whether a shard's header says that it is shard `number` of this very sealing."""
    known = decode_header(header)
    return known is not None and (
        known.salt,
        known.number,
        known.length,
        known.geometry,
        known.sector_size,
    ) == (seal.salt, number, seal.length, seal.geometry, seal.sector_size)

"""The opaque header that the stripe layer keeps beside each shard.

It says what the payload is, so that a disk on its own tells which stripes it holds pieces of, and
above all it carries the salt: a stripe sealed again after a crash has the same id but another
salt, and a shard of the earlier sealing must not be mixed with shards of the later one. A shard
whose header differs from what its stripe's seal calls for is treated as damaged.

It does not tell the lengths of a compressed stripe's frames: how well each 64 KiB of a file shrink
can be enough to recognise the file. Only the seal has them, which is itself sealed where it lies.

The header is not secret and not authenticated by itself. The shard store checks it against bit
rot; forging it gains nothing, since sectors open only under the key that the salt derives.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dwfs.types import Geometry, PoolId, StripeSeal, VolumeId

SHARD_FORMAT: Final = 1
SHARD_FORMAT_COMPRESSED: Final = 2  # has another length; who knows only 1 must not read it


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
    stored_length: int | None = None  # of a compressed stripe


# Made once, here: msgspec (0.22) builds what it needs of a type at the type's first use, and two
# threads that do so at the same time crash the process.
_DECODER: Final = msgspec.msgpack.Decoder(ShardHeader)


def encode_header(pool: PoolId, volume: VolumeId, seal: StripeSeal, number: int) -> bytes:
    """The header of shard `number`; the stripe id itself is in the shard's key."""
    compressed = seal.frames is not None
    fields = (
        SHARD_FORMAT_COMPRESSED if compressed else SHARD_FORMAT,
        pool,
        volume,
        seal.key_version,
        seal.geometry,
        seal.salt,
        seal.length,
        seal.sector_size,
        number,
    )
    return msgspec.msgpack.encode((*fields, seal.stored_length) if compressed else fields)


def decode_header(header: bytes) -> ShardHeader | None:
    """The header, or None if it is not one that this version understands."""
    try:
        decoded = _DECODER.decode(header)
    except msgspec.DecodeError:
        return None
    wanted = SHARD_FORMAT if decoded.stored_length is None else SHARD_FORMAT_COMPRESSED
    return decoded if decoded.format == wanted else None


def header_fits(header: bytes, seal: StripeSeal, number: int) -> bool:
    """Whether a shard's header says that it is shard `number` of this very sealing."""
    known = decode_header(header)
    return known is not None and (
        known.salt,
        known.number,
        known.length,
        known.geometry,
        known.sector_size,
        known.length if known.stored_length is None else known.stored_length,
    ) == (
        seal.salt,
        number,
        seal.length,
        seal.geometry,
        seal.sector_size,
        seal.stored_length,
    )

"""Bytes of a state snapshot: a header, sealed chunks of key/value pairs, a sealed footer.

Little endian. Every frame (chunk or footer) bears a BLAKE2b-256 digest, which finds rot without a
key and lets copies of one snapshot be merged frame by frame. The footer is sealed and holds the
hash of all digests before it, so one open of the footer authenticates the whole file and proves
that it was not cut. The additional data of each frame binds header and place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

import msgspec

from dwfs import limits
from dwfs.errors import FormatError
from dwfs.types import LogSequence, PoolId, VolumeId

FORMAT_VERSION: Final = 1
SNAPSHOT_DIRECTORY: Final = "snapshots"
CHUNK_SIZE: Final = limits.MIB  # plaintext bytes after which a chunk is sealed
SEALED_SIZE_MAX: Final = 16 * limits.MIB  # bounds what a damaged length can make us read
DIGEST_SIZE: Final = 32
KIND_CHUNK: Final = 1
KIND_FOOTER: Final = 2

_MAGIC: Final = b"dwfssnp\x1a"
# magic 8 | version 2 | zero 6 | pool 16 | volume 16 | snapshot id 16 | covered sequence 8
# | replay_from 8 | creation time, Unix ns 8; then digest 32.
_HEADER: Final = struct.Struct("<8sH6x16s16s16sQQQ")
HEADER_SIZE: Final = _HEADER.size + DIGEST_SIZE
# magic 4 | kind 2 | zero 2 | number of the frame 4 | sealed length 4; then digest 32, sealed bytes.
_FRAME: Final = struct.Struct("<4sH2xII")
_FRAME_MAGIC: Final = b"dwSF"
FRAME_HEADER_SIZE: Final = _FRAME.size + DIGEST_SIZE
# pairs 8 | chunks 4 | plaintext bytes 8 | hash of header digest and all chunk digests 32.
_FOOTER: Final = struct.Struct("<QIQ32s")
_PAIR: Final = struct.Struct("<HI")  # key length, value length; then key, value

assert CHUNK_SIZE * 4 <= SEALED_SIZE_MAX, "a chunk that its last value made larger still reads"


class SnapshotHeader(msgspec.Struct, frozen=True):
    """What a snapshot is of."""

    pool: PoolId
    volume: VolumeId
    sequence: LogSequence  # the last command it contains
    replay_from: LogSequence  # the first command whose log record is still needed beside it
    created_ns: int
    snapshot_id: bytes = bytes(16)  # 16 random bytes; copies of one writing share it


class Footer(msgspec.Struct, frozen=True):
    """What the whole file amounts to."""

    pairs: int
    chunks: int
    plaintext_bytes: int
    running: bytes


class FrameHeader(msgspec.Struct, frozen=True):
    """One frame's description."""

    kind: int
    number: int
    sealed_length: int
    digest: bytes


def file_name(sequence: int, volume: VolumeId) -> str:
    """The name of a snapshot file."""
    return f"{sequence:016x}-{volume.hex()[:16]}.snap"


def parse_file_name(name: str) -> tuple[int, str] | None:
    """(sequence, first 16 hex digits of the volume), or None for other files."""
    stem, dot, suffix = name.partition(".")
    sequence, dash, volume = stem.partition("-")
    if (dot, suffix, dash, len(sequence), len(volume)) != (".", "snap", "-", 16, 16):
        return None
    try:
        int(volume, 16)
        return int(sequence, 16), volume
    except ValueError:
        return None


def _digest(*parts: bytes) -> bytes:
    state = blake2b(digest_size=DIGEST_SIZE)
    for part in parts:
        state.update(part)
    return state.digest()


def encode_header(header: SnapshotHeader) -> tuple[bytes, bytes]:
    """(bytes, digest) of the header."""
    fixed = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        header.pool,
        header.volume,
        header.snapshot_id,
        header.sequence,
        header.replay_from,
        header.created_ns,
    )
    digest = _digest(fixed)
    return fixed + digest, digest


def decode_header(data: bytes) -> tuple[SnapshotHeader, bytes] | None:
    """(header, digest), or None if damaged. Raises FormatError for a newer format."""
    if len(data) < HEADER_SIZE or data[:8] != _MAGIC:
        return None
    _, version, pool, volume, identity, sequence, replay_from, created = _HEADER.unpack_from(data)
    digest = data[_HEADER.size : HEADER_SIZE]
    if _digest(data[: _HEADER.size]) != digest:
        return None
    if version != FORMAT_VERSION:
        raise FormatError(
            f"state snapshot format {version} is not known to this dwfs (it knows "
            f"{FORMAT_VERSION}); use the version that wrote the pool"
        )
    header = SnapshotHeader(
        PoolId(pool),
        VolumeId(volume),
        LogSequence(sequence),
        LogSequence(replay_from),
        created,
        identity,
    )
    return header, digest


def frame_aad(header_digest: bytes, kind: int, number: int) -> bytes:
    """What binds a frame to its snapshot and place."""
    return header_digest + _FRAME.pack(_FRAME_MAGIC, kind, number, 0)


def encode_frame(kind: int, number: int, sealed: bytes) -> tuple[bytes, bytes]:
    """(frame header, digest)."""
    fixed = _FRAME.pack(_FRAME_MAGIC, kind, number, len(sealed))
    digest = _digest(fixed, sealed)
    return fixed + digest, digest


def decode_frame(data: bytes) -> FrameHeader | None:
    """The frame header, unchecked but for magic and bounds."""
    if len(data) < FRAME_HEADER_SIZE or data[:4] != _FRAME_MAGIC:
        return None
    _, kind, number, length = _FRAME.unpack_from(data)
    if length > SEALED_SIZE_MAX:
        return None
    return FrameHeader(kind, number, length, data[_FRAME.size : FRAME_HEADER_SIZE])


def frame_is_whole(frame: FrameHeader, head: bytes, sealed: bytes) -> bool:
    """Whether header and sealed bytes bear their digest."""
    return (
        len(sealed) == frame.sealed_length and _digest(head[: _FRAME.size], sealed) == frame.digest
    )


def encode_footer(footer: Footer) -> bytes:
    """The footer's plaintext."""
    return _FOOTER.pack(footer.pairs, footer.chunks, footer.plaintext_bytes, footer.running)


def decode_footer(plaintext: bytes) -> Footer | None:
    """The footer, or None if it is not one."""
    if len(plaintext) != _FOOTER.size:
        return None
    return Footer(*_FOOTER.unpack(plaintext))


def pack_pair(key: bytes, value: bytes) -> bytes:
    """One pair in a chunk."""
    return b"".join((_PAIR.pack(len(key), len(value)), key, value))


def unpack_pairs(chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of an authenticated chunk."""
    offset = 0
    while offset < len(chunk):
        key_length, value_length = _PAIR.unpack_from(chunk, offset)
        offset += _PAIR.size
        middle = offset + key_length
        end = middle + value_length
        assert end <= len(chunk), "an authenticated chunk was packed by us"
        yield chunk[offset:middle], chunk[middle:end]
        offset = end

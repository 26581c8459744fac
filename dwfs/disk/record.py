"""The record: one shard as it lies in a segment, verifiable by itself.

A fixed header, the stripe layer's opaque header, the payload, back to back. The header names the
shard *and* the place it was written to (segment, offset, ordinal), so a record that a disk put in the
wrong place, or the remains of an older file in reused blocks, is never taken for valid. It has a
checksum of its own, so that the walk of a segment needs to read only headers.

A deleted record is one whose header has been overwritten by zeros: there is no flag that could be
half-changed. Layout: docs/formats.md, "Record".
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from dwfs.codec import CHECKSUM_SIZE, checksum
from dwfs.types import ShardKey, StripeId

MAGIC: Final = b"dwSr"
VERSION: Final = 1
# magic, version, shard number, opaque header length, payload length, ordinal, stripe, segment,
# offset, payload checksum
_FIXED: Final = struct.Struct("<4sBBHII16sQQ16s")
HEADER_SIZE: Final = _FIXED.size + CHECKSUM_SIZE
ALIGNMENT: Final = 8  # records start at multiples; see docs/formats.md for why not 4096

assert HEADER_SIZE == 80


class Location(msgspec.Struct, frozen=True, array_like=True):
    """Where a record lies, as the index keeps it."""

    segment: int
    offset: int  # of the record's first byte
    ordinal: int  # the record's number within its segment, from 0
    header_length: int  # opaque bytes
    payload_length: int

    @property
    def opaque_offset(self) -> int:
        """Where the stripe layer's header begins."""
        return self.offset + HEADER_SIZE

    @property
    def payload_offset(self) -> int:
        """Where the payload begins."""
        return self.offset + HEADER_SIZE + self.header_length

    @property
    def size(self) -> int:
        """Bytes of the whole record, without the padding behind it."""
        return HEADER_SIZE + self.header_length + self.payload_length

    @property
    def end(self) -> int:
        """First byte after the record."""
        return self.offset + self.size


class Record(msgspec.Struct, frozen=True, array_like=True):
    """A record's header, parsed and checked."""

    key: ShardKey
    location: Location
    payload_checksum: bytes


def align(position: int) -> int:
    """The next place at or after `position` where a record may start."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def pack_header(key: ShardKey, location: Location, opaque: bytes, payload: memoryview) -> bytes:
    """All that precedes the payload. Hashes the payload: for large ones call it in a worker."""
    fixed = _FIXED.pack(
        MAGIC,
        VERSION,
        key.number,
        len(opaque),
        payload.nbytes,
        location.ordinal,
        key.stripe,
        location.segment,
        location.offset,
        checksum(payload),
    )
    return fixed + checksum(fixed, opaque) + opaque


def parse_header(content: bytes | memoryview, segment: int, offset: int) -> Record | None:
    """The record whose header and opaque part `content` begins with, or None.

    None if it is no record, damaged, cut short, or was written for another place.
    """
    if len(content) < HEADER_SIZE:
        return None
    fields = _FIXED.unpack_from(content)
    magic, version, number, opaque_length, payload_length, ordinal, stripe, where, at, digest = (
        fields
    )
    if magic != MAGIC or version != VERSION or where != segment or at != offset:
        return None
    opaque_end = HEADER_SIZE + opaque_length
    if len(content) < opaque_end:
        return None
    stored = bytes(content[_FIXED.size : HEADER_SIZE])
    if stored != checksum(bytes(content[: _FIXED.size]), bytes(content[HEADER_SIZE:opaque_end])):
        return None
    return Record(
        key=ShardKey(StripeId(stripe), number),
        location=Location(segment, offset, ordinal, opaque_length, payload_length),
        payload_checksum=digest,
    )


def parse_anywhere(content: bytes | memoryview) -> Record | None:
    """As `parse_header`, whatever place the header names: for telling how a place is damaged."""
    if len(content) < HEADER_SIZE:
        return None
    fields = _FIXED.unpack_from(content)
    return parse_header(content, fields[7], fields[8])

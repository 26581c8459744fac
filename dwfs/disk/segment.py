"""The segment file: its prefix, its footer, and its name.

A segment is written front to back by one run of the store and never appended to by another: after a
restart the store begins a fresh one. When full it is closed by a footer, a table of its records, so
that a scan reads a few kilobytes instead of walking the file. Behind the table lies one *liveness byte*
for each record, outside the table's checksum, so that a delete changes one byte in place:

    0x00 live      0xD1 deleted      anything else: damaged; the record's own header decides

Two values at Hamming distance four or more make a flipped bit visible instead of believable.
Layout: docs/formats.md, "Segment file" and "Footer".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Final

import msgspec

from dwfs.codec import CHECKSUM_SIZE, checksum
from dwfs.disk.medium import Medium
from dwfs.disk.record import Location
from dwfs.types import DiskId, ShardKey, StripeId

DIRECTORY_NAME: Final = "segments"
SUFFIX: Final = ".seg"
PREFIX_SIZE: Final = 64
LIVE: Final = 0x00
DEAD: Final = 0xD1

# The shard that a blank line of a footer names: of a dead record, in a footer that was made again. Its
# offset is 0, where no record can lie.
BLANK_KEY: Final = ShardKey(StripeId(bytes(16)), 255)

_MAGIC: Final = b"dwfsseg\0"
_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<8sII16sQ8x")  # magic, version, flags (0), disk, segment number
_FOOTER_MAGIC: Final = b"dwSf"
_FOOTER_HEAD: Final = struct.Struct("<4sIQII")  # magic, version, segment, records, reserved (0)
_ENTRY: Final = struct.Struct("<16sBxHIQ")  # stripe, shard number, opaque, payload, offset
_TRAILER_MAGIC: Final = b"dwSt"
_TRAILER: Final = struct.Struct("<4sIQI4x")  # magic, version, footer offset, records
TRAILER_SIZE: Final = _TRAILER.size + CHECKSUM_SIZE

assert _PREFIX.size + CHECKSUM_SIZE == PREFIX_SIZE
assert bin(LIVE ^ DEAD).count("1") >= 4


class FooterEntry(msgspec.Struct, frozen=True, array_like=True):
    """One record in the table."""

    key: ShardKey
    location: Location


class Footer(msgspec.Struct, frozen=True):
    """A segment's table as read back."""

    offset: int  # where the footer begins: end of the records
    liveness_offset: int  # of the byte of record 0
    entries: tuple[FooterEntry, ...]  # in ordinal order
    liveness: bytes


def segment_path(directory: Path, number: int) -> Path:
    """The file of segment `number` of the disk in `directory`."""
    return directory / DIRECTORY_NAME / f"{number:010d}{SUFFIX}"


def segment_numbers(medium: Medium, directory: Path) -> list[int]:
    """Numbers of the segments that exist, ascending; blocking. Raises OSError."""
    numbers = []
    for name in medium.names(directory / DIRECTORY_NAME):
        stem, dot, rest = name.partition(SUFFIX)
        if dot and not rest and stem.isdigit():
            numbers.append(int(stem))
    return sorted(numbers)


def pack_prefix(disk: DiskId, number: int) -> bytes:
    """The first bytes of a segment file."""
    fields = _PREFIX.pack(_MAGIC, _VERSION, 0, disk, number)
    return fields + checksum(fields)


def prefix_matches(content: bytes, disk: DiskId, number: int) -> bool:
    """Whether a file that begins with `content` is that segment of that disk."""
    return content[:PREFIX_SIZE] == pack_prefix(disk, number)


def pack_footer(number: int, offset: int, entries: Sequence[FooterEntry], dead: Set[int]) -> bytes:
    """The footer for position `offset`.

    `entries[i]` has ordinal i. `dead` are the ordinals that are deleted or were never written.
    """
    count = len(entries)
    table = bytearray(_FOOTER_HEAD.pack(_FOOTER_MAGIC, _VERSION, number, count, 0))
    for ordinal, entry in enumerate(entries):
        place = entry.location
        assert place.ordinal == ordinal
        table += _ENTRY.pack(
            entry.key.stripe,
            entry.key.number,
            place.header_length,
            place.payload_length,
            place.offset,
        )
    table += checksum(table)
    liveness = bytes(DEAD if ordinal in dead else LIVE for ordinal in range(count))
    trailer = _TRAILER.pack(_TRAILER_MAGIC, _VERSION, offset, count)
    return bytes(table) + liveness + trailer + checksum(trailer)


def liveness_offset(offset: int, count: int) -> int:
    """Where the liveness bytes of a footer at `offset` with `count` records lie."""
    return offset + _FOOTER_HEAD.size + count * _ENTRY.size + CHECKSUM_SIZE


def record_count(offset: int, liveness: int) -> int | None:
    """How many records a footer at `offset` has whose liveness bytes lie at `liveness`."""
    table = liveness - offset - _FOOTER_HEAD.size - CHECKSUM_SIZE
    count, rest = divmod(table, _ENTRY.size)
    return count if count >= 0 and not rest else None


def read_footer(medium: Medium, handle: int, number: int) -> Footer | None:
    """The footer of an open segment file, or None if it has none that is whole; blocking."""
    size = medium.size(handle)
    trailer_offset = size - TRAILER_SIZE
    if trailer_offset < PREFIX_SIZE:
        return None
    trailer = medium.read(handle, trailer_offset, TRAILER_SIZE)
    if checksum(trailer[: _TRAILER.size]) != trailer[_TRAILER.size :]:
        return None
    magic, version, offset, count = _TRAILER.unpack_from(trailer)
    table_size = _FOOTER_HEAD.size + count * _ENTRY.size + CHECKSUM_SIZE
    if (
        magic != _TRAILER_MAGIC
        or version != _VERSION
        or offset + table_size + count != trailer_offset
    ):
        return None
    content = medium.read(handle, offset, table_size + count)
    table = content[: table_size - CHECKSUM_SIZE]
    if len(content) != table_size + count:
        return None
    if checksum(table) != content[table_size - CHECKSUM_SIZE : table_size]:
        return None
    head = _FOOTER_HEAD.unpack_from(table)
    if head != (_FOOTER_MAGIC, _VERSION, number, count, 0):
        return None
    entries = []
    for ordinal, fields in enumerate(_ENTRY.iter_unpack(table[_FOOTER_HEAD.size :])):
        stripe, shard, opaque, payload, at = fields
        key = ShardKey(StripeId(stripe), shard)
        entries.append(FooterEntry(key, Location(number, at, ordinal, opaque, payload)))
    return Footer(offset, liveness_offset(offset, count), tuple(entries), content[table_size:])

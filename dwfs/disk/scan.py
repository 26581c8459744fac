"""Reading a segment back: which live records does it hold?

A closed segment answers with its footer. An unclosed one (the store crashed, or the footer rotted) is
walked from record to record. The walk must not stop at the first thing that is no record: puts run
concurrently, so a record that was acknowledged can lie behind one that was torn, and deleted records
are zeros. So it looks on for the next header that is valid *for the place where it lies*, passing over
holes without reading them. A payload can't fake one: stripes are encrypted, and the header carries its
own offset and segment under a 128-bit checksum.

Payload checksums are verified in the walk (`verify`), because what follows the last sync of an unclosed
segment may be torn in any way; a footer is only written over data that reached the disk whole, and bit
rot behind it is the scrub's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from dwfs import limits
from dwfs.codec import checksum
from dwfs.disk.record import ALIGNMENT, HEADER_SIZE, MAGIC, Record, align, parse_header
from dwfs.disk.segment import (
    DEAD,
    LIVE,
    PREFIX_SIZE,
    Footer,
    FooterEntry,
    prefix_matches,
    read_footer,
)
from dwfs.types import DiskId

_CHUNK: Final = limits.MIB
_HEADER_MAX: Final = HEADER_SIZE + limits.SHARD_HEADER_SIZE_MAX


class SegmentScan(msgspec.Struct, frozen=True):
    """What a scan of one segment file found."""

    number: int
    valid: bool  # False: the prefix is damaged or of another disk; nothing was read
    live: tuple[FooterEntry, ...]
    scanned: int  # records before this position were considered
    liveness_offset: int  # 0: the segment has no footer
    torn: int  # records whose header is whole but whose payload is not
    allocated_bytes: int  # on the disk


def scan_segment(path: Path, disk: DiskId, number: int, start: int = 0) -> SegmentScan:
    """Scan from position `start` (0: all); blocking. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        allocated = status.st_blocks * 512
        if not prefix_matches(os.pread(descriptor, PREFIX_SIZE, 0), disk, number):
            return SegmentScan(number, False, (), 0, 0, 0, allocated)
        footer = read_footer(descriptor, number)
        if footer is not None:
            live = tuple(_live_entries(descriptor, footer))
            return SegmentScan(
                number, True, live, footer.offset, footer.liveness_offset, 0, allocated
            )
        live_records = []
        torn = 0
        end = max(start, PREFIX_SIZE)
        for record in walk_records(descriptor, number, end, status.st_size):
            end = record.location.end
            if _payload_is_whole(descriptor, record):
                live_records.append(FooterEntry(record.key, record.location))
            else:
                torn += 1
        return SegmentScan(number, True, tuple(live_records), align(end), 0, torn, allocated)
    finally:
        os.close(descriptor)


def walk_records(descriptor: int, number: int, start: int, size: int) -> Iterator[Record]:
    """Valid headers from `start` on, in order; those that promise more than the file holds are left out."""
    position: int | None = align(start)
    while position is not None and position + HEADER_SIZE <= size:
        record = parse_header(os.pread(descriptor, _HEADER_MAX, position), number, position)
        if record is not None and record.location.end <= size:
            yield record
            position = align(record.location.end)
        else:
            position = _next_candidate(descriptor, position + ALIGNMENT)


def _next_candidate(descriptor: int, position: int) -> int | None:
    """The next aligned position at or after `position` where the record magic lies."""
    while True:
        try:
            # Behind the last data of the file, ENXIO: nothing follows but a hole.
            position = max(position, os.lseek(descriptor, position, os.SEEK_DATA))
        except OSError:
            return None
        position = align(position)
        chunk = os.pread(descriptor, _CHUNK, position)
        found = chunk.find(MAGIC)
        while found >= 0:
            if found % ALIGNMENT == 0:
                return position + found
            found = chunk.find(MAGIC, found + 1)
        if len(chunk) < _CHUNK:
            return None
        position += _CHUNK  # aligned, and the magic is shorter than the alignment: none is missed


def _live_entries(descriptor: int, footer: Footer) -> Iterator[FooterEntry]:
    for entry, state in zip(footer.entries, footer.liveness, strict=True):
        if state == DEAD:
            continue
        if state != LIVE:
            place = entry.location
            content = os.pread(descriptor, _HEADER_MAX, place.offset)
            if parse_header(content, place.segment, place.offset) is None:
                continue
        yield entry


def _payload_is_whole(descriptor: int, record: Record) -> bool:
    place = record.location
    payload = os.pread(descriptor, place.payload_length, place.payload_offset)
    return len(payload) == place.payload_length and checksum(payload) == record.payload_checksum

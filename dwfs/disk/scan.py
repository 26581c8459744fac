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

A bad sector must not cost more than what lies in it: one in the footer means a walk, one in a payload
means that record. But a segment of which anything could not be read is never taken for an empty one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from dwfs import limits
from dwfs.codec import checksum
from dwfs.disk.medium import Medium
from dwfs.disk.record import ALIGNMENT, HEADER_SIZE, MAGIC, Record, align, parse_header
from dwfs.disk.segment import (
    BLANK_KEY,
    DEAD,
    LIVE,
    PREFIX_SIZE,
    Footer,
    FooterEntry,
    prefix_matches,
    read_footer,
)
from dwfs.types import DiskId

# Read in one call: a slow disk needs well under the deadline (DISK_DEADLINE_SECONDS) for it.
PIECE_BYTES: Final = 32 * limits.MIB
_CHUNK: Final = limits.MIB
_SECTOR: Final = 4096  # read at a time around a bad place
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
    finished: bool = True  # False: scan on from `scanned`
    unread: bool = False  # the disk failed to read some of it


def scan_segment(
    medium: Medium, path: Path, disk: DiskId, number: int, start: int = 0
) -> SegmentScan:
    """Scan from position `start` (0: from the beginning); blocking. Raises OSError.

    A segment without a footer is walked in pieces of about PIECE_BYTES.
    """
    handle = medium.open(path)
    try:
        allocated = medium.allocated_bytes(path)
        if not prefix_matches(medium.read(handle, 0, PREFIX_SIZE), disk, number):
            return SegmentScan(number, False, (), 0, 0, 0, allocated)
        unread = False

        def note_bad() -> None:
            nonlocal unread
            unread = True

        try:
            footer = read_footer(medium, handle, number)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            footer, unread = None, True
        if footer is not None:
            live = tuple(_live_entries(medium, handle, footer))
            return SegmentScan(
                number, True, live, footer.offset, footer.liveness_offset, 0, allocated
            )
        live_records = []
        torn = 0
        end = max(start, PREFIX_SIZE)
        stop = end + PIECE_BYTES
        finished = True
        for record in walk_records(medium, handle, number, end, medium.size(handle), note_bad):
            if record.location.offset >= stop:
                finished = False
                end = record.location.offset
                break
            end = record.location.end
            if _payload_is_whole(medium, handle, record, note_bad):
                live_records.append(FooterEntry(record.key, record.location))
            else:
                torn += 1
        return SegmentScan(
            number, True, tuple(live_records), align(end), 0, torn, allocated, finished, unread
        )
    finally:
        medium.close(handle)


def walk_records(
    medium: Medium,
    handle: int,
    number: int,
    start: int,
    size: int,
    on_bad: Callable[[], None] = lambda: None,
) -> Iterator[Record]:
    """Valid headers from `start` on, in order; those that promise more than the file holds are left out.

    Sectors that can't be read are passed over, and `on_bad` is called for each.
    """
    position: int | None = align(start)
    while position is not None and position + HEADER_SIZE <= size:
        content = _read(medium, handle, position, _HEADER_MAX, on_bad)
        record = None if content is None else parse_header(content, number, position)
        if record is not None and record.location.end <= size:
            yield record
            position = align(record.location.end)
        else:
            position = _next_candidate(medium, handle, position + ALIGNMENT, on_bad)


def _next_candidate(
    medium: Medium, handle: int, position: int, on_bad: Callable[[], None]
) -> int | None:
    """The next aligned position at or after `position` where the record magic lies."""
    size = _CHUNK
    while True:
        following = medium.next_data(handle, position)
        if following is None:
            return None
        position = align(max(position, following))
        chunk = _read(medium, handle, position, size, on_bad)
        if chunk is None:
            position += _SECTOR if size == _SECTOR else 0
            size = _SECTOR  # around the bad place, and then to the end: it happens seldom
            continue
        found = chunk.find(MAGIC)
        while found >= 0:
            if found % ALIGNMENT == 0:
                return position + found
            found = chunk.find(MAGIC, found + 1)
        if len(chunk) < size:
            return None
        position += size  # aligned, and the magic is shorter than the alignment: none is missed


def _read(
    medium: Medium, handle: int, position: int, length: int, on_bad: Callable[[], None]
) -> bytes | None:
    try:
        return medium.read(handle, position, length)
    except OSError as error:
        if error.errno != errno.EIO:  # that says more than that this place is bad
            raise
        on_bad()
        return None


def _live_entries(medium: Medium, handle: int, footer: Footer) -> Iterator[FooterEntry]:
    for entry, state in zip(footer.entries, footer.liveness, strict=True):
        # A blank line can only be live where a crash came between the table and the mark.
        if state == DEAD or entry.key == BLANK_KEY:
            continue
        if state != LIVE:
            place = entry.location
            content = medium.read(handle, place.offset, _HEADER_MAX)
            if parse_header(content, place.segment, place.offset) is None:
                continue
        yield entry


def _payload_is_whole(
    medium: Medium, handle: int, record: Record, on_bad: Callable[[], None]
) -> bool:
    place = record.location
    payload = _read(medium, handle, place.payload_offset, place.payload_length, on_bad)
    return (
        payload is not None
        and len(payload) == place.payload_length
        and checksum(payload) == record.payload_checksum
    )

"""What a scrub's workers do: look at places in one segment and say what is wrong with them.

A place that should hold a record is read whole. How it is wrong is told from what lies there, because
the causes differ and people act on them: zeros were never written or were lost whole, a payload that
ends in zeros was cut off by a crash, a good record for another place was misdirected by the disk, and
anything else has rotted. Payloads are ciphertext, so none of them ends in zeros by itself.

A place that should hold nothing is looked at, too: a whole record there takes room, and a rebuild of the
index would bring it back.

Nothing here touches the store's state or changes the disk.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from dwfs import limits
from dwfs.codec import checksum
from dwfs.disk.access import Fence
from dwfs.disk.medium import Medium
from dwfs.disk.record import HEADER_SIZE, Location, Record, parse_anywhere, parse_header
from dwfs.disk.scan import walk_records
from dwfs.disk.segment import PREFIX_SIZE, Footer, FooterEntry, prefix_matches, read_footer
from dwfs.ports import ShardFault
from dwfs.types import DiskId

_HEADER_MAX: Final = HEADER_SIZE + limits.SHARD_HEADER_SIZE_MAX
_ZERO_TAIL: Final = 64  # so many zeros at the end of ciphertext are no chance


class Verdict(msgspec.Struct, frozen=True):
    """One place that is not as it should be."""

    fault: ShardFault
    entry: FooterEntry
    detail: str


class Remains(msgspec.Struct, frozen=True):
    """A record where none should be."""

    entry: FooterEntry
    whole: bool


class Inspection(msgspec.Struct, frozen=True):
    """What one look at a segment found."""

    verdicts: tuple[Verdict, ...]
    remains: tuple[Remains, ...]
    size_bytes: int  # read


class SegmentOutline(msgspec.Struct, frozen=True):
    """What a segment says of itself."""

    exists: bool
    prefix: bool  # it is whole, and of this segment of this disk
    size_bytes: int
    footer: Footer | None


def outline(medium: Medium, path: Path, disk: DiskId, number: int) -> SegmentOutline:
    """Read a segment's prefix and footer from the disk; blocking. Raises OSError."""
    try:
        handle = medium.open(path)
    except FileNotFoundError:
        if medium.is_directory(path.parent):
            return SegmentOutline(exists=False, prefix=False, size_bytes=0, footer=None)
        raise
    try:
        size = medium.size(handle)
        medium.forget_cached(handle, 0, PREFIX_SIZE)
        prefix = prefix_matches(medium.read(handle, 0, PREFIX_SIZE), disk, number)
        footer = read_footer(medium, handle, number)
        return SegmentOutline(exists=True, prefix=prefix, size_bytes=size, footer=footer)
    finally:
        medium.close(handle)


def inspect(
    medium: Medium,
    fence: Fence,
    path: Path,
    live: Sequence[FooterEntry],
    dead: Sequence[Location],
    walk: tuple[int, int] | None,
) -> Inspection:
    """Look at places in one segment; blocking. Raises OSError if the file can't be opened.

    `live` must hold their records. `dead` must hold none; nor must anything else in the range `walk`,
    which is searched for them.
    """
    handle = medium.open(path)
    try:
        verdicts: list[Verdict] = []
        read_bytes = 0
        for entry in live:
            if fence.down:
                break
            verdict = _look(medium, handle, entry)
            read_bytes += entry.location.size
            if verdict is not None:
                verdicts.append(verdict)
        remains = [
            Remains(FooterEntry(record.key, record.location), _is_whole(medium, handle, record))
            for record in _records_among_the_dead(medium, handle, path, live, dead, walk)
        ]
        return Inspection(tuple(verdicts), tuple(remains), read_bytes)
    finally:
        medium.close(handle)


def read_entry(medium: Medium, path: Path, number: int, offset: int) -> Remains | None:
    """The record at a place, if there is one; blocking. Raises OSError."""
    try:
        handle = medium.open(path)
    except FileNotFoundError:
        return None
    try:
        record = parse_header(medium.read(handle, offset, _HEADER_MAX), number, offset)
        if record is None:
            return None
        whole = _is_whole(medium, handle, record)
        return Remains(FooterEntry(record.key, record.location), whole)
    finally:
        medium.close(handle)


def _look(medium: Medium, handle: int, entry: FooterEntry) -> Verdict | None:
    place = entry.location
    try:
        medium.forget_cached(handle, place.offset, place.size)
        content = medium.read(handle, place.offset, place.size)
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:  # not this place is bad, but the disk is
            raise
        return Verdict(ShardFault.UNREADABLE, entry, error.strerror or str(error))
    found = judge(content, entry)
    return None if found is None else Verdict(found[0], entry, found[1])


def judge(content: bytes, entry: FooterEntry) -> tuple[ShardFault, str] | None:
    """What is wrong with the bytes at a live record's place, or None."""
    place = entry.location
    if content.count(0) == len(content):
        return (
            ShardFault.MISSING,
            "its place holds zeros" if content else "the segment ends before it",
        )
    record = parse_header(content, place.segment, place.offset)
    if record is None:
        other = parse_anywhere(content)
        if other is not None:
            at = other.location
            return (
                ShardFault.MISDIRECTED,
                f"a record for segment {at.segment}, offset {at.offset} lies in its place",
            )
        return ShardFault.ROTTEN, "the record's header is damaged"
    if record.key != entry.key or record.location != place:
        return ShardFault.MISDIRECTED, "the record of another shard lies in its place"
    payload = memoryview(content)[place.payload_offset - place.offset :]
    if len(payload) == place.payload_length and checksum(payload) == record.payload_checksum:
        return None
    if len(payload) < place.payload_length:
        return ShardFault.TORN, f"the payload ends after {len(payload)} bytes"
    tail = bytes(payload[-_ZERO_TAIL:])
    if len(payload) >= _ZERO_TAIL and tail.count(0) == len(tail):
        kept = len(bytes(payload).rstrip(b"\0"))
        return ShardFault.TORN, f"the payload is zeros from byte {kept} on"
    return ShardFault.ROTTEN, "the payload's checksum is wrong"


def _records_among_the_dead(
    medium: Medium,
    handle: int,
    path: Path,
    live: Sequence[FooterEntry],
    dead: Sequence[Location],
    walk: tuple[int, int] | None,
) -> Iterator[Record]:
    number = int(path.stem)
    for place in dead:
        try:
            record = parse_header(
                medium.read(handle, place.offset, _HEADER_MAX), number, place.offset
            )
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                raise
            continue  # nothing is lost that anybody wants
        if record is not None:
            yield record
    if walk is None:
        return
    start, end = walk
    known = {entry.location.offset for entry in live}
    for record in walk_records(medium, handle, number, start, medium.size(handle)):
        if record.location.offset >= end:
            return
        if record.location.offset not in known:
            yield record


def _is_whole(medium: Medium, handle: int, record: Record) -> bool:
    place = record.location
    try:
        payload = medium.read(handle, place.payload_offset, place.payload_length)
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            raise
        return False
    return len(payload) == place.payload_length and checksum(payload) == record.payload_checksum

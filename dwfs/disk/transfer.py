"""What workers do with segment files: write a record, read one, sync. All blocking.

Nothing here touches the store's state; arguments and results are all that passes between the threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dwfs import limits
from dwfs.codec import checksum
from dwfs.disk.access import Fence
from dwfs.disk.medium import Medium
from dwfs.disk.reclaim import erase
from dwfs.disk.record import HEADER_SIZE, Location, pack_header, parse_header
from dwfs.disk.segment import (
    BLANK_KEY,
    LIVE,
    FooterEntry,
    pack_footer,
    pack_prefix,
    read_footer,
)
from dwfs.types import DiskId, ShardKey


class SyncWork(msgspec.Struct, frozen=True):
    """One segment to be made durable, and closed first if it has a footer to write."""

    number: int
    path: Path
    handle: int | None  # None: not held open; only deletes touched it
    footer: bytes
    footer_offset: int


class SyncOutcome(msgspec.Struct, frozen=True):
    """What went wrong, if anything."""

    failed: dict[int, OSError]  # by segment
    directory: OSError | None


def open_segment(medium: Medium, path: Path) -> int:
    """A handle for reading. Raises OSError.

    The kernel's own read-ahead would fetch the parity shards that lie between those of a
    sequential reader, so it is told to read what is asked for.
    """
    handle = medium.open(path)
    medium.expect_random_reads(handle)
    return handle


def create_segment(medium: Medium, path: Path, disk: DiskId, number: int) -> int:
    """A new segment file's handle, open for reading and writing. Raises OSError."""
    handle = medium.create(path)
    try:
        medium.write(handle, 0, [pack_prefix(disk, number)])
        medium.expect_random_reads(handle)
    except BaseException:  # whatever it was, nobody else closes and removes the file
        medium.close(handle)
        with contextlib.suppress(OSError):
            medium.remove(path)
        raise
    return handle


def write_record(
    medium: Medium,
    handle: int,
    key: ShardKey,
    location: Location,
    opaque: bytes,
    payload: memoryview,
) -> None:
    """Write a record to its place. Raises OSError, with nothing valid left there if possible."""
    header = pack_header(key, location, opaque, payload)
    try:
        medium.write(handle, location.offset, [header, payload])
    except OSError:
        # A part may have been written. A scan would find it torn anyway; erasing returns its space.
        with contextlib.suppress(OSError):
            erase(medium, handle, location.offset, location.end)
        raise


def read_record(
    medium: Medium, handle: int, key: ShardKey, location: Location
) -> tuple[bytes, bytes] | str:
    """(opaque header, payload), fully checked, or what is wrong with them. Raises OSError."""
    header_size = HEADER_SIZE + location.header_length
    header = medium.read(handle, location.offset, header_size)
    record = parse_header(header, location.segment, location.offset)
    if record is None:
        return "the record's header is damaged"
    if record.key != key or record.location != location:
        return "another record lies in its place"
    payload = medium.read(handle, location.payload_offset, location.payload_length)
    if len(payload) != location.payload_length or checksum(payload) != record.payload_checksum:
        return "the payload's checksum is wrong"
    return header[HEADER_SIZE:], payload


def read_record_back(
    medium: Medium, handle: int, key: ShardKey, location: Location
) -> tuple[bytes, bytes] | str:
    """As `read_record`, from the disk and not from memory: for a check of what was written."""
    medium.forget_cached(handle, location.offset, location.size)
    return read_record(medium, handle, key, location)


def overwrite(medium: Medium, path: Path, pieces: Sequence[tuple[int, bytes]]) -> None:
    """Write into a segment that is closed, and sync it. Raises OSError."""
    handle = medium.open(path, write=True)
    try:
        for offset, content in pieces:
            medium.write(handle, offset, [content])
        medium.sync(handle)
    finally:
        medium.close(handle)


def enter_in_footer(medium: Medium, path: Path, entry: FooterEntry) -> bool:
    """Have a closed segment's footer call the record live, and sync it. Raises OSError.

    A line that was left blank is filled in. False if there is no line for the record. Without a whole
    footer nothing is to be done: a rebuild of the index then walks the segment, and meets it.
    """
    number, ordinal = entry.location.segment, entry.location.ordinal
    handle = medium.open(path, write=True)
    try:
        footer = read_footer(medium, handle, number)
        if footer is None:
            return True
        if ordinal >= len(footer.entries):
            return False
        line = footer.entries[ordinal]
        if line.key == BLANK_KEY:
            entries = list(footer.entries)
            entries[ordinal] = entry
            # Without the liveness bytes: a delete may be marking another one just now.
            table_size = footer.liveness_offset - footer.offset
            table = pack_footer(number, footer.offset, entries, set())[:table_size]
            medium.write(handle, footer.offset, [table])
        elif line != entry:
            return False
        medium.write(handle, footer.liveness_offset + ordinal, [bytes([LIVE])])
        medium.sync(handle)
        return True
    finally:
        medium.close(handle)


def sync_segments(
    medium: Medium,
    fence: Fence,
    work: Sequence[SyncWork],
    unlink: Sequence[Path],
    directory: Path | None,
) -> SyncOutcome:
    """Write footers, fdatasync every segment, unlink, then sync the directory if given.

    Raises nothing: the outcome tells, unless the store was retired and nobody hears it. An unlink
    that fails leaves an empty segment behind, which the next recovery finds and unlinks.
    """
    failed: dict[int, OSError] = {}
    for item in work:
        if fence.down:
            return SyncOutcome(failed, None)
        try:
            _sync_segment(medium, item)
        except OSError as error:
            failed[item.number] = error
    for path in unlink if not fence.down else ():
        with contextlib.suppress(OSError):
            medium.remove(path)
    try:
        if directory is not None:
            medium.sync_directory(directory)
    except OSError as error:
        return SyncOutcome(failed, error)
    return SyncOutcome(failed, None)


def _sync_segment(medium: Medium, item: SyncWork) -> None:
    if item.handle is not None:
        if item.footer:
            medium.write(item.handle, item.footer_offset, [item.footer])
        medium.sync(item.handle)
        return
    try:
        handle = medium.open(item.path)
    except FileNotFoundError:
        if medium.is_directory(item.path.parent):
            return  # unlinked since: nothing is left to be made durable
        raise
    try:
        medium.sync(handle)
    finally:
        medium.close(handle)


assert limits.SHARD_HEADER_SIZE_MAX < 2**16, "the record keeps the opaque length in 16 bits"

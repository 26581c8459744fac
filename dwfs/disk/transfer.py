"""What workers do with segment files: write a record, read one, sync. All blocking.

Nothing here touches the store's state; arguments and results are all that passes between the threads.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from dwfs import limits
from dwfs.codec import checksum
from dwfs.disk.header import sync_directory
from dwfs.disk.reclaim import erase
from dwfs.disk.record import HEADER_SIZE, Location, pack_header, parse_header
from dwfs.disk.segment import pack_prefix
from dwfs.types import DiskId, ShardKey

LATE_FORGIVEN: Final = 3
LATE_MAX: Final = 8  # 256 reads of a slow disk between two trials: a fraction of a ms in seconds


class SyncWork(msgspec.Struct, frozen=True):
    """One segment to be made durable, and closed first if it has a footer to write."""

    number: int
    path: Path
    descriptor: int | None  # None: not held open; only deletes touched it
    footer: bytes
    footer_offset: int


class SyncOutcome(msgspec.Struct, frozen=True):
    """What went wrong, if anything."""

    failed: dict[int, OSError]  # by segment
    directory: OSError | None


def open_segment(path: Path) -> int:
    """A descriptor for reading. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    read_as_asked(descriptor)
    return descriptor


def read_as_asked(descriptor: int) -> None:
    """Have the kernel read what it is asked for, and no more, from the segment.

    Its own read-ahead would fetch the parity shards that lie between those of a sequential reader.
    """
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def create_segment(path: Path, disk: DiskId, number: int) -> int:
    """A new segment file's descriptor, open for reading and writing. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        _write_all(descriptor, [memoryview(pack_prefix(disk, number))], 0)
    except BaseException:  # whatever it was, nobody else closes and removes the file
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    read_as_asked(descriptor)
    return descriptor


def write_record(
    descriptor: int, key: ShardKey, location: Location, opaque: bytes, payload: memoryview
) -> None:
    """Write a record to its place. Raises OSError, with nothing valid left there if possible."""
    header = pack_header(key, location, opaque, payload)
    try:
        _write_all(descriptor, [memoryview(header), payload], location.offset)
    except OSError:
        # A part may have been written. A scan would find it torn anyway; erasing returns its space.
        with contextlib.suppress(OSError):
            erase(descriptor, location.offset, location.end)
        raise


def read_range(descriptor: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes; shorter only at the end of the file. Raises OSError."""
    content = os.pread(descriptor, length, offset)
    if len(content) == length or not content:
        return content
    pieces = [content]
    missing = length - len(content)
    while missing and (piece := os.pread(descriptor, missing, offset + length - missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def read_range_cached(descriptor: int, offset: int, length: int) -> bytes | None:
    """`length` bytes if the page cache has all of them, else None; never blocks."""
    buffer = bytearray(length)
    try:
        count = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        return None  # EAGAIN: not cached. Others show again in the read that follows.
    return bytes(buffer) if count == length else None


def read_range_arriving(
    descriptor: int, offset: int, length: int, patience_seconds: float
) -> bytes | None:
    """As `read_range_cached`, which has just failed; looks again and again for so long.

    A read that may not wait has the kernel begin to fetch what it misses (since Linux 5.10), and a
    flash disk delivers that sooner than a thread can be woken and answer.
    """
    buffer = bytearray(length)
    buffers = [buffer]
    give_up = time.perf_counter() + patience_seconds
    while time.perf_counter() < give_up:
        try:
            if os.preadv(descriptor, buffers, offset, os.RWF_NOWAIT) == length:
                return bytes(buffer)
        except BlockingIOError:
            continue
        except OSError:
            return None
    return None


class Patience:
    """Whether `read_range_arriving` pays on this disk: it does on flash, not if a head moves.

    A read that came too late now and then is forgiven. After several in a row ever more reads are
    not given the chance, until the trials cost nothing; one success ends that.
    """

    __slots__ = ("_late", "_skipped")

    def __init__(self) -> None:
        self._late = 0  # reads in a row that did not arrive
        self._skipped = 0

    def worthwhile(self) -> bool:
        """Whether to be patient with the next read."""
        if self._late >= LATE_FORGIVEN and self._skipped < 1 << self._late:
            self._skipped += 1
            return False
        return True

    def learn(self, *, arrived: bool) -> None:
        """What came of being patient."""
        self._skipped = 0
        self._late = 0 if arrived else min(self._late + 1, LATE_MAX)


def read_record(descriptor: int, key: ShardKey, location: Location) -> tuple[bytes, bytes] | str:
    """(opaque header, payload), fully checked, or what is wrong with them. Raises OSError."""
    header_size = HEADER_SIZE + location.header_length
    header = read_range(descriptor, location.offset, header_size)
    record = parse_header(header, location.segment, location.offset)
    if record is None:
        return "the record's header is damaged"
    if record.key != key or record.location != location:
        return "another record lies in its place"
    payload = read_range(descriptor, location.payload_offset, location.payload_length)
    if len(payload) != location.payload_length or checksum(payload) != record.payload_checksum:
        return "the payload's checksum is wrong"
    return header[HEADER_SIZE:], payload


def sync_segments(
    work: Sequence[SyncWork], unlink: Sequence[Path], directory: Path | None
) -> SyncOutcome:
    """Write footers, fdatasync every segment, unlink, then sync the directory if given.

    Raises nothing: the outcome tells. An unlink that fails leaves an empty segment behind, which the
    next recovery finds and unlinks.
    """
    failed: dict[int, OSError] = {}
    for item in work:
        try:
            _sync_segment(item)
        except OSError as error:
            failed[item.number] = error
    for path in unlink:
        with contextlib.suppress(OSError):
            path.unlink()
    try:
        if directory is not None:
            sync_directory(directory)
    except OSError as error:
        return SyncOutcome(failed, error)
    return SyncOutcome(failed, None)


def _sync_segment(item: SyncWork) -> None:
    if item.descriptor is not None:
        if item.footer:
            _write_all(item.descriptor, [memoryview(item.footer)], item.footer_offset)
        os.fdatasync(item.descriptor)
        return
    try:
        descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if item.path.parent.is_dir():
            return  # unlinked since: nothing is left to be made durable
        raise
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, parts: list[memoryview], offset: int) -> None:
    while parts:
        written = os.pwritev(descriptor, parts, offset)
        offset += written
        while parts and written >= parts[0].nbytes:
            written -= parts.pop(0).nbytes
        if parts:
            parts[0] = parts[0][written:]


assert limits.SHARD_HEADER_SIZE_MAX < 2**16, "the record keeps the opaque length in 16 bits"

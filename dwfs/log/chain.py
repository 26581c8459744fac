"""Merging the copies of one log file: the longest chain that any of them, together, still hold.

Copies are byte-identical as far as they go, because one process wrote the same buffers at the same
offsets to each, and never writes to a file again after a restart. So the merge walks by offset: at
each, the first copy whose bytes are a whole record with the right number and chain is taken, and
the others are compared with it. Where a copy differs, the range is noted and can be mended.

Only the last record that was begun in a file can be unacknowledged: a record is begun after the
one before it was durable. Hence, when the chain ends but a whole record of this file with a higher
number is found behind the break, acknowledged records were lost; `beyond` tells which streams
that is known of.

No I/O here: copies are `ByteSource`s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from dwfs import limits
from dwfs.log import format as fmt
from dwfs.types import DiskId, VolumeId

_SCAN_BLOCK = limits.MIB


class ByteSource(Protocol):
    """One copy's bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer at the end or where the disk can't read. Never raises."""


class Piece(msgspec.Struct, frozen=True):
    """A run of the merged file: its header (`record` is None) or one record."""

    offset: int
    raw: bytes
    record: fmt.RecordHeader | None
    lacking: tuple[DiskId, ...]  # copies whose bytes here are missing or wrong

    @property
    def sealed(self) -> bytes:
        """The record's sealed payload."""
        return self.raw[fmt.RECORD_HEADER_SIZE :]


class ChainWalk:
    """One walk over the copies of a file. Iterate `pieces()` to its end before reading `end`."""

    def __init__(self, sources: Mapping[DiskId, ByteSource]) -> None:
        self._sources = dict(sources)
        self.header: fmt.FileHeader | None = None
        self.header_aad = b""
        self.header_tag = b""
        self.end = 0  # bytes of the merged chain
        self.next_number = 0

    def pieces(self, upto: int | None = None) -> Iterator[Piece]:
        """The header and all records of the chain, in order; not beyond offset `upto`."""
        opening = self._open()
        if opening is None:
            return
        piece, chain = opening
        self.end = len(piece.raw)
        yield piece
        while (upto is None or self.end < upto) and (following := self._next(chain)) is not None:
            assert following.record is not None
            chain = following.record.digest
            self.end += len(following.raw)
            self.next_number += 1
            yield following

    def beyond(self) -> dict[VolumeId, int] | None:
        """Streams → highest command sequence of whole records behind the break; None if none."""
        found: dict[VolumeId, int] | None = None
        tag = self.header.tag if self.header is not None else None
        for source in self._sources.values():
            for record in _scan(source, self.end):
                if (tag is None or record.file_tag == tag) and record.number > self.next_number:
                    found = found if found is not None else {}
                    if record.kind == fmt.KIND_BATCH:
                        found[record.stream] = max(found.get(record.stream, 0), record.reach)
        return found

    def _open(self) -> tuple[Piece, bytes] | None:
        for source in self._sources.values():
            length = fmt.file_header_length(source.read(0, fmt.FILE_PREFIX_SIZE))
            if length is None:
                continue
            raw = source.read(0, length)
            decoded = fmt.decode_file_header(raw)
            if decoded is not None:
                self.header, self.header_aad, self.header_tag, digest = decoded
                return Piece(0, raw, None, self._lacking(0, raw, source)), digest
        return None

    def _next(self, chain: bytes) -> Piece | None:
        assert self.header is not None
        for source in self._sources.values():
            head = source.read(self.end, fmt.RECORD_HEADER_SIZE)
            record = fmt.decode_record_header(head)
            if (
                record is None
                or record.number != self.next_number
                or record.chain != chain
                or record.file_tag != self.header.tag
            ):
                continue
            sealed = source.read(self.end + fmt.RECORD_HEADER_SIZE, record.sealed_length)
            raw = head + sealed
            if fmt.record_is_whole(record, raw):
                return Piece(self.end, raw, record, self._lacking(self.end, raw, source))
        return None

    def _lacking(self, offset: int, raw: bytes, holder: ByteSource) -> tuple[DiskId, ...]:
        return tuple(
            disk
            for disk, source in self._sources.items()
            if source is not holder and source.read(offset, len(raw)) != raw
        )


def _scan(source: ByteSource, start: int) -> Iterator[fmt.RecordHeader]:
    """Whole records anywhere behind `start`, found by their magic and digest."""
    offset = start
    while len(block := source.read(offset, _SCAN_BLOCK)) >= fmt.RECORD_HEADER_SIZE:
        at = block.find(fmt.RECORD_MAGIC)
        while at >= 0:
            record = fmt.decode_record_header(source.read(offset + at, fmt.RECORD_HEADER_SIZE))
            if record is not None:
                raw = source.read(offset + at, record.total_length)
                if fmt.record_is_whole(record, raw):
                    yield record
            at = block.find(fmt.RECORD_MAGIC, at + 1)
        # Overlap, so that a magic across the border is seen.
        offset += len(block) - (len(fmt.RECORD_MAGIC) - 1)
        if len(block) < _SCAN_BLOCK:
            return

"""`Sender`: says what changed between two snapshots, as a stream.

First all inodes, each with its attributes, holes and data, then all names: in this order a receiver
needs to remember nothing. What is said, and how it is cut into frames, depends on the two snapshots
alone, not on where the cleaner has put the bytes meanwhile nor on when it is said: so a stream that is made
again has the same frames, and an interrupted receive can go on with it.

Data is read in the order of files. While one piece is on its way to whoever takes the stream, the
stripes of the next ones are being read.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, NamedTuple

import trio

from dwfs.errors import PosixError
from dwfs.limits import MIB, SEND_DATA_SIZE, SEND_FRAME_FILL
from dwfs.ports import DataStore
from dwfs.send.format import (
    FrameSealer,
    encode_record,
    encode_records,
    encode_totals,
)
from dwfs.types import Extent, InodeNumber, StripeId
from dwfs.volume import Volume
from dwfs.volume.changes import Changes, InodeChange
from dwfs.volume.records import Inode, Snapshot
from dwfs.volume.transfer import (
    DataRecord,
    GoneRecord,
    HoleRecord,
    InodeRecord,
    StateRecord,
    Totals,
    XattrRecord,
)

_PAGE: Final = 256  # keys looked at in one go: some milliseconds at most
_NODES_PAGE: Final = 16  # extent nodes in one go; each may have a thousand extents
_READ_ATTEMPTS: Final = 3  # the cleaner does not move the same bytes more often within one read
_AHEAD: Final = 8 * MIB  # of a file, asked for before it is needed
_AHEAD_STRIPES_MAX: Final = 8

Sink = Callable[[bytes], Awaitable[None]]


class DataRange(NamedTuple):
    """File bytes that are to be sent."""

    number: InodeNumber
    offset: int
    length: int


class Measure(NamedTuple):
    """How large a stream is, or would be."""

    records: int
    data_bytes: int
    stream_bytes: int  # nearly, where it was only measured


class Sender:
    """One stream from `base` (None: from nothing) to `target`."""

    def __init__(
        self, volume: Volume, data: DataStore, base: Snapshot | None, target: Snapshot
    ) -> None:
        self._changes: Changes = volume.changes(base, target)
        self._data = data
        self._ahead: dict[StripeId, None] = {}  # asked for lately
        self._inodes = 0
        self._allocated = 0
        self._records = 0
        self._data_bytes = 0
        self._stream_bytes = 0

    @property
    def measure(self) -> Measure:
        """How far it is."""
        return Measure(self._records, self._data_bytes, self._stream_bytes)

    async def run(self, sealer: FrameSealer, sink: Sink) -> Totals:
        """Make all frames. Raises PosixError EIO for lost data, and what `sink` raises."""
        pending: list[bytes] = []
        filled = 0
        for item in self._walk():
            if item is None:
                await trio.lowlevel.checkpoint()
                continue
            if isinstance(item, DataRange):
                encoded = encode_record(
                    DataRecord(item.number, item.offset, await self._read(item))
                )
                self._data_bytes += item.length
            else:
                encoded = encode_record(item)
                self._records += 1
            pending.append(encoded)
            filled += len(encoded)
            if filled >= SEND_FRAME_FILL:
                await self._emit(sealer.seal(encode_records(pending)), sink)
                pending, filled = [], 0
        if pending:
            await self._emit(sealer.seal(encode_records(pending)), sink)
        totals = Totals(self._inodes, self._allocated, self._records, self._data_bytes)
        await self._emit(sealer.seal(encode_totals(totals), last=True), sink)
        return totals

    async def estimate(self) -> Measure:
        """How large the stream would be; reads no data."""
        for item in self._walk():
            if item is None:
                await trio.lowlevel.checkpoint()
            elif isinstance(item, DataRange):
                self._data_bytes += item.length
                self._stream_bytes += item.length
            else:
                self._records += 1
                self._stream_bytes += len(encode_record(item))
        return self.measure

    async def _emit(self, frame: bytes, sink: Sink) -> None:
        self._stream_bytes += len(frame)
        await sink(frame)

    # --- what there is to say ------------------------------------------------------------------

    def _walk(self) -> Iterator[StateRecord | DataRange | None]:
        """Records and data in the order of the stream; None where others may have a turn."""
        start = b""
        while True:
            page, start = self._changes.inodes(start, _PAGE)
            for change in page:
                yield from self._inode(change)
            yield None
            if not start:
                break
        while True:
            names, start = self._changes.names(start, _PAGE)
            yield from names
            yield None
            if not start:
                return

    def _inode(self, change: InodeChange) -> Iterator[StateRecord | DataRange | None]:
        before, after = change.before, change.after
        self._inodes += (after is not None) - (before is not None)
        self._allocated += (0 if after is None else after.allocated_bytes) - (
            0 if before is None else before.allocated_bytes
        )
        if after is not None:
            yield _describe(after)
            for name, value in self._changes.xattrs(change):
                yield XattrRecord(change.number, name, value)
        yield from self._content(change)
        if after is None:
            yield GoneRecord(change.number)

    def _content(self, change: InodeChange) -> Iterator[StateRecord | DataRange | None]:
        first = 0
        while first >= 0:
            found, first = self._changes.map(change, first, _NODES_PAGE)
            for start, end in found.unmapped:
                yield HoleRecord(change.number, start, end - start)
            for start, end in found.written:
                for offset in range(start, end, SEND_DATA_SIZE):
                    yield DataRange(change.number, offset, min(SEND_DATA_SIZE, end - offset))
            if first >= 0:
                yield None

    # --- reading -------------------------------------------------------------------------------

    async def _read(self, wanted: DataRange) -> bytes:
        """Exactly these bytes, all of which are mapped. Raises PosixError EIO if one is lost."""
        number, offset, length = wanted
        self._read_ahead(number, offset + length)
        for attempt in range(1, _READ_ATTEMPTS + 1):
            extents = self._changes.extents(number, offset, length)
            try:
                return await self._assemble(extents, length)
            except PosixError as error:
                # The cleaner may have moved it meanwhile, and dropped where it was.
                if error.errno != errno.EIO or attempt == _READ_ATTEMPTS:
                    raise
                if self._changes.extents(number, offset, length) == extents:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _assemble(self, extents: list[Extent], length: int) -> bytes:
        parts = []
        for extent in extents:
            part = self._data.read_now(extent.stripe, extent.stripe_offset, extent.length)
            if part is None:
                part = await self._data.read(extent.stripe, extent.stripe_offset, extent.length)
            parts.append(part)
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        assert len(content) == length, "what was written is mapped at the snapshot"
        return content

    def _read_ahead(self, number: InodeNumber, offset: int) -> None:
        for extent in self._changes.extents(number, offset, _AHEAD)[:_AHEAD_STRIPES_MAX]:
            if extent.epoch > self._changes.since and extent.stripe not in self._ahead:
                if len(self._ahead) >= _AHEAD_STRIPES_MAX:
                    del self._ahead[next(iter(self._ahead))]
                self._ahead[extent.stripe] = None
                self._data.prefetch(extent.stripe)


def _describe(inode: Inode) -> InodeRecord:
    return InodeRecord(*(getattr(inode, field) for field in InodeRecord.__struct_fields__))

"""The segment that is being written: who writes where, and what is not yet durable.

Pure bookkeeping on the loop thread; the I/O is the store's. A place is *reserved* at once, in order,
so that many puts can write to different places of one file at the same time; the place of a put that
fails stays behind as a dead ordinal.

States: open → full (no more reservations) → closing (footer on its way) → gone from the store's table;
or → failed, after an fdatasync that failed. A failed segment takes no more records and is never closed:
the kernel reports a lost write once and then calls the pages clean, so no later fdatasync proves
anything about it.
"""

from __future__ import annotations

import trio

from dwfs import limits
from dwfs.disk.files import SegmentFile
from dwfs.disk.record import HEADER_SIZE, Location, align
from dwfs.disk.segment import PREFIX_SIZE, FooterEntry, liveness_offset
from dwfs.types import ShardKey


class ActiveSegment:
    """A segment that this run of the store created and has not closed yet."""

    def __init__(self, number: int, file: SegmentFile) -> None:
        self.number = number
        self.file = file  # held by this object until the segment is retired
        self.position = PREFIX_SIZE
        self.entries: list[FooterEntry] = []
        self.dead: set[int] = set()  # ordinals deleted, or never written
        self.full = False
        self.failed = False
        self.named = False  # the directory entry is durable
        self.changed = True  # since the last fdatasync began
        self.closed: trio.Event | None = None  # set while closing; fires when that has ended
        self._in_flight: dict[int, int] = {}  # ordinal → offset; ascending, as reserved
        self._unsynced: set[ShardKey] = set()

    def accepts(self, size: int) -> bool:
        """Whether a record of `size` bytes goes here. A record always fits an empty segment."""
        if self.full or self.failed:
            return False
        return self.position + size <= limits.SEGMENT_SIZE or not self.entries

    def reserve(self, key: ShardKey, header_length: int, payload_length: int) -> Location:
        """Take the next place. Exactly one `finish` must follow."""
        assert not self.full
        assert not self.failed
        ordinal = len(self.entries)
        location = Location(self.number, self.position, ordinal, header_length, payload_length)
        assert location.size == HEADER_SIZE + header_length + payload_length
        self.entries.append(FooterEntry(key, location))
        self._in_flight[ordinal] = location.offset
        self.position = align(location.end)
        return location

    def finish(self, key: ShardKey, location: Location, *, written: bool) -> None:
        """The put of that place has ended."""
        del self._in_flight[location.ordinal]
        if written:
            self.changed = True
            self._unsynced.add(key)
        else:
            self.dead.add(location.ordinal)

    def liveness_offset(self) -> int:
        """Where the footer, once written, keeps the liveness bytes."""
        return liveness_offset(self.position, len(self.entries))

    def scanned(self) -> int:
        """All records before this position are finished: what a crash need not scan again."""
        return next(iter(self._in_flight.values()), self.position)

    def idle(self) -> bool:
        """Whether no put is under way."""
        return not self._in_flight

    def take_unsynced(self) -> set[ShardKey]:
        """The keys written since the last call: those that the sync beginning now answers for."""
        keys, self._unsynced = self._unsynced, set()
        self.changed = False
        return keys

    def fail(self) -> set[ShardKey]:
        """An fdatasync failed: take no more records; returns keys written since it began."""
        self.failed = True
        return self.take_unsynced()

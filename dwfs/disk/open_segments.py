"""Which segments of a store are open for writing, and what the next sync owes the others.

Shared by the rooms that write: putting, erasing, syncing. Bookkeeping on the loop thread; no call waits.

A segment may be unlinked when it is not being written, no index entry points into it, and no replaced
record in it is still to survive a crash (`Superseded`).
"""

from __future__ import annotations

from dwfs.disk.append import ActiveSegment
from dwfs.disk.files import SegmentFiles
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.superseded import Superseded


class OpenSegments:
    """The table of one store's segments in use."""

    def __init__(self, ledger: SegmentLedger, files: SegmentFiles) -> None:
        self.active: dict[int, ActiveSegment] = {}
        self.current: ActiveSegment | None = None  # takes the next records
        self.superseded = Superseded()
        self.touched: dict[int, bool] = {}  # other segments to sync → holds unsynced records
        self.directory_changed = True
        self._ledger = ledger
        self._files = files

    def begin(self, number: int, handle: int) -> None:
        """A new segment takes the next records; the one before it is full."""
        if self.current is not None:
            self.current.full = True
        self.directory_changed = True
        self.current = ActiveSegment(number, self._files.adopt(number, handle))
        self.active[number] = self.current
        self._ledger.scanned(number, 0, 0)

    def retire(self, active: ActiveSegment) -> None:
        """The segment is closed, or given up."""
        del self.active[active.number]
        if self.current is active:
            self.current = None
        self._files.release(active.file)

    def fill(self) -> None:
        """No segment takes more records."""
        for active in self.active.values():
            active.full = True
        self.current = None

    def release(self) -> None:
        """Let go of all segments: at the end, or when the store is retired."""
        for active in self.active.values():
            if active.closed is not None:
                active.closed.set()
            self._files.release(active.file)
        self.active.clear()
        self.current = None

    def drop_if_empty(self, number: int) -> bool:
        """Forget a segment that holds nothing, unless it is being written; its file is to be unlinked."""
        if number in self.active or self.superseded.holds(number):
            return False
        if self._ledger.account(number).live_records:
            return False
        self._files.forget(number)
        self._ledger.drop_segment(number)
        self.touched.pop(number, None)
        self.directory_changed = True
        return True

    def drop_if_dead(self, active: ActiveSegment) -> bool:
        """Drop a full segment without a live record, instead of closing it."""
        number = active.number
        if self._ledger.account(number).live_records or self.superseded.holds(number):
            return False
        self.retire(active)
        return self.drop_if_empty(number)

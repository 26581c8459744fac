"""The index together with each segment's account of live records, kept in step.

Every change of the index goes through here, so that `live_bytes` and `live_records` of a segment are at
all times the sum over the index entries that point into it, also as last committed: both change in one
LMDB transaction, between two awaits.
"""

from __future__ import annotations

import msgspec

from dwfs.disk.index import DiskIndex, SegmentAccount
from dwfs.disk.record import Location
from dwfs.types import ShardKey


class SegmentLedger:
    """Index and accounts of one disk; loop thread only; no call waits."""

    def __init__(self, index: DiskIndex) -> None:
        self.index = index
        self._accounts = index.accounts()  # written through; saves a read for every change

    def numbers(self) -> set[int]:
        """Segments that have an account."""
        return set(self._accounts)

    def account(self, segment: int) -> SegmentAccount:
        """The account of a segment; an empty one if it is unknown."""
        return self._accounts.get(segment) or SegmentAccount()

    def live_bytes(self) -> int:
        """Bytes of all live records."""
        return sum(account.live_bytes for account in self._accounts.values())

    def enter(self, key: ShardKey, location: Location, scanned: int) -> Location | None:
        """Point `key` to `location`; returns the place that it replaces, if another one."""
        old = self.index.get(key)
        if old == location:
            return None
        self.index.put(key, location)
        self._change(location.segment, location.size, 1, scanned)
        if old is not None:
            self._change(old.segment, -old.size, -1)
        return old

    def forget(self, key: ShardKey) -> Location | None:
        """Drop `key`; returns where it was."""
        old = self.index.get(key)
        if old is not None:
            self.index.delete(key)
            self._change(old.segment, -old.size, -1)
        return old

    def scanned(self, segment: int, position: int, liveness_offset: int) -> None:
        """Note how far the segment's records are in the index, and its footer, if it has one."""
        account = self.account(segment)
        self._set(
            segment,
            msgspec.structs.replace(account, scanned=position, liveness_offset=liveness_offset),
        )

    def drop_segment(self, segment: int) -> None:
        """The segment is gone. No entry may point into it."""
        assert not self.account(segment).live_records
        self._accounts.pop(segment, None)
        self.index.drop_account(segment)

    def drop_entries_of(self, segments: set[int]) -> int:
        """Forget everything in segments that have vanished; returns the number of shards."""
        lost = [key for key, place in self.index.everything() if place.segment in segments]
        for key in lost:
            self.index.delete(key)
        for segment in segments:
            self._accounts.pop(segment, None)
            self.index.drop_account(segment)
        return len(lost)

    def keys_in(self, segment: int) -> list[ShardKey]:
        """The live keys of one segment. Reads the whole index: for rare events only."""
        return [key for key, place in self.index.everything() if place.segment == segment]

    def clear(self) -> None:
        """Forget everything: before a rebuild."""
        self._accounts.clear()
        self.index.clear()

    def _change(self, segment: int, size: int, records: int, scanned: int | None = None) -> None:
        account = self.account(segment)
        self._set(
            segment,
            SegmentAccount(
                account.scanned if scanned is None else scanned,
                account.liveness_offset,
                account.live_bytes + size,
                account.live_records + records,
            ),
        )

    def _set(self, segment: int, account: SegmentAccount) -> None:
        self._accounts[segment] = account
        self.index.set_account(segment, account)

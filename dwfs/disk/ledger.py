"""The index together with each segment's account of live records, kept in step.

Every change of the index goes through here, so that `live_bytes` and `live_records` of a segment are at
all times the sum over the index entries that point into it, also as last committed: both change in one
LMDB transaction, between two awaits.
"""

from __future__ import annotations

from collections.abc import Iterable

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

    def forget(self, keys: Iterable[ShardKey]) -> list[Location]:
        """Drop keys; returns where they were. Unknown ones are ignored."""
        found: list[Location] = []
        changes: dict[int, tuple[int, int]] = {}  # by segment: one write of its account for all
        for key in keys:
            old = self.index.get(key)
            if old is None:
                continue
            self.index.delete(key)
            found.append(old)
            size, records = changes.get(old.segment, (0, 0))
            changes[old.segment] = (size + old.size, records + 1)
        for segment, (size, records) in changes.items():
            self._change(segment, -size, -records)
        return found

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

    def discrepancies(self) -> list[str]:
        """Where accounts and index disagree, as sentences. Reads the whole index."""
        sums: dict[int, tuple[int, int]] = {}
        for _, place in self.index.everything():
            size, records = sums.get(place.segment, (0, 0))
            sums[place.segment] = (size + place.size, records + 1)
        found = []
        for segment in sorted(sums.keys() | self._accounts.keys()):
            account = self.account(segment)
            size, records = sums.get(segment, (0, 0))
            if (account.live_bytes, account.live_records) != (size, records):
                found.append(
                    f"segment {segment}: its account says {account.live_records} shards of"
                    f" {account.live_bytes} bytes, the index has {records} of {size}"
                )
        if self.index.accounts() != self._accounts:
            found.append("the accounts of segments as stored are not those in memory")
        return found

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

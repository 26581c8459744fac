"""Where each shard of one disk lies: two LMDB tables inside a transaction that someone else owns.

The index is a cache of what the segments say; `dwfs.disk.recovery` rebuilds it. It lives in the node's
state directory, not on the disk that it describes: a memory map of a dying disk raises SIGBUS. All
calls are made on the loop thread, take microseconds, and take effect at once in the transaction; the
composition root commits it together with the volumes' state and begins the next.

Tables, named after the disk (hex): `<disk>` maps stripe ‖ shard number to a location; `<disk>.segments`
maps segment numbers to their accounts. Layout: docs/formats.md, "Shard index".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Final, Protocol, TypeAlias

import lmdb
import msgspec

from dwfs.disk.record import Location
from dwfs.types import DiskId, ShardKey, StripeId

_LOCATION: Final = struct.Struct("<IQIHI")  # segment, offset, ordinal, opaque, payload
_SEGMENT_KEY: Final = struct.Struct(">I")  # big-endian: LMDB orders keys as bytes
_ACCOUNT: Final = struct.Struct("<QQQI")  # scanned, liveness offset, live bytes, live records

TABLES_PER_DISK: Final = 2  # the environment's max_dbs must allow for them

Transaction: TypeAlias = "lmdb.Transaction[bytes]"  # generic in its stubs only


class TransactionSource(Protocol):
    """Gives the write transaction of the moment: a new one after each commit of the state."""

    @property
    def transaction(self) -> Transaction:
        """The open write transaction (made with `buffers=False`)."""


class SegmentAccount(msgspec.Struct, frozen=True, array_like=True):
    """What the index knows of one segment."""

    scanned: int = 0  # records before this position are in the index, or dead
    liveness_offset: int = 0  # of the footer's liveness bytes; 0: not closed
    live_bytes: int = 0
    live_records: int = 0


class DiskIndex:
    """The shard index of one disk."""

    def __init__(
        self, environment: lmdb.Environment, transactions: TransactionSource, disk: DiskId
    ) -> None:
        """Opens (or makes) the disk's tables in the current transaction.

        Table handles outlive the transaction only if it commits, so it must not be aborted.
        """
        self.disk = disk
        self._source = transactions
        name = disk.hex().encode()
        self._shards = environment.open_db(name, txn=transactions.transaction)
        self._segments = environment.open_db(name + b".segments", txn=transactions.transaction)

    def get(self, key: ShardKey) -> Location | None:
        """Where the shard lies, or None."""
        value = self._source.transaction.get(_pack_key(key), db=self._shards)
        return None if value is None else Location(*_LOCATION.unpack(value))

    def put(self, key: ShardKey, location: Location) -> None:
        """Enter or replace a shard."""
        value = _LOCATION.pack(
            location.segment,
            location.offset,
            location.ordinal,
            location.header_length,
            location.payload_length,
        )
        self._source.transaction.put(_pack_key(key), value, db=self._shards)

    def delete(self, key: ShardKey) -> None:
        """Forget a shard; unknown ones are ignored."""
        self._source.transaction.delete(_pack_key(key), db=self._shards)

    def keys(self, after: ShardKey | None, limit: int) -> list[ShardKey]:
        """Up to `limit` keys in (stripe, number) order, strictly after `after`."""
        return [key for key, _ in self.page(after, limit)]

    def page(self, after: ShardKey | None, limit: int) -> list[tuple[ShardKey, Location]]:
        """Up to `limit` entries in order, strictly after `after`; fewer only at the end."""
        return list(islice(self._items(after), limit))

    def everything(self) -> Iterator[tuple[ShardKey, Location]]:
        """Everything, in order. The index must not be changed meanwhile."""
        return self._items(None)

    def account(self, segment: int) -> SegmentAccount | None:
        """What is known of a segment, or None."""
        value = self._source.transaction.get(_SEGMENT_KEY.pack(segment), db=self._segments)
        return None if value is None else SegmentAccount(*_ACCOUNT.unpack(value))

    def set_account(self, segment: int, account: SegmentAccount) -> None:
        """Enter or replace a segment's account."""
        assert account.live_bytes >= 0
        assert account.live_records >= 0
        value = _ACCOUNT.pack(
            account.scanned, account.liveness_offset, account.live_bytes, account.live_records
        )
        self._source.transaction.put(_SEGMENT_KEY.pack(segment), value, db=self._segments)

    def drop_account(self, segment: int) -> None:
        """Forget a segment."""
        self._source.transaction.delete(_SEGMENT_KEY.pack(segment), db=self._segments)

    def accounts(self) -> dict[int, SegmentAccount]:
        """All segments that are known."""
        with self._source.transaction.cursor(db=self._segments) as cursor:
            return {
                _SEGMENT_KEY.unpack(key)[0]: SegmentAccount(*_ACCOUNT.unpack(value))
                for key, value in cursor
            }

    def clear(self) -> None:
        """Forget everything: before a rebuild."""
        self._source.transaction.drop(self._shards, delete=False)
        self._source.transaction.drop(self._segments, delete=False)

    def _items(self, after: ShardKey | None) -> Iterator[tuple[ShardKey, Location]]:
        with self._source.transaction.cursor(db=self._shards) as cursor:
            # One zero byte more makes the smallest key that is greater.
            start = _pack_key(after) + b"\0" if after is not None else b""
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            for key, value in cursor.iternext():
                yield ShardKey(StripeId(key[:16]), key[16]), Location(*_LOCATION.unpack(value))


def _pack_key(key: ShardKey) -> bytes:
    return key.stripe + key.number.to_bytes(1)

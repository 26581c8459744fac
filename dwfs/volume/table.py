"""`Table`: a write-back cache of decoded records over one kind of key in the state store.

A record is decoded once and then changed in place; it is encoded and sealed when it is flushed, so
a burst of changes to one inode costs one AEAD call.

Recency is kept in two generations: a hit in `young` costs one dictionary look-up and moves nothing;
when `young` is full it becomes `old`, and what was in `old` and not touched since is forgotten.
Dirty records are held by `dirty` as well, so forgetting never loses a change and never makes a
second object for the same record. A `None` in `dirty` is a deletion that is not yet flushed.

Discipline: change the record, then `put` it. `flush` runs only between commands.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Generic, Protocol, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
RecordT = TypeVar("RecordT")


class Backing(Protocol):
    """Where a table's values are: a `StateStore`, or `Versions` over one."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""

    def put(self, key: bytes, value: bytes) -> None:
        """Store it."""

    def delete(self, key: bytes) -> None:
        """Remove it; it need not be there."""

    def unseal(self, key: bytes, sealed: bytes) -> bytes:
        """Open what a scan delivered."""


class Table(Generic[KeyT, RecordT]):
    """Records of one kind, by their key in memory (`make_key` gives the one in the store)."""

    __slots__ = (
        "_decode",
        "_encode",
        "_generation_size",
        "_make_key",
        "_old",
        "_store",
        "_young",
        "dirty",
        "dirty_quota",
    )

    def __init__(
        self,
        store: Backing,
        make_key: Callable[[KeyT], bytes],
        encode: Callable[[RecordT], bytes],
        decode: Callable[[bytes], RecordT],
        capacity: int,
        dirty_quota: int,
    ) -> None:
        self.dirty: dict[KeyT, RecordT | None] = {}
        self.dirty_quota = dirty_quota
        self._store = store
        self._make_key = make_key
        self._encode = encode
        self._decode = decode
        self._generation_size = max(1, capacity // 2)
        self._young: dict[KeyT, RecordT] = {}
        self._old: dict[KeyT, RecordT] = {}

    def get(self, key: KeyT) -> RecordT | None:
        """The record itself, not a copy; None if there is none. Raises StateDamagedError."""
        record = self._young.get(key)
        if record is not None:
            return record
        record = self._old.get(key)
        if record is None:
            if key in self.dirty:
                record = self.dirty[key]
            else:
                value = self._store.get(self._make_key(key))
                if value is not None:
                    record = self._decode(value)
            if record is None:
                return None
        self._remember(key, record)
        return record

    def peek(self, key: KeyT) -> RecordT | None:
        """The record if it is in memory; changes no recency."""
        return self._young.get(key) or self._old.get(key) or self.dirty.get(key)

    def put(self, key: KeyT, record: RecordT) -> None:
        """Take a new record, or one that has been changed."""
        self.dirty[key] = record
        young = self._young
        young[key] = record
        if len(young) > self._generation_size:
            self._old = young
            self._young = {}

    def delete(self, key: KeyT) -> None:
        """Remove the record; it need not exist."""
        self._young.pop(key, None)
        self._old.pop(key, None)
        self.dirty[key] = None

    def _remember(self, key: KeyT, record: RecordT) -> None:
        young = self._young
        young[key] = record
        if len(young) > self._generation_size:
            self._old = young
            self._young = {}

    def forget(self) -> None:
        """Drop all records, dirty ones too: the store was changed behind the table's back."""
        self._young = {}
        self._old = {}
        self.dirty = {}

    def decode(self, key: bytes, sealed: bytes) -> RecordT:
        """A record out of a scan, without caching it."""
        return self._decode(self._store.unseal(key, sealed))

    def relieve(self) -> None:
        """Flush the oldest dirty records beyond the quota."""
        excess = len(self.dirty) - self.dirty_quota
        if excess > 0:
            self.flush(list(islice(self.dirty, excess)))

    def write_back(self, key: KeyT) -> None:
        """Have the store know this record as it is."""
        if key in self.dirty:
            self.flush((key,))

    def flush(self, keys: Iterable[KeyT] | None = None) -> None:
        """Write `keys` (default: all) of the dirty records to the store."""
        dirty = self.dirty
        for key in list(dirty) if keys is None else keys:
            record = dirty[key]
            if record is None:
                self._store.delete(self._make_key(key))
            else:
                self._store.put(self._make_key(key), self._encode(record))
            del dirty[key]  # only now: a failed write leaves it dirty

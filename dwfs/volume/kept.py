"""Kept bytes: what the current state has given up, but a snapshot still maps.

One record (kind `B`) for each newest snapshot that maps the bytes, epoch in which they were written,
and stripe: how many. So the space that only one snapshot keeps is the sum over its records of bytes
written after the snapshot before it, and giving a snapshot up is a walk over its records. That sum is to
be had without the walk, so totals over all stripes are kept, too (kind `U`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from struct import Struct
from typing import Final, NamedTuple, TypeVar

import msgspec

from dwfs import limits
from dwfs.types import Epoch, StripeId
from dwfs.volume.records import Meta
from dwfs.volume.store import KIND_KEPT_BYTES, KIND_KEPT_TOTAL, ONLY_VOLUME, StateStore
from dwfs.volume.table import Table

DIRTY_QUOTA: Final = limits.DIRTY_OBJECTS_MAX // 4
TOTALS_CACHED: Final = 4_096

KeyT = TypeVar("KeyT", bound=Hashable)

_prefix = KIND_KEPT_BYTES + ONLY_VOLUME
_key = Struct(">II16s")
_total_prefix = KIND_KEPT_TOTAL + ONLY_VOLUME
_total_key = Struct(">II")
_encoder = msgspec.msgpack.Encoder()


class KeptBytes(NamedTuple):
    """How many bytes of a stripe one snapshot is the last to map."""

    seen_by: Epoch  # the newest snapshot that maps them
    written: int  # epoch in which they were written; 0: before the first snapshot
    stripe: StripeId
    length: int


def _make_key(key: tuple[int, int, StripeId]) -> bytes:
    return _prefix + _key.pack(*key)


def _make_total_key(key: tuple[int, int]) -> bytes:
    return _total_prefix + _total_key.pack(*key)


def _add(table: Table[KeyT, int], key: KeyT, change: int) -> None:
    """Add to a count, which is removed when it comes to nothing."""
    count = (table.get(key) or 0) + change
    assert count >= 0, "bytes were given back that no snapshot kept"
    if count:
        table.put(key, count)
    else:
        table.delete(key)


class KeptTable:
    """All records of kept bytes; `meta.kept_bytes` is their sum."""

    def __init__(self, store: StateStore, meta: Meta) -> None:
        self._store = store
        self._meta = meta
        self.table: Table[tuple[int, int, StripeId], int] = Table(
            store,
            _make_key,
            _encoder.encode,
            msgspec.msgpack.Decoder(int).decode,
            limits.STRIPE_RECORD_CACHE_ENTRIES,
            DIRTY_QUOTA,
        )
        self.totals: Table[tuple[int, int], int] = Table(
            store,
            _make_total_key,
            _encoder.encode,
            msgspec.msgpack.Decoder(int).decode,
            TOTALS_CACHED,
            DIRTY_QUOTA,
        )

    def flush(self) -> None:
        """Write everything back."""
        self.table.flush()
        self.totals.flush()

    def relieve(self) -> None:
        """Write back what is beyond the quotas."""
        self.table.relieve()
        self.totals.relieve()

    def adjust(self, seen_by: int, written: int, stripe: StripeId, change: int) -> None:
        """Add `change` bytes to a record."""
        _add(self.table, (seen_by, written, stripe), change)
        _add(self.totals, (seen_by, written), change)
        self._meta.kept_bytes += change

    def total(self, seen_by: int, written_from: int, written_to: int) -> int:
        """Bytes for which one snapshot is the last to map them, by when they were written."""
        self.totals.flush()
        prefix = _total_prefix + seen_by.to_bytes(4, "big")
        total = 0
        for key, sealed in self._store.scan(prefix, prefix + written_from.to_bytes(4, "big")):
            _, written = _total_key.unpack_from(key, len(_total_prefix))
            if written > written_to:
                break
            total += self.totals.decode(key, sealed)
        return total

    def all_totals(self) -> Iterator[tuple[int, int, int]]:
        """(snapshot's epoch, epoch of writing, bytes) of all totals."""
        self.totals.flush()
        for key, sealed in self._store.scan(_total_prefix):
            seen_by, written = _total_key.unpack_from(key, len(_total_prefix))
            yield seen_by, written, self.totals.decode(key, sealed)

    def under(self, seen_by: int) -> Iterator[KeptBytes]:
        """The records of one snapshot. Nothing may be changed while the iterator is in use."""
        self.table.flush()
        for pair in self._store.scan(_prefix + seen_by.to_bytes(4, "big")):
            yield self.parse(*pair)

    def all(self) -> Iterator[KeptBytes]:
        """All records. Nothing may be changed while the iterator is in use."""
        self.table.flush()
        for pair in self._store.scan(_prefix):
            yield self.parse(*pair)

    def parse(self, key: bytes, sealed: bytes) -> KeptBytes:
        """A record as it is stored."""
        seen_by, written, stripe = _key.unpack_from(key, len(_prefix))
        return KeptBytes(Epoch(seen_by), written, StripeId(stripe), self.table.decode(key, sealed))

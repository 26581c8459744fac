"""The stripe table: live bytes and seal of every stripe, and which stripes are worth reclaiming.

Implements `dwfs.ports.StripeCatalog`. A record begins when the first extent refers to a stripe,
sealed or not, and ends with `drop`. A stripe whose bytes all died before its seal became known is
kept until the seal comes: only then is there something on the disks to delete.

Candidates for reclaim are kept in memory, built by one scan at open and maintained at each change.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from dwfs import limits
from dwfs.types import BackReference, ShardMove, StripeId, StripeSeal
from dwfs.volume.records import StripeRecord
from dwfs.volume.store import KIND_REFERENCE, KIND_STRIPE, KIND_SUMMARY, StateStore
from dwfs.volume.table import Table

# Fuller stripes are never worth copying. Random overwrites of a pool that is 90 % full leave no
# stripe with less than 80 % of its bytes alive, so the bound must be far above that.
SPARSE_FRACTION_MAX: Final = 0.97
SPARSE_TRACKED_MAX: Final = 65_536  # some 15 MiB; beyond that, found again by a later scan
SPARSE_CLASSES: Final = 32  # of live share: the worst are found without looking at all
DIRTY_QUOTA: Final = limits.DIRTY_OBJECTS_MAX // 4

_encoder = msgspec.msgpack.Encoder()
_reference_decoder = msgspec.msgpack.Decoder(BackReference)
_summary_decoder = msgspec.msgpack.Decoder(tuple[BackReference, ...])


class StripeTotals(NamedTuple):
    """What the sealed stripes hold, dead bytes included; neither tags nor parity."""

    stripes: int
    logical_bytes: int  # as they were written
    stored_bytes: int  # as they were sealed: less, if they were compressed


class StripeTable:
    """Stripe records with their reclaim candidates."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.table: Table[StripeId, StripeRecord] = Table(
            store,
            KIND_STRIPE.__add__,
            _encoder.encode,
            msgspec.msgpack.Decoder(StripeRecord).decode,
            limits.STRIPE_RECORD_CACHE_ENTRIES,
            DIRTY_QUOTA,
        )
        self._dead: dict[StripeId, None] = {}
        self._sparse: dict[StripeId, float] = {}  # → live share
        self._classes: list[dict[StripeId, None]] = [{} for _ in range(SPARSE_CLASSES)]
        self._pins: Counter[StripeId] = Counter()
        self._untracked = False  # some sparse stripe found no room in _sparse
        self._totals = StripeTotals(0, 0, 0)
        self._scan()

    def _scan(self) -> None:
        self._untracked = False
        self._totals = StripeTotals(0, 0, 0)
        for key, sealed in self._store.scan(KIND_STRIPE):
            stripe = StripeId(key[1:])
            record = self.table.peek(stripe) or self.table.decode(key, sealed)
            if record.seal is not None:
                self._count(record.seal, 1)
                if stripe not in self._dead:
                    self._classify(stripe, record.live_bytes, record.seal.length)

    def _count(self, seal: StripeSeal, sign: int) -> None:
        stripes, logical, stored = self._totals
        self._totals = StripeTotals(
            stripes + sign, logical + sign * seal.length, stored + sign * seal.stored_length
        )

    def _classify(self, stripe: StripeId, live_bytes: int, length: int) -> None:
        self._untrack(stripe)
        if live_bytes == 0:
            self._dead[stripe] = None
            return
        fraction = live_bytes / length
        if fraction > SPARSE_FRACTION_MAX:
            return
        rank = int(fraction * SPARSE_CLASSES)
        if len(self._sparse) >= SPARSE_TRACKED_MAX:
            self._untracked = True
            fullest = max(number for number, members in enumerate(self._classes) if members)
            if rank >= fullest:
                return
            self._untrack(next(iter(self._classes[fullest])))
        self._sparse[stripe] = fraction
        self._classes[rank][stripe] = None

    def _untrack(self, stripe: StripeId) -> None:
        fraction = self._sparse.pop(stripe, None)
        if fraction is not None:
            del self._classes[int(fraction * SPARSE_CLASSES)][stripe]

    def adjust(self, stripe: StripeId, change: int) -> None:
        """Add `change` to the stripe's live bytes; the record is made if it is new."""
        record = self.table.get(stripe)
        if record is None:
            record = StripeRecord(0, None)
        live_bytes = record.live_bytes + change
        assert live_bytes >= 0, "an extent was removed that was never counted"
        record.live_bytes = live_bytes
        self.table.put(stripe, record)
        if record.seal is not None:
            self._dead.pop(stripe, None)
            self._classify(stripe, live_bytes, record.seal.length)

    def apply_seal(self, seal: StripeSeal) -> None:
        """Note that the stripe's shards are durable. Idempotent; commutes with commands."""
        stripe = seal.stripe
        record = self.table.get(stripe)
        if record is None:
            record = StripeRecord(0, None)
        if record.seal is not None:
            # Replayed. The state may know better by now where the shards are (`move`).
            return
        self._store.put(KIND_SUMMARY + stripe, _encoder.encode(seal.summary))
        record.seal = msgspec.structs.replace(seal, summary=())
        self.table.put(stripe, record)
        self._count(seal, 1)
        self._classify(stripe, record.live_bytes, seal.length)

    def move(self, move: ShardMove) -> bool:
        """Note a shard's new place; tells whether it applied (see `MoveShards`)."""
        record = self.table.get(move.stripe)
        seal = None if record is None else record.seal
        if record is None or seal is None or not 0 <= move.number < len(seal.placement):
            return False
        if seal.placement[move.number] != move.source:
            return False
        placement = list(seal.placement)
        placement[move.number] = move.target
        record.seal = msgspec.structs.replace(seal, placement=tuple(placement))
        self.table.put(move.stripe, record)
        return True

    def pin(self, stripe: StripeId) -> None:
        """A command that refers to the stripe waits to be applied: the stripe is not dead.

        Data is appended to a stripe before its command is proposed. If that has to wait, the
        stripe may be sealed meanwhile, and would look dead.
        """
        self._pins[stripe] += 1

    def unpin(self, stripe: StripeId) -> None:
        """Undo one `pin`."""
        self._pins[stripe] -= 1
        if not self._pins[stripe]:
            del self._pins[stripe]

    def refer(self, stripe: StripeId, reference: BackReference) -> None:
        """Note a file range that came to map to the stripe in another way than by being written.

        From here on the summary tells of it, too.
        """
        key = (
            KIND_REFERENCE
            + stripe
            + self._store.names.node(reference.inode, reference.offset)
            + reference.stripe_offset.to_bytes(8, "big")
        )
        value = self._store.get(key)
        if value is None or _reference_decoder.decode(value).length < reference.length:
            self._store.put(key, _encoder.encode(reference))

    def _referring(self, stripe: StripeId) -> tuple[BackReference, ...]:
        return tuple(
            _reference_decoder.decode(self._store.unseal(key, sealed))
            for key, sealed in self._store.scan(KIND_REFERENCE + stripe)
        )

    def _forget_references(self, stripe: StripeId) -> None:
        for key in [key for key, _ in self._store.scan(KIND_REFERENCE + stripe)]:
            self._store.delete(key)

    def drop(self, stripe: StripeId) -> bool:
        """Forget a dead, sealed stripe; tells whether it was one."""
        record = self.table.get(stripe)
        if record is None or record.seal is None or record.live_bytes:
            return False
        self._count(record.seal, -1)
        self.table.delete(stripe)
        self._store.delete(KIND_SUMMARY + stripe)
        self._forget_references(stripe)
        self._dead.pop(stripe, None)
        return True

    def forget_unsealed(self) -> list[StripeId]:
        """After recovery: remove records of unsealed stripes without a live byte; their seal will
        never come. Returns the unsealed stripes that do have live bytes.
        """
        self.table.flush()
        needed: list[StripeId] = []
        forgotten: list[StripeId] = []
        for key, sealed in self._store.scan(KIND_STRIPE):
            record = self.table.decode(key, sealed)
            if record.seal is None:
                if record.live_bytes:
                    needed.append(StripeId(key[1:]))
                else:
                    self.table.delete(StripeId(key[1:]))
                    forgotten.append(StripeId(key[1:]))
        for stripe in forgotten:
            self._forget_references(stripe)
        return needed

    # --- StripeCatalog ----------------------------------------------------------------------

    def seal_of(self, stripe: StripeId) -> StripeSeal | None:
        """The stripe's seal with an empty summary, or None if it is unknown or unsealed."""
        record = self.table.get(stripe)
        return None if record is None else record.seal

    def summary_of(self, stripe: StripeId) -> tuple[BackReference, ...]:
        """The summary that came with the seal, and what `refer` was told; empty if unknown."""
        return self.writers_of(stripe) + self._referring(stripe)

    def writers_of(self, stripe: StripeId) -> tuple[BackReference, ...]:
        """The summary that came with the seal: empty for a stripe that was restored from the log."""
        value = self._store.get(KIND_SUMMARY + stripe)
        return () if value is None else _summary_decoder.decode(value)

    def live_bytes(self, stripe: StripeId) -> int:
        """Bytes of the stripe that some file maps."""
        record = self.table.get(stripe)
        return 0 if record is None else record.live_bytes

    def dead_stripes(self, limit: int) -> list[StripeId]:
        """Sealed stripes without a live byte, those that died first at the front."""
        return list(islice((stripe for stripe in self._dead if stripe not in self._pins), limit))

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        """Sealed stripes whose live bytes are at most that fraction of their length, worst first.

        Fractions above SPARSE_FRACTION_MAX are taken as that.
        """
        if self._untracked and len(self._sparse) < SPARSE_TRACKED_MAX // 2:
            self.table.flush()
            self._scan()
        found: list[tuple[float, StripeId]] = []
        for members in self._classes:
            found += sorted((self._sparse[stripe], stripe) for stripe in members)
            if len(found) >= limit or (found and found[-1][0] > live_fraction):
                break
        return [stripe for fraction, stripe in found[:limit] if fraction <= live_fraction]

    def seals(self, after: StripeId | None, limit: int) -> list[StripeSeal]:
        """Up to `limit` seals in the order of their ids, strictly after `after`; no summaries.

        For walks over everything: call it again and again, with other work in between.
        """
        self.table.flush()
        start = b"" if after is None else KIND_STRIPE + after + b"\0"
        found: list[StripeSeal] = []
        for key, sealed in self._store.scan(KIND_STRIPE, start):
            record = self.table.decode(key, sealed)
            if record.seal is not None:
                found.append(record.seal)
                if len(found) == limit:
                    break
        return found

    def totals(self) -> StripeTotals:
        """Of all sealed stripes; exact."""
        return self._totals

    def reclaimable_counts(self) -> tuple[int, int]:
        """How many stripes are dead, and how many are tracked as sparse."""
        return len(self._dead), len(self._sparse)

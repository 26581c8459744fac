"""Reading shards from disks, and rebuilding the bytes of those that can't be read.

The code works column by column: byte j of any shard depends only on byte j of k others. A small
read of a lost shard therefore fetches the same few sectors of k other shards, not the stripe.

First round, *quick*: unchecked reads; the AEAD tags of the rebuilt sectors tell whether all the
sources were sound. If they don't open, the second round, *checked*, reads whole shards through
the store's checksum and compares their headers, which finds the bad source, reports it and uses
another. What fails then is beyond redundancy.

No disk can hold up what k others can give (see `hedge`): a single read is a race between the disk
and the others, and a rebuild that waits for a late source asks a further one instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Final

import trio

from dwfs.errors import DiskTimeoutError, MediumError, ShardDamagedError, ShardMissingError
from dwfs.limits import CODING_INLINE_MAX, MIB, SEALED_SECTOR_SIZE
from dwfs.ports import DiskListing, ErasureCoder, ShardFault, ShardStore
from dwfs.stripe.hedge import Answer, HedgedReads, judge
from dwfs.stripe.opened import Damage, DamageObserver, OpenedStripe, padded
from dwfs.stripe.sealing import ThreadRunner
from dwfs.stripe.shard_header import header_fits
from dwfs.types import DiskId, Geometry

READ_PIECE: Final = 64 * SEALED_SECTOR_SIZE  # one disk request of a sequential read: 1 MiB
# What rebuilding one sector takes at k = 8 is decoded on the loop: a thread hop takes longer.
DECODE_INLINE_MAX: Final = 8 * SEALED_SECTOR_SIZE
# Patience is measured with the usual, small reads; a large one may take as long on top as the
# slowest disk that one would put into a pool.
SLOW_BYTES_PER_SECOND: Final = 32 * MIB


class ShardGatherer:
    """Fetches shard ranges; rebuilds them from k others.

    `coder` is the one of the pool's present geometry; `coder_of` makes those of earlier ones.
    `nursery` outlives it and runs its hedges.
    """

    def __init__(
        self,
        disks: DiskListing,
        coder: ErasureCoder,
        coder_of: Callable[[Geometry], ErasureCoder],
        threads: ThreadRunner,
        on_damage: DamageObserver,
        nursery: trio.Nursery,
    ) -> None:
        self._disks = disks
        self._coder_of = coder_of
        self._coders = {
            coder.geometry: coder
        }  # making one takes a self-test: fractions of a second
        self._threads = threads
        self._hedges = HedgedReads(nursery)
        self.on_damage = on_damage

    @property
    def hedges_won(self) -> int:
        """Reads that the others answered before the disk did."""
        return self._hedges.won

    def report(self, opened: OpenedStripe, shard: int, fault: ShardFault) -> None:
        """Tell the observer of a bad shard."""
        disk = opened.seal.placement[shard]
        self.on_damage(Damage(opened.seal.stripe, shard, disk, fault))

    def fetch_cached(
        self, opened: OpenedStripe, shard: int, offset: int, length: int, *, patient: bool = True
    ) -> bytes | None:
        """Exactly `length` bytes if the page cache has them; unchecked."""
        disk = opened.seal.placement[shard]
        store = self._disks.get(disk) if disk else None
        if store is None:
            return None
        try:
            raw = store.read_cached(opened.keys[shard], offset, length, patient=patient)
        except ShardMissingError:
            return None  # the waiting path meets it too, and reports
        except MediumError as error:
            self._disks.failed(error, disk)
            return None
        return raw if raw is not None and len(raw) == length else None

    def rebuild_cached(
        self, opened: OpenedStripe, shard: int, offset: int, length: int
    ) -> bytes | None:
        """As `fetch_cached` for a shard whose disk is gone: from k others in the page cache."""
        if length > CODING_INLINE_MAX or self._disks.get(opened.seal.placement[shard]) is not None:
            return None
        column = Column(self, opened, offset, length, avoid=frozenset((shard,)))
        if not column.gather_cached():
            return None
        return self._coder(opened.seal.geometry).decode(column.present, [shard], length)[0]

    async def fetch(
        self, opened: OpenedStripe, shard: int, offset: int, length: int
    ) -> bytes | None:
        """Exactly `length` bytes, unchecked, or None if the disk can't give them."""
        disk = opened.seal.placement[shard]
        store = self._disks.get(disk) if disk else None
        if store is None:
            return None
        try:
            raw = await store.read(opened.keys[shard], offset, length)
        except ShardMissingError:
            self.report(opened, shard, ShardFault.MISSING)
        except ShardDamagedError:
            self.report(opened, shard, ShardFault.ROTTEN)
        except MediumError as error:
            self._note_failure(opened, shard, store, error)
        else:
            if len(raw) == length:
                return raw
            self.report(opened, shard, ShardFault.ROTTEN)
        return None

    async def fetch_checked(self, opened: OpenedStripe, shard: int) -> bytes | None:
        """The whole payload, verified by checksum and header, or None."""
        disk = opened.seal.placement[shard]
        store = self._disks.get(disk) if disk else None
        if store is None:
            return None
        try:
            header, payload = await store.read_verified(opened.keys[shard])
        except ShardMissingError:
            self.report(opened, shard, ShardFault.MISSING)
            return None
        except ShardDamagedError:
            self.report(opened, shard, ShardFault.ROTTEN)
            return None
        except MediumError as error:
            self._note_failure(opened, shard, store, error)
            return None
        right_length = len(payload) == opened.layout.payload_length(shard)
        if right_length and header_fits(header, opened.seal, shard):
            return payload
        self.report(opened, shard, ShardFault.ROTTEN)
        return None

    def _note_failure(
        self, opened: OpenedStripe, shard: int, store: ShardStore, error: MediumError
    ) -> None:
        self._disks.failed(error, store.disk)
        # The rest of the disk may be fine. A bad sector is mended like any damage, or each further
        # read of it would speak against the disk anew.
        if not isinstance(error, DiskTimeoutError) and self._disks.get(store.disk) is store:
            self.report(opened, shard, ShardFault.UNREADABLE)

    async def fetch_first(
        self,
        opened: OpenedStripe,
        shard: int,
        offset: int,
        length: int,
        accept: Callable[[bytes], bool],
    ) -> Answer:
        """Exactly `length` bytes from the shard's disk or, if that is late, rebuilt from others.

        `accept` is told the bytes and says whether they are authentic (see `hedge`).
        """
        disk = opened.seal.placement[shard]
        if not disk or self._disks.get(disk) is None:
            return Answer.NOTHING
        patience = self._patience(disk, length)
        if patience == inf:
            return judge(await self.fetch(opened, shard, offset, length), accept)
        if patience <= 0.0:
            # A suspect: the others go first, and the disk is only asked if they fail.
            raw = await self._rebuild_one(opened, shard, offset, length)
            if raw is not None and accept(raw):
                return Answer.ACCEPTED
            return judge(await self.fetch(opened, shard, offset, length), accept)
        direct = self.fetch(opened, shard, offset, length)
        others = partial(self._rebuild_one, opened, shard, offset, length)
        return await self._hedges.race(patience, direct, others, accept)

    async def _rebuild_one(
        self, opened: OpenedStripe, shard: int, offset: int, length: int
    ) -> bytes | None:
        rebuilt = await self.rebuild(opened, [shard], offset, length)
        return None if rebuilt is None else rebuilt[0]

    async def rebuild(
        self,
        opened: OpenedStripe,
        wanted: Sequence[int],
        offset: int,
        length: int,
        *,
        checked: bool = False,
    ) -> list[bytes] | None:
        """Bytes [offset, offset+length) of the shards `wanted`, as if padded with zeros.

        Rebuilt from k others. None if fewer than k can be had. With `checked`, sources are verified
        first.
        """
        column = Column(self, opened, offset, length, checked=checked, avoid=frozenset(wanted))
        if not await column.gather():
            return None
        return await self.decode(opened, column.present, wanted, length)

    async def decode(
        self,
        opened: OpenedStripe,
        present: dict[int, memoryview],
        wanted: Sequence[int],
        length: int,
    ) -> list[bytes]:
        """The shards `wanted` from at least k of `present`; in a thread if it is much."""
        coder = self._coder(opened.seal.geometry)
        if opened.layout.data * length > DECODE_INLINE_MAX:
            return await self._threads.run(coder.decode, present, list(wanted), length)
        return coder.decode(present, list(wanted), length)

    def order(self, opened: OpenedStripe, shards: Sequence[int]) -> list[int]:
        """Those of `shards` that can be read now, in the order in which they are best asked.

        Data first, as it needs no decoding; then parity; then what lies on suspect disks.
        """
        disks = self._disks
        placement = opened.seal.placement
        sound: list[int] = []
        suspect: list[int] = []
        for shard in shards:
            disk = placement[shard]
            if disks.get(disk) is not None:
                (sound if disks.patience_seconds(disk) > 0.0 else suspect).append(shard)
        return sound + suspect

    def patience_with(self, opened: OpenedStripe, shard: int, length: int) -> float:
        """Seconds after which a read of the shard is late."""
        return self._patience(opened.seal.placement[shard], length)

    def may_hedge(self) -> bool:
        """Whether the disks can bear a request that is only made to be faster."""
        return self._hedges.may_hedge()

    def _patience(self, disk: DiskId, length: int) -> float:
        patience = self._disks.patience_seconds(disk)
        return patience + length / SLOW_BYTES_PER_SECOND if patience > 0.0 else 0.0

    def _coder(self, geometry: Geometry) -> ErasureCoder:
        coder = self._coders.get(geometry)
        if coder is None:
            coder = self._coders[geometry] = self._coder_of(geometry)
        return coder


class Column:
    """Bytes [offset, offset+length) of k shards: what is needed to rebuild the same bytes of others.

    `arrived(shard, bytes)` is told of each shard that a disk gave.
    """

    def __init__(
        self,
        gatherer: ShardGatherer,
        opened: OpenedStripe,
        offset: int,
        length: int,
        *,
        checked: bool = False,
        avoid: frozenset[int] = frozenset(),
        arrived: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self.present: dict[int, memoryview] = {}  # padded to `length`
        self._gatherer = gatherer
        self._opened = opened
        self._offset = offset
        self._length = length
        self._checked = checked
        self._avoid = avoid
        self._arrived = arrived
        self._pending: dict[int, float] = {}  # shard that was asked → when it is late
        self._changed: trio.Event | None = None  # while somebody waits for the next answer

    async def gather(self) -> bool:
        """Fill `present`; False if fewer than k shards can be had."""
        needed = self._opened.layout.data
        waiting = self._take_at_hand()
        missing = needed - len(self.present)
        if missing <= 0 or (missing > len(waiting) and self._arrived is None):
            return missing <= 0
        async with trio.open_nursery() as nursery:
            while len(self.present) < needed:
                late_at = self._ask(nursery, waiting, needed - len(self.present))
                if not self._pending:
                    break
                self._changed = trio.Event()
                with trio.CancelScope(deadline=late_at):
                    await self._changed.wait()
            nursery.cancel_scope.cancel()  # who is late now is no longer needed
        return len(self.present) >= needed

    def gather_cached(self) -> bool:
        """As `gather`, but only with what the page cache has, or fast disks deliver in a moment."""
        return not self._take_best(self._take_known()) and (
            len(self.present) >= self._opened.layout.data
        )

    def _take_best(self, shards: list[int]) -> list[int]:
        """Take as many as are needed; gives back those among them that the caches lack.

        All are asked before any is waited for, so that the disks fetch at the same time.
        """
        needed = max(0, self._opened.layout.data - len(self.present))
        absent = [s for s in shards[:needed] if not self._take_cached(s, patient=False)]
        return [s for s in absent if not self._take_cached(s, patient=True)]

    def _take_at_hand(self) -> list[int]:
        """Take what costs no waiting; the other shards, best first."""
        waiting = self._take_known()
        # Copying much out of the page cache is work for the disk's own threads.
        if self._checked or self._length > CODING_INLINE_MAX:
            return waiting
        needed = max(0, self._opened.layout.data - len(self.present))
        return self._take_best(waiting) + waiting[needed:]

    def _take_known(self) -> list[int]:
        """Take shards without a byte in the range, known to be zeros; the readable others."""
        layout = self._opened.layout
        others = []
        for shard in range(layout.total):
            if shard in self._avoid:
                continue
            if layout.payload_length(shard) > self._offset:
                others.append(shard)
            else:
                self.present[shard] = memoryview(bytes(self._length))
        return self._gatherer.order(self._opened, others)

    def _take_cached(self, shard: int, *, patient: bool) -> bool:
        size = min(self._length, self._opened.layout.payload_length(shard) - self._offset)
        raw = self._gatherer.fetch_cached(self._opened, shard, self._offset, size, patient=patient)
        if raw is not None:
            self._take(shard, raw)
        return raw is not None

    def _ask(self, nursery: trio.Nursery, waiting: list[int], missing: int) -> float:
        """Ask as many disks as shards are missing, and one more for each that is late.

        Returns when the next one is going to be late, if that would make a difference.
        """
        now = trio.current_time()
        late = sum(deadline <= now for deadline in self._pending.values())
        if late and not self._gatherer.may_hedge():
            late = 0
        while waiting and len(self._pending) < missing + late:
            shard = waiting.pop(0)
            patience = self._gatherer.patience_with(self._opened, shard, self._length)
            self._pending[shard] = now + patience
            nursery.start_soon(self._fetch, shard)
        if not waiting:
            return inf
        return min((late_at for late_at in self._pending.values() if late_at > now), default=inf)

    async def _fetch(self, shard: int) -> None:
        gatherer, opened = self._gatherer, self._opened
        size = min(self._length, opened.layout.payload_length(shard) - self._offset)
        try:
            if self._checked:
                whole = await gatherer.fetch_checked(opened, shard)
                raw = None if whole is None else whole[self._offset : self._offset + size]
            else:
                raw = await gatherer.fetch(opened, shard, self._offset, size)
            if raw is not None:
                self._take(shard, raw)
        finally:
            del self._pending[shard]
            if self._changed is not None:
                self._changed.set()

    def _take(self, shard: int, raw: bytes) -> None:
        self.present[shard] = padded(raw, self._length)
        if self._arrived is not None:
            self._arrived(shard, raw)

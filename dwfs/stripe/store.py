"""`StripeStore`: the stripe layer's face, an implementation of `ports.DataStore`.

Bytes enter by `append` into the open stripe, leave it when it is full or rotated, and are then
a *flight* of the writer until their seal is committed. Reads look in that order: open stripe,
flights with a buffer, sealed stripes.

The log's side of the bargain (ports.DataStore, "unlogged"): a byte is unlogged until it was handed
to the log by `take_unlogged`, or its stripe is synced, for then the seal is there and goes with
the very next batch. So a batch must always be made as

    take_unlogged() + settled()        or        rotate(), await settle()

without an await between taking and building the record. `append`, `take_unlogged`, `rotate` and
`settled` themselves never await.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EIO, ENOSPC
from functools import partial
from typing import NamedTuple

import trio

from dwfs.codec import LEVEL_DEFAULT, compression_level
from dwfs.errors import PosixError
from dwfs.limits import (
    LOG_INLINE_MAX,
    MIB,
    SECTOR_SIZE,
    STRIPE_READ_CACHE_SIZE,
    STRIPE_SALT_SIZE,
    STRIPE_SECTORS_MAX,
    STRIPE_SIZE_MAX,
    STRIPES_IN_FLIGHT_MAX,
)
from dwfs.ports import DiskListing, ErasureCoder, Randomness, StripeCatalog
from dwfs.stripe.builder import StripeBuilder
from dwfs.stripe.cache import ReadAheadCache
from dwfs.stripe.compressing import CompressingBuilder
from dwfs.stripe.disposal import ShardDisposal
from dwfs.stripe.flight import Flight, FlightState
from dwfs.stripe.gather import ShardGatherer
from dwfs.stripe.layout import buffer_capacity
from dwfs.stripe.opened import Damage, DamageObserver
from dwfs.stripe.reader import StripeReader
from dwfs.stripe.sealing import BufferPool, CipherFactory, ThreadRunner
from dwfs.stripe.space import RECLAIM_SHARE, ReclaimSignal, SpaceAccount
from dwfs.stripe.writer import StripeWriter
from dwfs.types import (
    BackReference,
    Fragment,
    Geometry,
    PoolId,
    StripeData,
    StripeId,
    StripeSeal,
    VolumeId,
)

CREDIT_MAX = 64 * MIB  # bytes admitted against one look at free space
STRIPE_ID_SIZE = 16


class StripeCounters(NamedTuple):
    """For status: what the stripe layer has met since it started."""

    in_flight: int  # closed stripes still in memory
    degraded: int  # stripes written with a shard missing
    damaged: int  # shards found missing or damaged by reads
    rebuilt: int  # reads that needed other shards
    hedged: int  # reads that other shards answered before the disk did


class StripeStore:
    """One per pool and volume key. `nursery` outlives it and runs its writers and prefetches.

    `coder_of(geometry)` makes coders (`dwfs.erasure.make_coder`); `cipher_of(stripe, salt,
    key_version)` a *new* cipher each time; `threads` runs coding. `on_damage` is told of each
    shard that a read found bad. `reclaim` is shared with the `Cleaner`, if there is one.
    """

    def __init__(
        self,
        *,
        pool: PoolId,
        volume: VolumeId,
        geometry: Geometry,
        key_version: int,
        disks: DiskListing,
        catalog: StripeCatalog,
        coder_of: Callable[[Geometry], ErasureCoder],
        cipher_of: CipherFactory,
        randomness: Randomness,
        threads: ThreadRunner,
        nursery: trio.Nursery,
        on_damage: DamageObserver | None = None,
        reclaim: ReclaimSignal | None = None,
    ) -> None:
        self._geometry = geometry
        self._key_version = key_version
        self._disks = disks
        self._catalog = catalog
        self._cipher_of = cipher_of
        self._randomness = randomness
        self._on_damage = on_damage
        self._reclaim = reclaim
        capacity = buffer_capacity(geometry.data, STRIPE_SECTORS_MAX, SECTOR_SIZE)
        self._buffers = BufferPool(capacity, keep=STRIPES_IN_FLIGHT_MAX + 1)
        self._space = SpaceAccount(disks, geometry)
        self._disposal = ShardDisposal(disks, self._space, nursery)
        coder = coder_of(geometry)
        self._writer = StripeWriter(
            pool=pool,
            volume=volume,
            disks=disks,
            space=self._space,
            coder=coder,
            threads=threads,
            buffers=self._buffers,
            nursery=nursery,
            on_released=self._released,
            on_synced=self._synced,
        )
        self._gatherer = ShardGatherer(disks, coder, coder_of, threads, self._found_damage, nursery)
        cache = ReadAheadCache(self._gatherer, nursery, STRIPE_READ_CACHE_SIZE)
        self._reader = StripeReader(self._gatherer, cache, cipher_of, self._seal_of, threads)
        # The open stripes, by level: one but for what is moved out of compressed stripes when the
        # volume isn't compressed any more.
        self._open: dict[int | None, StripeBuilder] = {}
        self._live: dict[StripeId, StripeBuilder] = {}  # stripes that are readable in memory
        self._level: int | None = None  # of compression
        self._unlogged = 0
        self._credit = 0
        self._damaged = 0

    @property
    def space(self) -> SpaceAccount:
        """The account of the disks' free space, for others who put shards on them."""
        return self._space

    # --- writing -----------------------------------------------------------------------------

    async def admit(self, length: int) -> None:
        """Wait until `length` more bytes may be appended, or raise PosixError ENOSPC/EIO."""
        if self._writer.in_memory >= STRIPES_IN_FLIGHT_MAX:
            await self._writer.wait_for_room()
        if length <= self._credit or self._look_at_space(length):
            return
        while await self._make_room():
            if self._writer.in_memory >= STRIPES_IN_FLIGHT_MAX:
                await self._writer.wait_for_room()
            if self._look_at_space(length):
                return
        raise PosixError(ENOSPC, "the pool is full")

    async def admit_for_reclaim(self, length: int) -> None:
        """As `admit`, but may use the disks' reserve: reclaim gives back more than it takes."""
        if self._writer.in_memory >= STRIPES_IN_FLIGHT_MAX:
            await self._writer.wait_for_room()
        usable = self._space.usable(reserve_share=RECLAIM_SHARE)
        if usable is None:
            raise PosixError(EIO, "too few disks to write to")
        if length > usable - self._waiting_bytes():
            raise PosixError(ENOSPC, "the pool is full")

    async def _make_room(self) -> bool:
        """Have reclaim give space back; False if there is no more to come."""
        if self._reclaim is None:
            return False
        return await self._reclaim.request() or await self._space.settle()

    def _waiting_bytes(self) -> int:
        opened = sum(builder.length for builder in self._open.values())
        return self._writer.waiting_bytes + opened

    def _look_at_space(self, length: int) -> bool:
        """Renew the credit; whether it covers `length`."""
        usable = self._space.usable()
        if usable is None:
            raise PosixError(EIO, "too few disks to write to")
        self._credit = min(usable - self._waiting_bytes(), CREDIT_MAX)
        return length <= self._credit

    def append(self, inode: int, offset: int, data: bytes | memoryview) -> list[Fragment]:
        """Take data into the open stripe; returns where it went. Never awaits."""
        return self._append(self._level, inode, offset, data)

    def append_moved(
        self, source: StripeId, inode: int, offset: int, data: bytes | memoryview
    ) -> list[Fragment]:
        """As `append`, of data read from the stripe `source`, which is to die for it.

        What was compressed stays so: else reclaim could take more than it gives back.
        """
        level = self._level
        if level is None:
            seal = self._seal_of(source)
            if seal is not None and seal.frames is not None:
                level = LEVEL_DEFAULT
        return self._append(level, inode, offset, data)

    def _append(
        self, level: int | None, inode: int, offset: int, data: bytes | memoryview
    ) -> list[Fragment]:
        view = memoryview(data)
        size = len(view)
        self._credit -= size
        self._unlogged += size
        fragments: list[Fragment] = []
        position = 0
        while position < size:
            builder = self._open.get(level) or self._open_stripe(level)
            count = min(builder.room, size - position)
            fragments.append(Fragment(builder.stripe, builder.length, count))
            piece = view if count == size else view[position : position + count]
            builder.append(inode, offset + position, piece)
            position += count
            if builder.room <= 0:
                self._writer.submit(self._open.pop(level))
        return fragments

    def _open_stripe(self, level: int | None) -> StripeBuilder:
        stripe = StripeId(self._randomness.bytes(STRIPE_ID_SIZE))
        builder = self._open[level] = self._new_builder(stripe, STRIPE_SECTORS_MAX, level)
        return builder

    def _new_builder(self, stripe: StripeId, sectors: int, level: int | None) -> StripeBuilder:
        salt = self._randomness.bytes(STRIPE_SALT_SIZE)
        size = buffer_capacity(self._geometry.data, sectors, SECTOR_SIZE)
        full = sectors == STRIPE_SECTORS_MAX
        make: Callable[..., StripeBuilder] = StripeBuilder
        if level is not None:
            make = partial(CompressingBuilder, level=level)
        builder = make(
            stripe,
            salt,
            self._key_version,
            self._cipher_of(stripe, salt, self._key_version),
            self._buffers.take(size) if full else bytearray(size),
            sector_size=SECTOR_SIZE,
            sectors=sectors,
        )
        self._live[stripe] = builder
        return builder

    def set_compression(self, setting: str) -> None:
        """Compress what is appended from now on: "off", "zstd", "zstd-1" … "zstd-19".

        Raises ValueError. What is there already stays as it is, and readable.
        """
        level = compression_level(setting)
        if level != self._level:
            self._level = level
            self.rotate()

    def rotate(self) -> None:
        """Close the open stripe; it is coded and written in the background."""
        opened, self._open = self._open, {}
        for builder in opened.values():
            self._writer.submit(builder)

    # --- the log's side ----------------------------------------------------------------------

    def unlogged_bytes(self) -> int:
        """Plaintext bytes that neither the log has nor a seal covers (see the module)."""
        return self._unlogged

    def take_unlogged(self) -> list[StripeData]:
        """Hand all unlogged bytes to the log, which is responsible for them from now on."""
        assert self._unlogged <= LOG_INLINE_MAX
        taken: list[StripeData] = []
        if not self._unlogged:
            return taken
        for builder in self._live.values():
            start, count = builder.logged, builder.length - builder.logged
            if count:
                taken.append(StripeData(builder.stripe, start, builder.read(start, count)))
                builder.logged = builder.length
        assert sum(len(data.data) for data in taken) == self._unlogged
        self._unlogged = 0
        return taken

    async def settle(self) -> list[StripeSeal]:
        """Wait until every closed stripe is written and synced; return seals not yet handed out.

        Raises PosixError EIO if a stripe can't be stored now; the next call tries again.
        """
        await self._writer.settle()
        return self.settled()

    def settled(self) -> list[StripeSeal]:
        """Seals of stripes that are synced and were not handed out before."""
        seals = []
        for flight in self._writer.flights.values():
            if flight.state is FlightState.SYNCED and not flight.handed_out:
                flight.handed_out = True
                seals.append(flight.seal)
        return seals

    def committed(self, seals: Sequence[StripeSeal]) -> None:
        """The catalog now answers for these stripes."""
        for seal in seals:
            self._writer.forget(seal.stripe)

    def restore(self, data: Sequence[StripeData], references: Sequence[BackReference] = ()) -> None:
        """Recovery: take back the plaintext of unsealed stripes, as closed stripes to write.

        `data` may name several stripes and overlap; of each stripe it must be contiguous from 0.
        `references` is the summary, if the caller can tell it, when `data` is of one stripe; a
        stripe without one can't be emptied by the cleaner, only die.
        """
        pieces: dict[StripeId, list[StripeData]] = {}
        for piece in data:
            pieces.setdefault(piece.stripe, []).append(piece)
        assert len(pieces) <= 1 or not references
        for stripe, parts in pieces.items():
            self._restore_one(stripe, sorted(parts, key=lambda part: part.offset), references)

    def _restore_one(
        self, stripe: StripeId, parts: Sequence[StripeData], references: Sequence[BackReference]
    ) -> None:
        assert stripe not in self._live, "a stripe is restored once"
        end = max(part.offset + len(part.data) for part in parts)
        assert end <= STRIPE_SIZE_MAX
        builder = self._new_builder(stripe, -(-end // SECTOR_SIZE), self._level)
        for part in parts:
            fresh = memoryview(part.data)[max(0, builder.length - part.offset) :]
            assert part.offset <= builder.length, "logged data has no gaps"
            if len(fresh):
                builder.append(0, builder.length, fresh)
        builder.adopt_summary(tuple(references))
        builder.logged = builder.length
        self._writer.submit(builder)

    def _released(self, flight: Flight) -> None:
        del self._live[flight.builder.stripe]

    def _synced(self, flight: Flight) -> None:
        builder = flight.builder
        self._unlogged -= builder.length - builder.logged
        builder.logged = builder.length

    # --- reading -----------------------------------------------------------------------------

    def read_now(self, stripe: StripeId, offset: int, length: int) -> bytes | None:
        """Plaintext if it can be had without waiting (memory, page cache), else None."""
        live = self._live.get(stripe)
        if live is not None:
            if offset + length > live.length:
                return None
            return live.read(offset, length)
        return self._reader.read_now(stripe, offset, length)

    async def read(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """Exactly `length` plaintext bytes. Rebuilds from parity. Raises PosixError EIO."""
        live = self._live.get(stripe)
        if live is not None:
            if offset + length > live.length:
                raise PosixError(EIO, f"stripe {stripe.hex()} has no bytes at {offset}+{length}")
            return live.read(offset, length)
        return await self._reader.read(stripe, offset, length)

    async def read_stored(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """As `read`, of a sealed stripe's bytes as they were sealed: compressed, if they were.

        Offset and length count such bytes.
        """
        return await self._reader.read_stored(stripe, offset, length)

    def prefetch(self, stripe: StripeId) -> None:
        """Start reading the whole stripe into the read cache; returns at once."""
        if stripe not in self._live:
            self._reader.prefetch(stripe)

    def _seal_of(self, stripe: StripeId) -> StripeSeal | None:
        flight = self._writer.flights.get(stripe)
        if flight is not None and flight.released:
            return flight.seal
        return self._catalog.seal_of(stripe)

    def _found_damage(self, damage: Damage) -> None:
        """Pass on what is still true: a reader may have looked where a shard no longer has to be."""
        seal = self._seal_of(damage.stripe)
        if seal is None or seal.placement[damage.shard] != damage.disk:
            return
        self._damaged += 1
        if self._on_damage is not None:
            self._on_damage(damage)

    def release_idle(self) -> None:
        """Give back the read cache and spare buffers: nobody has read or written for a while."""
        self._reader.release_idle()
        self._buffers.drop()

    # --- stripes' end, and status ------------------------------------------------------------

    def is_in_memory(self, stripe: StripeId) -> bool:
        """Whether the stripe is open, its seal is not yet committed, or its shards are moving.

        The sweep leaves such stripes alone: their shards may be in places that no seal tells yet.
        """
        return self._is_unsealed(stripe) or self._disposal.is_moving(stripe)

    def _is_unsealed(self, stripe: StripeId) -> bool:
        return stripe in self._live or stripe in self._writer.flights

    async def moves_settled(self) -> None:
        """Wait until every move of shards that is under way now has ended."""
        await self._disposal.moves_settled()

    def begin_move(self, stripe: StripeId) -> bool:
        """Claim a stripe whose shards are to change their places; `end_move` must follow.

        False if it is unknown, not sealed and committed, or already moving.
        """
        if self._is_unsealed(stripe) or self._catalog.seal_of(stripe) is None:
            return False
        return self._disposal.begin_move(stripe)

    def end_move(self, stripe: StripeId) -> None:
        """The move is over, with or without success; the catalog tells where the shards are.

        A stripe that died meanwhile has its shards deleted now.
        """
        self._disposal.end_move(stripe)

    def forget(self, stripe: StripeId) -> None:
        """The stripe's shards have moved (repair): read its seal again."""
        self._reader.forget(stripe)

    async def drop(self, stripes: Sequence[StripeId]) -> None:
        """Delete the shards of stripes that no durable state refers to.

        The catalog may already have forgotten them: what a disk's index holds is deleted. Disks
        that are away are swept when they come back; for one that hangs nobody waits.
        """
        doomed = []
        for stripe in stripes:
            seal = self._seal_of(stripe)
            doomed.append((stripe, (self._geometry if seal is None else seal.geometry).total))
            self._reader.forget(stripe)
            self._writer.forget(stripe)
        await self._disposal.drop(doomed)
        self._credit = 0  # look again: space was given back

    def free_bytes(self) -> int:
        """Plaintext bytes that can still be written; for statfs."""
        return max(0, (self._space.usable() or 0) - self._waiting_bytes())

    def capacity_bytes(self) -> int:
        """Plaintext bytes of an empty pool; for statfs."""
        return self._space.capacity()

    def free_fraction(self) -> float:
        """Free share of the capacity; sets the pace of reclaim."""
        capacity = self.capacity_bytes()
        return min(1.0, self.free_bytes() / capacity) if capacity else 0.0

    def counters(self) -> StripeCounters:
        """For status."""
        return StripeCounters(
            in_flight=self._writer.in_memory,
            degraded=self._writer.degraded,
            damaged=self._damaged,
            rebuilt=self._reader.rebuilt_runs,
            hedged=self._gatherer.hedges_won,
        )

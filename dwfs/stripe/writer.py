"""Closed stripes on their way to the disks: coding, placing, putting, syncing.

A closed stripe is a *flight*. Its states:

    QUEUED ──▶ WRITING ──▶ WRITTEN ──▶ SYNCED ──▶ (committed: forgotten here)
      ▲           │            │
      │           ▼            │ a disk's sync failed: its shards are lost
      └─────── FAILED ◀────────┘ (the flight goes back to QUEUED and fills the gaps)

- WRITTEN: each shard is on a disk, or no disk is left for it and at least k shards are stored.
- SYNCED: every stored shard was covered by a sync that *started* after its put had returned. Only
  then is there a seal for the log.
- FAILED: fewer than k shards could be stored. The stripe stays in memory and readable; `settle`
  and `wait_for_room` try again.

A failed put is repeated on another disk. A put that is given up, because its disk hangs, may still
read from the stripe's buffers for as long as it hangs: they are never used again. A failed sync means
that the kernel may have dropped pages it will never report again, so every shard of the disk not covered
by an earlier sync is written afresh elsewhere, and the disk is not used again for that stripe. What it has
of them is deleted: until then the disk could promise nothing else either. A disk that went away since
the put counts as one whose sync failed, also if it is back by then.

A WRITTEN stripe is in the disks' page caches, so its buffer is *released* at once and it is read
from the disks: streaming runs at the speed of memory and is throttled by the kernel, not by our
syncs. Two kinds keep their buffer until SYNCED: those written degraded, and those with so few
unlogged bytes that the log may still ask for them. When a sync fails after the release, the shards of
that disk are gone but the others are not: the stripe is sealed degraded, and repaired later.

Stripes are synced in the background as soon as `STRIPES_UNSYNCED_MAX` of them wait for it, so that little is
left to do for whoever calls fsync, and one sync serves many stripes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EIO, ENOSPC

import msgspec
import trio

from dwfs.errors import DiskFullError, DiskTimeoutError, MediumError, PosixError
from dwfs.limits import (
    CODING_INLINE_MAX,
    LOG_INLINE_MAX,
    SECTOR_SIZE,
    STRIPE_SECTORS_MAX,
    STRIPES_IN_FLIGHT_MAX,
    STRIPES_UNSYNCED_MAX,
)
from dwfs.ports import DiskListing, ErasureCoder, ShardStore
from dwfs.stripe.builder import StripeBuilder
from dwfs.stripe.compressing import CompressingBuilder
from dwfs.stripe.disposal import delete_shards
from dwfs.stripe.flight import NO_DISK, Flight, FlightState
from dwfs.stripe.layout import buffer_capacity
from dwfs.stripe.placement import choose_disks
from dwfs.stripe.sealing import BufferPool, ThreadRunner
from dwfs.stripe.shard_header import encode_header
from dwfs.stripe.space import ADMITTED_SHARE, SpaceAccount, shard_cost
from dwfs.types import Geometry, PoolId, ShardKey, StripeId, StripeSeal, VolumeId


class StripeWriter:
    """Drives flights.

    `on_released(flight)` is called before the flight's buffer is let go, `on_synced(flight)` when
    its seal is there; the first comes first.
    """

    def __init__(
        self,
        *,
        pool: PoolId,
        volume: VolumeId,
        disks: DiskListing,
        space: SpaceAccount,
        coder: ErasureCoder,
        threads: ThreadRunner,
        buffers: BufferPool,
        nursery: trio.Nursery,
        on_released: Callable[[Flight], None],
        on_synced: Callable[[Flight], None],
    ) -> None:
        self._pool = pool
        self._volume = volume
        self._disks = disks
        self._space = space
        self._coder = coder
        self._threads = threads
        self._buffers = buffers
        geometry = coder.geometry
        parity_size = buffer_capacity(geometry.data, STRIPE_SECTORS_MAX, SECTOR_SIZE)
        self._parity_buffers = BufferPool(
            parity_size // geometry.data * geometry.parity, keep=STRIPES_IN_FLIGHT_MAX
        )
        self._nursery = nursery
        self._on_released = on_released
        self._on_synced = on_synced
        self._slots = trio.Semaphore(STRIPES_IN_FLIGHT_MAX)
        self._sync_lock = trio.Lock()
        self._sync_started = False
        self._changed = trio.Event()
        self.flights: dict[StripeId, Flight] = {}  # in the order in which they were closed
        self.in_memory = 0  # flights not yet released
        self.waiting_bytes = 0  # plaintext of flights that are not yet on the disks
        self.degraded = 0  # stripes sealed with a shard missing
        self.lost = 0  # stripes whose disks failed the sync, too many to rebuild them
        self._loss_untold = False

    @property
    def geometry(self) -> Geometry:
        """Of the stripes that are written."""
        return self._coder.geometry

    def submit(self, builder: StripeBuilder) -> None:
        """Close the stripe and write it in the background, compressed if it is to be."""
        layout = builder.close(self.geometry)
        seal = StripeSeal(
            stripe=builder.stripe,
            salt=builder.salt,
            key_version=builder.key_version,
            geometry=self.geometry,
            length=builder.length,
            sector_size=builder.sector_size,
            placement=(NO_DISK,) * layout.total,
            summary=builder.summary(),
        )
        flight = Flight(builder, layout, seal)
        self.flights[builder.stripe] = flight
        self.in_memory += 1
        self.waiting_bytes += flight.waiting_bytes
        self._nursery.start_soon(self._write, flight)

    def forget(self, stripe: StripeId) -> None:
        """The seal is committed."""
        flight = self.flights.get(stripe)
        if flight is not None and flight.state is FlightState.SYNCED:
            del self.flights[stripe]

    async def wait_for_room(self) -> None:
        """Wait until another stripe may be closed. Raises PosixError EIO if none can be stored."""
        retried = False
        while self.in_memory >= STRIPES_IN_FLIGHT_MAX:
            held = [flight for flight in self.flights.values() if not flight.released]
            states = {flight.state for flight in held}
            if states == {FlightState.FAILED}:
                if retried:
                    raise self._refusal(held)
                retried = True
                self._retry(held)
            if FlightState.WRITTEN in states:
                self._sync_soon()
            await self._changed.wait()

    async def settle(self) -> None:
        """Wait until every stripe closed by now is SYNCED.

        Raises PosixError EIO when one can't be stored; the others are settled all the same.
        """
        wanted = [f for f in self.flights.values() if f.state is not FlightState.SYNCED]
        self._retry(wanted)
        while True:
            states = {flight.state for flight in wanted}
            if FlightState.QUEUED in states or FlightState.WRITING in states:
                await self._changed.wait()
            elif FlightState.WRITTEN in states:
                await self._sync()
            elif FlightState.FAILED in states:
                raise self._refusal(wanted)
            elif self._loss_untold:
                self._loss_untold = False
                raise PosixError(EIO, "more disks failed to sync than parity can replace")
            else:
                return

    def _retry(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            if flight.state is FlightState.FAILED:
                flight.state = FlightState.QUEUED
                flight.avoid.clear()
                flight.full.clear()
                self._nursery.start_soon(self._write, flight)

    def _refusal(self, flights: Sequence[Flight]) -> PosixError:
        """Why the FAILED ones of `flights` can't be stored: for lack of room, or of disks."""
        for flight in flights:
            if flight.state is FlightState.FAILED:
                broken = flight.avoid - flight.full
                sound = [store for store in self._disks.writable() if store.disk not in broken]
                if len(sound) < flight.layout.data:
                    return PosixError(EIO, "too few disks can take a stripe")
        return PosixError(ENOSPC, "the disks are full")

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _write(self, flight: Flight) -> None:
        async with self._slots:
            flight.state = FlightState.WRITING
            if isinstance(flight.builder, CompressingBuilder) and flight.builder.uncompressed:
                await self._compress(flight, flight.builder)
            await self._code(flight)
            stored = await self._put_missing(flight)
        if stored:
            flight.state = FlightState.WRITTEN
            self.waiting_bytes -= flight.waiting_bytes
            flight.waiting_bytes = 0
            unlogged = flight.builder.length - flight.builder.logged
            if self._is_whole(flight) and not 0 < unlogged <= LOG_INLINE_MAX:
                self._release(flight)
        else:
            flight.state = FlightState.FAILED
        self._notify()
        self._sync_if_due()

    async def _compress(self, flight: Flight, builder: CompressingBuilder) -> None:
        """Compress and seal, in steps: reads wait for the same worker threads."""
        builder.lend(self._buffers.take(builder.sealed_capacity(self.geometry)))
        while not builder.seal_some(await self._threads.run(builder.compress_some)):
            pass
        flight.layout, frames = builder.finish(self.geometry)
        flight.seal = msgspec.structs.replace(flight.seal, frames=frames)

    async def _code(self, flight: Flight) -> None:
        if flight.parity or not flight.layout.parity:
            return
        width = flight.layout.shard_length
        size = flight.layout.parity * width
        if size > CODING_INLINE_MAX:
            flight.parity_buffer = self._parity_buffers.take(size)
            view = memoryview(flight.parity_buffer)
        else:
            view = memoryview(bytearray(size))
        parity = [view[i * width : (i + 1) * width] for i in range(flight.layout.parity)]
        columns = flight.builder.columns(flight.layout)
        if flight.layout.total * width > CODING_INLINE_MAX:
            await self._threads.run(self._coder.encode, columns, parity)
        else:
            self._coder.encode(columns, parity)
        flight.parity = parity

    async def _put_missing(self, flight: Flight) -> bool:
        """Put shards until each has a disk or no disk is left; False if fewer than k are stored."""
        layout = flight.layout
        needed = layout.stored_shards()
        while True:
            missing = [shard for shard in needed if not flight.placement[shard]]
            chosen = self._choose(flight, len(missing))
            if not missing or not chosen:
                break
            async with trio.open_nursery() as nursery:
                # Data shards come first: with too few disks it is parity that goes without.
                for shard, store in zip(missing, chosen, strict=False):
                    # Promised before anybody else can choose; redeemed when the put is over.
                    self._space.promise(store.disk, layout.payload_length(shard))
                    nursery.start_soon(self._put, flight, shard, store)
        # Empty data shards count as stored: everybody knows what they hold.
        return layout.total - len(missing) >= layout.data

    def _choose(self, flight: Flight, count: int) -> list[ShardStore]:
        exclude = flight.avoid.union(flight.placement)
        width = shard_cost(flight.layout.shard_length)
        stripe = flight.builder.stripe
        disks = choose_disks(stripe, self._space.candidates(exclude), count, width)
        if len(disks) < count:
            # The bytes were admitted, so they may use what is reserved.
            candidates = self._space.candidates(exclude, reserve_share=ADMITTED_SHARE)
            disks = choose_disks(stripe, candidates, count, width)
        return [store for disk in disks if (store := self._disks.get(disk)) is not None]

    async def _put(self, flight: Flight, shard: int, store: ShardStore) -> None:
        layout = flight.layout
        if shard < layout.data:
            payload = flight.builder.payload(layout, shard)
        else:
            payload = flight.parity[shard - layout.data]
        header = encode_header(self._pool, self._volume, flight.seal, shard)
        try:
            await store.put(ShardKey(flight.builder.stripe, shard), header, payload)
        except DiskFullError:
            flight.avoid.add(store.disk)
            flight.full.add(store.disk)
        except MediumError as error:
            flight.lent = flight.lent or isinstance(error, DiskTimeoutError)
            flight.avoid.add(store.disk)
            self._disks.failed(error, store.disk)
        else:
            flight.placement[shard] = store.disk
            flight.unsynced[shard] = store
            self._space.note_put(store.disk, len(payload))
        finally:
            self._space.redeem(store.disk, len(payload))

    def _sync_if_due(self) -> None:
        waiting = sum(f.state is FlightState.WRITTEN for f in self.flights.values())
        if waiting >= STRIPES_UNSYNCED_MAX:
            self._sync_soon()

    def _sync_soon(self) -> None:
        if not self._sync_started:
            self._sync_started = True
            self._nursery.start_soon(self._sync_in_background)

    async def _sync_in_background(self) -> None:
        try:
            await self._sync()
        finally:
            self._sync_started = False
        self._sync_if_due()

    async def _sync(self) -> None:
        """Sync every disk that a WRITTEN flight is on; one round at a time."""
        async with self._sync_lock:
            covered = [
                (flight, dict(flight.unsynced))
                for flight in self.flights.values()
                if flight.state is FlightState.WRITTEN
            ]
            # Each once, in an order that repeats.
            touched = dict.fromkeys(store for _, shards in covered for store in shards.values())
            failed: set[ShardStore] = set()
            async with trio.open_nursery() as nursery:
                for store in touched:
                    nursery.start_soon(self._sync_disk, store, failed)
            doubtful: dict[ShardStore, list[ShardKey]] = {store: [] for store in failed}
            for flight, shards in covered:
                lost = [shard for shard, store in shards.items() if store in failed]
                for shard in self._conclude(flight, lost):
                    key = ShardKey(flight.builder.stripe, shard)
                    doubtful[shards[shard]].append(key)
            for store, keys in doubtful.items():
                # While the disk has them it can't promise anything.
                self._nursery.start_soon(delete_shards, store, keys, self._disks, self._space)
            self._notify()

    async def _sync_disk(self, store: ShardStore, failed: set[ShardStore]) -> None:
        # A disk that went away and came back has another store, which knows nothing of what the
        # first had promised and may have lost.
        if self._disks.get(store.disk) is not store:
            failed.add(store)
            return
        try:
            await store.sync()
        except MediumError as error:
            failed.add(store)
            self._disks.failed(error, store.disk)

    def _conclude(self, flight: Flight, lost: list[int]) -> list[int]:
        """After a sync that lost these shards; returns those of them that the stripe gives up."""
        flight.unsynced.clear()
        if lost and flight.released and self._stored(flight) - len(lost) < flight.layout.data:
            # Beyond rebuilding. What the caches still hold stays readable; a later reader's AEAD
            # check tells sound bytes from others, and whoever waits is told now.
            self.lost += 1
            self._loss_untold = True
            lost = []
        for shard in lost:
            flight.avoid.add(flight.placement[shard])
            flight.placement[shard] = NO_DISK
        if lost and not flight.released:
            flight.state = FlightState.QUEUED
            self._nursery.start_soon(self._write, flight)
        else:
            self._finish(flight)
        return lost

    def _stored(self, flight: Flight) -> int:
        """Shards that can be had; empty data shards count, as everybody knows what they hold."""
        missing = sum(not flight.placement[shard] for shard in flight.layout.stored_shards())
        return flight.layout.total - missing

    def _is_whole(self, flight: Flight) -> bool:
        return self._stored(flight) == flight.layout.total

    def _release(self, flight: Flight) -> None:
        """Give the buffers back; from now on the stripe is read from its disks."""
        flight.seal = msgspec.structs.replace(flight.seal, placement=tuple(flight.placement))
        flight.released = True
        self.in_memory -= 1
        self._on_released(flight)
        buffers, parity_buffer = flight.builder.release(), flight.parity_buffer
        flight.parity = []
        flight.parity_buffer = None
        if flight.lent:
            return  # the garbage collector takes them when the disk lets go
        # All puts have returned (shielded by the disks' executors), so nobody reads the buffers.
        for buffer in buffers:
            self._buffers.give(buffer)
        if parity_buffer is not None:
            self._parity_buffers.give(parity_buffer)

    def _finish(self, flight: Flight) -> None:
        flight.seal = msgspec.structs.replace(flight.seal, placement=tuple(flight.placement))
        flight.state = FlightState.SYNCED
        self.degraded += not self._is_whole(flight)
        if not flight.released:
            self._release(flight)
        self._on_synced(flight)

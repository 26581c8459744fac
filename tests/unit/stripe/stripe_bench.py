"""Disks in memory with faults to order, and a stripe store on top of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import TypeVar, TypeVarTuple

import trio

from dwfs.crypto import RootKeys, SecretBytes
from dwfs.disk.space import reserve_bytes
from dwfs.erasure import make_coder
from dwfs.errors import (
    DiskFullError,
    DiskTimeoutError,
    MediumError,
    ShardDamagedError,
    ShardMissingError,
)
from dwfs.limits import GIB
from dwfs.ports import DiskListing, DiskRole, ScrubFinding, ScrubPiece, ShardStore
from dwfs.stripe import (
    CipherFactory,
    Damage,
    DamageObserver,
    ReclaimSignal,
    StripeCipher,
    StripeStore,
    ThreadRunner,
)
from dwfs.types import (
    DiskId,
    DiskPosition,
    DiskSpace,
    Geometry,
    PoolId,
    ShardKey,
    StripeId,
    StripeSeal,
    VolumeId,
)

ArgumentsT = TypeVarTuple("ArgumentsT")
ResultT = TypeVar("ResultT")
POOL = PoolId(b"p" * 16)
VOLUME = VolumeId(b"v" * 16)


class FaultyDisk:
    """A ShardStore in memory. A failed sync loses all that was put since the last one.

    While `hung` is an event, every operation that waits waits for it; `deadline_seconds` gives it up.
    """

    def __init__(self, disk: DiskId, size: int = GIB) -> None:
        self.disk = disk
        self.size = size
        self.shards: dict[ShardKey, tuple[bytes, bytearray]] = {}
        self.dead = False
        self.fail_puts = False
        self.fail_syncs = 0
        self.unsynced: set[ShardKey] = set()
        self.cached = True
        self.syncs = 0
        self.reads = 0
        self.hung: trio.Event | None = None
        self.deadline_seconds = inf

    async def _begin(self, operation: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.hung is not None:
            with trio.move_on_after(self.deadline_seconds) as scope:
                await self.hung.wait()
            if scope.cancelled_caught:
                raise DiskTimeoutError(self.disk, operation, "timed out")
        self._check(operation)

    def _check(self, operation: str) -> None:
        if self.dead:
            raise MediumError(self.disk, operation, "dead")

    def _payload(self, key: ShardKey) -> bytearray:
        if key not in self.shards:
            raise ShardMissingError(self.disk, "read", "missing")
        return self.shards[key][1]

    async def put(self, key: ShardKey, header: bytes, payload: memoryview) -> None:
        await self._begin("put")
        if len(payload) > self.size - self.space().used_bytes:
            raise DiskFullError(self.disk, "put", "ENOSPC")
        if self.fail_puts:
            raise MediumError(self.disk, "put", "refused")
        assert len(header) <= 1024
        self.shards[key] = (header, bytearray(payload))
        self.unsynced.add(key)

    def has(self, key: ShardKey) -> bool:
        return key in self.shards

    def length(self, key: ShardKey) -> int:
        return len(self._payload(key))

    def read_cached(
        self, key: ShardKey, offset: int, length: int, *, patient: bool = True
    ) -> bytes | None:
        self._check("read")
        cached = self.cached and self.hung is None
        return bytes(self._payload(key)[offset : offset + length]) if cached else None

    async def read(self, key: ShardKey, offset: int, length: int) -> bytes:
        self.reads += 1
        await self._begin("read")
        return bytes(self._payload(key)[offset : offset + length])

    async def read_verified(self, key: ShardKey) -> tuple[bytes, bytes]:
        await self._begin("read")
        if key in self.damaged:
            raise ShardDamagedError(self.disk, "read", "checksum")
        return self.shards[key][0], bytes(self._payload(key))

    async def read_back(self, key: ShardKey) -> tuple[bytes, bytes]:
        return await self.read_verified(key)

    async def scrub(self, start: DiskPosition, size_bytes: int) -> ScrubPiece:
        await self._begin("scrub")
        return ScrubPiece((), 0, 0, None)  # the mending's tests use MemoryShardStore

    async def erase(self, finding: ScrubFinding) -> None:
        await self._begin("erase")

    async def adopt(self, finding: ScrubFinding) -> None:
        await self._begin("adopt")

    @property
    def damaged(self) -> set[ShardKey]:
        return {key for key, (header, _) in self.shards.items() if header.endswith(b"!")}

    def damage(self, key: ShardKey, offset: int = 0) -> None:
        """Flip a byte; the checksum of `read_verified` notices."""
        header, payload = self.shards[key]
        payload[offset] ^= 0xFF
        self.shards[key] = (header + b"!", payload)

    async def delete(self, keys: Sequence[ShardKey]) -> None:
        await self._begin("delete")
        for key in keys:
            self.shards.pop(key, None)

    async def sync(self) -> None:
        await self._begin("sync")
        self.syncs += 1
        if self.fail_syncs:
            self.fail_syncs -= 1
            # What a kernel may do: drop the pages and report them never again.
            for key in self.unsynced:
                self.shards.pop(key, None)
            self.unsynced.clear()
            raise MediumError(self.disk, "sync", "EIO")
        self.unsynced.clear()

    def keys(self, after: ShardKey | None, limit: int) -> list[ShardKey]:
        ordered = sorted(self.shards, key=lambda key: (key.stripe, key.number))
        if after is not None:
            ordered = [k for k in ordered if (k.stripe, k.number) > (after.stripe, after.number)]
        return ordered[:limit]

    def space(self) -> DiskSpace:
        used = sum(len(payload) for _, payload in self.shards.values())
        reserve = reserve_bytes(self.size)
        available = self.size - used - reserve
        left = max(0, reserve + min(0, available))
        return DiskSpace(self.size, max(0, available), used, left)


class Disks:
    """A DiskListing; a dead disk is not written to, and is listed until it is `removed`."""

    def __init__(self, count: int, size: int = GIB) -> None:
        self.disks: list[FaultyDisk] = [
            FaultyDisk(DiskId(bytes([n + 1]) * 16), size) for n in range(count)
        ]
        self.removed: set[DiskId] = set()
        self.roles: dict[DiskId, DiskRole] = {}
        self.patience: dict[DiskId, float] = {}
        self.failures: list[DiskId] = []

    def writable(self) -> list[ShardStore]:
        return [disk for disk in self.disks if not disk.dead and disk.disk not in self.removed]

    def role(self, disk: DiskId) -> DiskRole:
        present = any(store.disk == disk for store in self)
        return self.roles.get(disk, DiskRole.KEEP if present else DiskRole.GONE)

    def patience_seconds(self, disk: DiskId) -> float:
        return self.patience.get(disk, inf)

    def get(self, disk: DiskId) -> FaultyDisk | None:
        for store in self.disks:
            if store.disk == disk and disk not in self.removed:
                return store
        return None

    def failed(self, error: Exception, disk: DiskId) -> None:
        assert isinstance(error, MediumError)
        self.failures.append(disk)

    def __iter__(self) -> Iterator[ShardStore]:
        return iter([disk for disk in self.disks if disk.disk not in self.removed])


class Catalog:
    """Seals by stripe."""

    def __init__(self) -> None:
        self.known: dict[StripeId, StripeSeal] = {}

    def seal_of(self, stripe: StripeId) -> StripeSeal | None:
        return self.known.get(stripe)

    def dead_stripes(self, limit: int) -> list[StripeId]:
        return []

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        return []

    def seals(self, after: StripeId | None, limit: int) -> list[StripeSeal]:
        floor = after or b""
        return [self.known[stripe] for stripe in sorted(self.known) if stripe > floor][:limit]


class SeededRandomness:
    """Randomness that repeats."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class TrioThreads:
    """A ThreadRunner that owes nothing to the disk layer."""

    async def run(
        self, function: Callable[[*ArgumentsT], ResultT], /, *arguments: *ArgumentsT
    ) -> ResultT:
        return await trio.to_thread.run_sync(function, *arguments)


class InlineThreads:
    """A ThreadRunner for simulated time, which must not run on while a real thread works."""

    async def run(
        self, function: Callable[[*ArgumentsT], ResultT], /, *arguments: *ArgumentsT
    ) -> ResultT:
        await trio.lowlevel.checkpoint()
        return function(*arguments)


class Bench:
    """A store, its disks and its catalog; `commit` plays the log."""

    def __init__(
        self, store: StripeStore, disks: Disks, catalog: Catalog, cipher_of: CipherFactory
    ) -> None:
        self.store = store
        self.cipher_of = cipher_of
        self.disks = disks
        self.catalog = catalog
        self.damage: list[Damage] = []

    async def commit(self) -> list[StripeSeal]:
        """Rotate, settle, apply the seals and tell the store."""
        self.store.rotate()
        seals = await self.store.settle()
        for seal in seals:
            self.catalog.known[seal.stripe] = seal
        self.store.committed(seals)
        return seals


@asynccontextmanager
async def stripe_store(
    geometry: Geometry,
    disks: DiskListing,
    catalog: Catalog,
    *,
    seed: int,
    threads: ThreadRunner,
    on_damage: DamageObserver,
    reclaim: ReclaimSignal | None = None,
) -> AsyncIterator[tuple[StripeStore, CipherFactory]]:
    """A store with real ciphers and a real coder, and where it has its ciphers from."""
    with RootKeys(SecretBytes.copy_of(b"k" * 32), POOL) as keys:
        volume = keys.volume(VOLUME, 1)

        def cipher_of(stripe: StripeId, salt: bytes, _version: int) -> StripeCipher:
            return volume.stripe_cipher(stripe, salt)

        async with trio.open_nursery() as nursery:
            store = StripeStore(
                pool=POOL,
                volume=VOLUME,
                geometry=geometry,
                key_version=1,
                disks=disks,
                catalog=catalog,
                coder_of=make_coder,
                cipher_of=cipher_of,
                randomness=SeededRandomness(seed),
                threads=threads,
                nursery=nursery,
                on_damage=on_damage,
                reclaim=reclaim,
            )
            yield store, cipher_of
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def bench(
    data: int = 4,
    parity: int = 2,
    disks: int | Disks = 6,
    *,
    seed: int = 0,
    catalog: Catalog | None = None,
    reclaim: ReclaimSignal | None = None,
    threads: ThreadRunner | None = None,
) -> AsyncIterator[Bench]:
    """A store over disks in memory with real ciphers and a real coder."""
    listing = Disks(disks) if isinstance(disks, int) else disks
    catalog = catalog or Catalog()
    found: list[Damage] = []
    async with stripe_store(
        Geometry(data, parity),
        listing,
        catalog,
        seed=seed,
        threads=threads or TrioThreads(),
        on_damage=found.append,
        reclaim=reclaim,
    ) as (store, cipher_of):
        made = Bench(store, listing, catalog, cipher_of)
        made.damage = found
        yield made

"""A pool in memory that heals: disks with roles, a state with a log, and a mover on top of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from errno import EIO
from math import inf

import msgspec
import trio

from dwfs.erasure import make_coder
from dwfs.errors import PosixError
from dwfs.limits import GIB
from dwfs.ports import DiskRole, ShardStore
from dwfs.stripe import (
    Damage,
    Pacer,
    Repairer,
    ShardMover,
    StripeHealth,
    StripeStore,
    ThreadRunner,
    layout_of,
)
from dwfs.types import DiskId, Geometry, ShardKey, ShardMove, StripeId, StripeSeal
from tests.contract.memory_shard_store import MemoryShardStore
from tests.unit.stripe.stripe_bench import POOL, VOLUME, Catalog, TrioThreads, stripe_store


class RoleDisks:
    """A DiskListing; disks that are AWAY or GONE can't be read, only KEEP ones are written to."""

    def __init__(self, count: int, size: int = GIB) -> None:
        self.disks = {disk.disk: disk for disk in (made(n, size) for n in range(count))}
        self.roles: dict[DiskId, DiskRole] = {}
        self.readonly: set[DiskId] = set()
        self.patience: dict[DiskId, float] = {}
        self.failures: list[tuple[DiskId, Exception]] = []

    def add(self, number: int, size: int = GIB) -> MemoryShardStore:
        """One more disk."""
        disk = made(number, size)
        self.disks[disk.disk] = disk
        return disk

    def role(self, disk: DiskId) -> DiskRole:
        return self.roles.get(disk, DiskRole.KEEP if disk in self.disks else DiskRole.GONE)

    def patience_seconds(self, disk: DiskId) -> float:
        return self.patience.get(disk, inf)

    def writable(self) -> list[ShardStore]:
        return [
            disk
            for disk in self.disks.values()
            if self.role(disk.disk) is DiskRole.KEEP and disk.disk not in self.readonly
        ]

    def get(self, disk: DiskId) -> MemoryShardStore | None:
        readable = self.role(disk) in (DiskRole.KEEP, DiskRole.LEAVE)
        return self.disks.get(disk) if readable else None

    def failed(self, error: Exception, disk: DiskId) -> None:
        self.failures.append((disk, error))

    def __iter__(self) -> Iterator[ShardStore]:
        return iter([disk for disk in self.disks.values() if self.get(disk.disk)])


def made(number: int, size: int) -> MemoryShardStore:
    """The disk of that number."""
    return MemoryShardStore(DiskId(bytes([number + 1]) * 16), size)


class State(Catalog):
    """A catalog with a log: what `durable` says is what a crash brings back. A `MoveTarget`."""

    def __init__(self) -> None:
        super().__init__()
        self.durable: dict[StripeId, StripeSeal] = {}
        self.fail_barriers = False
        self.barriers = 0
        self.before_place: Callable[[], Awaitable[None]] | None = None
        self.after_apply: Callable[[], None] | None = None  # before the barrier

    async def place(self, moves: Sequence[ShardMove]) -> None:
        if self.before_place is not None:
            await self.before_place()
        for move in moves:
            seal = self.known.get(move.stripe)
            if seal is None or seal.placement[move.number] != move.source:
                continue
            placement = list(seal.placement)
            placement[move.number] = move.target
            self.known[move.stripe] = msgspec.structs.replace(seal, placement=tuple(placement))
        if self.after_apply is not None:
            self.after_apply()
        await trio.lowlevel.checkpoint()
        if self.fail_barriers:
            raise PosixError(EIO, "no log")
        self.barrier()

    def barrier(self) -> None:
        self.barriers += 1
        self.durable = dict(self.known)

    def crash(self) -> None:
        self.known = dict(self.durable)


class TrioClock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ns(self) -> int:
        return 0


class Mending:
    """All the parts. `contents` remembers what was written."""

    def __init__(
        self, store: StripeStore, disks: RoleDisks, state: State, mover: ShardMover
    ) -> None:
        self.store = store
        self.disks = disks
        self.state = state
        self.mover = mover
        self.activity = 0
        self.pacer = Pacer(TrioClock(), lambda: self.activity)
        self.repairer = Repairer(mover=mover, catalog=state, pacer=self.pacer, clock=TrioClock())
        self.contents: dict[StripeId, bytes] = {}
        self.damage: list[Damage] = []

    def found_damage(self, damage: Damage) -> None:
        """What readers report goes to repair."""
        self.damage.append(damage)
        self.repairer.report(damage)

    async def write(self, size: int, seed: int = 0) -> StripeSeal:
        """One stripe of that many random bytes, durable."""
        return await self.write_bytes(random.Random(seed).randbytes(size))

    async def write_bytes(self, data: bytes) -> StripeSeal:
        """One stripe of these bytes, durable."""
        (fragment,) = self.store.append(1, 0, data)
        self.store.rotate()
        seals = await self.store.settle()
        for seal in seals:
            self.state.known[seal.stripe] = seal
        self.state.barrier()
        self.store.committed(seals)
        self.contents[fragment.stripe] = data
        return next(seal for seal in seals if seal.stripe == fragment.stripe)

    def seal(self, stripe: StripeId) -> StripeSeal:
        """As the state has it now."""
        seal = self.state.seal_of(stripe)
        assert seal is not None
        return seal

    def home(self, stripe: StripeId, number: int) -> MemoryShardStore:
        """Where the seal puts the shard."""
        return self.disks.disks[self.seal(stripe).placement[number]]

    def health(self, stripe: StripeId) -> StripeHealth:
        return self.mover.look_at(self.seal(stripe))

    async def check_whole(self, stripe: StripeId) -> None:
        """Every shard is where the seal says, sound, on distinct disks, and nowhere else."""
        seal = self.seal(stripe)
        stored = layout_of(seal).stored_shards()
        homes = [seal.placement[number] for number in stored]
        assert len(set(homes)) == len(homes)
        for number in stored:
            key = ShardKey(stripe, number)
            holders = [disk.disk for disk in self.disks.disks.values() if disk.has(key)]
            assert holders == [seal.placement[number]]
            await self.disks.disks[seal.placement[number]].read_verified(key)
        await self.check_content(stripe)

    async def check_content(self, stripe: StripeId) -> None:
        """It reads as it was written, from the disks."""
        self.store.forget(stripe)
        data = self.contents[stripe]
        assert await self.store.read(stripe, 0, len(data)) == data


@asynccontextmanager
async def mending(
    data: int = 4,
    parity: int = 2,
    disks: int | RoleDisks = 7,
    *,
    seed: int = 0,
    state: State | None = None,
    threads: ThreadRunner | None = None,
    successor: tuple[DiskId, DiskId] | None = None,
) -> AsyncIterator[Mending]:
    """A pool with everything but a running repairer."""
    listing = RoleDisks(disks) if isinstance(disks, int) else disks
    state = state or State()
    runner = threads or TrioThreads()
    opened: list[Mending] = []

    def report(damage: Damage) -> None:
        opened[0].found_damage(damage)

    async with stripe_store(
        Geometry(data, parity), listing, state, seed=seed, threads=runner, on_damage=report
    ) as (store, cipher_of):
        mover = ShardMover(
            pool=POOL,
            volume=VOLUME,
            disks=listing,
            catalog=state,
            stripes=store,
            space=store.space,
            target=state,
            coder_of=make_coder,
            cipher_of=cipher_of,
            threads=runner,
            successor_of=lambda disk: successor[1] if successor and successor[0] == disk else None,
        )
        opened.append(Mending(store, listing, state, mover))
        yield opened[0]

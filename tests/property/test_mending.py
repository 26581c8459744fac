"""A pool in memory that is hurt and heals: whatever happens, nothing is lost and nothing comes back.

Histories are drawn from a seed: random geometry, disks and stripes; damage, disks that leave, come
back, are emptied or join; stripes that die; the power fails; all of it while repair, balancing,
scrub and readers run, each step of theirs taking a random time. No more disks are hurt at a time
than parity covers, counted until a repair has come to its end. At the end of a history the disks
suffice again, and then every stripe must be whole, in the place that its seal says and nowhere
else, with the bytes that were written.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from dwfs.errors import PosixError
from dwfs.limits import GIB
from dwfs.ports import DiskRole, ShardFault
from dwfs.stripe import Balancer, DiskScrub, sweep_disk
from dwfs.types import DiskId, Geometry, ShardKey, StripeId
from tests.contract.memory_shard_store import MemoryShardStore
from tests.unit.stripe.mending_bench import Mending, RoleDisks, State, TrioClock, mending
from tests.unit.stripe.stripe_bench import InlineThreads

HISTORIES = 25
EPISODES = 5
FAULTS = [ShardFault.ROTTEN, ShardFault.TORN, ShardFault.MISDIRECTED, ShardFault.UNREADABLE]


class History:
    """One pool's life."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.geometry = Geometry(self.random.randint(1, 5), self.random.randint(1, 3))
        spare = self.random.randint(0, 3)
        self.disks = RoleDisks(self.geometry.total + spare)
        self.numbers = len(self.disks.disks)
        self.state = State()
        self.contents: dict[StripeId, bytes] = {}  # alive, as far as anybody was told
        self.written: dict[StripeId, bytes] = {}  # all that there ever were
        self.hurt: set[DiskId] = set()  # since the last complete repair
        self.m: Mending

    async def live(self) -> None:
        """Episodes, each ended by a crash or an orderly end, then the judgement."""
        for _ in range(EPISODES):
            async with self._pool():
                for disk in self.disks.disks.values():
                    disk.before = self._dawdle
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        for work in self.m.repairer.run, self._balance, self._scrub, self._read:
                            nursery.start_soon(work)
                        for _ in range(3):
                            await self._write()
                        for _ in range(self.random.randint(3, 15)):
                            await self._act()
                            await trio.sleep(self.random.expovariate(20.0))
                        scope.cancel()
            if self.random.random() < 0.5:
                self._crash()
            else:
                await self._end()
        async with self._pool():
            await self._judge()

    @asynccontextmanager
    async def _pool(self) -> AsyncIterator[None]:
        """Open it, with the sweep that follows a mount."""
        async with mending(
            self.geometry.data,
            self.geometry.parity,
            self.disks,
            seed=self.random.randrange(1 << 60),
            state=self.state,
            threads=InlineThreads(),
        ) as self.m:
            self.m.contents = self.written
            for store in self.disks:
                await sweep_disk(store, self.state.seal_of, self.m.store.is_in_memory, 0)
            yield

    # --- what happens ------------------------------------------------------------------------

    async def _act(self) -> None:
        actions: list[Callable[[], Awaitable[None]]] = [
            *[self._write] * 4,
            self._damage,
            self._lose_disk,
            self._take_away,
            self._evacuate,
            self._add_disk,
            self._drop,
            self._break_log,
            self._refuse_writes,
            self._recover,
        ]
        await self.random.choice(actions)()

    async def _write(self) -> None:
        size = self.random.choice([10, 20_000, 70_000, 300_000])
        there = [self._disk(store.disk) for store in self.disks.writable()]
        if any(disk.fail_syncs for disk in there):
            return  # may fail honestly, which is another test's subject
        good = [disk for disk in there if not disk.fail_writes]
        if self.state.fail_barriers or len(good) < self.geometry.total:
            return
        seal = await self.m.write(size, self.random.randrange(1 << 30))
        self.contents[seal.stripe] = self.written[seal.stripe]

    def _may_hurt(self) -> list[MemoryShardStore]:
        """Disks that may be hurt so that parity still covers it."""
        if len(self.hurt) >= self.geometry.parity:
            return [self._disk(disk) for disk in sorted(self.hurt) if disk in self.disks.disks]
        return list(self.disks.disks.values())

    async def _damage(self) -> None:
        candidates = [disk for disk in self._may_hurt() if disk.keys(None, 1)]
        if not candidates:
            return
        disk = self.random.choice(candidates)
        self.hurt.add(disk.disk)
        keys = disk.keys(None, 1_000)
        for key in self.random.sample(keys, min(len(keys), 3)):
            if self.random.random() < 0.3:
                disk.lose(key)
            else:
                disk.corrupt(key, 0, self.random.choice(FAULTS))
        if self.random.random() < 0.5:
            disk.leave_stray(ShardKey(StripeId(b"?" * 16), 0), b"", b"stray")

    async def _lose_disk(self) -> None:
        if self.random.random() < 0.5 and self._may_hurt():
            disk = self.random.choice(self._may_hurt())
            self.hurt.add(disk.disk)
            del self.disks.disks[disk.disk]
            self.m.repairer.walk_soon()

    async def _take_away(self) -> None:
        for disk, role in list(self.disks.roles.items()):
            if role in (DiskRole.AWAY, DiskRole.GONE):
                await self._bring_back(disk)
                return
        if self._may_hurt():
            disk = self.random.choice(self._may_hurt()).disk
            self.hurt.add(disk)
            self.disks.roles[disk] = self.random.choice([DiskRole.AWAY, DiskRole.GONE])
            self.m.repairer.walk_soon()

    async def _bring_back(self, disk: DiskId) -> None:
        self.disks.roles.pop(disk)
        if disk in self.disks.disks:
            store = self._disk(disk)
            await sweep_disk(store, self.state.seal_of, self.m.store.is_in_memory, 0)
        self.m.repairer.walk_soon()

    async def _evacuate(self) -> None:
        disk = self.random.choice(list(self.disks.disks))
        if self.disks.role(disk) is DiskRole.KEEP:
            self.disks.roles[disk] = DiskRole.LEAVE
        elif self.disks.role(disk) is DiskRole.LEAVE:
            del self.disks.roles[disk]
        self.m.repairer.walk_soon()

    async def _add_disk(self) -> None:
        self.disks.add(self.numbers, GIB)
        self.numbers += 1
        self.m.repairer.walk_soon()

    async def _drop(self) -> None:
        """A stripe dies: first in the state, then durably, then on the disks."""
        if not self.contents or self.state.fail_barriers:
            return
        stripe = self.random.choice(list(self.contents))
        if self.m.store.is_in_memory(stripe) and self.random.random() < 0.5:
            return
        del self.state.known[stripe]
        await trio.sleep(self.random.expovariate(100.0))
        self.state.barrier()
        del self.contents[stripe]
        await self.m.store.drop([stripe])

    async def _break_log(self) -> None:
        self.state.fail_barriers = not self.state.fail_barriers

    async def _refuse_writes(self) -> None:
        disk = self.random.choice(list(self.disks.disks.values()))
        if disk.fail_writes or disk.fail_syncs:
            disk.fail_writes = disk.fail_syncs = False
        elif self.random.random() < 0.5:
            disk.fail_writes = True
        else:
            disk.fail_syncs = True

    async def _recover(self) -> None:
        """If a repair comes to its end with nothing lacking, the disks may be hurt anew."""
        with trio.move_on_after(5.0):
            await self._scrub_all()
            await self.m.repairer.quiet()
            await trio.lowlevel.checkpoint()
            if self._is_all_well():
                self.hurt = {
                    disk
                    for disk, role in self.disks.roles.items()
                    if role in (DiskRole.AWAY, DiskRole.GONE)
                }

    def _is_all_well(self) -> bool:
        return self.m.mover.unsettled == 0 and all(
            self.m.mover.look_at(seal).lacking == 0
            and not any(
                ShardKey(seal.stripe, number) in self._disk(disk)._damaged
                for number, disk in enumerate(seal.placement)
                if disk in self.disks.disks
            )
            and all(disk in self.state_disks for disk in self.state.durable[seal.stripe].placement)
            for seal in self.state.known.values()
        )

    @property
    def state_disks(self) -> set[DiskId]:
        """Disks that are there, and no disk at all."""
        return {*self.disks.disks, DiskId(b"")}

    def _crash(self) -> None:
        for disk in self.disks.disks.values():
            disk.before = None
            disk.crash()
        self.state.crash()

    async def _end(self) -> None:
        """The process ends in order: what it knows becomes durable, un-synced deletes don't."""
        for disk in self.disks.disks.values():
            disk.before = None
            disk.fail_writes = disk.fail_syncs = False
            await disk.sync()
        if self.state.fail_barriers:
            self.state.crash()
        else:
            self.state.barrier()

    # --- what goes on meanwhile --------------------------------------------------------------

    async def _dawdle(self, operation: str, key: ShardKey | None) -> None:
        await trio.sleep(self.random.expovariate(500.0))

    async def _balance(self) -> None:
        while True:
            await trio.sleep(self.random.expovariate(5.0))
            m = self.m
            await Balancer(
                mover=m.mover,
                catalog=self.state,
                disks=self.disks,
                space=m.store.space,
                geometry=self.geometry,
                pacer=m.pacer,
                clock=TrioClock(),
                tolerance=0.0,
            ).run()

    async def _scrub(self) -> None:
        while True:
            await trio.sleep(self.random.expovariate(5.0))
            await self._scrub_one(self.random.choice(list(self.disks.disks)))

    async def _scrub_all(self) -> None:
        for disk in list(self.disks.disks):
            await self._scrub_one(disk)

    async def _scrub_one(self, disk: DiskId) -> None:
        await DiskScrub(
            disk=disk,
            disks=self.disks,
            catalog=self.state,
            in_memory=self.m.store.is_in_memory,
            repairer=self.m.repairer,
            pacer=self.m.pacer,
            clock=TrioClock(),
        ).run()

    async def _read(self) -> None:
        while True:
            await trio.sleep(self.random.expovariate(50.0))
            if self.contents:
                await self._read_one(self.random.choice(list(self.contents)))

    async def _read_one(self, stripe: StripeId) -> None:
        data = self.contents[stripe]
        try:
            assert await self.m.store.read(stripe, 0, len(data)) == data
        except PosixError:
            away = DiskRole.AWAY in self.disks.roles.values()
            assert stripe not in self.state.known or away or len(self.hurt) > 0

    # --- the end -----------------------------------------------------------------------------

    async def _judge(self) -> None:
        self.state.fail_barriers = False
        for disk in list(self.disks.roles):
            await self._bring_back(disk)
        for store in self.disks.disks.values():
            store.fail_writes = store.fail_syncs = False
        for _ in range(self.geometry.total):
            await self._add_disk()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.m.repairer.run)
            with trio.fail_after(600):
                await self.m.repairer.quiet()
                await self._scrub_all()
                await self.m.repairer.quiet()
            nursery.cancel_scope.cancel()
        for store in self.disks.disks.values():
            await sweep_disk(store, self.state.seal_of, self.m.store.is_in_memory, 0)
        assert set(self.contents) <= set(self.state.known), "lost"
        progress = self.m.repairer.progress()
        assert (progress.degraded, progress.unreadable, progress.waiting) == (0, (), 0)
        for stripe in self.state.known:
            await self.m.check_whole(stripe)
        for store in self.disks.disks.values():
            for key in store.keys(None, 10_000):
                seal = self.state.known[key.stripe]  # nothing has come back
                assert seal.placement[key.number] == store.disk

    def _disk(self, disk: DiskId) -> MemoryShardStore:
        return self.disks.disks[disk]


@pytest.mark.parametrize("number", range(HISTORIES))
async def test_nothing_is_lost_and_nothing_comes_back(
    number: int, seed: int, autojump_clock: MockClock
) -> None:
    await History(seed).live()

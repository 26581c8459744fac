"""Real disks of which one stops answering: nobody waits for it longer than its patience or deadline."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dwfs.disk import DiskExecutor, DiskIndex, SegmentStore
from dwfs.ports import ShardStore
from dwfs.stripe import absent_shards
from dwfs.types import DiskId, StripeSeal
from tests.contract.store_harness import IndexEnvironment
from tests.unit.disk.hanging_medium import HangingMedium
from tests.unit.stripe.stripe_bench import Bench, Disks, bench

DATA = random.Random(3).randbytes(3_000_000)
DEADLINE_SECONDS = 1.5


class RealDisks(Disks):
    """Segment stores in directories, each with a medium of its own."""

    def __init__(self) -> None:
        super().__init__(0)
        self.stores: dict[DiskId, SegmentStore] = {}
        self.media: dict[DiskId, HangingMedium] = {}
        self.executors: list[DiskExecutor] = []

    async def add(self, directory: Path, number: int, index: IndexEnvironment) -> None:
        disk = DiskId(bytes([number + 1]) * 16)
        directory.mkdir()
        medium = self.media[disk] = HangingMedium()
        executor = DiskExecutor(f"test-{number}")
        self.executors.append(executor)
        self.stores[disk] = await SegmentStore.open(
            directory,
            disk,
            DiskIndex(index.environment, index, disk),
            executor,
            trusted=True,
            medium=medium,
        )
        self.patience[disk] = 0.05

    async def watch(self) -> None:
        while True:
            await trio.sleep(0.05)
            for executor in self.executors:
                executor.expire(time.monotonic(), DEADLINE_SECONDS)

    def writable(self) -> list[ShardStore]:
        return list(self.stores.values())

    def get(self, disk: DiskId) -> SegmentStore | None:  # type: ignore[override] # real ones
        return self.stores.get(disk)

    def __iter__(self) -> Iterator[ShardStore]:
        return iter(self.stores.values())


@asynccontextmanager
async def real_bench(root: Path, count: int) -> AsyncIterator[tuple[Bench, RealDisks]]:
    """A stripe store (2 + 1) on `count` real disks, with deadlines."""
    index = IndexEnvironment(root)
    disks = RealDisks()
    for number in range(count):
        await disks.add(root / f"disk{number}", number, index)
    try:
        async with bench(2, 1, disks) as b, trio.open_nursery() as nursery:
            nursery.start_soon(disks.watch)
            yield b, disks
            for medium in disks.media.values():
                medium.let_go()
            nursery.cancel_scope.cancel()
    finally:
        for medium in disks.media.values():
            medium.let_go()
        for store in disks.stores.values():
            await store.close()
        for executor in disks.executors:
            assert await trio.to_thread.run_sync(executor.close)
        index.close(commit=True)


async def stored(b: Bench) -> StripeSeal:
    b.store.append(1, 0, DATA)
    (seal,) = await b.commit()
    return seal


async def test_reads_go_around_a_disk_that_hangs(tmp_path: Path) -> None:
    async with real_bench(tmp_path, 3) as (b, disks):
        seal = await stored(b)
        disks.media[seal.placement[0]].hang("read")
        with trio.fail_after(DEADLINE_SECONDS):
            assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]
        b.store.prefetch(seal.stripe)
        with trio.fail_after(5):
            assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA
        assert not b.damage


async def test_writes_go_elsewhere_when_a_disk_hangs(tmp_path: Path) -> None:
    async with real_bench(tmp_path, 4) as (b, disks):
        hung = next(iter(disks.media))
        disks.media[hung].hang("write", "sync")
        with trio.fail_after(20):
            seals = [await stored(b) for _ in range(4)]
        assert all(hung not in seal.placement and not absent_shards(seal) for seal in seals)
        assert hung in disks.failures
        disks.media[hung].let_go()
        for seal in seals:
            assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA


async def test_drop_does_not_wait_for_a_disk_that_hangs(tmp_path: Path) -> None:
    async with real_bench(tmp_path, 3) as (b, disks):
        seal = await stored(b)
        disks.media[seal.placement[1]].hang("punch", "write", "sync")
        del b.catalog.known[seal.stripe]
        with trio.fail_after(DEADLINE_SECONDS):
            await b.store.drop([seal.stripe])


async def test_a_disk_that_hung_in_a_sync_is_of_use_again(tmp_path: Path) -> None:
    async with real_bench(tmp_path, 3) as (b, disks):
        hung, medium = next(iter(disks.media.items()))
        medium.hang("sync")
        with trio.fail_after(20):
            degraded = await stored(b)
        assert hung not in degraded.placement
        medium.let_go()
        with trio.fail_after(20):
            while disks.executors[0].stalled:
                await trio.sleep(0.05)
            # What it had lost was written elsewhere or not at all; it must not stand for ever.
            assert not absent_shards(await stored(b))
        assert not [
            key for key in disks.stores[hung].keys(None, 99) if key.stripe == degraded.stripe
        ]

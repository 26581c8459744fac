"""Stripes' ends: deleted on every disk that answers, and never under a mover's hands."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dwfs.stripe import sweep_disk
from dwfs.types import ShardKey, StripeId, StripeSeal
from tests.unit.stripe.stripe_bench import Bench, bench


async def stored(b: Bench) -> StripeSeal:
    b.store.append(1, 0, b"x" * 500_000)
    (seal,) = await b.commit()
    return seal


async def test_only_a_committed_stripe_can_be_claimed_and_only_once() -> None:
    async with bench() as b:
        (fragment,) = b.store.append(1, 0, b"x" * 300_000)
        assert not b.store.begin_move(fragment.stripe)
        b.store.rotate()
        (seal,) = await b.store.settle()
        assert not b.store.begin_move(fragment.stripe)
        b.catalog.known[seal.stripe] = seal
        assert not b.store.begin_move(fragment.stripe)  # the store has not been told yet
        b.store.committed([seal])
        assert not b.store.is_in_memory(seal.stripe)
        assert b.store.begin_move(seal.stripe)
        assert b.store.is_in_memory(seal.stripe)
        assert not b.store.begin_move(seal.stripe)
        b.store.end_move(seal.stripe)
        assert not b.store.is_in_memory(seal.stripe)
        assert not b.store.begin_move(StripeId(b"?" * 16))


async def test_sweep_keeps_off_a_moving_stripe() -> None:
    async with bench(disks=7) as b:
        seal = await stored(b)
        spare = next(disk for disk in b.disks.disks if disk.disk not in seal.placement)
        assert b.store.begin_move(seal.stripe)
        await spare.put(ShardKey(seal.stripe, 0), b"", memoryview(b"copy"))
        assert not await sweep_disk(spare, b.catalog.seal_of, b.store.is_in_memory, 0)
        b.store.end_move(seal.stripe)
        assert await sweep_disk(spare, b.catalog.seal_of, b.store.is_in_memory, 0) == 1


async def test_stripe_that_dies_while_it_moves_is_deleted_after_the_move() -> None:
    async with bench(disks=7) as b:
        seal = await stored(b)
        spare = next(disk for disk in b.disks.disks if disk.disk not in seal.placement)
        assert b.store.begin_move(seal.stripe)
        del b.catalog.known[seal.stripe]
        await b.store.drop([seal.stripe])
        assert sum(len(disk.shards) for disk in b.disks.disks) == 6
        await spare.put(ShardKey(seal.stripe, 0), b"", memoryview(b"copy"))
        b.store.end_move(seal.stripe)
        await wait_all_tasks_blocked()
        assert not any(disk.shards for disk in b.disks.disks)
        assert not b.store.is_in_memory(seal.stripe)


async def test_drop_does_not_wait_for_a_disk_that_hangs(autojump_clock: MockClock) -> None:
    async with bench() as b:
        seal = await stored(b)
        hung = b.disks.disks[0]
        hung.hung = trio.Event()
        del b.catalog.known[seal.stripe]
        started = trio.current_time()
        await b.store.drop([seal.stripe])
        assert trio.current_time() - started < 2
        assert [bool(disk.shards) for disk in b.disks.disks].count(True) == 1
        hung.hung.set()
        await wait_all_tasks_blocked()
        assert not hung.shards


async def test_drop_reports_a_disk_that_fails_and_goes_on() -> None:
    async with bench() as b:
        seal = await stored(b)
        b.disks.disks[2].dead = True
        await b.store.drop([seal.stripe])
        assert b.disks.failures == [b.disks.disks[2].disk]
        assert sum(bool(disk.shards) for disk in b.disks.disks) == 1

"""Reads of sealed stripes: healthy, degraded, damaged, ahead."""

from __future__ import annotations

import random
from errno import EIO

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dwfs.errors import PosixError
from dwfs.limits import SEALED_SECTOR_SIZE, SECTOR_SIZE, STRIPE_READ_CACHE_SIZE, STRIPE_SIZE_MAX
from dwfs.ports import ShardFault
from dwfs.stripe import layout_of
from dwfs.types import ShardKey, StripeSeal
from tests.unit.stripe.stripe_bench import Bench, FaultyDisk, bench

DATA = random.Random(5).randbytes(2_000_000)


async def stored(b: Bench) -> StripeSeal:
    b.store.append(1, 0, DATA)
    (seal,) = await b.commit()
    return seal


def home(b: Bench, seal: StripeSeal, shard: int) -> FaultyDisk:
    disk = b.disks.get(seal.placement[shard])
    assert disk is not None
    return disk


async def test_read_now_needs_the_page_cache_and_read_does_not() -> None:
    async with bench() as b:
        seal = await stored(b)
        for disk in b.disks.disks:
            disk.cached = False
        assert b.store.read_now(seal.stripe, 0, 4096) is None
        assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]
        # The sector was kept for the reader's next request.
        await b.store.read(seal.stripe, 100_000, 300_000)


@pytest.mark.parametrize("removed", [False, True])
async def test_any_two_lost_disks_are_survived(removed: bool) -> None:
    async with bench() as b:
        seal = await stored(b)
        for shard in (0, 2):
            home(b, seal, shard).dead = True
            if removed:
                b.disks.removed.add(seal.placement[shard])
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA
        for offset in range(0, len(DATA) - 5000, 123_457):
            assert await b.store.read(seal.stripe, offset, 5000) == DATA[offset : offset + 5000]
        assert bool(b.disks.failures) is not removed


async def test_beyond_parity_only_the_lost_bytes_give_eio() -> None:
    async with bench() as b:
        seal = await stored(b)
        for shard in (0, 4, 5):
            home(b, seal, shard).dead = True
        layout = layout_of(seal)
        start = layout.shard_sectors * SECTOR_SIZE
        assert await b.store.read(seal.stripe, start, 9000) == DATA[start : start + 9000]
        with pytest.raises(PosixError) as caught:
            await b.store.read(seal.stripe, start - 1, 2)
        assert caught.value.errno == EIO


async def test_damaged_sector_is_rebuilt_and_reported() -> None:
    async with bench() as b:
        seal = await stored(b)
        home(b, seal, 1).damage(ShardKey(seal.stripe, 1), 3 * SEALED_SECTOR_SIZE + 17)
        assert b.store.read_now(seal.stripe, 0, len(DATA)) is None
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA
        assert [(d.shard, d.fault) for d in b.damage] == [(1, ShardFault.ROTTEN)]
        assert b.store.counters().damaged == 1


async def test_damage_of_a_source_is_found_and_gone_around() -> None:
    async with bench() as b:
        seal = await stored(b)
        home(b, seal, 0).shards.pop(ShardKey(seal.stripe, 0))
        home(b, seal, 3).damage(ShardKey(seal.stripe, 3), 5)
        assert await b.store.read(seal.stripe, 10, 500) == DATA[10:510]
        kinds = {(d.shard, d.fault) for d in b.damage}
        assert (0, ShardFault.MISSING) in kinds
        assert (3, ShardFault.ROTTEN) in kinds


async def test_damage_in_different_columns_exceeds_parity_in_none() -> None:
    async with bench(4, 1, 5) as b:
        seal = await stored(b)
        for shard in range(4):
            home(b, seal, shard).damage(
                ShardKey(seal.stripe, shard), (2 * shard) * SEALED_SECTOR_SIZE + 1
            )
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA


@pytest.mark.parametrize("lost", [0, 2])
async def test_prefetched_stripe_is_served_without_disks(lost: int) -> None:
    async with bench() as b:
        seal = await stored(b)
        for disk in b.disks.disks:
            disk.cached = False
        for shard in range(lost):
            home(b, seal, shard).dead = True
        b.store.prefetch(seal.stripe)
        b.store.prefetch(seal.stripe)
        assert await b.store.read(seal.stripe, 0, 1000) == DATA[:1000]
        await wait_all_tasks_blocked(0.05)
        for disk in b.disks.disks:
            disk.dead = True
        for offset in range(0, len(DATA), 131_072):
            wanted = DATA[offset : offset + 131_072]
            assert b.store.read_now(seal.stripe, offset, len(wanted)) == wanted


async def test_prefetched_damage_is_gone_around() -> None:
    async with bench() as b:
        seal = await stored(b)
        home(b, seal, 2).damage(ShardKey(seal.stripe, 2), 1)
        b.store.prefetch(seal.stripe)
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA


async def test_read_cache_is_bounded() -> None:
    async with bench() as b:
        for number in range(16):
            await b.store.admit(STRIPE_SIZE_MAX)
            b.store.append(1, number * STRIPE_SIZE_MAX, bytes(STRIPE_SIZE_MAX))
            await b.commit()
        for stripe in b.catalog.known:
            b.store.prefetch(stripe)
            with trio.fail_after(10):
                await b.store.read(stripe, 0, 4096)
        cache = b.store._reader._cache  # the bound is on memory, which nothing else shows
        assert 0 < cache.size_bytes <= STRIPE_READ_CACHE_SIZE


async def test_idle_store_holds_no_read_cache_and_still_reads() -> None:
    async with bench() as b:
        seal = await stored(b)
        b.store.prefetch(seal.stripe)
        await wait_all_tasks_blocked(0.05)
        assert b.store.read_now(seal.stripe, 10, 1000) == DATA[10:1010]
        b.store.release_idle()
        assert b.store._reader._cache.size_bytes == 0
        assert await b.store.read(seal.stripe, 10, 1000) == DATA[10:1010]
        b.store.prefetch(seal.stripe)
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA


async def test_reader_follows_moved_shards() -> None:
    async with bench(disks=7) as b:
        seal = await stored(b)
        assert b.store.read_now(seal.stripe, 0, 100) == DATA[:100]
        spare = next(d for d in b.disks.disks if d.disk not in seal.placement)
        old = home(b, seal, 0)
        key = ShardKey(seal.stripe, 0)
        spare.shards[key] = old.shards.pop(key)
        b.catalog.known[seal.stripe] = StripeSeal(
            seal.stripe,
            seal.salt,
            seal.key_version,
            seal.geometry,
            seal.length,
            seal.sector_size,
            (spare.disk, *seal.placement[1:]),
            seal.summary,
        )
        assert await b.store.read(seal.stripe, 20_000, 100) == DATA[20_000:20_100]
        assert b.store.counters().rebuilt == 0


async def test_unknown_stripe_and_bytes_beyond_the_end_give_eio() -> None:
    async with bench() as b:
        seal = await stored(b)
        for offset, length in ((len(DATA), 1), (len(DATA) - 1, 2)):
            with pytest.raises(PosixError):
                await b.store.read(seal.stripe, offset, length)
        b.catalog.known.clear()
        b.store.forget(seal.stripe)
        with pytest.raises(PosixError):
            await b.store.read(seal.stripe, 0, 1)


async def test_damage_in_a_place_that_the_seal_has_left_is_not_reported() -> None:
    async with bench(disks=7) as b:
        seal = await stored(b)
        spare = next(disk for disk in b.disks.disks if disk.disk not in seal.placement)
        for disk in b.disks.disks:
            disk.cached = False
        old = home(b, seal, 0)
        key = ShardKey(seal.stripe, 0)
        assert await b.store.read(seal.stripe, 20_000, 100) == DATA[20_000:20_100]
        spare.shards[key] = old.shards.pop(key)
        b.catalog.known[seal.stripe] = msgspec.structs.replace(
            seal, placement=(spare.disk, *seal.placement[1:])
        )
        assert await b.store.read(seal.stripe, 40_000, 100) == DATA[40_000:40_100]
        assert not b.damage
        assert b.store.counters().damaged == 0

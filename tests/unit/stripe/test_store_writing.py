"""Appending, settling, the log's side, faults of disks while stripes are written."""

from __future__ import annotations

import random
from errno import EIO, ENOSPC

import pytest
import trio
from trio.testing import MockClock

from dwfs.errors import PosixError
from dwfs.limits import (
    KIB,
    LOG_INLINE_MAX,
    MIB,
    SECTOR_SIZE,
    STRIPE_SIZE_MAX,
    STRIPES_UNSYNCED_MAX,
)
from dwfs.stripe import absent_shards, decode_header
from dwfs.types import BackReference, InodeNumber, ShardKey, StripeData, StripeId
from tests.unit.stripe.stripe_bench import Catalog, Disks, FaultyDisk, SeededRandomness, bench


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def test_appended_bytes_are_readable_at_every_stage() -> None:
    data = noise(100_000)
    async with bench() as b:
        (fragment,) = b.store.append(7, 0, data)
        assert b.store.read_now(fragment.stripe, 5, 60_000) == data[5:60_005]
        b.store.rotate()
        assert b.store.read_now(fragment.stripe, 0, 100_000) == data
        await b.commit()
        assert b.store.counters().in_flight == 0
        assert b.store.read_now(fragment.stripe, 16_000, 50_000) == data[16_000:66_000]
        assert await b.store.read(fragment.stripe, 99_999, 1) == data[-1:]


async def test_large_append_spans_stripes_and_full_ones_close_themselves() -> None:
    data = noise(STRIPE_SIZE_MAX + 5)
    async with bench() as b:
        first, second = b.store.append(1, 10, data)
        assert (first.offset, first.length, second.offset, second.length) == (
            0,
            STRIPE_SIZE_MAX,
            0,
            5,
        )
        seals = await b.store.settle()
        assert [seal.stripe for seal in seals] == [first.stripe]
        assert seals[0].summary == (BackReference(InodeNumber(1), 10, STRIPE_SIZE_MAX, 0),)


async def test_summary_merges_contiguous_appends() -> None:
    async with bench() as b:
        for inode, offset, size in ((1, 0, 10), (1, 10, 20), (1, 40, 5), (2, 45, 5)):
            b.store.append(inode, offset, b"x" * size)
        (seal,) = await b.commit()
    assert [(r.inode, r.offset, r.length, r.stripe_offset) for r in seal.summary] == [
        (1, 0, 30, 0),
        (1, 40, 5, 30),
        (2, 45, 5, 35),
    ]


async def test_tiny_stripe_stores_one_sector_and_parity_only() -> None:
    async with bench() as b:
        b.store.append(1, 0, b"tiny")
        (seal,) = await b.commit()
        assert absent_shards(seal) == []
        stored = {key.number: d for d in b.disks.disks for key in d.shards}
        assert set(stored) == {0, 4, 5}
        key = ShardKey(seal.stripe, 4)
        header, payload = stored[4].shards[key]
        assert len(payload) == 4 + 16
        decoded = decode_header(header)
        assert decoded is not None
        assert (decoded.number, decoded.salt, decoded.length) == (4, seal.salt, 4)


async def test_unlogged_bytes_are_handed_out_once_and_in_order() -> None:
    async with bench() as b:
        (fragment,) = b.store.append(1, 0, b"a" * 20_000)
        assert b.store.unlogged_bytes() == 20_000
        assert b.store.take_unlogged() == [StripeData(fragment.stripe, 0, b"a" * 20_000)]
        assert b.store.take_unlogged() == []
        b.store.append(1, 20_000, b"b" * 5)
        assert b.store.take_unlogged() == [StripeData(fragment.stripe, 20_000, b"bbbbb")]
        assert b.store.unlogged_bytes() == 0


async def test_too_much_unlogged_data_must_be_settled() -> None:
    async with bench() as b:
        b.store.append(1, 0, noise(LOG_INLINE_MAX + 1))
        assert b.store.unlogged_bytes() == LOG_INLINE_MAX + 1
        assert len(await b.commit()) == 1
        assert b.store.unlogged_bytes() == 0
        b.store.append(1, 0, b"x")
        assert b.store.unlogged_bytes() == 1
        assert await b.store.settle() == []


async def test_failed_put_goes_to_another_disk() -> None:
    async with bench(disks=7) as b:
        for disk in b.disks.disks[:1]:
            disk.fail_puts = True
        data = noise(300_000)
        (fragment,) = b.store.append(1, 0, data)
        (seal,) = await b.commit()
        assert b.disks.disks[0].disk not in seal.placement
        assert absent_shards(seal) == []
        assert await b.store.read(fragment.stripe, 0, len(data)) == data


async def test_hung_put_goes_to_another_disk_and_its_buffers_are_never_used_again(
    autojump_clock: MockClock,
) -> None:
    async with bench(disks=7) as b:
        for disk in b.disks.disks[:2]:
            disk.hung, disk.deadline_seconds = trio.Event(), 12.0
        data = noise(STRIPE_SIZE_MAX)
        (fragment,) = b.store.append(1, 0, data)
        buffer = b.store._live[fragment.stripe].buffer  # only memory itself shows who uses it
        b.disks.disks[1].hung = None
        (seal,) = await b.commit()
        assert b.disks.disks[0].disk not in seal.placement
        assert absent_shards(seal) == []
        assert b.disks.failures == [b.disks.disks[0].disk]
        b.store.append(1, 0, noise(STRIPE_SIZE_MAX - 1))
        assert all(builder.buffer is not buffer for builder in b.store._live.values())
        assert await b.store.read(fragment.stripe, 0, len(data)) == data


async def test_failed_sync_rewrites_its_shards_elsewhere_while_the_buffer_is_there() -> None:
    async with bench(disks=7) as b:
        b.store.append(1, 0, noise(200_000))  # few unlogged bytes: the log may ask for them
        b.store.rotate()
        while sum(len(disk.shards) for disk in b.disks.disks) < 6:
            await trio.sleep(0.001)
        victim = next(disk for disk in b.disks.disks if disk.shards)
        victim.fail_syncs = 1
        (seal,) = await b.commit()
        assert b.disks.failures == [victim.disk]
        assert victim.disk not in seal.placement
        assert absent_shards(seal) == []
        assert len(set(seal.placement)) == 6


async def test_failed_sync_of_a_released_stripe_seals_it_degraded_and_readable() -> None:
    async with bench(disks=7) as b:
        data = noise(2_000_000)
        (fragment,) = b.store.append(1, 0, data)
        b.store.rotate()
        while b.store.counters().in_flight:
            await trio.sleep(0.001)
        assert await b.store.read(fragment.stripe, 0, len(data)) == data  # from the disks
        victim = next(disk for disk in b.disks.disks if disk.shards)
        victim.fail_syncs = 1
        (seal,) = await b.commit()
        assert victim.disk not in seal.placement
        assert len(absent_shards(seal)) == 1
        assert b.store.counters().degraded == 1
        victim.dead = True
        assert await b.store.read(fragment.stripe, 0, len(data)) == data


async def test_a_disk_that_left_and_came_back_before_the_sync_is_not_believed() -> None:
    async with bench(disks=7) as b:
        data = noise(2_000_000)
        (fragment,) = b.store.append(1, 0, data)
        b.store.rotate()
        while b.store.counters().in_flight:
            await trio.sleep(0.001)
        place = next(number for number, disk in enumerate(b.disks.disks) if disk.shards)
        gone = b.disks.disks[place]
        b.disks.disks[place] = FaultyDisk(gone.disk)  # what its cache had promised is lost
        (seal,) = await b.commit()
        assert gone.disk not in seal.placement
        assert await b.store.read(fragment.stripe, 0, len(data)) == data


async def test_more_failed_syncs_than_parity_are_told_to_whoever_waits() -> None:
    async with bench(disks=6) as b:
        b.store.append(1, 0, noise(2_000_000))
        b.store.rotate()
        while b.store.counters().in_flight:
            await trio.sleep(0.001)
        for disk in b.disks.disks[:3]:
            disk.fail_syncs = 1
        with pytest.raises(PosixError) as caught:
            await b.store.settle()
        assert caught.value.errno == EIO


async def test_degraded_write_with_too_few_disks_then_refusal() -> None:
    async with bench(disks=6) as b:
        b.disks.disks[0].dead = b.disks.disks[1].dead = True
        data = noise(500_000)
        (fragment,) = b.store.append(1, 0, data)
        (seal,) = await b.commit()
        assert absent_shards(seal) == [4, 5]
        assert b.store.counters().degraded == 1
        b.disks.disks[2].dead = True
        (waiting,) = b.store.append(1, 0, data)
        b.store.rotate()
        with pytest.raises(PosixError) as caught:
            await b.store.settle()
        assert caught.value.errno == EIO
        assert await b.store.read(waiting.stripe, 0, len(data)) == data
        with pytest.raises(PosixError):
            await b.store.admit(1 << 30)
        b.disks.disks[2].dead = False
        assert len(await b.commit()) == 1
        assert await b.store.read(waiting.stripe, 0, len(data)) == data
        assert await b.store.read(fragment.stripe, 0, len(data)) == data


async def test_admit_refuses_before_anything_is_torn() -> None:
    async with bench(disks=Disks(6, size=24 * MIB)) as b:
        written = 0

        async def fill() -> None:
            nonlocal written
            while True:
                await b.store.admit(256 * KIB)
                b.store.append(1, written, noise(256 * KIB))
                written += 256 * KIB

        with pytest.raises(PosixError) as caught:
            await fill()
        assert caught.value.errno == ENOSPC
        # 16 MiB are reserved on each disk; four of six shards hold data.
        assert 30 * MIB < written <= 32 * MIB
        for seal in await b.commit():
            assert absent_shards(seal) == []


async def test_admit_waits_for_flights_and_streaming_needs_no_fsync() -> None:
    async with bench() as b:
        with trio.fail_after(30):
            for number in range(STRIPES_UNSYNCED_MAX + 6):
                await b.store.admit(STRIPE_SIZE_MAX)
                b.store.append(1, number * STRIPE_SIZE_MAX, noise(STRIPE_SIZE_MAX))
                assert b.store.counters().in_flight <= 6
            while len(b.store.settled()) == 0:  # synced without anybody asking
                await trio.sleep(0.001)


async def test_admit_fails_rather_than_hangs_when_nothing_can_be_stored() -> None:
    async with bench() as b:
        for number in range(6):
            await b.store.admit(SECTOR_SIZE)
            b.store.append(1, number, b"x" * SECTOR_SIZE * 4)
            for disk in b.disks.disks[1:]:
                disk.fail_puts = True
            b.store.rotate()
        with trio.fail_after(10), pytest.raises(PosixError) as caught:
            await b.store.admit(1)
        assert caught.value.errno == EIO


async def test_restore_takes_back_logged_bytes_under_a_fresh_salt() -> None:
    stripe = StripeId(b"s" * 16)
    data = noise(50_000)
    async with bench() as b:
        b.store.restore(
            [StripeData(stripe, 30_000, data[30_000:]), StripeData(stripe, 0, data[:40_000])]
        )
        assert b.store.unlogged_bytes() == 0
        assert b.store.read_now(stripe, 29_000, 2_000) == data[29_000:31_000]
        (seal,) = await b.commit()
        assert (seal.stripe, seal.length, seal.summary) == (stripe, 50_000, ())
        assert await b.store.read(stripe, 0, 50_000) == data


async def test_drop_deletes_every_shard_even_without_a_seal() -> None:
    async with bench() as b:
        (fragment,) = b.store.append(1, 0, noise(200_000))
        await b.commit()
        assert b.store.read_now(fragment.stripe, 0, 10)
        b.catalog.known.clear()
        await b.store.drop([fragment.stripe])
        assert not any(disk.shards for disk in b.disks.disks)
        assert b.store.read_now(fragment.stripe, 0, 10) is None


async def test_stripes_of_an_earlier_incarnation_are_not_mixed_in() -> None:
    listing, catalog = Disks(6), Catalog()
    stripe = StripeId(b"s" * 16)
    async with bench(disks=listing, catalog=catalog, seed=1) as b:
        b.store.restore([StripeData(stripe, 0, b"old" * 10_000)])
        await b.commit()
    stale = {disk.disk: dict(disk.shards) for disk in listing.disks}
    async with bench(disks=listing, catalog=catalog, seed=2) as b:
        b.store.restore([StripeData(stripe, 0, b"new" * 10_000)])
        (seal,) = await b.commit()
        home = listing.get(seal.placement[0])
        assert home is not None
        home.shards.update(stale[home.disk])
        assert await b.store.read(stripe, 0, 30_000) == b"new" * 10_000
        assert {damage.shard for damage in b.damage} == {0}


def test_seeded_randomness_repeats() -> None:
    assert SeededRandomness(3).bytes(8) == SeededRandomness(3).bytes(8)

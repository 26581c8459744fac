"""Scrub of a disk: what is found, told apart, and set right."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from dwfs.ports import DiskRole, ShardFault
from dwfs.stripe import DiskScrub, ScrubState, scrub
from dwfs.types import DiskId, ShardKey, StripeId, StripeSeal
from tests.contract.memory_shard_store import MemoryShardStore
from tests.unit.stripe.mending_bench import Mending, TrioClock, mending
from tests.unit.stripe.stripe_bench import InlineThreads

SIZE = 100_000


@asynccontextmanager
async def scrubbing(disks: int = 6, stripes: int = 8) -> AsyncIterator[tuple[Mending, StripeSeal]]:
    """A pool with a running repairer, and its first stripe."""
    async with mending(disks=disks, threads=InlineThreads()) as m, trio.open_nursery() as nursery:
        seals = [await m.write(SIZE, seed) for seed in range(stripes)]
        nursery.start_soon(m.repairer.run)
        await m.repairer.quiet()
        yield m, seals[0]
        nursery.cancel_scope.cancel()


def scrub_of(m: Mending, disk: DiskId, state: ScrubState | None = None) -> DiskScrub:
    return DiskScrub(
        disk=disk,
        disks=m.disks,
        catalog=m.state,
        in_memory=m.store.is_in_memory,
        repairer=m.repairer,
        pacer=m.pacer,
        clock=TrioClock(),
        state=state,
    )


async def scrubbed(m: Mending, disk: DiskId) -> ScrubState:
    with trio.fail_after(10):
        return await scrub_of(m, disk).run()


def first(m: Mending, seal: StripeSeal) -> tuple[MemoryShardStore, ShardKey]:
    return m.home(seal.stripe, 0), ShardKey(seal.stripe, 0)


async def test_sound_disk_has_no_findings() -> None:
    async with scrubbing() as (m, seal):
        disk, _ = first(m, seal)
        state = await scrubbed(m, disk.disk)
        assert state.is_done
        assert (state.found, state.repaired, state.records) == (0, 0, 8)
        assert state.size_bytes > 8 * SIZE / 4


@pytest.mark.parametrize(
    "fault",
    [
        ShardFault.ROTTEN,
        ShardFault.TORN,
        ShardFault.MISDIRECTED,
        ShardFault.MISSING,
        ShardFault.UNREADABLE,
    ],
)
async def test_bad_shards_are_told_apart_and_repaired(fault: ShardFault) -> None:
    async with scrubbing() as (m, seal):
        disk, key = first(m, seal)
        disk.corrupt(key, 7, fault)
        state = await scrubbed(m, disk.disk)
        assert (state.faults, state.repaired) == ({fault.value: 1}, 1)
        for stripe in m.contents:
            await m.check_whole(stripe)
        assert (await scrubbed(m, disk.disk)).found == 0


async def test_shard_that_the_index_lacks_is_found_by_the_seals() -> None:
    async with scrubbing() as (m, seal):
        disk, key = first(m, seal)
        disk.lose(key)
        state = await scrubbed(m, disk.disk)
        assert (state.faults, state.repaired) == ({"missing": 1}, 1)
        await m.check_whole(seal.stripe)


async def test_stray_that_belongs_here_is_adopted_not_rebuilt() -> None:
    async with scrubbing() as (m, seal):
        disk, key = first(m, seal)
        header, payload = await disk.read_verified(key)
        disk.lose(key)
        disk.leave_stray(key, header, payload)
        puts = disk.puts
        state = await scrubbed(m, disk.disk)
        assert (state.faults, state.repaired) == ({"stray": 1}, 1)
        assert (disk.puts, disk.debris) == (puts, 0)
        await m.check_whole(seal.stripe)


async def test_stray_of_another_sealing_is_replaced() -> None:
    async with scrubbing() as (m, seal):
        disk, key = first(m, seal)
        disk.lose(key)
        disk.leave_stray(key, b"of another time", b"x" * 50)
        state = await scrubbed(m, disk.disk)
        assert (state.faults, state.repaired) == ({"stray": 1}, 1)
        await m.check_whole(seal.stripe)


async def test_what_nobody_needs_is_cleared_up() -> None:
    async with scrubbing(7) as (m, seal):
        disk, key = first(m, seal)
        disk.leave_duplicate(key)
        disk.leave_stray(ShardKey(StripeId(b"?" * 16), 1), b"", b"of nobody")
        disk.leave_stray(ShardKey(seal.stripe, 3), b"", b"belongs elsewhere")
        orphan = ShardKey(StripeId(b"!" * 16), 0)
        await disk.put(orphan, b"", memoryview(b"rotten orphan"))
        disk.corrupt(orphan)
        state = await scrubbed(m, disk.disk)
        assert state.faults == {"duplicate": 1, "stray": 2, "rotten": 1}
        assert state.repaired == 4
        assert disk.debris == 0
        assert not disk.has(orphan)
        for stripe in m.contents:
            await m.check_whole(stripe)


async def test_stripes_in_memory_are_left_alone() -> None:
    async with scrubbing() as (m, seal):
        disk, key = first(m, seal)
        assert m.store.begin_move(seal.stripe)
        fresh = ShardKey(seal.stripe, 3)
        disk.leave_stray(fresh, b"", b"just arriving")
        disk.corrupt(key, 7)
        results: list[ScrubState] = []

        async def run() -> None:
            results.append(await scrubbed(m, disk.disk))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.sleep(0.3)
            assert not results
            assert disk.debris == 1
            m.store.end_move(seal.stripe)
        # The bad shard was looked at again; the stray is left to the next scrub.
        assert results[0].faults == {"rotten": 1}
        assert (await scrubbed(m, disk.disk)).faults == {"stray": 1}
        await m.check_whole(seal.stripe)


async def test_beyond_redundancy_is_named_and_the_rest_is_repaired() -> None:
    async with scrubbing() as (m, seal):
        for number in range(3):
            m.home(seal.stripe, number).corrupt(ShardKey(seal.stripe, number), 50)
        other = next(stripe for stripe in m.contents if stripe != seal.stripe)
        m.home(other, 2).corrupt(ShardKey(other, 2), 50)
        named: set[bytes] = set()
        found = 0
        for disk in m.disks.disks:
            state = await scrubbed(m, disk)
            named |= set(state.unrepairable)
            found += state.found
        assert named == {seal.stripe}
        assert found >= 4
        await m.check_whole(other)


async def test_no_room_for_a_repair_is_a_failure_that_is_told() -> None:
    async with scrubbing() as (m, seal):
        disk, key = first(m, seal)
        m.disks.readonly.add(disk.disk)  # on probation: it can't be put there, nor elsewhere
        disk.corrupt(key, 7)
        state = await scrubbed(m, disk.disk)
        assert (state.failed, state.repaired) == (1, 0)


async def test_disk_that_goes_away_ends_the_scrub_which_goes_on_when_it_is_back() -> None:
    async with scrubbing() as (m, seal):
        disk, key = first(m, seal)
        m.disks.roles[disk.disk] = DiskRole.AWAY
        state = await scrubbed(m, disk.disk)
        assert "can't be read" in state.error
        assert not state.is_done
        m.disks.roles.clear()
        disk.corrupt(key, 7)
        with trio.fail_after(5):
            state = await scrub_of(m, disk.disk, state).run()
        assert state.is_done
        assert (state.error, state.repaired) == ("", 1)


async def test_stopped_scrub_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "SCRUB_PIECE_BYTES", 20_000)
    async with scrubbing(stripes=30) as (m, seal):
        disk, key = first(m, seal)
        disk.corrupt(key, 7)
        state, stops = ScrubState(), 0
        while not state.is_done:
            with trio.CancelScope() as scope:
                count = 0

                def stop_soon(
                    operation: str, key: ShardKey | None, scope: trio.CancelScope = scope
                ) -> None:
                    nonlocal count
                    count += operation == "scrub"
                    if count == 4:
                        scope.cancel()

                disk.before = stop_soon
                await scrub_of(m, disk.disk, state).run()
            # What is kept is what was written down.
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=ScrubState)
            stops += scope.cancelled_caught
            assert stops < 30
        disk.before = None
        assert stops > 3
        assert state.found == 1
        assert 30 <= state.records <= 30 + stops
        await m.check_whole(seal.stripe)


async def test_damage_all_over_is_mended_where_it_can_be_and_named_where_not(seed: int) -> None:
    chance = random.Random(seed)
    async with scrubbing(stripes=4) as (m, _):
        for number in range(4):
            await m.write(1_500_000, 100 + number)
        hurt = list(m.disks.disks)[:3]  # one more than parity
        for disk in hurt:
            for key in m.disks.disks[disk].keys(None, 100):
                length = m.disks.disks[disk].length(key)
                m.disks.disks[disk].corrupt(key, chance.randrange(length))
        named: set[bytes] = set()
        for disk in m.disks.disks:
            named |= set((await scrubbed(m, disk)).unrepairable)
        with trio.fail_after(10):
            await m.repairer.quiet()
        assert named == set(m.repairer.progress().unreadable)
        for stripe in m.contents:
            if stripe not in named:
                await m.check_whole(stripe)
        assert len(named) < 8  # many lie in other sectors of their stripe, and can be read

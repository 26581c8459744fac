"""Balancing: fair shares, moves that help, stopping and going on."""

from __future__ import annotations

import pytest
import trio

from dwfs.limits import MIB
from dwfs.ports import DiskRole
from dwfs.stripe import Balancer, BalanceState, DiskFill, fair_shares
from dwfs.types import DiskId, Geometry, ShardKey
from tests.unit.stripe.mending_bench import Mending, RoleDisks, TrioClock, mending
from tests.unit.stripe.stripe_bench import InlineThreads


def disk(number: int) -> DiskId:
    return DiskId(bytes([number + 1]) * 16)


def shares(capacities: list[int], used: int, shards: int) -> list[int]:
    fills = [DiskFill(disk(n), 0, capacity) for n, capacity in enumerate(capacities)]
    fills[0] = fills[0]._replace(used=used)
    return [round(share) for share in fair_shares(fills, shards).values()]


def test_shares_follow_capacity_as_far_as_distinctness_allows() -> None:
    assert shares([10, 10, 20], 20, 1) == [5, 5, 10]
    # One shard of each stripe at most: the large disks hold a third each, and no more.
    assert shares([10, 10, 10, 100, 100], 90, 3) == [10, 10, 10, 30, 30]
    assert shares([10, 20, 20, 40, 40, 80], 60, 6) == [10] * 6
    assert shares([10, 10], 8, 6) == [4, 4]
    assert shares([0, 0], 0, 2) == [0, 0]


def fractions(m: Mending) -> list[float]:
    found = []
    for store in m.disks.disks.values():
        space = store.space()
        found.append(space.used_bytes / (space.used_bytes + space.available_bytes))
    return found


def balancer(m: Mending, state: BalanceState | None = None) -> Balancer:
    return Balancer(
        mover=m.mover,
        catalog=m.state,
        disks=m.disks,
        space=m.store.space,
        geometry=Geometry(2, 1),
        pacer=m.pacer,
        clock=TrioClock(),
        state=state,
    )


async def filled(m: Mending, count: int = 150) -> None:
    for seed in range(count):
        await m.write(60_000, seed)


async def test_new_disk_gets_its_share_and_nothing_is_lost() -> None:
    async with mending(2, 1, RoleDisks(4, 4 * MIB), threads=InlineThreads()) as m:
        await filled(m)
        m.disks.add(4, 4 * MIB)
        work = balancer(m)
        left = work.progress().bytes_left
        state = await work.run()
        assert state.finished
        assert state.moved_bytes == pytest.approx(left, rel=0.2)
        assert max(fractions(m)) - min(fractions(m)) < 0.06
        for stripe in m.contents:
            await m.check_whole(stripe)
        # It is balanced now, and stays so.
        again = await balancer(m).run()
        assert (again.finished, again.moved_shards) == (True, 0)


async def test_unequal_disks_and_shares_that_cannot_be_had() -> None:
    async with mending(2, 1, RoleDisks(3, 6 * MIB), threads=InlineThreads()) as m:
        await filled(m, 100)
        m.disks.add(3, 60 * MIB)
        state = await balancer(m).run()
        assert state.finished
        assert state.passes < 4
        # The large disk has a shard of every stripe: more it can't have.
        large = m.disks.disks[disk(3)]
        assert len(large.keys(None, 1_000)) > 90
        for stripe in m.contents:
            await m.check_whole(stripe)


class StopAfter:
    """Cancels in the middle of a batch."""

    def __init__(self, scope: trio.CancelScope, puts: int) -> None:
        self._scope = scope
        self._left = puts

    def __call__(self, operation: str, key: ShardKey | None) -> None:
        self._left -= operation == "put"
        if not self._left:
            self._scope.cancel()


async def test_stopped_balancing_goes_on_where_it_was() -> None:
    async with mending(2, 1, RoleDisks(4, 4 * MIB), threads=InlineThreads()) as m:
        await filled(m)
        new = m.disks.add(4, 4 * MIB)
        state, stops = BalanceState(), 0
        while not state.finished:
            with trio.CancelScope() as scope:
                stop = StopAfter(scope, puts=21)
                new.before = stop
                await balancer(m, state).run()
            stops += scope.cancelled_caught
            assert stops < 30
        new.before = None
        assert stops > 1
        assert max(fractions(m)) - min(fractions(m)) < 0.06
        for stripe in m.contents:
            await m.check_whole(stripe)


async def test_stripes_that_lack_something_are_left_to_repair() -> None:
    async with mending(2, 1, RoleDisks(4, 4 * MIB), threads=InlineThreads()) as m:
        await filled(m, 60)
        m.disks.add(4, 4 * MIB)
        m.disks.roles[disk(0)] = DiskRole.GONE
        lacking = {s for s, seal in m.state.known.items() if disk(0) in seal.placement}
        before = {stripe: m.seal(stripe) for stripe in lacking}
        await balancer(m).run()
        assert {stripe: m.seal(stripe) for stripe in lacking} == before
        assert m.disks.disks[disk(4)].keys(None, 1) != []

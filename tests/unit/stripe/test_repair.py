"""The repair queue, and the repairer that walks, listens and mends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from dwfs.errors import MediumError
from dwfs.ports import DiskRole, ShardFault
from dwfs.stripe import Damage, Outcome, Pacer, RateMeter, Repairer
from dwfs.stripe.repair_queue import RETRY_SECONDS_MAX, RepairQueue
from dwfs.types import DiskId, ShardKey, StripeId
from tests.unit.stripe.mending_bench import Mending, RoleDisks, TrioClock, mending
from tests.unit.stripe.stripe_bench import InlineThreads

SIZE = 100_000


def stripe(number: int) -> StripeId:
    return StripeId(number.to_bytes(16, "big"))


def taken(queue: RepairQueue, limit: int = 100, now: float = 0.0) -> list[int]:
    return [int.from_bytes(entry.stripe, "big") for entry in queue.take(limit, now)]


# --- the queue -------------------------------------------------------------------------------


def test_least_spare_comes_first_and_then_the_oldest() -> None:
    queue = RepairQueue()
    for number, spare in enumerate((2, 0, 1, 0, -1, 2)):
        queue.add(stripe(number), spare)
    assert taken(queue, 3) == [4, 1, 3]
    assert taken(queue) == [2, 0, 5]
    assert taken(queue) == []


def test_one_stripe_is_queued_once_and_grows_more_urgent() -> None:
    queue = RepairQueue()
    queue.add(stripe(1), 2, (0,), 100)
    queue.add(stripe(2), 1)
    queue.add(stripe(1), 2, (3,), 200)
    queue.add(stripe(1), 0, (), 100)
    assert len(queue) == 2
    assert queue.left_bytes == 200
    (first, second) = queue.take(5, 0.0)
    assert (first.stripe, first.bad, first.size_bytes) == (stripe(1), frozenset({0, 3}), 200)
    assert second.stripe == stripe(2)
    assert queue.left_bytes == 0


def test_full_queue_lets_the_least_urgent_go() -> None:
    queue = RepairQueue(3)
    for number, spare in enumerate((2, 1, 2, 0, 1)):
        queue.add(stripe(number), spare)
    assert queue.overflowed
    assert queue.evicted == [stripe(2), stripe(0)]
    assert taken(queue) == [3, 1, 4]


def test_what_failed_waits_twice_as_long_each_time_unless_woken() -> None:
    queue = RepairQueue()
    queue.add(stripe(1), 0, (1,), 10)
    now, waits = 0.0, []
    for _ in range(12):
        (entry,) = queue.take(1, now)
        queue.postpone(entry, now)
        due = queue.next_due()
        assert due is not None
        assert taken(queue, now=due - 0.01) == []
        waits.append(due - now)
        now = due
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == RETRY_SECONDS_MAX
    assert (queue.waiting, queue.ready, queue.left_bytes) == (1, 0, 10)
    queue.wake()
    assert queue.ready == 1
    assert queue.next_due() is None
    (entry,) = queue.take(1, now)
    assert entry.bad == frozenset({1})


def test_waiting_stripe_goes_on_waiting_unless_it_is_worse_off() -> None:
    queue = RepairQueue()
    queue.add(stripe(1), 1)
    queue.postpone(queue.take(1, 0.0)[0], 0.0)
    queue.add(stripe(1), 1, (2,))
    assert taken(queue, now=0.5) == []
    queue.add(stripe(1), 0)
    assert taken(queue, now=0.5) == [1]


def test_what_was_reported_is_known_while_it_waits() -> None:
    queue = RepairQueue()
    first, second, third = (StripeId(bytes([number]) * 16) for number in (1, 2, 3))
    queue.add(first, 1, (0, 2))
    queue.add(second, 1, (1,))
    queue.add(third, 0)
    assert queue.bad_shards() == {first: {0, 2}, second: {1}}
    for entry in queue.take(3, 0.0):
        if entry.stripe == first:
            queue.postpone(entry, 0.0)
    assert queue.bad_shards() == {first: {0, 2}}


def test_reports_of_shards_that_were_just_mended_are_forgiven() -> None:
    queue = RepairQueue()
    queue.add(stripe(1), 0, (2,))
    queue.forgive(stripe(1), {2, 3})
    assert stripe(1) not in queue
    queue.add(stripe(1), 0, (2, 4))
    queue.forgive(stripe(1), {2})
    assert stripe(1) in queue


# --- the repairer ----------------------------------------------------------------------------


@asynccontextmanager
async def repairing(disks: int | RoleDisks = 7) -> AsyncIterator[Mending]:
    async with mending(disks=disks, threads=InlineThreads()) as m, trio.open_nursery() as nursery:
        nursery.start_soon(m.repairer.run)
        yield m
        nursery.cancel_scope.cancel()


async def settled(m: Mending, seconds: float = 20.0) -> None:
    with trio.fail_after(seconds):
        await m.repairer.quiet()


async def test_lost_disk_is_rebuilt_and_the_result_is_confirmed() -> None:
    async with mending(disks=8) as m:
        seals = [await m.write(SIZE, seed) for seed in range(40)]
        lost = seals[0].placement[0]
        affected = [seal for seal in seals if lost in seal.placement]
        lost_bytes = sum(len(m.disks.disks[lost]._find(key)[1]) for key in _keys(m, lost))
        del m.disks.disks[lost]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.repairer.run)
            await settled(m)
            nursery.cancel_scope.cancel()
        progress = m.repairer.progress()
        assert (progress.degraded, progress.stripes_left, progress.bytes_left) == (0, 0, 0)
        assert progress.stripes_done == len(affected)
        assert progress.bytes_done == lost_bytes  # bytes written are bytes lost
        for seal in seals:
            await m.check_whole(seal.stripe)


def _keys(m: Mending, disk: DiskId) -> list[ShardKey]:
    return m.disks.disks[disk].keys(None, 10_000)


async def test_disk_that_is_away_costs_nothing_until_it_is_gone() -> None:
    async with repairing() as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[0]] = DiskRole.AWAY
        m.repairer.walk_soon()
        await settled(m)
        assert m.seal(seal.stripe) == seal
        m.disks.roles[seal.placement[0]] = DiskRole.GONE
        m.repairer.walk_soon()
        await settled(m)
        assert seal.placement[0] not in m.seal(seal.stripe).placement


async def test_evacuation_empties_a_leaving_disk() -> None:
    async with repairing(9) as m:
        for seed in range(30):
            await m.write(SIZE, seed)
        leaving = next(iter(m.disks.disks))
        m.disks.roles[leaving] = DiskRole.LEAVE
        m.repairer.walk_soon()
        await settled(m)
        assert _keys(m, leaving) == []
        progress = m.repairer.progress()
        assert (progress.leaving_bytes, progress.leaving_shards) == ({}, 0)
        for one in m.contents:
            await m.check_whole(one)


async def test_report_is_mended_and_answered() -> None:
    async with repairing(6) as m:
        seal = await m.write(SIZE)
        m.home(seal.stripe, 3).corrupt(ShardKey(seal.stripe, 3))
        answers: list[Outcome] = []
        damage = Damage(seal.stripe, 3, seal.placement[3], ShardFault.ROTTEN)
        m.repairer.report(damage, lambda _, outcome: answers.append(outcome))
        await settled(m)
        assert answers == [Outcome.WHOLE]
        await m.check_whole(seal.stripe)
        # Out of date, unknown.
        m.repairer.report(
            damage._replace(disk=seal.placement[0]), lambda _, outcome: answers.append(outcome)
        )
        m.repairer.report(
            damage._replace(stripe=stripe(5)), lambda _, outcome: answers.append(outcome)
        )
        assert answers == [Outcome.WHOLE, Outcome.WHOLE, Outcome.GONE]


@pytest.mark.parametrize("told", [False, True])
async def test_a_rewritten_shard_that_proved_bad_is_written_again(
    autojump_clock: MockClock, told: bool
) -> None:
    """Its disk's index knows it by then, so nothing but the repairer's memory tells of it."""
    async with repairing(6) as m:
        seal = await m.write(SIZE)
        await settled(m)
        key = ShardKey(seal.stripe, 3)
        home = m.home(seal.stripe, 3)
        home.lose(key)
        spoiled = 0

        def spoil(operation: str, read: ShardKey | None) -> None:
            nonlocal spoiled
            if operation == "read_back" and read == key and not spoiled:
                spoiled += 1
                home.corrupt(key, 99)

        home.before = spoil
        if told:
            m.repairer.report(Damage(seal.stripe, 3, home.disk, ShardFault.MISSING))
        else:
            m.repairer.walk_soon()
        await trio.sleep(30)
        assert spoiled
        await m.check_whole(seal.stripe)
        assert m.repairer.bad_shards() == {}


async def test_a_bad_sector_that_a_reader_meets_is_mended() -> None:
    """Or each further read of it would be another error of a disk that is otherwise sound."""
    async with repairing(6) as m:
        seal = await m.write(SIZE)
        await settled(m)
        key = ShardKey(seal.stripe, 0)
        home = m.home(seal.stripe, 0)
        bad = True

        def fail(operation: str, asked: ShardKey | None) -> None:
            nonlocal bad
            if asked == key and operation == "put":
                bad = False  # it lies elsewhere from now on
            elif asked == key and bad:
                raise MediumError(home.disk, operation, "EIO: Input/output error")

        home.cached = False
        home.before = fail
        await m.check_content(seal.stripe)
        await settled(m)
        assert [damage.fault for damage in m.damage] == [ShardFault.UNREADABLE]
        errors = len(m.disks.failures)
        await m.check_whole(seal.stripe)
        assert len(m.disks.failures) == errors


async def test_without_room_it_waits_until_a_disk_comes() -> None:
    async with repairing(6) as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[0]] = DiskRole.GONE
        m.repairer.walk_soon()
        await settled(m)
        progress = m.repairer.progress()
        assert (progress.degraded, progress.short_by, progress.waiting) == (1, 1, 1)
        m.disks.add(20)
        m.repairer.walk_soon()
        await settled(m)
        assert m.repairer.progress().degraded == 0


async def test_unreadable_stripes_are_named_until_they_are_mended() -> None:
    async with repairing(6) as m:
        seal = await m.write(SIZE)
        hurt = await m.write(SIZE, 1)
        for number in range(3):
            m.disks.roles[seal.placement[number]] = DiskRole.AWAY
        m.repairer.walk_soon()
        await settled(m)
        assert set(m.repairer.progress().unreadable) == {seal.stripe, hurt.stripe}
        m.disks.roles.clear()
        m.repairer.walk_soon()
        await settled(m)
        assert m.repairer.progress().unreadable == ()
        for number in range(3):
            m.home(hurt.stripe, number).corrupt(ShardKey(hurt.stripe, number), 99)
        for number in range(3):
            m.repairer.report(
                Damage(hurt.stripe, number, hurt.placement[number], ShardFault.ROTTEN)
            )
        await settled(m)
        assert m.repairer.progress().unreadable == (hurt.stripe,)
        m.repairer.walk_soon()
        await settled(m)
        assert m.repairer.progress().unreadable == (hurt.stripe,)
        del m.state.known[hurt.stripe]
        m.repairer.walk_soon()
        await settled(m)
        assert m.repairer.progress().unreadable == ()


async def test_unreadable_stripes_beyond_memory_do_not_go_round_in_circles(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dwfs.stripe.repair.UNREADABLE_NAMED_MAX", 0)
    attempts = 0
    async with repairing() as m:
        seal = await m.write(SIZE)
        await settled(m)
        for number in range(3):
            m.home(seal.stripe, number).corrupt(ShardKey(seal.stripe, number), 99)
        obtain = m.mover._source.obtain

        async def counted(*arguments: object) -> object:
            nonlocal attempts
            attempts += 1
            return await obtain(*arguments)  # type: ignore[arg-type] # passed on as they come

        monkeypatch.setattr(m.mover._source, "obtain", counted)
        for _ in range(60):  # reads, those of the attempts among them, tell of it again and again
            m.repairer.report(Damage(seal.stripe, 0, seal.placement[0], ShardFault.ROTTEN))
            await trio.sleep(1)
        assert attempts == 1


async def test_small_queue_still_gets_everything_done() -> None:
    async with mending(disks=8) as m:
        repairer = Repairer(
            mover=m.mover, catalog=m.state, pacer=m.pacer, clock=TrioClock(), queue_max=5
        )
        seals = [await m.write(20_000, seed) for seed in range(60)]
        del m.disks.disks[seals[0].placement[0]]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repairer.run)
            with trio.fail_after(10):
                await repairer.quiet()
            nursery.cancel_scope.cancel()
        for seal in seals:
            await m.check_whole(seal.stripe)


async def test_failed_log_is_waited_for(autojump_clock: MockClock) -> None:
    async with repairing() as m:
        seal = await m.write(SIZE)
        m.state.fail_barriers = True
        m.disks.roles[seal.placement[0]] = DiskRole.LEAVE
        m.repairer.walk_soon()
        await trio.sleep(30)
        assert m.disks.disks[seal.placement[0]].has(ShardKey(seal.stripe, 0))
        m.state.fail_barriers = False
        await trio.sleep(30)
        await m.check_whole(seal.stripe)
        assert m.mover.unsettled == 0


async def test_stopped_repair_goes_on_later() -> None:
    async with mending(disks=8) as m:
        seals = [await m.write(20_000, seed) for seed in range(60)]
        del m.disks.disks[seals[0].placement[0]]
        for _ in range(20):
            with trio.move_on_after(0.005):
                await m.repairer.run()
        m.repairer.walk_soon()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.repairer.run)
            await settled(m)
            nursery.cancel_scope.cancel()
        for seal in seals:
            await m.check_whole(seal.stripe)


# --- pacing ----------------------------------------------------------------------------------


async def test_work_takes_its_share_while_somebody_is_there(autojump_clock: MockClock) -> None:
    activity = 0
    pacer = Pacer(TrioClock(), lambda: activity, duty_busy=0.25)
    started = trio.current_time()
    await pacer.rest(0.1)
    assert trio.current_time() == started
    assert not pacer.busy()
    activity += 1
    await pacer.rest(0.1)
    assert trio.current_time() - started == pytest.approx(0.3)
    assert pacer.busy()
    await trio.sleep(1)
    assert not pacer.busy()


async def test_ceiling_holds_and_unused_time_is_not_saved_up(autojump_clock: MockClock) -> None:
    pacer = Pacer(TrioClock(), lambda: 0, bytes_per_second=1_000)
    started = trio.current_time()
    for _ in range(10):
        await trio.sleep(0.1)
        await pacer.rest(0.1, 500)
    assert trio.current_time() - started == pytest.approx(5.0, rel=0.1)
    await trio.sleep(100)
    started = trio.current_time()
    await pacer.rest(0.1, 500)
    assert trio.current_time() - started == pytest.approx(0.4)


async def test_rate_is_that_of_the_last_half_minute(autojump_clock: MockClock) -> None:
    meter = RateMeter(TrioClock())
    assert meter.seconds_left(5) is None
    for rate in (100, 1_000):
        for _ in range(60):
            await trio.sleep(1)
            meter.add(rate)
    assert meter.bytes_per_second() == pytest.approx(1_000)
    assert meter.seconds_left(5_000) == pytest.approx(5)
    assert meter.total_bytes == 66_000

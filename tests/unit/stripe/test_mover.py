"""Moving shards: mended, evacuated, and never lost on the way."""

from __future__ import annotations

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.limits import MIB, SEALED_SECTOR_SIZE
from dwfs.ports import DiskRole, ShardFault
from dwfs.stripe import MendRequest, Outcome, layout_of, sweep_disk
from dwfs.types import DiskId, ShardKey, ShardMove, StripeSeal
from tests.unit.stripe.mending_bench import Mending, RoleDisks, mending

SIZE = 300_000


async def mend(m: Mending, seal: StripeSeal, *bad: int) -> Outcome:
    report = await m.mover.mend([MendRequest(seal.stripe, frozenset(bad))])
    return report.outcomes[seal.stripe]


def spare_disk(m: Mending, seal: StripeSeal) -> DiskId:
    return next(disk for disk in m.disks.disks if disk not in seal.placement)


async def test_shards_of_a_lost_disk_are_rebuilt_elsewhere() -> None:
    async with mending(disks=8) as m:
        seal = await m.write(SIZE)
        for lost in seal.placement[1], seal.placement[5]:
            del m.disks.disks[lost]
        report = await m.mover.mend([MendRequest(seal.stripe)])
        assert report.outcomes == {seal.stripe: Outcome.WHOLE}
        assert (report.moved, report.repaired) == (2, 0)
        layout = layout_of(seal)
        assert report.written_bytes == layout.payload_length(1) + layout.payload_length(5)
        await m.check_whole(seal.stripe)
        assert m.state.durable == m.state.known


async def test_leaving_shard_is_copied_not_rebuilt_and_then_deleted() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[2]] = DiskRole.LEAVE
        reads = {disk.disk: disk.reads for disk in m.disks.disks.values()}
        assert await mend(m, seal) is Outcome.WHOLE
        for number in 0, 1, 3, 4, 5:
            assert m.disks.disks[seal.placement[number]].reads == reads[seal.placement[number]]
        assert m.disks.disks[seal.placement[2]].keys(None, 10) == []
        await m.check_whole(seal.stripe)


async def test_bad_shards_are_put_again_on_their_own_disks() -> None:
    async with mending(disks=6) as m:
        seal = await m.write(SIZE)
        m.home(seal.stripe, 0).corrupt(ShardKey(seal.stripe, 0))
        m.home(seal.stripe, 4).lose(ShardKey(seal.stripe, 4))
        # The index tells of the second only; the first was reported by somebody.
        barriers = m.state.barriers
        assert await mend(m, seal, 0) is Outcome.WHOLE
        assert m.seal(seal.stripe).placement == seal.placement
        assert m.state.barriers == barriers  # nothing has moved
        await m.check_whole(seal.stripe)


async def test_damage_found_on_the_way_is_mended_in_the_same_go() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[1]] = DiskRole.GONE
        m.home(seal.stripe, 0).corrupt(ShardKey(seal.stripe, 0), 77)
        assert await mend(m, seal) is Outcome.WHOLE
        m.disks.roles.clear()
        assert m.seal(seal.stripe).placement[0] == seal.placement[0]
        await m.home(seal.stripe, 0).read_verified(ShardKey(seal.stripe, 0))
        await m.check_content(seal.stripe)


async def test_leaving_shard_that_is_bad_is_rebuilt() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[2]] = DiskRole.LEAVE
        m.home(seal.stripe, 2).corrupt(ShardKey(seal.stripe, 2), 5)
        assert await mend(m, seal) is Outcome.WHOLE
        await m.check_whole(seal.stripe)


async def test_damage_that_is_too_wide_for_whole_shards_is_mended_sector_by_sector() -> None:
    async with mending(disks=6) as m:
        seal = await m.write(2 * MIB)
        for number in range(4):  # more than parity, but in different sectors
            m.home(seal.stripe, number).corrupt(
                ShardKey(seal.stripe, number), 2 * number * SEALED_SECTOR_SIZE + 9
            )
        assert await mend(m, seal, 0, 1, 2, 3) is Outcome.WHOLE
        for number in range(4):
            await m.home(seal.stripe, number).read_verified(ShardKey(seal.stripe, number))
        await m.check_whole(seal.stripe)


async def test_beyond_redundancy_is_told_and_nothing_is_written() -> None:
    async with mending(disks=6) as m:
        seal = await m.write(SIZE)
        for number in range(3):
            m.home(seal.stripe, number).lose(ShardKey(seal.stripe, number))
        puts = sum(disk.puts for disk in m.disks.disks.values())
        assert await mend(m, seal) is Outcome.UNREADABLE
        assert sum(disk.puts for disk in m.disks.disks.values()) == puts


async def test_damage_that_disks_which_are_away_could_mend_is_not_given_up() -> None:
    async with mending(disks=6) as m:
        seal = await m.write(SIZE)
        away = seal.placement[4], seal.placement[5]
        m.disks.roles = dict.fromkeys(away, DiskRole.AWAY)
        m.home(seal.stripe, 0).corrupt(ShardKey(seal.stripe, 0), 7)
        assert await mend(m, seal, 0) is Outcome.FAILED
        m.disks.roles.clear()
        assert await mend(m, seal, 0) is Outcome.WHOLE
        await m.check_whole(seal.stripe)


async def test_reported_shard_that_is_sound_serves_when_nothing_else_does() -> None:
    async with mending(disks=6) as m:
        seal = await m.write(SIZE)
        for number in 4, 5:
            m.home(seal.stripe, number).lose(ShardKey(seal.stripe, number))
        assert await mend(m, seal, 0) is Outcome.WHOLE
        await m.check_whole(seal.stripe)


async def test_without_another_disk_what_can_be_done_is_done() -> None:
    async with mending(disks=6) as m:
        seal = await m.write(SIZE)
        m.home(seal.stripe, 0).lose(ShardKey(seal.stripe, 0))
        m.disks.roles[seal.placement[3]] = DiskRole.GONE
        assert await mend(m, seal) is Outcome.NO_TARGET
        assert m.home(seal.stripe, 0).has(ShardKey(seal.stripe, 0))
        m.disks.add(10)
        assert await mend(m, seal) is Outcome.WHOLE
        del m.disks.disks[seal.placement[3]]
        await m.check_whole(seal.stripe)


async def test_full_disks_are_no_targets() -> None:
    disks = RoleDisks(6)
    small = disks.add(6, size=1_000)
    async with mending(disks=disks) as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[0]] = DiskRole.LEAVE
        assert await mend(m, seal) is Outcome.NO_TARGET
        assert small.keys(None, 1) == []
        await m.check_whole(seal.stripe)


async def test_disk_on_probation_is_asked_last_and_gets_nothing() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        suspect = seal.placement[3]
        m.disks.patience[suspect] = 0.0
        m.disks.readonly.add(suspect)
        m.disks.roles[seal.placement[0]] = DiskRole.GONE
        reads = m.disks.disks[suspect].reads
        assert await mend(m, seal) is Outcome.WHOLE
        assert m.disks.disks[suspect].reads == reads
        # A bad shard on it moves away: it can't be put there.
        m.disks.disks[suspect].corrupt(ShardKey(seal.stripe, 3))
        m.disks.add(20)
        assert await mend(m, seal, 3) is Outcome.WHOLE
        assert m.seal(seal.stripe).placement[3] != suspect
        assert not m.disks.disks[suspect].has(ShardKey(seal.stripe, 3))


async def test_failed_put_goes_to_another_disk() -> None:
    async with mending(disks=8) as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[0]] = DiskRole.GONE
        first = spare_disk(m, seal)
        m.disks.disks[first].fail_writes = True
        assert await mend(m, seal) is Outcome.WHOLE
        assert m.seal(seal.stripe).placement[0] not in (first, seal.placement[0])


async def test_failed_sync_is_not_believed() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[0]] = DiskRole.LEAVE
        target = m.disks.disks[spare_disk(m, seal)]
        target.fail_syncs = True
        assert await mend(m, seal) is Outcome.FAILED
        assert m.seal(seal.stripe) == seal
        assert target.keys(None, 1) == []
        target.fail_syncs = False
        assert await mend(m, seal) is Outcome.WHOLE
        await m.check_whole(seal.stripe)


async def test_what_is_read_back_must_be_what_was_written() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[0]] = DiskRole.LEAVE
        target = m.disks.disks[spare_disk(m, seal)]

        def rot(operation: str, key: ShardKey | None) -> None:
            if operation == "read_back" and key is not None:
                target.corrupt(key, 3)

        target.before = rot
        assert await mend(m, seal) is Outcome.FAILED
        assert m.seal(seal.stripe) == seal
        assert [disk for disk, _ in m.disks.failures] == [target.disk]
        assert m.disks.disks[seal.placement[0]].has(ShardKey(seal.stripe, 0))


async def test_failed_barrier_keeps_both_copies_until_one_succeeds() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        source, target = m.home(seal.stripe, 0), m.disks.disks[spare_disk(m, seal)]
        m.disks.roles[source.disk] = DiskRole.LEAVE
        key = ShardKey(seal.stripe, 0)
        m.state.fail_barriers = True
        assert await mend(m, seal) is Outcome.FAILED
        assert source.has(key)
        assert target.has(key)
        assert m.store.is_in_memory(seal.stripe)  # the sweep keeps off
        for disk in source, target:
            await sweep_disk(disk, m.state.seal_of, m.store.is_in_memory, pause_seconds=0)
        assert source.has(key)
        with pytest.raises(PosixError):
            await m.mover.settle()
        assert m.mover.unsettled == 1
        m.state.fail_barriers = False
        await m.mover.settle()
        assert not m.store.is_in_memory(seal.stripe)
        await m.check_whole(seal.stripe)


async def test_claimed_stripe_is_busy_for_others_and_unknown_one_is_gone() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        assert m.store.begin_move(seal.stripe)
        assert await mend(m, seal) is Outcome.BUSY
        m.store.end_move(seal.stripe)
        del m.state.known[seal.stripe]
        assert await mend(m, seal) is Outcome.GONE


@pytest.mark.parametrize("moment", ["read", "put", "sync", "read_back", "place", "delete"])
async def test_stripe_that_dies_on_the_way_leaves_nothing(moment: str) -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        m.disks.roles[seal.placement[0]] = DiskRole.LEAVE
        dropped = False

        async def die(operation: str, key: ShardKey | None) -> None:
            nonlocal dropped
            if operation == moment and not dropped:
                dropped = True
                del m.state.known[seal.stripe]
                m.state.barrier()
                await m.store.drop([seal.stripe])

        for disk in m.disks.disks.values():
            disk.before = die
        if moment == "place":
            m.state.before_place = lambda: die("place", None)
        await mend(m, seal)
        assert dropped
        await trio.testing.wait_all_tasks_blocked()
        assert all(disk.keys(None, 1) == [] for disk in m.disks.disks.values())


@pytest.mark.parametrize("moment", ["read", "put", "sync", "read_back", "place", "delete"])
@pytest.mark.parametrize("crash", [False, True])
async def test_stopping_in_the_middle_loses_nothing(moment: str, crash: bool) -> None:
    """Cancelled at every step; with `crash`, the power fails as well."""
    async with mending() as m:
        seal = await m.write(SIZE)
        stripe = seal.stripe
        m.disks.roles[seal.placement[0]] = DiskRole.LEAVE
        with trio.CancelScope() as scope:

            def stop(operation: str, key: ShardKey | None) -> None:
                if operation == moment:
                    scope.cancel()

            for disk in m.disks.disks.values():
                disk.before = stop
            if moment == "place":
                m.state.after_apply = scope.cancel
            await mend(m, seal)
        for disk in m.disks.disks.values():
            disk.before = None
            if crash:
                disk.crash()
        m.state.after_apply = None
        if crash:
            m.state.crash()
        else:
            assert m.store.is_in_memory(stripe) is (moment == "place")
            await m.mover.settle()
        for disk in m.disks.disks.values():
            await sweep_disk(disk, m.state.seal_of, lambda stripe: False, pause_seconds=0)
        await m.check_whole(stripe)


async def test_relocation_goes_where_it_is_told() -> None:
    async with mending(disks=8) as m:
        seal = await m.write(SIZE)
        spare = spare_disk(m, seal)
        move = ShardMove(seal.stripe, 5, seal.placement[5], spare)
        report = await m.mover.relocate([move])
        assert report.outcomes == {seal.stripe: Outcome.WHOLE}
        assert report.left == [(seal.placement[5], layout_of(seal).shard_length)]
        assert m.seal(seal.stripe).placement[5] == spare
        await m.check_whole(seal.stripe)
        # An old plan does no harm, and no disk gets two shards of a stripe.
        report = await m.mover.relocate([move])
        assert report.outcomes == {seal.stripe: Outcome.FAILED}
        double = ShardMove(seal.stripe, 0, seal.placement[0], spare)
        report = await m.mover.relocate([double])
        assert report.outcomes == {seal.stripe: Outcome.NO_TARGET}
        await m.check_whole(seal.stripe)


async def test_bad_source_of_a_relocation_is_rebuilt_at_the_target() -> None:
    async with mending() as m:
        seal = await m.write(SIZE)
        spare = spare_disk(m, seal)
        m.home(seal.stripe, 5).corrupt(ShardKey(seal.stripe, 5), fault=ShardFault.TORN)
        await m.mover.relocate([ShardMove(seal.stripe, 5, seal.placement[5], spare)])
        assert m.seal(seal.stripe).placement[5] == spare
        await m.check_whole(seal.stripe)


async def test_replacement_gets_the_shards_of_the_disk_it_replaces() -> None:
    disks = RoleDisks(10)
    old, *_, new = disks.disks
    disks.readonly.add(new)
    async with mending(disks=disks, successor=(old, new)) as m:
        seals = [await m.write(50_000, seed) for seed in range(20)]
        disks.readonly.clear()
        disks.roles[old] = DiskRole.LEAVE
        mine = [seal.stripe for seal in seals if old in seal.placement]
        await m.mover.mend([MendRequest(stripe) for stripe in mine])
        for stripe in mine:
            assert new in m.seal(stripe).placement
            await m.check_whole(stripe)


async def test_reads_go_on_while_a_stripe_moves() -> None:
    async with mending(disks=9) as m:
        seal = await m.write(SIZE)
        data = m.contents[seal.stripe]
        done = False

        async def read_on() -> None:
            while not done:
                assert await m.store.read(seal.stripe, 1_000, 200_000) == data[1_000:201_000]

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read_on)
            for _ in range(6):
                m.disks.roles = {m.seal(seal.stripe).placement[0]: DiskRole.LEAVE}
                assert await mend(m, seal) is Outcome.WHOLE
                m.disks.roles = {}
            done = True
        await m.check_whole(seal.stripe)

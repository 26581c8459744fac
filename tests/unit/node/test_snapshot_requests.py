"""What administrators ask about snapshots of an open pool, and what the pool does by the calendar."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.config import SnapshotSchedule
from dwfs.errors import NoSpaceError, PoolBusyError, PosixError, UsageError
from dwfs.node.administration import Administration
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.check import CheckReport
from dwfs.node.pool_status import report_status
from dwfs.node.services import snapshots as service_module
from dwfs.node.services.snapshots import SnapshotService, nothing_to_write_back
from dwfs.node.status import ScrubStatus, SnapshotAnswer, SnapshotList, SnapshotSummary
from dwfs.stripe import Pacer
from dwfs.types import ROOT_INODE, Geometry, ShardKey, StripeId
from dwfs.volume.commands import Rollback
from tests.unit.node.pools import Rig, read_file, write_file

BIG = os.urandom(3 << 20)
HOUR_NS = 3600 * 10**9
NOON_NS = 1_795_262_400 * 10**9


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on three disks."""
    return await Rig(tmp_path, Geometry(2, 1), 3).create()


class CalendarClock:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.wall = NOON_NS

    def now(self) -> float:
        return trio.current_time()

    def wall_ns(self) -> int:
        return self.wall


async def request(pool: Pool, what: str, /, **arguments: object) -> object:
    """Ask as the control socket does."""

    async def progress(event: Mapping[str, object]) -> None:
        assert "what" in event

    return await Administration(pool).handlers()[what](arguments, progress)


async def change(pool: Pool, what: str, /, **arguments: object) -> SnapshotAnswer:
    answer = await request(pool, what, **arguments)
    assert isinstance(answer, SnapshotAnswer)
    return answer


async def listed(pool: Pool) -> SnapshotList:
    answer = await request(pool, "snapshot.list")
    assert isinstance(answer, SnapshotList)
    return answer


async def names(pool: Pool) -> list[str]:
    return [one.name for one in (await listed(pool)).snapshots]


async def sound(pool: Pool) -> None:
    report = await request(pool, "check", read=True)
    assert isinstance(report, CheckReport)
    assert report.clean, report.findings


async def all_reaped(pool: Pool) -> None:
    with trio.fail_after(20):
        while pool.volume.reaping:
            await trio.sleep(0.01)


def read_past(pool: Pool, snapshot: str, name: str) -> int:
    """Bytes of a file as it was then."""
    view = pool.volume.view(pool.volume.snapshot(snapshot))
    number = view.lookup(ROOT_INODE, name.encode())
    assert number is not None
    return view.inode(number).size


async def test_from_the_first_to_the_last(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        answer = await change(pool, "snapshot.create", name="one")
        assert answer.text == "took the snapshot rig@one"
        assert [one.name for one in answer.snapshots] == ["one"]
        await write_file(pool, "f", BIG[::-1])
        await write_file(pool, "g", b"later")
        await change(pool, "snapshot.create", name="two")
        found = await listed(pool)
        first, second = found.snapshots
        assert (first.name, first.unique_bytes, first.inodes) == ("one", len(BIG), 2)
        assert (second.name, second.unique_bytes, second.inodes) == ("two", 0, 3)
        assert first.logical_bytes == len(BIG)
        assert not first.automatic
        assert found.kept_bytes == len(BIG)
        summary = report_status(pool).snapshots
        assert summary == SnapshotSummary(2, 0, len(BIG), 0, second.created_ns)
        assert read_past(pool, "one", "f") == len(BIG)
    async with rig.open() as pool:
        assert await names(pool) == ["one", "two"]
        answer = await change(pool, "snapshot.destroy", names=["one", "two", "one"])
        assert answer.text.startswith("destroyed rig@one, rig@two; ")
        assert await names(pool) == []
        await all_reaped(pool)
        assert (await listed(pool)).kept_bytes == 0
        assert await read_file(pool, "f") == BIG[::-1]
        await sound(pool)


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "-x", ".", "..", "a\nb", "ü" * 128])
async def test_names_that_are_none(rig: Rig, name: str) -> None:
    async with rig.open() as pool:
        with pytest.raises(UsageError, match="bad snapshot name"):
            await request(pool, "snapshot.create", name=name)
        assert await names(pool) == []


async def test_what_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.open() as pool:
        await change(pool, "snapshot.create", name="one")
        with pytest.raises(UsageError, match="'one' already"):
            await request(pool, "snapshot.create", name="one")
        with pytest.raises(UsageError, match=r"no snapshot 'two'.*snapshot list rig"):
            await request(pool, "snapshot.destroy", names=["one", "two"])
        with pytest.raises(UsageError, match="no snapshot"):
            await request(pool, "snapshot.list", name="two")
        with pytest.raises(UsageError, match="no snapshot"):
            await request(pool, "snapshot.rollback", name="two")
        with pytest.raises(UsageError, match="names"):
            await request(pool, "snapshot.destroy")
        for wrong in ([], "one", [1], None, ["one"] * 5000):
            with pytest.raises(UsageError, match="names"):
                await request(pool, "snapshot.destroy", names=wrong)
        assert await names(pool) == ["one"]
        monkeypatch.setattr("dwfs.limits.SNAPSHOTS_MAX", 1)
        monkeypatch.setattr("dwfs.node.snapshot_administration.SNAPSHOTS_MAX", 1)
        with pytest.raises(NoSpaceError, match="destroy some first"):
            await request(pool, "snapshot.create", name="two")


async def test_a_kernel_that_never_ends_does_not_keep_it_from_being_taken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "WRITE_BACK_SECONDS", 0.05)

    async def never() -> bool:
        return bool(await trio.sleep_forever())

    async with rig.open(OpenOptions(write_back=never)) as pool:
        answer = await change(pool, "snapshot.create", name="one")
        assert "may not all be in it" in answer.text
        assert await names(pool) == ["one"]


async def test_rolling_back(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await change(pool, "snapshot.create", name="good")
        await write_file(pool, "f", b"bad" * 100_000)
        await change(pool, "snapshot.create", name="bad")
        await write_file(pool, "g", b"worse")
        with pytest.raises(UsageError, match="@bad: give --destroy-newer"):
            await request(pool, "snapshot.rollback", name="good")
        answer = await change(pool, "snapshot.rollback", name="good", destroy_newer=True)
        assert answer.text == "pool rig is as it was at @good; destroyed @bad"
    async with rig.open() as pool:
        assert await read_file(pool, "f") == BIG
        assert pool.filesystem.lookup(ROOT_INODE, b"g") is None
        assert await names(pool) == ["good"]
        await sound(pool)
        await write_file(pool, "g", b"better")
    async with rig.open() as pool:
        assert await read_file(pool, "g") == b"better"
        await sound(pool)


async def test_rolling_back_while_destroyed_snapshots_are_reaped(rig: Rig) -> None:
    async with rig.open() as pool:
        await change(pool, "snapshot.create", name="good")
        for number in range(800):
            await write_file(pool, f"f {number}", b"x")
        await change(pool, "snapshot.create", name="bad")
        for number in range(800):
            await pool.filesystem.unlink(ROOT_INODE, b"f %d" % number)
        await pool.filesystem.close()
        await change(pool, "snapshot.rollback", name="good", destroy_newer=True)
        await sound(pool)
        await write_file(pool, "g", b"x")
    async with rig.open() as pool:
        assert await names(pool) == ["good"]
        await sound(pool)


async def test_a_mounted_pool_is_not_rolled_back(rig: Rig) -> None:
    async with rig.open(OpenOptions(mountpoint="/srv/rig")) as pool:
        await change(pool, "snapshot.create", name="good")
        with pytest.raises(PoolBusyError, match="dwfs umount /srv/rig"):
            await request(pool, "snapshot.rollback", name="good")


async def test_the_next_opening_ends_a_rollback(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await change(pool, "snapshot.create", name="good")
        await write_file(pool, "f", b"bad" * 100_000)
        await write_file(pool, "g", b"bad")
        await pool.volume.destage()
        await pool.volume.propose(Rollback("good"))
        await pool.volume.barrier()
    told: list[str] = []
    options = OpenOptions(report=lambda what, _done, _total: told.append(what))
    async with rig.open(options) as pool:
        assert not pool.volume.rolling_back
        assert await read_file(pool, "f") == BIG
        assert pool.filesystem.lookup(ROOT_INODE, b"g") is None
        await sound(pool)


async def test_the_next_opening_goes_on_in_the_middle(rig: Rig) -> None:
    class EnoughError(Exception):
        pass

    async with rig.open() as pool:
        for number in range(12):
            await write_file(pool, f"f{number}", bytes([number]) * 50_000)
        await change(pool, "snapshot.create", name="good")
        for number in range(12):
            await write_file(pool, f"f{number}", b"bad" * 20_000)
            await write_file(pool, f"g{number}", b"bad")
        steps = 0

        async def stop_early(done: int, total: int | None) -> None:
            nonlocal steps
            steps += 1
            if steps == 5:
                raise EnoughError

        with pytest.raises(EnoughError):
            await pool.volume.rollback("good", stop_early, batch=3)
        assert pool.volume.rolling_back
        with pytest.raises(PosixError, match="EBUSY"):
            await write_file(pool, "f0", b"too early")
    async with rig.open() as pool:
        assert not pool.volume.rolling_back
        for number in range(12):
            assert await read_file(pool, f"f{number}") == bytes([number]) * 50_000
            assert pool.filesystem.lookup(ROOT_INODE, f"g{number}".encode()) is None
        assert pool.volume.kept_bytes == 0
        await sound(pool)


async def lose_stripes(pool: Pool, but: set[StripeId]) -> None:
    """Take two shards of each stripe but some, which is one too many; again if one was mended."""
    doomed = {
        ShardKey(seal.stripe, shard): pool.foundation.disks.get(seal.placement[shard])
        for seal in pool.volume.catalog.seals(None, 1000)
        for shard in (0, 1)
        if seal.stripe not in but
    }
    while any(store is not None and store.has(key) for key, store in doomed.items()):
        async with trio.open_nursery() as nursery:
            for key, store in doomed.items():
                assert store is not None
                nursery.start_soon(store.delete, [key])


@pytest.mark.expect_log("can.t be repaired")
async def test_lost_files_are_named_where_they_are(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "whole", BIG)
        await pool.volume.destage()
        whole = {seal.stripe for seal in pool.volume.catalog.seals(None, 1000)}
        for name in ("both", "past", "renamed"):
            await write_file(pool, name, os.urandom(600_000))
        await pool.volume.destage()
        await change(pool, "snapshot.create", name="one")
        await change(pool, "snapshot.create", name="two")
        await pool.filesystem.unlink(ROOT_INODE, b"past")
        await pool.filesystem.rename(ROOT_INODE, b"renamed", ROOT_INODE, b"new name", 0)
    async with rig.open() as pool:  # nothing refers to the deleted file any more
        await lose_stripes(pool, whole)
        named = ["/both", "/new name", "/.snapshots/two/past"]
        for repair in (False, True):
            report = await request(pool, "check", repair=repair)
            assert isinstance(report, CheckReport)
            assert sorted(report.damaged_files) == sorted(named)
        status = await request(pool, "scrub.start", wait=True)
        assert isinstance(status, ScrubStatus)
        assert status.unrepairable > 0
        assert sorted(status.damaged_files) == sorted(named)
        await change(pool, "snapshot.destroy", names=["two"])
        report = await request(pool, "check")
        assert isinstance(report, CheckReport)
        assert "/.snapshots/one/past" in report.damaged_files
        assert await read_file(pool, "whole") == BIG


def calendar_service(
    pool: Pool, clock: CalendarClock, schedule: SnapshotSchedule
) -> SnapshotService:
    """A service of its own on the pool's volume, with a clock that the test sets."""
    pacer = Pacer(clock, lambda: 0)
    return SnapshotService(pool.volume, clock, schedule, nothing_to_write_back, pacer, pool.work)


async def test_the_calendar(rig: Rig) -> None:
    clock = CalendarClock()
    schedule = SnapshotSchedule(hourly=3, daily=1)
    async with rig.open() as pool:
        service = calendar_service(pool, clock, schedule)
        await change(pool, "snapshot.create", name="mine")
        for hour in range(6):
            await write_file(pool, "f", os.urandom(40_000 + hour))
            await service.follow_schedule()
            await service.follow_schedule()
            clock.wall += HOUR_NS
        taken = [one for one in (await listed(pool)).snapshots if one.automatic]
        assert [one.name.partition("T")[2] for one in taken] == [
            "1200Z-daily",
            "1500Z-hourly",
            "1600Z-hourly",
            "1700Z-hourly",
        ]
        assert report_status(pool).snapshots == SnapshotSummary(
            5, 4, pool.volume.kept_bytes, pool.volume.reaping, taken[-1].created_ns
        )
        assert "mine" in await names(pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run_reaper)
            await all_reaped(pool)
            nursery.cancel_scope.cancel()
        await sound(pool)


@pytest.mark.expect_log("can't be taken")
async def test_a_calendar_that_finds_no_place_makes_room(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = CalendarClock()
    async with rig.open() as pool:
        service = calendar_service(pool, clock, SnapshotSchedule(hourly=3))
        for _ in range(3):
            await service.follow_schedule()
            clock.wall += HOUR_NS
        monkeypatch.setattr("dwfs.limits.SNAPSHOTS_MAX", 3)
        fewer = calendar_service(pool, clock, SnapshotSchedule(hourly=2))
        await fewer.follow_schedule()
        assert len(await names(pool)) == 2
        await fewer.follow_schedule()
        times = [name.partition("T")[2] for name in await names(pool)]
        assert times == ["1400Z-hourly", "1500Z-hourly"]


async def test_only_a_mount_follows_the_calendar(rig: Rig) -> None:
    schedule = SnapshotSchedule(hourly=1)
    config = msgspec.structs.replace(rig.config, snapshots=schedule)
    assert config.snapshots.hourly == 1
    async with rig.open() as pool:
        assert pool.services is not None
        with trio.fail_after(1):
            await pool.services.snapshots.run_schedule()  # nothing to follow: returns

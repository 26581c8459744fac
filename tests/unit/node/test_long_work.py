"""Repair, scrub and the count of redundancy in the life of a pool, on real directories."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.config import ScrubSchedule, Tunables, save_config
from dwfs.errors import PoolBusyError, UsageError
from dwfs.limits import MIB, SEALED_SECTOR_SIZE, SECTOR_SIZE
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.check import check_pool
from dwfs.node.pool_status import report_status
from dwfs.node.redundancy import Count, worst
from dwfs.node.services.pool_services import PoolServices
from dwfs.stripe import ShardState, StripeHealth
from dwfs.types import DiskId, Geometry, ShardKey, StripeSeal
from tests.unit.node.pools import Rig, no_progress, read_file, write_file

BIG = os.urandom(9 << 20)
DAY_NS = 86_400 * 10**9


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on four disks."""
    return await Rig(tmp_path, Geometry(2, 1), 4).create()


def services_of(pool: Pool) -> PoolServices:
    """The services of a pool that can be written to."""
    assert pool.services is not None
    return pool.services


def slow_scrub(rig: Rig, mib: float, every_days: float = 30.0) -> None:
    """Configure a ceiling for the scrub's speed on each disk."""
    schedule = ScrubSchedule(every_days=every_days, rate_mib=mib)
    save_config(rig.directories, msgspec.structs.replace(rig.config, scrub=schedule))


async def scrub_ended(pool: Pool) -> None:
    """Wait for the end of the scrub."""
    with trio.fail_after(30):
        while services_of(pool).scrub.status().state == "running":
            await trio.sleep(0.02)


def a_seal(pool: Pool) -> StripeSeal:
    """Some stripe of the pool."""
    return pool.volume.catalog.seals(None, 1)[0]


def spoil(rig: Rig, pool: Pool, disk: DiskId) -> None:
    """Overwrite a stretch of every shard on a disk's segments that holds data."""
    member = pool.foundation.disks.find(disk)
    assert member is not None
    for path in member.directory.rglob("*.seg"):
        size = path.stat().st_size
        with path.open("r+b") as file:
            for position in range(20_000, size - 4096, 500_000):
                file.seek(position)
                file.write(random.Random(position).randbytes(64))


@pytest.mark.expect_log("is suspect", "faults found", "damaged", "footer")
async def test_a_scrub_finds_and_repairs(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        spoil(rig, pool, a_seal(pool).placement[0])
        scrub = services_of(pool).scrub
        scrub.start()
        await scrub_ended(pool)
        status = scrub.status()
        assert status.state == "idle"
        assert sum(status.faults.values()) > 0
        assert status.repaired > 0
        assert status.unrepairable == 0
        assert status.due_ns is not None
        assert status.ended_ns is not None
        assert status.due_ns - status.ended_ns == 30 * DAY_NS
        assert report_status(pool).finished_jobs[0].kind in ("scrub", "repair")
        scrub.start()
        await scrub_ended(pool)
        assert scrub.status().faults == {}
        assert await read_file(pool, "f") == BIG


async def test_a_second_scrub_is_told_how_far_the_first_is(rig: Rig) -> None:
    slow_scrub(rig, 0.5)
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        scrub = services_of(pool).scrub
        scrub.start()
        await trio.sleep(0.2)
        with pytest.raises(PoolBusyError, match="under way"):
            scrub.start()
        scrub.stop()
        assert scrub.status().state == "stopped"
        with pytest.raises(UsageError):
            scrub.stop()
        job = scrub.job()
        assert job is not None
        assert job.state == "stopped"


async def test_a_scrub_goes_on_after_a_restart(rig: Rig) -> None:
    slow_scrub(rig, 1.0)
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        services_of(pool).scrub.start()
        with trio.fail_after(20):
            while not services_of(pool).scrub.status().done_bytes:
                await trio.sleep(0.02)
    slow_scrub(rig, 1000.0)
    async with rig.open() as pool:
        before = services_of(pool).scrub.status()
        assert before.state == "running"
        assert before.done_bytes > 0
        await scrub_ended(pool)
        after = services_of(pool).scrub.status()
        assert after.state == "idle"
        assert after.started_ns == before.started_ns
        # Nothing was read twice: what is read is about what the disks hold.
        held = sum(disk.shard_bytes or 0 for disk in report_status(pool).disks)
        assert after.done_bytes <= held + 2 * MIB


async def test_a_scrub_begins_when_it_is_due(rig: Rig) -> None:
    slow_scrub(rig, 1000.0, every_days=0.00001)  # about a second
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
    await trio.sleep(1.0)
    async with rig.open() as pool:
        with trio.fail_after(20):
            while services_of(pool).jobs.book.last_scrub is None:
                await trio.sleep(0.02)


async def test_what_a_reader_finds_bad_is_repaired(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        seal = a_seal(pool)
        store = pool.foundation.disks.get(seal.placement[0])
        assert store is not None
        await store.delete([ShardKey(seal.stripe, 0)])
        pool.stripes.release_idle()
        assert await read_file(pool, "f") == BIG
        with trio.fail_after(20):
            while services_of(pool).repairer.repaired_shards == 0:
                await trio.sleep(0.02)
        await services_of(pool).repairer.quiet()
        assert store.has(ShardKey(seal.stripe, 0))
        with trio.fail_after(20):
            while not report_status(pool).finished_jobs:
                await trio.sleep(0.05)
        assert report_status(pool).finished_jobs[0].kind == "repair"


async def test_background_work_yields_to_people(rig: Rig) -> None:
    requests = 0

    def activity() -> int:
        nonlocal requests
        requests += 1
        return requests

    async with rig.open(OpenOptions(activity=activity)) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        services_of(pool).scrub.start()
        await scrub_ended(pool)
        assert requests > 1


async def test_what_was_found_bad_and_is_not_mended_counts_as_lacking(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        services = services_of(pool)
        await services.repairer.quiet()
        seal = pool.volume.catalog.seals(None, 1)[0]
        number = next(number for number, disk in enumerate(seal.placement) if disk)
        monkeypatch.setattr(pool.redundancy, "_reported", lambda: {seal.stripe: (number,)})
        await pool.redundancy.count()
        assert pool.redundancy.short_stripes == 1
        assert pool.redundancy.short_by == 1
        assert report_status(pool).health == "at-risk"


@pytest.mark.parametrize(
    ("shards", "doubted", "expected"),
    [
        ("sss", 0, Count(0, 0, 0)),
        ("sss", 1, Count(0, 1, 0)),
        ("sse", 0, Count(0, 0, 0)),
        ("ssa", 0, Count(1, 1, 0)),
        ("ssl", 0, Count(1, 1, 0)),
        ("sll", 0, Count(0, 2, 1)),
        ("slw", 0, Count(0, 2, 1)),
    ],
)
def test_the_worst_stripe_counts(shards: str, doubted: int, expected: Count) -> None:
    states = {
        "s": ShardState.SOUND,
        "e": ShardState.EMPTY,
        "a": ShardState.ABSENT,
        "l": ShardState.LOST,
        "w": ShardState.AWAY,
    }
    of = tuple(states[letter] for letter in shards)
    readable = sum(letter in "se" for letter in shards)
    health = StripeHealth(of, readable, readable - 2, (), readable < 2, False)
    assert worst(Count(0, 0, 0), health, doubted) == expected


@pytest.mark.expect_log("is suspect", "faults found", "damaged", "footer", "can't be repaired")
async def test_a_scrub_names_the_files_that_are_beyond_repair(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "whole", BIG)
        await write_file(pool, "precious", BIG)
        await pool.volume.destage()
    for disk in rig.disks[:2]:
        for path in disk.rglob("*.seg"):
            with path.open("r+b") as file:
                for offset in range(0, path.stat().st_size, 8192):
                    file.seek(offset)
                    file.write(os.urandom(64))
    async with rig.open() as pool:
        scrub = services_of(pool).scrub
        scrub.start()
        await scrub_ended(pool)
        status = scrub.status()
        assert status.unrepairable > 0
        assert "/precious" in status.damaged_files
        await services_of(pool).jobs.save()
        assert any("can't be repaired" in line for line in report_status(pool).advice)
        report = await check_pool(pool, read=False, progress=no_progress)
        assert report.stripes_lost > 0
        assert "/precious" in report.damaged_files
        await pool.redundancy.count()
        assert report_status(pool).health == "failed"
    state = rig.directories.state_directory(rig.name)
    assert b"precious" not in (state / "jobs.json").read_bytes()
    async with rig.open() as pool:
        with trio.fail_after(20):
            while "/precious" not in services_of(pool).scrub.status().damaged_files:
                await trio.sleep(0.02)


@pytest.mark.expect_log("is missing", "is rebuilt elsewhere", "log")
async def test_what_a_lost_disk_held_is_rebuilt_and_counts_again(rig: Rig) -> None:
    tunables = Tunables(rebuild_after_seconds=0.5)
    save_config(rig.directories, msgspec.structs.replace(rig.config, tunables=tunables))
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        lost = next(
            disk
            for disk in pool.foundation.disks.all()
            if any(disk.id in seal.placement for seal in pool.volume.catalog.seals(None, 100))
        )
        shutil.rmtree(lost.directory)
        with trio.fail_after(20):
            while (status := report_status(pool)).health == "healthy":
                await trio.sleep(0.02)
        assert status.redundancy_left == 0
        with trio.fail_after(30):
            while (status := report_status(pool)).redundancy_left == 0:
                await trio.sleep(0.05)
        # The disk is still a member and still gone, but another one may fail now.
        assert (status.health, status.degraded_stripes) == ("degraded", 0)
        assert [job.kind for job in status.finished_jobs] in ([], ["repair"])
        assert await read_file(pool, "f") == BIG


async def rot_sector(rig: Rig, pool: Pool, seal: StripeSeal, shard: int, sector: int) -> None:
    """Spoil one sector of one shard where it lies."""
    store = pool.foundation.disks.get(seal.placement[shard])
    assert store is not None
    _, payload = await store.read_verified(ShardKey(seal.stripe, shard))
    start = sector * SEALED_SECTOR_SIZE + 100
    wanted = payload[start : start + 64]
    for disk in rig.disks:
        for path in disk.rglob("*.seg"):
            position = path.read_bytes().find(wanted)
            if position >= 0:
                with path.open("r+b") as file:
                    file.seek(position)
                    file.write(bytes(64))
                return
    raise AssertionError("the shard is nowhere")


@pytest.mark.expect_log("is suspect", "faults found", "damaged", "can't be repaired")
@pytest.mark.parametrize("same_row", [False, True])
async def test_what_can_be_had_of_a_stripe_beyond_repair_is_copied_out(
    rig: Rig, *, same_row: bool
) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        seal = a_seal(pool)
        await rot_sector(rig, pool, seal, 0, 3)
        await rot_sector(rig, pool, seal, 1, 3 if same_row else 7)
        pool.stripes.release_idle()
        scrub = services_of(pool).scrub
        scrub.start()
        await scrub_ended(pool)
        if same_row:
            assert scrub.status().unrepairable == 1
            assert scrub.status().damaged_files == ["/f"]
            assert pool.volume.catalog.live_bytes(seal.stripe) == 2 * SECTOR_SIZE
        else:  # sector by sector everything is there, so even the stripe is mended
            assert scrub.status().damaged_files == []
            assert await read_file(pool, "f") == BIG

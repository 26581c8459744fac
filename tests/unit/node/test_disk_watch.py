"""Disks that hang, vanish, come back, change places, or are not what they seem; on an open pool."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from dwfs.config import Directories
from dwfs.disk import SegmentStore, read_header, write_header
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.check import check_pool
from dwfs.node.disks.listing import PoolDisk
from dwfs.node.disks.states import Rules
from dwfs.node.disks.survey import survey_disks
from dwfs.node.disks.timing import DiskTiming
from dwfs.node.pool import open_pool
from dwfs.ports import DiskRole
from dwfs.types import Geometry
from tests.unit.node.hanging_medium import HangingPlatform
from tests.unit.node.pools import Rig, no_progress, read_file, until_clean, write_file

BIG = os.urandom(3 << 20)
OTHER = os.urandom(2 << 20)
IMPATIENT = DiskTiming(
    probe_seconds=0.05,
    deadline_seconds=0.6,
    hang_seconds=1.2,
    expire_seconds=0.05,
    rules=Rules(probation_probes=3, probation_seconds=0.3),
)
OPTIONS = OpenOptions(timing=IMPATIENT)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+2 on five disks."""
    return await Rig(tmp_path, Geometry(2, 2), 5).create()


def member(pool: Pool, directory: Path) -> PoolDisk:
    return pool.life_cycle.find(str(directory))


async def until(disk: PoolDisk, *states: str) -> None:
    with trio.fail_after(20):
        while disk.state not in states:
            await trio.sleep(0.01)


@pytest.mark.expect_log(r"disk .*disk1 is (suspect|missing)", "given up|timed out|log|snapshot")
async def test_a_disk_that_hangs_delays_nobody_for_long_and_comes_back(rig: Rig) -> None:
    platform = HangingPlatform()
    options = OpenOptions(timing=IMPATIENT, platform=platform)
    async with rig.open(options) as pool:
        await write_file(pool, "before", BIG)
        await pool.volume.destage()
        disk = member(pool, rig.disks[1])
        platform.hanging.hang(rig.disks[1])
        try:
            with trio.fail_after(10):
                assert await read_file(pool, "before") == BIG
                await until(disk, "suspect", "missing")
                assert pool.foundation.disks.patience_seconds(disk.id) == 0.0
                await write_file(pool, "during", OTHER)
                await pool.volume.barrier()
                await until(disk, "missing")
                assert disk.store is None or await _soon_none(disk)
                assert pool.foundation.disks.role(disk.id) is DiskRole.AWAY
                await write_file(pool, "after", OTHER)
                await pool.volume.destage()
        finally:
            platform.hanging.release(rig.disks[1])
        await until(disk, "suspect", "online")  # on probation: it was suspect not long ago
        await until(disk, "online")
        await until_clean(pool)
        assert await read_file(pool, "during") == OTHER
        changes = [(change.before, change.after) for change in pool.foundation.disks.history()]
        assert ("suspect", "missing") in changes
        assert changes[-1][1] == "online"


async def _soon_none(disk: PoolDisk) -> bool:
    while disk.store is not None:
        await trio.sleep(0.01)
    return True


@pytest.mark.expect_log(
    "is suspect", "is missing", "given up|timed out|log|snapshot|in step|closed"
)
async def test_closing_does_not_wait_for_a_disk_that_hangs(rig: Rig) -> None:
    platform = HangingPlatform()
    options = OpenOptions(timing=IMPATIENT, platform=platform)
    try:
        with trio.fail_after(15):
            async with rig.open(options) as pool:
                await write_file(pool, "f", BIG)
                await pool.volume.barrier()
                platform.hanging.hang(rig.disks[1])
                await write_file(pool, "g", BIG)
                await pool.volume.barrier()
    finally:
        platform.hanging.release(rig.disks[1])
    async with rig.open(OPTIONS) as pool:
        assert await read_file(pool, "f") == BIG
        assert await read_file(pool, "g") == BIG
        await until_clean(pool)


async def test_a_disk_that_hangs_when_the_pool_is_opened_is_only_missing(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
    platform = HangingPlatform()
    platform.hanging.hang(rig.disks[1])
    try:
        with trio.fail_after(15):
            async with rig.open(OpenOptions(timing=IMPATIENT, platform=platform)) as pool:
                disk = member(pool, rig.disks[1])
                assert disk.state == "missing"
                assert await read_file(pool, "f") == BIG
                platform.hanging.release(rig.disks[1])
                await until(disk, "online")
                await until_clean(pool)
    finally:
        platform.hanging.release_all()


@pytest.mark.expect_log("is suspect", "is failing", "Input/output error|EIO|sync")
async def test_a_disk_that_fails_writes_is_on_probation(rig: Rig) -> None:
    platform = HangingPlatform()
    options = OpenOptions(timing=IMPATIENT, platform=platform)
    async with rig.open(options) as pool:
        disk = member(pool, rig.disks[0])
        platform.hanging.break_writes(rig.disks[0])
        for number in range(8):
            await write_file(pool, f"f{number}", OTHER[:100_000])
            await pool.volume.destage()
            if disk.state != "online":
                break
        assert disk.state == "suspect"
        assert disk.errors_by_kind["write"] >= 1
        assert pool.foundation.disks.get(disk.id) is not None
        await trio.sleep(0.6)  # longer than its probation: it can be read, but not written
        assert pool.foundation.disks.writable() != list(pool.foundation.disks)
        platform.hanging.mend(rig.disks[0])
        await pool.life_cycle.online(disk.id)  # it may have become failing by now
        await until(disk, "online")
        assert disk.reason == ""
        await until_clean(pool)


@pytest.mark.expect_log("is failing", "Read-only|EROFS|log|sync")
async def test_a_filesystem_that_gave_up_writing_is_noticed_by_its_errors(rig: Rig) -> None:
    """ext4 may refuse writes with EROFS and yet not call itself read-only."""
    platform = HangingPlatform()
    options = OpenOptions(timing=IMPATIENT, platform=platform)
    async with rig.open(options) as pool:
        disk = member(pool, rig.disks[0])
        platform.hanging.break_writes(rig.disks[0], errno.EROFS)
        for number in range(8):
            await write_file(pool, f"f{number}", OTHER[:100_000])
            await pool.volume.destage()
        assert disk.state == "failing"
        assert pool.foundation.disks.role(disk.id) is DiskRole.LEAVE
        await trio.sleep(0.5)
        assert disk.state == "failing"
        platform.hanging.mend(rig.disks[0])


@pytest.mark.expect_log("is missing", "log|snapshot|sync|put|No such file")
async def test_a_disk_that_is_unplugged_catches_up_with_what_changed(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        for number in range(6):
            await write_file(pool, f"old{number}", OTHER)
        await pool.volume.destage()
        disk = member(pool, rig.disks[3])
        away = rig.disks[3].with_name("away")
        rig.disks[3].rename(away)
        await until(disk, "missing")
        await write_file(pool, "new", OTHER)
        await pool.volume.destage()
        away.rename(rig.disks[3])
        await until(disk, "online")
        await until_clean(pool)
        assert await read_file(pool, "old5") == OTHER
        assert await read_file(pool, "new") == OTHER


async def test_a_disk_that_was_not_there_at_the_mount_is_found_later(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
    away = rig.disks[3].with_name("away")
    rig.disks[3].rename(away)
    trusted: list[bool] = []
    async with _spying(rig, trusted) as pool:
        disk = member(pool, rig.disks[3])
        assert disk.state == "missing"
        await write_file(pool, "g", BIG)
        await pool.volume.destage()
        away.rename(rig.disks[3])
        await until(disk, "online")
        await until_clean(pool)
    assert trusted == [True] * 5  # nobody else used it: its index was good


@asynccontextmanager
async def _spying(rig: Rig, trusted: list[bool]) -> AsyncIterator[Pool]:
    """Note for each store that is opened whether its index was trusted."""
    original = SegmentStore.open

    async def spy(*arguments: object, **options: object) -> SegmentStore:
        trusted.append(options["trusted"] is True)
        return await original(*arguments, **options)  # type: ignore[arg-type]  # passed on

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentStore, "open", spy)
        async with rig.open(OPTIONS) as pool:
            yield pool


async def test_the_index_of_a_disk_that_was_used_elsewhere_is_not_trusted(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
    trusted: list[bool] = []
    async with _spying(rig, trusted) as pool:
        assert await read_file(pool, "f") == BIG
    assert trusted == [True] * 5
    older = rig.disks[2].with_name("older")
    shutil.copytree(rig.disks[2], older)
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "g", BIG)
    shutil.rmtree(rig.disks[2])
    older.rename(rig.disks[2])  # restored from a copy that missed "g"
    trusted.clear()
    async with _spying(rig, trusted) as pool:
        assert sorted(trusted) == [False, True, True, True, True]
        assert await read_file(pool, "g") == BIG
        await until_clean(pool)


@pytest.mark.expect_log("is missing", "log|snapshot|sync|put|No such file")
async def test_disks_that_change_places_in_use(rig: Rig) -> None:
    first, second = rig.disks[0], rig.disks[1]
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        disks = member(pool, first), member(pool, second)
        spare = first.with_name("spare")
        for source, target in ((first, spare), (second, first), (spare, second)):
            source.rename(target)
        with trio.fail_after(20):
            while disks[0].directory != second or disks[1].directory != first:
                await trio.sleep(0.02)
        await until(disks[0], "online")
        await until(disks[1], "online")
        await until_clean(pool)
        assert await read_file(pool, "f") == BIG
        paths = {configured.id: configured.path for configured in rig.config.disks}
        assert paths[disks[0].id] == second
        assert paths[disks[1].id] == first


@pytest.mark.expect_log("is missing", "log|snapshot|sync|put|No such file")
async def test_of_two_copies_of_a_missing_disk_neither_is_taken(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        lost, other = member(pool, rig.disks[0]), member(pool, rig.disks[1])
        away = rig.disks[0].with_name("away")
        rig.disks[0].rename(away)
        shutil.rmtree(rig.disks[1])
        await until(lost, "missing")
        await until(other, "missing")
        shutil.copytree(away, rig.disks[1])
        shutil.copytree(away, rig.disks[1].with_name("copy"))
        rig.disks[1].with_name("copy").rename(rig.disks[0])
        with trio.move_on_after(1.0):
            await until(lost, "online")
        # One of the copies may have been found a moment before the other was there.
        if lost.state == "missing":
            assert "copies of it" in lost.reason
            shutil.rmtree(rig.disks[1])
            await until(lost, "online")
        assert other.state == "missing"
        assert await read_file(pool, "f") == BIG


@pytest.mark.expect_log("is missing", "can't be used", "log|snapshot|sync|put|No such file")
async def test_a_disk_that_knows_more_than_we_do_is_refused(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        disk = member(pool, rig.disks[0])
        away = rig.disks[0].with_name("away")
        rig.disks[0].rename(away)
        await until(disk, "missing")
        stored = read_header(away).header
        newer = msgspec.structs.replace(stored, generation=stored.generation + 5)
        with pool.foundation.keys.header_key().view() as key:
            write_header(away, newer, key)
            away.rename(rig.disks[0])
            with trio.fail_after(10):
                while "changed" not in disk.reason and "change of the pool" not in disk.reason:
                    await trio.sleep(0.02)
            assert disk.state == "missing"
            write_header(rig.disks[0], stored, key)
        await until(disk, "online")


@pytest.mark.expect_log("is missing", "can't be used", "log|snapshot|sync|put|No such file")
async def test_a_disk_with_a_forged_header_is_refused(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        disk = member(pool, rig.disks[0])
        away = rig.disks[0].with_name("away")
        rig.disks[0].rename(away)
        await until(disk, "missing")
        write_header(away, read_header(away).header, b"somebody else's key, 32 bytes ..")
        away.rename(rig.disks[0])
        with trio.fail_after(10):
            while "altered" not in disk.reason:
                await trio.sleep(0.02)
        assert disk.state == "missing"


@pytest.mark.expect_log("is missing", "stays missing", "log|snapshot|sync|put|No such file")
async def test_a_disk_that_stays_away_is_given_up_and_may_still_return(rig: Rig) -> None:
    config = msgspec.structs.replace(
        rig.config, tunables=msgspec.structs.replace(rig.config.tunables, rebuild_after_seconds=0.5)
    )
    async with open_pool(rig.directories, config, rig.credential(), OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        disk = member(pool, rig.disks[0])
        away = rig.disks[0].with_name("away")
        rig.disks[0].rename(away)
        await until(disk, "missing")
        generation = pool.foundation.changes.generation
        with trio.fail_after(10):
            await pool.foundation.changes.after(generation)
            while pool.foundation.disks.role(disk.id) is not DiskRole.GONE:
                await trio.sleep(0.02)
            assert pool.services is not None
            await pool.services.repairer.quiet()
        await until_clean_but_for_disks(pool)
        away.rename(rig.disks[0])
        await until(disk, "online")
        await until_clean(pool)


async def until_clean_but_for_disks(pool: Pool) -> None:
    with trio.fail_after(20):
        while (await check_pool(pool, read=True, progress=no_progress)).stripes_short:
            await trio.sleep(0.1)


async def test_a_state_directory_that_was_left_behind_is_not_believed(
    rig: Rig, tmp_path: Path
) -> None:
    """The pool moves to another machine, is used there, and comes back."""
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
    here = rig.directories
    there = Directories.from_environment({"DWFS_ROOT": str(tmp_path / "elsewhere")})
    there.config.mkdir(parents=True)
    shutil.copy(here.config_file(rig.name), there.config_file(rig.name))
    rig.directories = there
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "g", OTHER)
    rig.directories = here
    async with rig.open(OPTIONS) as pool:
        assert await read_file(pool, "g") == OTHER
        assert await read_file(pool, "f") == BIG
        await until_clean(pool)
    rig.directories = there
    async with rig.open(OPTIONS) as pool:
        assert await read_file(pool, "g") == OTHER


@pytest.mark.expect_log("log|snapshot|No such file", "is missing")
async def test_a_disk_that_moved_to_the_place_of_a_dead_one_opens_again_and_again(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
    dead, moved = rig.disks[0], rig.disks[1]
    shutil.rmtree(dead)
    moved.rename(dead)
    for _ in range(2):
        async with rig.open(OPTIONS) as pool:
            assert sorted(disk.state for disk in pool.foundation.disks.all())[:1] == ["missing"]
            assert await read_file(pool, "f") == BIG


@pytest.mark.expect_log("log|snapshot|No such file", "is missing")
async def test_a_disk_gets_the_change_that_was_made_while_it_was_taken_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking it back may take minutes, and until then no change of the header reaches it."""
    away = rig.disks[1].with_name("away")
    async with rig.open(OPTIONS) as pool:
        disk = member(pool, rig.disks[1])
        rig.disks[1].rename(away)
        await until(disk, "missing")
        open_store = pool.foundation.open_store

        # Any: they are passed on as they are
        async def change_meanwhile(*arguments: Any, **options: Any) -> SegmentStore:
            await pool.foundation.membership.change_header(
                lambda header: msgspec.structs.replace(header, name="renamed")
            )
            return await open_store(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(pool.foundation, "open_store", change_meanwhile)
            away.rename(rig.disks[1])
            await until(disk, "online")
        with trio.fail_after(10):
            while read_header(rig.disks[1]).header.name != "renamed":
                await trio.sleep(0.02)
        assert not survey_disks(rig.config).stale

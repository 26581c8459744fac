"""A pool from making to reopening: crashes, lost disks, lost state; on real directories."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.errors import (
    DwfsError,
    FormatError,
    NotEnoughDisksError,
    PoolBusyError,
    PosixError,
    UsageError,
    WrongKeyError,
)
from dwfs.node import keyslots, marker
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.check import check_pool
from dwfs.node.client import ask
from dwfs.node.credential import Credential
from dwfs.node.disks.survey import read_newest_header, survey_disks, survey_pool
from dwfs.node.pool import open_pool
from dwfs.node.pool_status import report_status
from dwfs.node.status import PoolStatus
from dwfs.types import Geometry
from tests.unit.node.pools import Rig, no_progress, read_file, write_file

BIG = os.urandom(3 << 20)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on four disks."""
    return await Rig(tmp_path, Geometry(2, 1), 4).create()


class Crashed(BaseException):
    """Stands for a kill: passes through everything that handles errors."""


@asynccontextmanager
async def crashing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    """Open the pool, and leave it as a killed process would: nothing is closed in order."""

    async def no_close(pool: Pool) -> None:
        if pool.log is not None and pool.snapshots is not None:
            await pool.log.close()
            await pool.snapshots.close()

    with monkeypatch.context() as patch:
        patch.setattr("dwfs.node.pool._close", no_close)
        async with rig.open() as pool:
            yield pool


async def test_what_was_written_is_there_after_reopening(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "small", b"hello")
        await write_file(pool, "big", BIG)
    assert rig.closed_in_order()
    async with rig.open() as pool:
        assert await read_file(pool, "small") == b"hello"
        assert await read_file(pool, "big") == BIG
        assert (await check_pool(pool, read=True, progress=no_progress)).clean


async def test_after_a_crash_what_was_synced_is_there(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crashing(rig, monkeypatch) as pool:
        await write_file(pool, "small", b"hello")
        await write_file(pool, "big", BIG)
        await pool.volume.barrier()
        await write_file(pool, "late", b"never promised")
    assert not rig.closed_in_order()
    async with rig.open() as pool:
        assert await read_file(pool, "small") == b"hello"
        assert await read_file(pool, "big") == BIG
        assert (await check_pool(pool, read=True, progress=no_progress)).clean


@pytest.mark.parametrize("snapshot", [False, True])
async def test_after_a_power_cut_the_state_is_rebuilt_from_the_disks(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, snapshot: bool
) -> None:
    async with crashing(rig, monkeypatch) as pool:
        await write_file(pool, "old", BIG)
        if snapshot:
            assert pool.snapshotter is not None
            await pool.snapshotter.take()
        await write_file(pool, "new", b"hello")
        await pool.volume.barrier()
    monkeypatch.setattr(marker, "current_boot_id", lambda: "another boot")
    async with rig.open() as pool:
        assert await read_file(pool, "old") == BIG
        assert await read_file(pool, "new") == b"hello"
        assert (await check_pool(pool, read=True, progress=no_progress)).clean


async def test_losing_the_state_directory_loses_nothing(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
    shutil.rmtree(rig.directories.state)
    async with rig.open() as pool:
        assert await read_file(pool, "f") == BIG


async def test_an_interrupted_rebuild_is_done_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
    shutil.rmtree(rig.directories.state)
    with monkeypatch.context() as patch:
        patch.setattr("dwfs.node.assembly.mark_recovered", _explode)
        with pytest.raises(UsageError, match="on purpose"):
            async with rig.open():
                pass
    async with rig.open() as pool:
        assert await read_file(pool, "f") == BIG


def _explode(*arguments: object) -> None:
    raise UsageError("on purpose")


@pytest.mark.expect_log("disk .* is missing", "log healing", "is failing")
async def test_a_disk_that_vanishes_in_use(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "before", BIG)
        await pool.volume.destage()
        shutil.rmtree(rig.disks[1])
        with trio.fail_after(20):
            while report_status(pool).health == "healthy":
                await trio.sleep(0.05)
        assert await read_file(pool, "before") == BIG
        await write_file(pool, "after", BIG)
        await pool.volume.destage()
        status = report_status(pool)
        assert (status.health, status.redundancy_left) == ("at-risk", 0)
        assert [disk.state for disk in status.disks].count("missing") == 1
        assert str(rig.disks[1]) in status.advice[0]
    async with rig.open() as pool:
        assert await read_file(pool, "before") == BIG
        assert await read_file(pool, "after") == BIG
        report = await check_pool(pool, read=True, progress=no_progress)
        assert not report.clean
        assert report.stripes_lost == 0


@pytest.mark.expect_log("too many disks")
async def test_beyond_redundancy_a_clean_pool_still_serves_what_is_there(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, Geometry(2, 1), 3).create()
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
    for disk in rig.disks[:2]:
        shutil.rmtree(disk)
    async with rig.open() as pool:
        assert pool.read_only
        status = report_status(pool)
        assert status.health == "failed"
        with pytest.raises(PosixError) as caught:
            await read_file(pool, "f")
        assert caught.value.errno == errno.EIO
        report = await check_pool(pool, read=False, progress=no_progress)
        assert report.damaged_files == ["/f"]


async def test_beyond_redundancy_without_a_clean_state_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crashing(rig, monkeypatch) as pool:
        await write_file(pool, "f", BIG)
    for disk in rig.disks[:2]:
        shutil.rmtree(disk)
    with pytest.raises(NotEnoughDisksError, match=str(rig.disks[1])):
        async with rig.open():
            pass


async def test_a_second_owner_is_refused(rig: Rig) -> None:
    async with rig.open():
        with pytest.raises(PoolBusyError, match=str(os.getpid())):
            async with rig.open():
                pass


async def test_an_error_in_the_block_comes_out_as_it_is(rig: Rig) -> None:
    with pytest.raises(UsageError, match="mine"):
        async with rig.open():
            raise UsageError("mine")
    assert rig.closed_in_order()


async def test_a_wrong_key_changes_nothing(rig: Rig) -> None:
    before = {path: path.read_bytes() for path in rig.disks[0].rglob("*") if path.is_file()}
    rig.key = os.urandom(64)
    with pytest.raises(WrongKeyError):
        async with rig.open():
            pass
    assert before == {path: path.read_bytes() for path in before}


async def test_a_torn_header_is_mended(rig: Rig) -> None:
    path = rig.disks[2] / "dwfs-disk"
    os.truncate(path, 100)
    assert len(survey_disks(rig.config).stale) == 1
    async with rig.open() as pool:
        assert report_status(pool).health == "healthy"
    assert not survey_disks(rig.config).stale


async def test_disks_may_change_places(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
    first, second = rig.disks[:2]
    spare = first.with_name("spare")
    for source, target in ((first, spare), (second, first), (spare, second)):
        source.rename(target)
    async with rig.open() as pool:
        assert report_status(pool).health == "healthy"
        assert await read_file(pool, "f") == BIG


async def test_a_copied_disk_is_refused(rig: Rig) -> None:
    shutil.rmtree(rig.disks[0])
    shutil.copytree(rig.disks[1], rig.disks[0])
    with pytest.raises(FormatError, match="copy"):
        async with rig.open():
            pass


async def test_a_foreign_disk_is_refused(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = await Rig(tmp_path / "other", Geometry(1, 1), 2).create()
    shutil.rmtree(rig.disks[0])
    shutil.copytree(other.disks[0], rig.disks[0])
    with pytest.raises(FormatError, match="mount the right disk"):
        async with rig.open():
            pass


async def test_status_over_the_socket_and_without_an_owner(rig: Rig) -> None:
    socket = rig.directories.control_socket(rig.name)
    async with rig.open() as pool:
        raw = await trio.to_thread.run_sync(ask, socket, "status")
        answered, known = msgspec.json.decode(raw, type=PoolStatus), report_status(pool)
        # Latencies and free space move on between two looks.
        assert (answered.pool, answered.health) == (known.pool, known.health)
        assert [disk.id for disk in answered.disks] == [disk.id for disk in known.disks]
        assert answered.pid == os.getpid()
        await trio.to_thread.run_sync(ask, socket, "stop")
        assert pool.stop_requested.is_set()
    offline = survey_pool(rig.config, None)
    assert (offline.pid, offline.health, offline.redundancy_left) == (None, "healthy", 1)
    for disk in rig.disks:
        shutil.rmtree(disk)
    assert survey_pool(rig.config, None).health == "failed"


async def test_keyslots_change_and_reach_a_disk_that_was_away(rig: Rig) -> None:
    away = rig.disks[0].with_name("away")
    rig.disks[0].rename(away)
    fresh = Credential("passphrase", b"correct horse")
    change = keyslots.add_key(rig.config, rig.credential(), fresh, "desk")
    assert change.disks_not_reached == [str(rig.disks[0])]
    keyslots.remove_key(rig.config, fresh, 2)
    away.rename(rig.disks[0])
    kinds = [slot.kind for slot in keyslots.describe_slots(read_newest_header(rig.config))]
    assert kinds == ["recovery", "passphrase"]
    with pytest.raises(WrongKeyError):
        async with rig.open():
            pass
    async with _open_with(rig, fresh) as pool:
        assert report_status(pool).health == "healthy"
    generations = {
        disk.stored.header.generation for disk in survey_disks(rig.config).present if disk.stored
    }
    assert generations == {3}


@asynccontextmanager
async def _open_with(rig: Rig, credential: Credential) -> AsyncIterator[Pool]:
    async with open_pool(rig.directories, rig.config, credential) as pool:
        yield pool


async def test_the_last_keyslot_stays(rig: Rig) -> None:
    change = keyslots.new_recovery_slot(rig.config, rig.credential())
    assert change.recovery_key is not None
    recovery = Credential("recovery", change.recovery_key.encode())
    keyslots.remove_key(rig.config, recovery, 2)
    with pytest.raises(UsageError):
        keyslots.remove_key(rig.config, recovery, change.slot)


@pytest.mark.expect_log("it is made anew from the disks")
@pytest.mark.parametrize("name", ["index.mdb", "state-*.mdb"])
@pytest.mark.parametrize("content", [b"", bytes(range(256)) * 40])
async def test_a_database_that_is_none_is_made_anew(
    tmp_path: Path, name: str, content: bytes
) -> None:
    rig = await Rig(tmp_path, Geometry(2, 1), 3).create()
    async with rig.open() as pool:
        await write_file(pool, "kept", b"content" * 1000)
    (path,) = rig.directories.state_directory(rig.name).glob(name)
    path.write_bytes(content)
    async with rig.open() as pool:
        assert await read_file(pool, "kept") == b"content" * 1000


@pytest.mark.expect_log("it is made anew from the disks")
@pytest.mark.parametrize("name", ["index.mdb", "state-*.mdb"])
async def test_damage_inside_a_database_costs_one_opening(tmp_path: Path, name: str) -> None:
    rig = await Rig(tmp_path, Geometry(2, 1), 3).create()
    async with rig.open() as pool:
        for number in range(100):
            await write_file(pool, f"file-{number:03}-{'x' * 200}", bytes(100))
        await pool.volume.destage()
    (path,) = rig.directories.state_directory(rig.name).glob(name)
    with path.open("r+b") as file:
        file.seek(8192)  # behind the two pages that say where the others are
        file.write(b"\xff" * (path.stat().st_size - 8192))
    said = "made anew from the disks"
    try:
        async with rig.open():
            pass
    except DwfsError as error:
        said = str(error)
    assert "made anew from the disks" in said
    async with rig.open() as pool:
        assert await read_file(pool, f"file-042-{'x' * 200}") == bytes(100)


async def test_a_mount_that_is_interrupted_again_and_again_costs_no_state(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crashing(rig, monkeypatch) as pool:
        await write_file(pool, "small", b"hello")
        await pool.volume.barrier()
        before = pool.foundation.header.state_id

    def impatient(what: str, done: int, total: int) -> None:
        scope.cancel()

    for _ in range(3):
        with trio.CancelScope() as scope:
            async with rig.open(OpenOptions(report=impatient)):
                pass
        assert scope.cancelled_caught
    async with rig.open() as pool:
        assert await read_file(pool, "small") == b"hello"
        assert pool.foundation.header.state_id == before, "the state was made anew"

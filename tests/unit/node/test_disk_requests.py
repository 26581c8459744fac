"""What administrators ask of an open pool: disks come and go, and data stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.errors import DwfsError, UsageError
from dwfs.node.administration import Administration
from dwfs.node.assembly import Pool
from dwfs.node.check import CheckReport
from dwfs.node.client import ask
from dwfs.node.pool_status import report_status
from dwfs.node.services.jobs import read_book
from dwfs.node.status import DiskAnswer, PoolStatus, ScrubStatus
from dwfs.types import Geometry
from tests.unit.node.pools import Rig, read_file, write_file

BIG = os.urandom(9 << 20)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on four disks."""
    return await Rig(tmp_path, Geometry(2, 1), 4).create()


class Progress:
    """Collects what somebody who waits is told."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, object]] = []

    async def __call__(self, event: Mapping[str, object]) -> None:
        self.events.append(event)


async def request(pool: Pool, name: str, **arguments: object) -> object:
    """Ask as the control socket does."""
    return await Administration(pool).handlers()[name](arguments, Progress())


async def disk_request(pool: Pool, name: str, **arguments: object) -> DiskAnswer:
    """Ask, and expect the answer of a disk request."""
    answer = await request(pool, name, **arguments)
    assert isinstance(answer, DiskAnswer)
    return answer


async def checked(pool: Pool) -> CheckReport:
    """A full check."""
    report = await request(pool, "check", read=True)
    assert isinstance(report, CheckReport)
    return report


@pytest.mark.expect_log("shares a filesystem")
async def test_a_disk_is_added_and_gets_its_share(rig: Rig, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        answer = await disk_request(pool, "disk.add", path=str(fresh), label="new", wait=True)
        assert answer.done
        assert answer.disk is not None
        assert (answer.disk.state, answer.disk.label) == ("online", "new")
        status = report_status(pool)
        assert len(status.disks) == 5
        assert [job.kind for job in status.finished_jobs] == ["balance"]
        assert (await checked(pool)).clean
    assert str(fresh) in [str(disk.path) for disk in rig.config.disks]
    async with rig.open() as pool:
        assert await read_file(pool, "f") == BIG


async def test_a_disk_is_emptied_and_removed(rig: Rig) -> None:
    gone = rig.disks[1]
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        progress = Progress()
        handler = Administration(pool).handlers()["disk.remove"]
        answer = await handler({"disk": str(gone), "wait": True}, progress)
        assert isinstance(answer, DiskAnswer)
        assert answer.disk is None
        assert answer.job is not None
        assert answer.job.state == "finished"
        assert progress.events[-1]["state"] == "finished"
        assert not list(gone.iterdir())
        assert len(report_status(pool).disks) == 3
        assert report_status(pool).health == "healthy"
        assert (await checked(pool)).clean
        with pytest.raises(DwfsError, match="3"):
            await request(pool, "disk.remove", disk=str(rig.disks[0]))
    async with rig.open() as pool:
        assert await read_file(pool, "f") == BIG


async def test_a_removal_goes_on_after_a_restart(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        answer = await disk_request(pool, "disk.remove", disk=str(rig.disks[1]))
        assert not answer.done
        assert answer.job is not None
    async with rig.open() as pool:
        with trio.fail_after(20):
            while not report_status(pool).finished_jobs:
                await trio.sleep(0.05)
        assert len(report_status(pool).disks) == 3
        assert await read_file(pool, "f") == BIG
        assert report_status(pool).finished_jobs[0].kind == "remove"


async def test_a_removal_under_way_can_be_waited_for(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        first = await disk_request(pool, "disk.remove", disk=str(rig.disks[1]))
        assert first.job is not None
        with pytest.raises(UsageError, match="already"):
            await request(pool, "disk.remove", disk=str(rig.disks[1]))
        answer = await disk_request(pool, "disk.remove", disk=str(rig.disks[1]), wait=True)
        assert answer.job is not None
        assert (answer.job.state, answer.job.started_ns) == ("finished", first.job.started_ns)


@pytest.mark.expect_log("shares a filesystem")
async def test_a_replacement_given_again_waits_for_the_first(rig: Rig, tmp_path: Path) -> None:
    old, fresh = str(rig.disks[1]), str(tmp_path / "fresh")
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        first = await disk_request(pool, "disk.replace", disk=old, path=fresh)
        assert first.job is not None
        again = await disk_request(pool, "disk.replace", disk=old, path=fresh, wait=True)
        assert again.job is not None
        assert (again.job.state, again.job.started_ns) == ("finished", first.job.started_ns)
        assert len(pool.foundation.disks.all()) == 4


@pytest.mark.expect_log("shares a filesystem")
async def test_whoever_adds_a_disk_is_told_of_a_shared_filesystem(rig: Rig, tmp_path: Path) -> None:
    async with rig.open() as pool:
        answer = await disk_request(pool, "disk.add", path=str(tmp_path / "fresh"), balance=False)
        assert "it shares a filesystem with" in answer.text


async def test_a_removal_is_called_off(rig: Rig) -> None:
    async with rig.open() as pool:
        services = pool.services
        assert services is not None
        await write_file(pool, "f", BIG)
        await request(pool, "disk.remove", disk=str(rig.disks[1]))
        answer = await disk_request(pool, "disk.remove.cancel", disk=str(rig.disks[1]))
        assert answer.disk is not None
        assert answer.disk.state == "online"
        assert services.removal.jobs() == []


async def test_whoever_waits_for_a_removal_is_told_that_it_was_called_off(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may take the disk for empty."""
    monkeypatch.setattr("dwfs.stripe.repair.Repairer.run", _for_ever)
    answers: list[DiskAnswer] = []
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()

        async def wait() -> None:
            answers.append(
                await disk_request(pool, "disk.remove", disk=str(rig.disks[1]), wait=True)
            )

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                while pool.services is None or not pool.services.removal.jobs():
                    await trio.sleep(0.01)
                await request(pool, "disk.remove.cancel", disk=str(rig.disks[1]))
    assert [answer.done for answer in answers] == [False]
    assert "it stays in the pool" in answers[0].text


async def _for_ever(self: object) -> None:
    await trio.sleep_forever()


@pytest.mark.expect_log("disk .* is missing", "log", "shares a filesystem", "is rebuilt elsewhere")
async def test_a_lost_disk_is_replaced(rig: Rig, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        shutil.rmtree(rig.disks[2])
        with trio.fail_after(20):
            while report_status(pool).health == "healthy":
                await trio.sleep(0.05)
        answer = await disk_request(
            pool, "disk.replace", disk=str(rig.disks[2]), path=str(fresh), wait=True
        )
        assert answer.job is not None
        assert answer.job.state == "finished"
        with trio.fail_after(20):
            while report_status(pool).health != "healthy":
                await trio.sleep(0.05)
        report = await checked(pool)
        assert report.clean, report.findings
    async with rig.open() as pool:
        assert await read_file(pool, "f") == BIG


@pytest.mark.expect_log("an administrator wants it back")
async def test_a_disk_goes_offline_and_comes_back(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "before", BIG)
        await pool.volume.destage()
        answer = await disk_request(pool, "disk.offline", disk=str(rig.disks[0]))
        assert answer.disk is not None
        assert answer.disk.state == "offline"
        assert report_status(pool).redundancy_left == 0
        assert await read_file(pool, "before") == BIG
        await write_file(pool, "after", BIG)
        await pool.volume.destage()
        with pytest.raises(DwfsError):
            await request(pool, "disk.offline", disk=str(rig.disks[1]))
        await request(pool, "disk.online", disk=str(rig.disks[0]))
        with trio.fail_after(20):
            while report_status(pool).health != "healthy":
                await trio.sleep(0.05)
        assert (await checked(pool)).clean


async def test_nonsense_is_refused(rig: Rig) -> None:
    async with rig.open() as pool:
        with pytest.raises(UsageError):
            await request(pool, "disk.add", path="relative")
        with pytest.raises(UsageError):
            await request(pool, "disk.remove", disk="/nowhere")
        with pytest.raises(UsageError):
            await request(pool, "disk.remove", disk=17)
        with pytest.raises(UsageError):
            await request(pool, "disk.balance.stop")
        with pytest.raises(UsageError):
            await request(pool, "scrub.stop")
        with pytest.raises(UsageError):
            await request(pool, "status", if_added=-1)
        with pytest.raises(UsageError):
            await request(pool, "check", read="yes")


async def test_whoever_stops_waiting_stops_nothing(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        with trio.move_on_after(0.05):
            await request(pool, "scrub.start", wait=True)
        with trio.fail_after(20):
            while (status := report_status(pool).scrub) is None or status.state == "running":
                await trio.sleep(0.05)
        assert status.state == "idle"
        assert status.ended_ns is not None


async def test_status_tells_what_another_disk_would_give(rig: Rig) -> None:
    socket = rig.directories.control_socket(rig.name)
    async with rig.open():
        raw = await trio.to_thread.run_sync(ask, socket, "status", {"if_added": 10 << 30})
        status = msgspec.json.decode(raw, type=PoolStatus)
        assert status.space is not None
        assert status.space.if_added is not None
        assert status.space.if_added.disk_bytes == 10 << 30
        assert status.space.if_added.gained_bytes >= 0
        raw = await trio.to_thread.run_sync(ask, socket, "scrub.status")
        assert msgspec.json.decode(raw, type=ScrubStatus).state == "never"


@pytest.mark.expect_log("is missing", "log", "wants it back")
async def test_a_disk_that_is_gone_is_not_said_to_be_in_use(rig: Rig) -> None:
    async with rig.open() as pool:
        await request(pool, "disk.offline", disk=str(rig.disks[1]))
        shutil.rmtree(rig.disks[1])
        answer = await disk_request(pool, "disk.online", disk=str(rig.disks[1]))
        assert "is not there" in answer.text
        assert answer.disk is not None
        assert answer.disk.state == "missing"
        assert "not there" in answer.disk.reason


async def test_a_scrub_that_was_begun_survives_a_crash(rig: Rig) -> None:
    async with rig.open() as pool:
        await request(pool, "scrub.start")
        path = rig.directories.state_directory(rig.name) / "jobs.json"
        assert read_book(path, pool.foundation.header.pool).scrub is not None


@pytest.mark.parametrize(
    "line",
    [
        b'{"request": "scrub.start", "arguments": {"wait": true}}\n',
        b'{"request": "check", "arguments": {"read": true}}\n',
        b'{"request": "disk.balance.start", "arguments": {"wait": true}}\n',
    ],
)
async def test_a_client_that_vanishes_leaves_no_trace(rig: Rig, line: bytes) -> None:
    socket = rig.directories.control_socket(rig.name)
    async with rig.open() as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        stream = await trio.open_unix_socket(str(socket))
        await stream.send_all(line)
        await trio.sleep(0.05)
        await stream.aclose()
        await trio.sleep(1.5)
        assert report_status(pool).unforeseen_errors == 0
        assert (await checked(pool)).clean

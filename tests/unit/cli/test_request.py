"""Commands that ask the owner of a pool: what they send, what they show, how they are interrupted."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from dwfs.cli.disk import render_disks
from dwfs.cli.main import main
from dwfs.cli.scrub import render_scrub
from dwfs.cli.status import render_job, render_status
from dwfs.config import ConfiguredDisk, Directories, PoolConfig, save_config
from dwfs.node.lock import PoolLock
from dwfs.node.status import (
    DiskScrubStatus,
    DiskStatus,
    IfAdded,
    JobStatus,
    PoolStatus,
    ScrubStatus,
    SnapshotAnswer,
    SnapshotSummary,
    SpaceStatus,
    StateChange,
    UsageStatus,
)
from dwfs.types import DiskId, PoolId

MIB = 1 << 20
NOON = 1_700_000_000 * 10**9
ANSWER = {"disk": None, "text": "Disk /d/a is being emptied.", "done": False}


class FakeOwner:
    """Holds the lock, listens, and answers each request with scripted lines."""

    def __init__(self, home: Path) -> None:
        self.directories = Directories.from_environment({"DWFS_ROOT": str(home)})
        config = PoolConfig("tank", PoolId(bytes(16)), (ConfiguredDisk(DiskId(bytes(16)), home),))
        save_config(self.directories, config)
        self.requests: list[dict[str, object]] = []
        self.script: list[dict[str, object]] = []
        self.at_end: Callable[[], None] = lambda: None

    @contextmanager
    def listening(self) -> Iterator[None]:
        with PoolLock.acquire(self.directories, "tank"), socket.socket(socket.AF_UNIX) as listener:
            os.chdir(self.directories.runtime_directory("tank"))  # a socket's path must be short
            listener.bind("control.sock")
            listener.listen()
            thread = threading.Thread(target=self._serve, args=[listener])
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rw") as file:
                self.requests.append(json.loads(file.readline()))
                for message in self.script:
                    file.write(json.dumps(message) + "\n")
                file.flush()
                self.at_end()
                with suppress(ConnectionError):
                    file.readline()  # until the client leaves


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOwner]:
    monkeypatch.setenv("DWFS_ROOT", str(tmp_path))
    monkeypatch.delenv("DWFS_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    owner = FakeOwner(tmp_path)
    with owner.listening():
        yield owner


@pytest.mark.parametrize(
    ("words", "request_name", "arguments"),
    [
        ("create tank@now", "snapshot.create", {"name": "now"}),
        ("create tank@a@b", "snapshot.create", {"name": "a@b"}),  # it is the owner who refuses it
        ("destroy tank@a --yes", "snapshot.destroy", {"names": ["a"]}),
        ("destroy tank@b tank@a tank@b --yes", "snapshot.destroy", {"names": ["b", "a"]}),
    ],
)
def test_what_is_asked_about_snapshots(
    owner: FakeOwner,
    capsys: pytest.CaptureFixture[str],
    words: str,
    request_name: str,
    arguments: dict[str, object],
) -> None:
    answer = SnapshotAnswer("it is done", [])
    owner.script = [{"result": msgspec.to_builtins(answer)}]
    assert main(["snapshot", *words.split()]) == 0
    assert capsys.readouterr().out == "it is done\n"
    assert owner.requests == [{"request": request_name, "arguments": arguments}]


@pytest.mark.parametrize(
    ("words", "request_name", "arguments"),
    [
        (
            "disk add tank /d/new --label big",
            "disk.add",
            {"path": "/d/new", "label": "big", "balance": True, "wait": False},
        ),
        (
            "disk add tank /d/new --no-balance --wait",
            "disk.add",
            {"path": "/d/new", "label": "", "balance": False, "wait": True},
        ),
        ("disk remove tank /d/a/", "disk.remove", {"disk": "/d/a", "wait": False}),
        ("disk remove tank c0ffee --wait", "disk.remove", {"disk": "c0ffee", "wait": True}),
        ("disk remove tank /d/a --cancel", "disk.remove.cancel", {"disk": "/d/a", "wait": False}),
        (
            "disk replace tank /d/a /d/b/../c",
            "disk.replace",
            {"disk": "/d/a", "path": "/d/c", "wait": False},
        ),
        ("disk offline tank /d/a", "disk.offline", {"disk": "/d/a"}),
        ("disk online tank /d/a", "disk.online", {"disk": "/d/a"}),
        ("disk balance tank --wait", "disk.balance.start", {"wait": True}),
        ("disk balance tank --stop", "disk.balance.stop", {"wait": False}),
    ],
)
def test_what_is_asked_of_the_owner(
    owner: FakeOwner, words: str, request_name: str, arguments: dict[str, object]
) -> None:
    owner.script = [{"result": {**ANSWER, "done": True}}]
    assert main(words.split()) == 0
    assert owner.requests == [{"request": request_name, "arguments": arguments}]


def test_work_in_the_background_is_announced(
    owner: FakeOwner, capsys: pytest.CaptureFixture[str]
) -> None:
    owner.script = [{"result": ANSWER}]
    assert main(["disk", "remove", "tank", "/d/a"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == [
        "Disk /d/a is being emptied.",
        "It goes on in the background: 'dwfs status tank' tells how far it is.",
    ]


def test_a_scrub_that_was_stopped_is_no_scrub(
    owner: FakeOwner, capsys: pytest.CaptureFixture[str]
) -> None:
    owner.script = [{"result": {"state": "stopped", "done_bytes": 5}}]
    assert main(["scrub", "tank", "--wait"]) == 1
    assert "stopped before it was done" in capsys.readouterr().err


def test_damage_that_waits_for_a_disk_is_told(
    owner: FakeOwner, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"state": "idle", "ended_ns": NOON, "faults": {"rotten": 3}, "repaired": 1}
    disks = [{"path": "/d/b", "state": "skipped", "done_bytes": 0, "total_bytes": None}]
    owner.script = [{"result": {**result, "unrepaired": 2, "disks": disks}}]
    assert main(["scrub", "tank", "--wait"]) == 10
    text = capsys.readouterr().out
    assert "2 shards not repaired yet" in text
    assert "/d/b was not read" in text


def test_json(owner: FakeOwner, capsys: pytest.CaptureFixture[str]) -> None:
    owner.script = [{"result": ANSWER}]
    assert main(["disk", "remove", "tank", "/d/a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "Disk /d/a is being emptied."


def test_a_refusal_is_passed_on(owner: FakeOwner, capsys: pytest.CaptureFixture[str]) -> None:
    owner.script = [{"error": "6 disks are needed and 6 are there", "exit_code": 7}]
    assert main(["disk", "remove", "tank", "/d/a", "--wait"]) == 7
    assert capsys.readouterr().err == "dwfs: 6 disks are needed and 6 are there\n"


def test_work_that_failed_while_waiting(
    owner: FakeOwner, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"kind": "remove", "state": "stopped", "detail": "", "result": "kept, as you asked"}
    owner.script = [
        {"progress": {"what": "moving", "done": 1, "total": 2, "unit": "bytes"}},
        {"result": {**ANSWER, "job": job}},
    ]
    assert main(["disk", "remove", "tank", "/d/a", "--wait"]) == 1
    assert "remove stopped: kept, as you asked" in capsys.readouterr().err


def test_an_interrupt_stops_the_waiting_only(
    owner: FakeOwner, capsys: pytest.CaptureFixture[str]
) -> None:
    owner.script = [{"progress": {"what": "moving", "done": 1, "total": 2, "unit": "bytes"}}]
    owner.at_end = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert main(["disk", "remove", "tank", "/d/a", "--wait"]) == 130
    text = capsys.readouterr().err
    assert "stopped waiting; pool tank goes on with it" in text
    assert "dwfs status tank" in text


def test_a_scrub_that_met_what_is_beyond_repair(
    owner: FakeOwner, capsys: pytest.CaptureFixture[str]
) -> None:
    owner.script = [
        {
            "result": {
                "state": "idle",
                "ended_ns": NOON,
                "done_bytes": 10 * MIB,
                "faults": {"rotten": 3},
                "repaired": 2,
                "unrepairable": 1,
                "damaged_files": ["/photos/1.jpg"],
            }
        }
    ]
    assert main(["scrub", "tank", "--wait"]) == 10
    assert owner.requests == [{"request": "scrub.start", "arguments": {"wait": True}}]
    text = capsys.readouterr().out
    assert "found 3 rotten; repaired 2" in text
    assert "BEYOND REPAIR: 1 stripe\n    /photos/1.jpg" in text


def test_a_size_to_plan_with(owner: FakeOwner, capsys: pytest.CaptureFixture[str]) -> None:
    owner.script = [{"error": "enough", "exit_code": 1}]
    assert main(["status", "tank", "--if-added", "8T"]) == 1
    assert owner.requests == [{"request": "status", "arguments": {"if_added": 8 << 40}}]


def disk(path: str, **more: object) -> DiskStatus:
    fields: dict[str, object] = {
        "id": "c0ffee00-" + path[-1] * 4,
        "path": path,
        "state": "online",
        "size_bytes": 100 * MIB,
        "used_bytes": 10 * MIB,
        "errors": 0,
        **more,
    }
    return DiskStatus(**fields)  # type: ignore[arg-type]  # fields of many types, as the tests name them


def test_the_table_of_disks() -> None:
    disks = [
        disk("/d/a", free_bytes=80 * MIB, label="/d/a"),
        disk("/d/b", state="suspect", reason="3 timeouts", errors_by_kind={"timeout": 3}),
        disk("/d/c", slow="9 times slower than the others", label="shelf 2"),
    ]
    lines = render_disks(disks).splitlines()
    assert lines[0].split() == ["disk", "state", "size", "used", "free", "errors", "id", "label"]
    assert "80.0 MiB" in lines[1]
    assert lines[1].count("/d/a") == 1
    assert "3 timeout" in lines[2]
    assert lines[3].endswith("shelf 2")
    assert lines[4:] == ["/d/b: 3 timeouts", "/d/c is slow: 9 times slower than the others"]


def test_a_job_in_one_line() -> None:
    job = JobStatus(
        "remove",
        "running",
        "moving its data away",
        disk="/d/a",
        done_bytes=25 * MIB,
        total_bytes=100 * MIB,
        bytes_per_second=5.0 * MIB,
        seconds_left=15.0,
    )
    assert render_job(job) == (
        "remove /d/a: running, moving its data away, 25 % (25.0 MiB of 100.0 MiB), 5.0 MiB/s, "
        "15 s left"
    )
    assert render_job(JobStatus("repair", "waiting", "for a disk with room")) == (
        "repair: waiting, for a disk with room"
    )


def test_a_status_tells_space_jobs_and_history() -> None:
    status = PoolStatus(
        pool="tank",
        uuid="u",
        pid=7,
        health="degraded",
        redundancy_left=1,
        data=4,
        parity=2,
        disks=[disk("/d/a"), disk("/d/b", state="missing")],
        usage=UsageStatus(100 * MIB, 150 * MIB, 200 * MIB),
        work=[],
        mountpoint="/srv/tank",
        erasure="isa-l",
        unforeseen_errors=0,
        read_only=False,
        degraded_stripes=5,
        advice=["disk /d/b is missing"],
        jobs=[JobStatus("repair", "running", "rebuilding")],
        scrub=ScrubStatus("idle", ended_ns=NOON, faults={"torn": 1}, repaired=1, due_ns=NOON),
        space=SpaceStatus(
            300 * MIB,
            200 * MIB,
            40 * MIB,
            "3+2 would hold more",
            IfAdded(8 << 40, 5 << 40, 4 << 40, 0),
        ),
        history=[StateChange(NOON, "/d/b", "online", "missing", "its directory is gone")],
    )
    text = render_status(status)
    assert text.startswith("tank: DEGRADED  (open in process 7, mounted at /srv/tank)\n")
    for part in (
        "these disks hold 300.0 MiB of data in all",
        "40.0 MiB of the disks can't be used",
        "one more disk of 8.0 TiB would give room for 4.0 TiB more (5.0 TiB in all)",
        "3+2 would hold more",
        "repair: running, rebuilding",
        "last scrub ended 2023-11-14 22:13:20 UTC: 1 fault found, 1 shard repaired",
        "2023-11-14 22:13:20 UTC: /d/b went from online to missing: its directory is gone",
    ):
        assert part in text
    no_gain = SpaceStatus(300 * MIB, 200 * MIB, 0, "", IfAdded(8 << 40, 300 * MIB, 0, 0))
    text = render_status(msgspec.structs.replace(status, space=no_gain))
    assert "1 disk can take new data, but a 4+2 code needs 6" in text
    assert "one more disk" not in text


@pytest.mark.parametrize(
    ("snapshots", "said"),
    [
        (SnapshotSummary(0, 0, 0, 0, None), ""),
        (
            SnapshotSummary(1, 0, 0, 0, NOON),
            "  1 snapshot, the newest of 2023-11-14 22:13:20 UTC; nothing is kept for it alone",
        ),
        (
            SnapshotSummary(31, 30, 3 * MIB, 0, NOON),
            "  31 snapshots, the newest of 2023-11-14 22:13:20 UTC; 3.0 MiB is kept for them alone",
        ),
        (
            SnapshotSummary(0, 0, 3 * MIB, 2, None),
            "  the space of 2 destroyed snapshots is coming back",
        ),
    ],
)
def test_a_status_tells_what_snapshots_keep(snapshots: SnapshotSummary, said: str) -> None:
    usage = UsageStatus(100 * MIB, 150 * MIB, 200 * MIB)
    status = PoolStatus(
        "tank", "u", 7, "healthy", 2, 4, 2, [], usage, [], None, None, 0, False, 0, []
    )
    before = render_status(status).splitlines()
    after = render_status(msgspec.structs.replace(status, snapshots=snapshots)).splitlines()
    assert "\n".join(line for line in after if line not in before) == said


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (ScrubStatus("never", every_days=30.0, due_ns=NOON), ["never scrubbed", "next begins"]),
        (ScrubStatus("never"), ["none begins by itself"]),
        (
            ScrubStatus(
                "running",
                done_bytes=MIB,
                total_bytes=4 * MIB,
                bytes_per_second=1.0 * MIB,
                seconds_left=3.0,
                disks=[DiskScrubStatus("/d/a", "running", MIB, 4 * MIB)],
            ),
            ["1.0 MiB of 4.0 MiB, 1.0 MiB/s, 3 s left", "/d/a: running", "so far"],
        ),
        (ScrubStatus("stopped", done_bytes=MIB), ["stopped at 1.0 MiB", "goes on from there"]),
        (
            ScrubStatus("idle", ended_ns=NOON),
            ["ended 2023-11-14", "nothing was damaged or missing"],
        ),
    ],
    ids=lambda value: value.state if isinstance(value, ScrubStatus) else "",
)
def test_a_scrub_for_people(status: ScrubStatus, parts: list[str]) -> None:
    text = render_scrub("tank", status)
    for part in parts:
        assert part in text

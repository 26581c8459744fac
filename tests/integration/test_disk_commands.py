"""The life of a pool's disks by the commands that people give, on a pool that is mounted and in use."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.loop_disks import LoopDisks, flip_bytes
from tests.integration.pools import Pool
from tests.integration.test_degraded import check, fill, load

MIB = 1 << 20


def healthy(pool: Pool, seconds: float = 60) -> dict[str, Any]:  # Any: JSON
    """Wait until every disk works and every stripe is whole."""
    return pool.wait_for(
        lambda status: status["health"] == "healthy" and not status["degraded_stripes"], seconds
    )


def verify(pool: Pool, files: dict[Path, str]) -> None:
    """Everything is there, now and after everything came from the disks again."""
    assert check(files) == []
    pool.remount()
    assert check(files) == []
    done = pool.run("check", pool.name, "--read")
    assert done.returncode == 0, done.stdout + done.stderr


def refuse(pool: Pool, code: int, *words: str | Path) -> str:
    """A command that must fail with one line, which is returned."""
    done = pool.run(*words, environment={"DWFS_DEBUG": "0"})
    assert done.returncode == code, f"{words}: exit {done.returncode}: {done.stderr}{done.stdout}"
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def states(pool: Pool) -> dict[str, str]:
    """Directory → state."""
    return {disk["path"]: disk["state"] for disk in json.loads(_list(pool))}


def _list(pool: Pool) -> str:
    return pool.dwfs("disk", "list", pool.name, "--json")


def test_list(mounted: Pool) -> None:
    text = mounted.dwfs("disk", "list", mounted.name)
    assert len(text.splitlines()) == 7
    for disk in mounted.disks:
        assert str(disk) in text
    assert set(states(mounted).values()) == {"online"}
    mounted.umount()
    assert set(states(mounted)) == {str(disk) for disk in mounted.disks}


def test_add_then_remove_another(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed, 40)
    fresh = mounted.home / "fresh"
    text = mounted.dwfs("disk", "add", mounted.name, fresh, "--label", "shelf 2", "--wait")
    assert str(fresh) in text
    assert len(states(mounted)) == 7
    leaving = mounted.disks[2]
    with load(mounted.mountpoint) as errors:
        mounted.dwfs("disk", "remove", mounted.name, leaving, "--wait")
    assert errors == []
    assert str(leaving) not in states(mounted)
    assert [path.name for path in leaving.iterdir()] == [], "it can be used for something else"
    healthy(mounted)
    verify(mounted, files)
    mounted.dwfs("disk", "add", mounted.name, leaving, "--no-balance")
    assert len(states(mounted)) == 7


def test_replace_a_dead_disk(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed, 40)
    mounted.lose(4)
    mounted.wait_for(lambda status: status["health"] != "healthy")
    fresh = mounted.home / "fresh"
    # Named as its owner names it, although nothing of that name is there any more.
    done = mounted.run(
        "disk", "replace", mounted.name, mounted.disks[4].name, fresh, "--wait", cwd=mounted.home
    )
    assert done.returncode == 0, done.stderr
    assert set(states(mounted).values()) == {"online"}
    assert str(mounted.disks[4]) not in states(mounted)
    assert str(fresh) in states(mounted)
    healthy(mounted)
    mounted.lose(0, 1)  # what was rebuilt has to stand in
    assert check(files) == []


def test_replace_a_disk_that_is_there(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed, 40)
    fresh, old = mounted.home / "fresh", mounted.disks[1]
    identity = next(disk["id"] for disk in json.loads(_list(mounted)) if disk["path"] == str(old))
    mounted.dwfs("disk", "replace", mounted.name, identity[:8], fresh, "--wait")
    assert not list(old.iterdir())
    healthy(mounted)
    verify(mounted, files)


def test_offline_and_online(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed, 20)
    first, second, third = mounted.disks[:3]
    mounted.dwfs("disk", "offline", mounted.name, first)
    assert states(mounted)[str(first)] == "offline"
    files |= fill(mounted.mountpoint, seed + 1, 20)
    mounted.remount()
    assert states(mounted)[str(first)] == "offline", "a wish survives a restart"
    mounted.dwfs("disk", "offline", mounted.name, second)
    text = refuse(mounted, 7, "disk", "offline", mounted.name, third)
    assert "only 2 may be" in text
    for disk in (first, second):
        mounted.dwfs("disk", "online", mounted.name, disk)
    healthy(mounted)
    verify(mounted, files)


def test_refusals(mounted: Pool, tmp_path: Path) -> None:
    name, disk = mounted.name, mounted.disks[0]
    text = refuse(mounted, 7, "disk", "remove", name, disk)
    assert "6 disks" in text
    assert "5" in text
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "photo.jpg").write_bytes(b"x")
    assert "photo.jpg" in refuse(mounted, 2, "disk", "add", name, occupied)
    other = Pool(tmp_path / "second")
    other.name = "attic"
    other.create(disks=2, data=1, parity=1)
    assert "'attic'" in refuse(mounted, 6, "disk", "add", name, other.disks[0])
    assert refuse(mounted, 6, "disk", "replace", name, disk, other.disks[0])
    refuse(mounted, 2, "disk", "add", name, mounted.disks[1])
    refuse(mounted, 2, "disk", "add", name, mounted.mountpoint / "inside")
    for part in ("remove", "offline", "online"):
        text = refuse(mounted, 2, "disk", part, name, "/no/such/disk")
        assert str(disk) in text, "it says which disks there are"
    assert set(states(mounted).values()) == {"online"}


@pytest.mark.needs_root
def test_replace_by_a_disk_that_is_too_small(bare_pool: Pool, tmp_path: Path) -> None:
    small = LoopDisks(tmp_path, [160])
    try:
        pool = bare_pool.create(disks=3, data=2, parity=1).mount()
        with (pool.mountpoint / "film").open("wb") as file:
            for _ in range(400):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
        new = small.directories[0]
        text = refuse(pool, 8, "disk", "replace", pool.name, pool.disks[0], new)
        assert re.search(r"has room for [\d.]+ MiB, but disk .* holds [\d.]+ MiB", text), text
        assert set(states(pool)) == {str(disk) for disk in pool.disks}
        assert list(new.iterdir()) == []
        pool.umount()
    finally:
        bare_pool.close()
        small.close()


def test_scrub_repairs_rot(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed, 60)
    mounted.umount()
    choice = random.Random(seed)
    for disk in mounted.disks[:2]:
        flip_bytes(disk, 0.01, choice)
    mounted.mount()
    text = mounted.dwfs("scrub", mounted.name, "--wait")
    assert "repaired" in text
    found = json.loads(mounted.dwfs("scrub", mounted.name, "--status", "--json"))
    assert found["state"] == "idle"
    assert found["unrepairable"] == 0
    assert sum(found["faults"].values()) > 0
    verify(mounted, files)


def test_scrub_names_what_is_beyond_repair(mounted: Pool, seed: int) -> None:
    precious = mounted.mountpoint / "folder" / "precious"
    precious.parent.mkdir()
    precious.write_bytes(random.Random(seed).randbytes(3 * MIB))
    mounted.umount()
    for disk in mounted.disks[:3]:
        for path in (disk / "segments").iterdir():
            with path.open("r+b") as file:
                for offset in range(0, path.stat().st_size, 8192):
                    file.seek(offset)
                    file.write(os.urandom(64))
    mounted.mount()
    done = mounted.run("scrub", mounted.name, "--wait")
    assert done.returncode == 10, done.stderr
    assert "folder/precious" in done.stdout


def slow_scrub(pool: Pool) -> None:
    """Configure a scrub that takes its time."""
    config = pool.root / "etc" / f"{pool.name}.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("rate_mib")]
    lines.insert(lines.index("[scrub]") + 1, "rate_mib = 0.2")
    config.write_text("\n".join(lines) + "\n")


def test_one_scrub_at_a_time_and_an_interrupt(pool: Pool, seed: int) -> None:
    slow_scrub(pool)
    pool.mount()
    fill(pool.mountpoint, seed, 60)
    pool.dwfs("scrub", pool.name)
    text = refuse(pool, 4, "scrub", pool.name)
    assert "scrub" in text
    status = json.loads(pool.dwfs("scrub", pool.name, "--status", "--json"))
    assert status["state"] == "running"
    pool.dwfs("scrub", pool.name, "--stop")
    assert json.loads(pool.dwfs("scrub", pool.name, "--status", "--json"))["state"] == "stopped"
    waiting = subprocess.Popen(
        [sys.executable, "-m", "dwfs", "scrub", pool.name, "--wait"],
        env=pool.environment | {"DWFS_DEBUG": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pool.wait_for(lambda status: status["scrub"]["state"] == "running")
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    _, text = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert "stopped waiting" in text
    assert json.loads(pool.dwfs("scrub", pool.name, "--status", "--json"))["state"] == "running"


def test_without_an_owner_the_command_does_it(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed, 40)
    mounted.umount()
    key = ("--keyfile", mounted.keyfile)
    fresh, leaving = mounted.home / "fresh", mounted.disks[5]
    mounted.dwfs("disk", "add", mounted.name, fresh, *key)
    mounted.dwfs("disk", "remove", mounted.name, leaving, *key)
    assert str(leaving) not in states(mounted)
    assert not list(leaving.iterdir())
    assert "nothing was damaged" in mounted.dwfs("scrub", mounted.name, *key)
    mounted.dwfs("check", mounted.name, "--read", "--repair", *key)
    mounted.mount()
    verify(mounted, files)


@pytest.mark.parametrize("part", ["remove", "replace"])
def test_killed_in_the_middle(mounted: Pool, seed: int, part: str) -> None:
    files = fill(mounted.mountpoint, seed, 80)
    fresh, leaving = mounted.home / "fresh", mounted.disks[3]
    if part == "remove":
        mounted.dwfs("disk", "add", mounted.name, fresh, "--no-balance")
        mounted.dwfs("disk", "remove", mounted.name, leaving)
    else:
        mounted.dwfs("disk", "replace", mounted.name, leaving, fresh)
    mounted.kill()
    mounted.mount()
    mounted.wait_for(
        lambda status: str(leaving) not in {disk["path"] for disk in status["disks"]}, 90
    )
    healthy(mounted)
    verify(mounted, files)


def test_what_a_disk_would_give(mounted: Pool) -> None:
    status = json.loads(mounted.dwfs("status", mounted.name, "--if-added", "100GB", "--json"))
    assert status["space"]["if_added"]["disk_bytes"] == 100 * 10**9
    assert "one more disk of 93.1 GiB would give room for" in mounted.dwfs(
        "status", mounted.name, "--if-added", "100GB"
    )

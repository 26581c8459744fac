"""Snapshots by the commands that people give: of a pool in use, of one that nobody has open."""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pools import Pool, tree
from tests.integration.test_disk_commands import refuse
from tests.integration.test_import import import_words, other_box

MIB = 1 << 20
Tree = dict[str, tuple[int, int, str]]


def fill(directory: Path, seed: int, count: int = 40) -> Tree:
    """A small tree, nothing of it synced."""
    choice = random.Random(seed)
    for number in range(count):
        folder = directory / f"folder-{number % 5}"
        folder.mkdir(exist_ok=True)
        (folder / f"file-{number}").write_bytes(
            choice.randbytes(choice.choice((0, 100, 8192, 700_000)))
        )
    return tree(directory)


def change(directory: Path, seed: int) -> Tree:
    """Overwrite, cut, delete, rename and add."""
    choice = random.Random(seed)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in files:
        match choice.randrange(5):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(choice.randbytes(300_000))
            case 2 if path.stat().st_size:
                os.truncate(path, path.stat().st_size // 2)
            case 3:
                path.rename(path.with_name(path.name + ".moved"))
            case _:
                with path.open("ab") as file:
                    file.write(choice.randbytes(9000))
    shutil.rmtree(sorted(path for path in directory.iterdir() if path.is_dir())[0])
    (directory / f"new-{seed}").write_bytes(choice.randbytes(50_000))
    return tree(directory)


def snapshots(pool: Pool, *unlock: str) -> dict[str, dict[str, Any]]:  # Any: JSON
    """`dwfs snapshot list`, by name."""
    found = json.loads(pool.dwfs("snapshot", "list", pool.name, "--json", *unlock))
    return {str(one["name"]): one for one in found["snapshots"]}


def seen(pool: Pool, name: str) -> Tree:
    """What is below `.snapshots/NAME`."""
    return tree(pool.mountpoint / ".snapshots" / name)


def reaped(pool: Pool) -> dict[str, Any]:  # Any: JSON
    """Wait until destroyed snapshots have given everything back."""
    status = pool.wait_for(lambda status: not status["snapshots"]["reaping"])
    return dict(status["snapshots"])


def settle(pool: Pool) -> None:
    """Make everything durable: for FUSE, sync(2) doesn't."""
    directory = os.open(pool.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sound(pool: Pool, *words: str) -> None:
    done = pool.run("check", pool.name, "--read", *words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_pool_with_a_past(mounted: Pool, seed: int) -> None:
    trees = {"one": fill(mounted.mountpoint, seed)}
    assert "one" in mounted.dwfs("snapshot", "create", "pool@one")
    for number, name in enumerate(("two", "three")):
        trees[name] = change(mounted.mountpoint, seed + number)
        mounted.dwfs("snapshot", "create", f"pool@{name}")
    now = change(mounted.mountpoint, seed + 7)
    for name, then in trees.items():
        assert seen(mounted, name) == then
    listed = snapshots(mounted)
    assert list(listed) == ["one", "two", "three"]
    assert all(not one["automatic"] and one["unique_bytes"] > 0 for one in listed.values())
    status = mounted.status()["snapshots"]
    assert (status["count"], status["automatic"], status["reaping"]) == (3, 0, 0)
    assert status["kept_bytes"] >= sum(one["unique_bytes"] for one in listed.values())
    assert "3 snapshots, the newest of" in mounted.dwfs("status", "pool")

    mounted.dwfs("snapshot", "destroy", "pool@two", "--yes")
    assert reaped(mounted)["kept_bytes"] == status["kept_bytes"] - listed["two"]["unique_bytes"]
    assert not (mounted.mountpoint / ".snapshots" / "two").exists()
    del trees["two"]
    mounted.remount()
    assert tree(mounted.mountpoint) == now
    for name, then in trees.items():
        assert seen(mounted, name) == then
    sound(mounted)
    mounted.dwfs("snapshot", "destroy", "pool@three", "pool@one", "--yes")
    assert reaped(mounted) == {
        "count": 0,
        "automatic": 0,
        "kept_bytes": 0,
        "reaping": 0,
        "newest_ns": None,
    }
    assert tree(mounted.mountpoint) == now
    sound(mounted)


def test_it_has_what_programs_had_not_flushed(mounted: Pool) -> None:
    with (mounted.mountpoint / "log").open("wb", buffering=0) as log:
        log.write(b"a line\n")
        with (mounted.mountpoint / "map").open("wb+") as file:
            file.truncate(24 * MIB)
            memory = mmap.mmap(file.fileno(), 24 * MIB)
            memory[:] = b"x" * 24 * MIB
            mounted.dwfs("snapshot", "create", "pool@now")
            memory[:] = b"y" * 24 * MIB
            memory.close()
        log.write(b"another\n")
    past = mounted.mountpoint / ".snapshots" / "now"
    assert (past / "log").read_bytes() == b"a line\n"
    assert (past / "map").read_bytes() == b"x" * 24 * MIB
    assert (mounted.mountpoint / "map").read_bytes() == b"y" * 24 * MIB


def test_what_was_taken_survives_a_kill_and_a_lost_machine(mounted: Pool, seed: int) -> None:
    then = fill(mounted.mountpoint, seed)
    mounted.dwfs("snapshot", "create", "pool@before")
    mounted.kill()
    mounted.mount()
    assert seen(mounted, "before") == then
    change(mounted.mountpoint, seed)
    settle(mounted)
    mounted.kill()
    subprocess.run(["fusermount3", "-uz", mounted.mountpoint], check=True)
    other_box(mounted)
    imported = json.loads(mounted.dwfs(*import_words(mounted), "--json"))
    assert imported["snapshots"] == 1
    mounted.mount()
    assert seen(mounted, "before") == then
    sound(mounted)
    kept = mounted.status()["snapshots"]["kept_bytes"]
    assert kept == snapshots(mounted)["before"]["unique_bytes"] > 0


def test_rollback(mounted: Pool, seed: int) -> None:
    then = fill(mounted.mountpoint, seed)
    mounted.dwfs("snapshot", "create", "pool@good")
    change(mounted.mountpoint, seed)
    mounted.dwfs("snapshot", "create", "pool@bad")
    change(mounted.mountpoint, seed + 1)
    back = ["snapshot", "rollback", "pool@good", "--keyfile", str(mounted.keyfile)]
    said = refuse(mounted, 4, *back, "--yes")
    assert f"dwfs umount {mounted.mountpoint}" in said
    mounted.umount()
    assert "--yes" in refuse(mounted, 2, *back)
    said = refuse(mounted, 2, *back, "--yes")
    assert "@bad" in said
    assert "--destroy-newer" in said
    assert list(snapshots(mounted, "--keyfile", str(mounted.keyfile))) == ["good", "bad"]
    said = mounted.dwfs(*back, "--yes", "--destroy-newer")
    assert "@good" in said
    mounted.mount()
    assert tree(mounted.mountpoint) == then
    assert seen(mounted, "good") == then
    assert list(snapshots(mounted)) == ["good"]
    assert mounted.status()["snapshots"]["kept_bytes"] == 0
    sound(mounted)
    again = change(mounted.mountpoint, seed + 2)
    mounted.remount()
    assert tree(mounted.mountpoint) == again
    assert seen(mounted, "good") == then


def test_a_rollback_that_is_killed_is_ended_by_the_next_opening(mounted: Pool, seed: int) -> None:
    then = fill(mounted.mountpoint, seed, count=150)
    mounted.dwfs("snapshot", "create", "pool@good")
    change(mounted.mountpoint, seed)
    mounted.umount()
    choice = random.Random(seed)
    words = ["snapshot", "rollback", "pool@good", "--yes", "--keyfile", str(mounted.keyfile)]
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "dwfs", *words],
            env=mounted.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(choice.uniform(0.6, 1.6))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    mounted.mount()
    # Killed before it began, or ended; never in between.
    if tree(mounted.mountpoint) != then:
        mounted.umount()
        mounted.dwfs(*words)
        mounted.mount()
    assert tree(mounted.mountpoint) == then
    sound(mounted)


def test_without_an_owner(pool: Pool) -> None:
    unlock = ["--keyfile", str(pool.keyfile)]
    assert "no snapshots" in pool.dwfs("snapshot", "list", "pool", *unlock)
    pool.dwfs("snapshot", "create", "pool@empty", *unlock)
    pool.dwfs("snapshot", "create", "pool@Grüße an alle", *unlock)
    text = pool.dwfs("snapshot", "list", "pool", *unlock)
    assert "pool@Grüße an alle" in text
    assert len(text.splitlines()) == 4
    one = json.loads(pool.dwfs("snapshot", "list", "pool@empty", "--json", *unlock))
    assert [each["name"] for each in one["snapshots"]] == ["empty"]
    pool.dwfs("snapshot", "destroy", "pool@empty", "--yes", *unlock)
    assert list(snapshots(pool, *unlock)) == ["Grüße an alle"]


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ["create", "pool"], "pool@NAME"),
        (2, ["create", "pool@"], "POOL@NAME"),
        (2, ["create", "@x"], "names no pool"),
        (2, ["create", "pool@a/b"], "'a/b'"),
        (2, ["create", "pool@a@b"], "'a@b'"),
        (2, ["create", "pool@-x"], "'-x'"),
        (2, ["create", "pool@.."], "'..'"),
        (2, ["create", "pool@a\nb"], "bad snapshot name"),
        (2, ["create", "pool@" + "ü" * 128], "255 bytes"),
        (2, ["create", b"pool@\xff"], "UTF-8"),
        (2, ["create", "pool@there"], "already"),
        (3, ["create", "lake@x"], "lake"),
        (2, ["destroy", "pool@nothing", "--yes"], "dwfs snapshot list pool"),
        (2, ["destroy", "pool@there", "pool@nothing", "--yes"], "nothing"),
        (2, ["destroy", "pool@there", "lake@there", "--yes"], "one pool at a time"),
        (2, ["destroy", "pool@there"], "--yes"),
        (2, ["destroy"], "POOL@NAME"),
        (2, ["rollback", "pool"], "pool@NAME"),
        (2, ["list", "pool@nothing"], "nothing"),
        (2, [], "list|create"),
    ],
)
def test_what_is_refused(shared_snapshot: Pool, code: int, words: list[str], said: str) -> None:
    assert said in refuse(shared_snapshot, code, "snapshot", *map(os.fsdecode, words))
    assert list(snapshots(shared_snapshot)) == ["there"]


@pytest.fixture(scope="module")
def shared_snapshot(shared_pool: Pool) -> Pool:
    """The module's pool, with one snapshot."""
    shared_pool.dwfs("snapshot", "create", "pool@there")
    return shared_pool


def test_the_schedule_takes_and_keeps(pool: Pool) -> None:
    path = pool.root / "etc" / "pool.toml"
    text = path.read_text()
    assert "hourly = 0" in text
    path.write_text(text.replace("hourly = 0", "hourly = 2").replace("daily = 0", "daily = 1"))
    pool.mount()
    (pool.mountpoint / "f").write_text("x")
    status = pool.wait_for(lambda status: status["snapshots"]["count"] > 0)
    assert status["snapshots"]["automatic"] == 1
    (name,) = snapshots(pool)
    assert name.startswith("auto-20")
    assert name.endswith("Z-daily")
    assert (pool.mountpoint / ".snapshots" / name / "f").read_text() == "x"
    assert "schedule" in pool.dwfs("snapshot", "list", "pool")
    time.sleep(3)
    pool.remount()
    assert list(snapshots(pool)) == [name]


def test_files_that_only_a_snapshot_has_are_named_when_they_are_lost(mounted: Pool) -> None:
    (mounted.mountpoint / "folder").mkdir()
    for name in ("gone", "kept"):
        (mounted.mountpoint / "folder" / name).write_bytes(os.urandom(3 * MIB))
    mounted.dwfs("snapshot", "create", "pool@then")
    (mounted.mountpoint / "folder" / "gone").unlink()
    mounted.umount()
    mounted.lose(0, 1, 2)
    done = mounted.run("check", "pool", "--json", "--keyfile", mounted.keyfile)
    assert done.returncode == 10
    assert set(json.loads(done.stdout)["damaged_files"]) == {
        "/folder/kept",
        "/.snapshots/then/folder/gone",
    }

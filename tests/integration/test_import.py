"""`dwfs import` with real processes: another box, kills at any moment, and what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.pools import Pool, tree


def fill(directory: Path, seed: int, count: int = 60) -> dict[str, tuple[int, int, str]]:
    """A small tree, all of it synced."""
    choice = random.Random(seed)
    for number in range(count):
        folder = directory / f"folder-{number % 7}"
        folder.mkdir(exist_ok=True)
        with (folder / f"file-{number}").open("wb") as file:
            file.write(choice.randbytes(choice.choice((0, 100, 8192, 300_000))))
            file.flush()
            os.fsync(file.fileno())
    return tree(directory)


def other_box(pool: Pool) -> None:
    """From now on the pool's commands run on a machine that has never seen it."""
    pool.root = pool.home / "other-root"
    pool.environment["DWFS_ROOT"] = str(pool.root)


def import_words(pool: Pool) -> list[str]:
    return ["import", "--keyfile", str(pool.keyfile), "--disk", *map(str, pool.disks)]


def test_in_another_box_after_a_crash(mounted: Pool, seed: int) -> None:
    before = fill(mounted.mountpoint, seed)
    mounted.kill()
    subprocess.run(["fusermount3", "-uz", mounted.mountpoint], check=True)
    other_box(mounted)
    mounted.lose(1, 4)
    mounted.disks = [mounted.disks[number] for number in (0, 2, 3, 5)]
    imported = json.loads(mounted.dwfs(*import_words(mounted), "--json"))
    assert imported["files"] == 60
    assert imported["directories"] == 7
    assert len(imported["missing"]) == 2
    assert imported["unreadable"] == 0
    mounted.mount()
    assert tree(mounted.mountpoint) == before
    assert mounted.status()["redundancy_left"] == 0


def test_killed_at_any_moment(mounted: Pool, seed: int) -> None:
    before = fill(mounted.mountpoint, seed)
    mounted.umount()
    other_box(mounted)
    choice = random.Random(seed)
    command = [sys.executable, "-m", "dwfs", *import_words(mounted)]
    for _ in range(6):
        process = subprocess.Popen(
            command,
            env=mounted.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(choice.uniform(0.2, 1.2))
        process.kill()
        process.wait(30)
    mounted.dwfs(*import_words(mounted))
    mounted.mount()
    assert tree(mounted.mountpoint) == before


def test_back_in_a_box_that_remembers_older_days(mounted: Pool, seed: int) -> None:
    (mounted.mountpoint / "early").write_bytes(b"early")
    mounted.umount()
    home = mounted.root
    other_box(mounted)
    mounted.dwfs(*import_words(mounted))
    mounted.mount()
    before = fill(mounted.mountpoint, seed)
    mounted.umount()
    mounted.root = home
    mounted.environment["DWFS_ROOT"] = str(home)
    mounted.dwfs(*import_words(mounted))
    mounted.mount()
    assert tree(mounted.mountpoint) == before


def test_a_disk_that_missed_a_change_of_keys(pool: Pool) -> None:
    away = pool.home / "away"
    pool.disks[0].rename(away)
    fresh = pool.home / "fresh"
    fresh.write_bytes(os.urandom(64))
    pool.dwfs("key", "add", pool.name, "--keyfile", pool.keyfile, "--new-keyfile", fresh)
    away.rename(pool.disks[0])
    other_box(pool)
    words = ["import", "--keyfile", str(fresh), "--disk", *map(str, pool.disks)]
    done = pool.run(*words)
    assert done.returncode == 0, done.stderr
    assert f"the disk in {pool.disks[0]} missed changes" in done.stderr
    assert "from 6 of 6 disks" in done.stdout


def test_what_is_refused(mounted: Pool, tmp_path: Path) -> None:
    done = mounted.run(*import_words(mounted))
    assert done.returncode == 4, "the pool is mounted"
    mounted.umount()
    other_box(mounted)
    other = Pool(tmp_path / "second")
    other.name = "attic"
    other.create(disks=2, data=1, parity=1)
    clone = tmp_path / "clone"
    shutil.copytree(mounted.disks[0], clone)
    for words, code, parts in (
        ([*import_words(mounted), str(other.disks[0])], 6, ["'pool'", "'attic'", "2 pools"]),
        (import_words(mounted)[:-3], 7, ["only 3 were found", "1 more", str(mounted.disks[5])]),
        ([*import_words(mounted), str(clone)], 6, ["one is a copy", str(clone)]),
        (["import", "--disk", str(tmp_path)], 7, ["none of the directories"]),
        (["import", "--disk", str(mounted.disks[0])], 7, ["only 1 was found"]),
    ):
        done = mounted.run(*words, environment={"DWFS_DEBUG": "0"})
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1
        for part in parts:
            assert part in done.stderr
        assert not mounted.root.exists()


@pytest.mark.parametrize("name", ["attic", "pool"])
def test_a_name_for_it(pool: Pool, name: str) -> None:
    other_box(pool)
    pool.dwfs(*import_words(pool), "--name", name)
    pool.name = name
    pool.mount()
    (pool.mountpoint / "x").write_bytes(b"x")
    pool.umount()

"""`dwfs clone` on a real mount: the same bytes, no space, and nothing shared that can be noticed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.integration.pools import Pool, open_the_way

MIB = 1 << 20


def stored(pool: Pool) -> int:
    """What the pool's disks hold."""
    files = [file for disk in pool.disks for file in disk.rglob("*.seg")]
    return sum(file.stat().st_blocks * 512 for file in files)


def test_a_clone_is_the_same_and_then_its_own(mounted: Pool, seed: int) -> None:
    pool, place = mounted, mounted.mountpoint
    content = random.Random(seed).randbytes(20 * MIB)
    source, target = place / "source", place / "clone"
    with source.open("wb") as file:
        file.write(content[: 10 * MIB])
        file.seek(50 * MIB)
        file.write(content[10 * MIB :])
    source.chmod(0o640)
    wanted = content[: 10 * MIB] + bytes(40 * MIB) + content[10 * MIB :]
    os.sync()
    before = stored(pool)
    with source.open("r+b") as file:
        file.seek(5)
        file.write(b"unsynced")
    wanted = wanted[:5] + b"unsynced" + wanted[13:]
    pool.dwfs("clone", source, target)
    assert target.read_bytes() == wanted
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.stat().st_blocks == source.stat().st_blocks > 0
    assert stored(pool) - before < MIB, "the log, at most"
    with source.open("r+b") as file:
        file.write(b"12345")
    os.truncate(source, 30 * MIB)
    assert target.read_bytes() == wanted
    with target.open("r+b") as file:
        file.seek(MIB)
        file.write(b"mine")
    wanted = wanted[:MIB] + b"mine" + wanted[MIB + 4 :]
    assert source.read_bytes()[MIB : MIB + 4] == content[MIB : MIB + 4]
    source.unlink()
    pool.remount()
    assert target.read_bytes() == wanted
    assert sorted(os.listdir(place)) == ["clone"]
    pool.dwfs("check", pool.name, "--read")
    pool.umount()


def refused(pool: Pool, *words: str | Path) -> str:
    """One line that says why; a failure that leaves nothing behind."""
    done = pool.run("clone", *words, environment={"DWFS_DEBUG": "0"})
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_cannot_be_cloned_is_told(mounted: Pool, tmp_path: Path) -> None:
    pool, place = mounted, mounted.mountpoint
    source = place / "source"
    source.write_bytes(b"content")
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    outside = tmp_path / "outside"
    outside.write_bytes(b"elsewhere")
    (place / "other").write_bytes(b"other")
    os.link(source, place / "hard")
    assert "same file" in refused(pool, source, source)
    assert "same file" in refused(pool, "--force", source, place / "hard")
    assert "exists" in refused(pool, source, place / "other")
    (place / "directory" / "source").mkdir()
    assert "directory" in refused(pool, "--force", source, place / "directory")
    (place / "directory" / "source").rmdir()
    assert "regular" in refused(pool, place / "fifo", place / "new")
    assert "regular" in refused(pool, place / "directory", place / "new")
    assert "not in a mounted" in refused(pool, outside, place / "new")
    assert "not in the pool" in refused(pool, source, tmp_path / "new")
    pool.dwfs("snapshot", "create", f"{pool.name}@one")
    assert "snapshot" in refused(pool, place / ".snapshots" / "one" / "source", place / "new")
    elsewhere = {"DWFS_ROOT": str(tmp_path), "DWFS_DEBUG": "0"}
    done = pool.run("clone", source, place / "new", environment=elsewhere)
    assert "DWFS_ROOT" in done.stderr
    done = pool.run("clone", place / "absent", place / "new", environment={"DWFS_DEBUG": "0"})
    assert done.returncode
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(place)) == ["directory", "fifo", "hard", "other", "source"]
    pool.dwfs("clone", source, place / "directory")
    assert (place / "directory" / "source").read_bytes() == b"content"
    (place / "empty").touch()
    pool.dwfs("clone", place / "empty", place / "as empty")
    assert (place / "as empty").read_bytes() == b""
    pool.umount()


@pytest.mark.parametrize("quota", [19 * MIB])
def test_a_clone_that_the_quota_refuses_leaves_nothing(mounted: Pool, quota: int) -> None:
    pool, place = mounted, mounted.mountpoint
    (place / "source").write_bytes(os.urandom(10 * MIB))
    pool.dwfs("volume", "set", pool.name, f"quota={quota}", "trash=1")
    done = pool.run("clone", place / "source", place / "clone", environment={"DWFS_DEBUG": "0"})
    assert done.returncode == 8
    assert "quota" in done.stderr
    assert os.listdir(place) == ["source"], "not in the trash either"
    pool.dwfs("volume", "set", pool.name, f"quota={20 * MIB}", "trash=none")
    (place / "room").write_bytes(bytes(MIB))
    (place / "room").unlink()  # what waits to be purged does not stand in the way
    pool.dwfs("clone", place / "source", place / "clone")
    pool.umount()


def sample(path: Path) -> str:
    """A hash of all that is no hole in the file of `test_a_gibibyte…`."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        for offset in range(0, 1024, 64):
            file.seek(offset * MIB)
            found.update(file.read(8 * MIB))
    return found.hexdigest()


def test_a_gibibyte_at_once_and_in_a_snapshot(mounted: Pool, seed: int) -> None:
    pool, place = mounted, mounted.mountpoint
    content = random.Random(seed).randbytes(8 * MIB)
    source, target = place / "source", place / "clone"
    with source.open("wb") as file:
        for offset in range(0, 1024, 64):
            file.seek(offset * MIB)
            file.write(content)
        file.truncate(1024 * MIB)
        os.fsync(file.fileno())
    target.write_bytes(b"replaced")
    started = time.monotonic()
    answer = json.loads(pool.dwfs("clone", "--force", "--json", source, target))
    assert time.monotonic() - started < 10, "copying would take longer on the slowest machine"
    assert (answer["size_bytes"], answer["shared_bytes"]) == (1024 * MIB, 128 * MIB)
    assert target.stat().st_size == 1024 * MIB
    wanted = sample(target)
    assert sample(source) == wanted
    pool.dwfs("snapshot", "create", f"{pool.name}@both")
    source.unlink()
    with target.open("r+b") as file:
        file.write(b"changed")
    pool.remount()
    old = place / ".snapshots" / "both"
    assert sample(old / "source") == sample(old / "clone") == wanted
    assert sample(target) != wanted
    pool.dwfs("snapshot", "destroy", f"{pool.name}@both", "--yes")
    pool.kill()
    pool.mount()
    with target.open("r+b") as file:
        file.write(content[:7])
    assert sample(target) == wanted
    assert "everything is as it should be" in pool.dwfs("check", pool.name)
    pool.umount()


def test_the_kernel_forgets_what_was_read_of_the_new_file(mounted: Pool) -> None:
    """An indexer reads whatever it is told of; it must not leave zeros in the page cache."""
    pool, place = mounted, mounted.mountpoint
    content = os.urandom(4 * MIB)
    (place / "source").write_bytes(content)
    seen: list[int] = []
    ended = threading.Event()

    def index() -> None:
        while not ended.is_set():
            for path in place.glob(".dwfs-clone-*"):
                with contextlib.suppress(OSError):
                    seen.append(len(path.read_bytes()))

    thread = threading.Thread(target=index)
    thread.start()
    try:
        for number in range(8):
            pool.dwfs("clone", place / "source", place / f"clone{number}")
    finally:
        ended.set()
        thread.join()
    for number in range(8):
        assert (place / f"clone{number}").read_bytes() == content
    assert len(os.listdir(place)) == 9
    pool.umount()


@pytest.mark.needs_root
def test_other_users_are_told_that_they_may_not(mounted: Pool) -> None:
    pool, place = mounted, mounted.mountpoint
    open_the_way(place)
    (place / "source").write_bytes(b"content")
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    program = (  # imported before: the interpreter may lie where others can't read
        "import os, sys, dwfs.cli.clone, dwfs.cli.main as m; os.setgroups([]); os.setgid(65534); "
        "os.setuid(65534); sys.exit(m.main(sys.argv[1:]))"
    )
    words = ["clone", str(place / "source"), str(place / "open" / "target")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**pool.environment, "DWFS_DEBUG": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("dwfs: only root and the user who mounted pool pool may clone")
    assert done.stderr.count("\n") == 1
    assert os.listdir(place / "open") == []
    pool.umount()

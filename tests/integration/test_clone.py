"""`dwfs clone` on a real mount: the same bytes, no space, and nothing shared that can be noticed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.integration.pools import Pool

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
    done = pool.run("clone", *words)
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
    assert "exists" in refused(pool, source, source)
    assert "regular" in refused(pool, place / "fifo", place / "new")
    assert "regular" in refused(pool, place / "directory", place / "new")
    assert "not in a mounted" in refused(pool, outside, place / "new")
    assert "not in the pool" in refused(pool, source, tmp_path / "new")
    pool.dwfs("snapshot", "create", f"{pool.name}@one")
    assert "snapshot" in refused(pool, place / ".snapshots" / "one" / "source", place / "new")
    done = pool.run("clone", place / "absent", place / "new")
    assert done.returncode
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(place)) == ["directory", "fifo", "source"]
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
    pool.dwfs("volume", "set", pool.name, f"quota={quota}")
    done = pool.run("clone", place / "source", place / "clone")
    assert done.returncode
    assert "quota" in done.stderr.lower()
    assert os.listdir(place) == ["source"]
    pool.umount()

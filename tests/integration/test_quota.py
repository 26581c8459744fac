"""Quotas on a real mount: exactly at the border, through the kernel's cache, however one writes."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pools import Pool

QUOTA = 2_000_000  # no multiple of anything


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool with a quota of bytes that was there before it was mounted."""
    pool = Pool(tmp_path_factory.mktemp("limited") / "pool")
    try:
        pool.create(3, 2, 1)
        change(pool, f"quota={QUOTA}")
        pool.mount()
        yield pool
        assert not list(pool.mountpoint.iterdir())
        assert "everything is as it should be" in pool.dwfs("check", pool.name)
        pool.umount()
    finally:
        pool.close()


@pytest.fixture
def place(limited: Pool) -> Iterator[Path]:
    """The mount point, empty; all of it is deleted afterwards."""
    yield limited.mountpoint
    for path in limited.mountpoint.iterdir():
        path.unlink()
    wait_until_used(limited, 0)


def change(pool: Pool, *settings: str) -> str:
    return pool.dwfs("volume", "set", pool.name, *settings, "--keyfile", pool.keyfile)


def ask(pool: Pool) -> dict[str, Any]:  # Any: JSON
    value = json.loads(pool.dwfs("volume", "get", pool.name, "--json", "--keyfile", pool.keyfile))
    assert isinstance(value, dict)
    return value


def wait_until_used(pool: Pool, wanted: int) -> None:
    for _ in range(50):
        if ask(pool)["used_bytes"] == wanted:
            return
    pytest.fail(f"{ask(pool)['used_bytes']} bytes are used")


def refused(action: Callable[[], object]) -> bool:
    """Whether it fails with EDQUOT; with nothing else."""
    try:
        action()
    except OSError as error:
        if error.errno != errno.EDQUOT:
            raise
        return True
    return False


def put(path: Path, content: bytes, flags: int = 0, offset: int = 0) -> None:
    """Write, and say at close whatever there is to say."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | flags, 0o644)
    try:
        os.pwrite(descriptor, content, offset)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)


@pytest.mark.parametrize("flags", [0, os.O_SYNC, os.O_APPEND], ids=["cached", "sync", "append"])
def test_one_byte_below_at_and_above(place: Path, limited: Pool, flags: int) -> None:
    put(place / "below", bytes(QUOTA - 1), flags)
    assert ask(limited)["used_bytes"] == QUOTA - 1
    assert refused(lambda: put(place / "two", b"xx", flags))
    assert ask(limited)["used_bytes"] == QUOTA  # one of them had room
    (place / "two").unlink()
    put(place / "one", b"x", flags)
    assert ask(limited)["used_bytes"] == QUOTA
    assert refused(lambda: put(place / "none", b"x", flags))
    put(place / "below", os.urandom(QUOTA - 1), flags & os.O_SYNC)  # in place
    assert ask(limited)["used_bytes"] == QUOTA
    (place / "below").unlink()
    put(place / "again", bytes(QUOTA - 1), flags)


def test_the_writer_is_told_by_fsync_and_by_close(place: Path) -> None:
    writer = os.open(place / "f", os.O_CREAT | os.O_RDWR)
    assert os.write(writer, bytes(3 * QUOTA)) == 3 * QUOTA  # into the kernel's cache
    assert refused(lambda: os.fsync(writer))
    os.fsync(writer)
    os.pwrite(writer, b"x", 4 * QUOTA)
    assert refused(lambda: os.close(writer))
    direct = os.open(place / "d", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    assert refused(lambda: os.write(direct, mmap.mmap(-1, 4096)))
    os.close(direct)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run(["cp", "/proc/self/exe", place / "copy"], check=True, capture_output=True)
    assert b"Disk quota exceeded" in caught.value.stderr


def test_what_was_stored_of_a_file_that_did_not_fit_is_right(pool: Pool) -> None:
    change(pool, f"quota={QUOTA}")
    pool.mount()
    content = os.urandom(QUOTA + 100_000)
    assert refused(lambda: put(pool.mountpoint / "f", content))
    assert ask(pool)["used_bytes"] == QUOTA
    pool.remount()
    stored = (pool.mountpoint / "f").read_bytes()
    # Pages are written back in no promised order; whatever is there is what was written.
    assert len(stored) <= len(content)
    for start in range(0, len(stored), 4096):
        piece = stored[start : start + 4096]
        assert piece == content[start : start + len(piece)] or not piece.strip(b"\0")
    pool.umount()


def test_many_small_files_fill_it_exactly(place: Path, limited: Pool) -> None:
    size, count = 1999, 0
    while not refused(partial(put, place / str(count), bytes(size))):
        count += 1
    assert count == QUOTA // size
    assert ask(limited)["used_bytes"] == QUOTA


def test_holes_and_further_names_cost_nothing(place: Path, limited: Pool) -> None:
    with (place / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    put(place / "sparse", b"x" * 4096, offset=1 << 39)
    used = ask(limited)["used_bytes"]
    assert used == 4096
    put(place / "rest", bytes(QUOTA - used))
    for number in range(5):
        os.link(place / "rest", place / f"link {number}")
    assert refused(lambda: put(place / "sparse", b"x"))
    os.truncate(place / "rest", QUOTA - used - 4095)
    assert refused(lambda: put(place / "sparse", b"x"))  # the kernel writes whole pages
    os.truncate(place / "rest", QUOTA - used - 4096)
    put(place / "sparse", b"x")
    put(place / "sparse", b"y", offset=4095)
    assert refused(lambda: put(place / "sparse", b"x", offset=4096))
    assert ask(limited)["used_bytes"] == QUOTA
    os.rename(place / "sparse", place / "rest")
    assert refused(lambda: put(place / "more", b"x"))  # its other names keep it
    for number in range(5):
        (place / f"link {number}").unlink()
    put(place / "more", bytes(QUOTA - 2 * 4096))
    assert refused(lambda: put(place / "one", b"x"))


def test_overwriting_a_file_by_rename_makes_room(place: Path) -> None:
    put(place / "old", bytes(QUOTA // 2))
    put(place / "new", bytes(QUOTA // 2))
    os.rename(place / "new", place / "old")
    put(place / "new", bytes(QUOTA // 2))
    assert refused(lambda: put(place / "third", b"x"))


def test_writers_at_once(place: Path, limited: Pool) -> None:
    told: list[bool] = []

    def write(name: str) -> None:
        told.extend(
            refused(partial(put, place / name, bytes(20_011), 0, number * 20_011))
            for number in range(40)
        )

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask(limited)["used_bytes"] == QUOTA
    assert told.count(False) in (QUOTA // 20_011, QUOTA // 20_011 + 1)


def test_room_is_there_as_soon_as_a_file_is_deleted(place: Path) -> None:
    for number in range(30):
        put(place / str(number), bytes(QUOTA))
        (place / str(number)).read_bytes()
        (place / str(number)).unlink()


def test_df_shows_the_quota(place: Path, limited: Pool) -> None:
    put(place / "f", bytes(500_000))
    shown = os.statvfs(place)
    assert shown.f_blocks * shown.f_frsize == QUOTA // 4096 * 4096
    assert shown.f_bavail * shown.f_frsize == (QUOTA - 500_000) // 4096 * 4096


def test_inodes_and_a_quota_that_is_set_while_the_pool_is_mounted(mounted: Pool) -> None:
    place = mounted.mountpoint
    put(place / "f", bytes(100_000))
    done = mounted.run("volume", "set", mounted.name, "quota=50000", "inodes=4")
    assert done.returncode == 0
    assert "more than its quota of 50000" in done.stderr
    assert "mounted anew" in done.stderr
    put(place / "f", os.urandom(100_000))
    (place / "dir").mkdir()
    (place / "link").symlink_to("f")
    os.link(place / "f", place / "name")
    for make in (
        (place / "g").touch,
        (place / "d").mkdir,
        lambda: (place / "s").symlink_to("f"),
        lambda: os.mkfifo(place / "p"),
    ):
        assert refused(make)
    assert os.statvfs(place).f_ffree == 0
    (place / "link").unlink()
    descriptor = os.open(place / "g", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"x")
    assert refused(lambda: os.fsync(descriptor))
    os.close(descriptor)
    os.truncate(place / "f", 49_999)
    put(place / "g", b"x", os.O_SYNC)
    mounted.kill()
    subprocess.run(["umount", "-l", place], check=True)
    mounted.mount()
    assert (ask(mounted)["quota_bytes"], ask(mounted)["used_bytes"]) == (50_000, 50_000)
    assert refused(lambda: put(place / "g", b"xy"))
    assert refused((place / "h").touch)
    change(mounted, "quota=none", "inodes=none")
    put(place / "h", bytes(100_000))
    mounted.umount()

"""Disks that vanish, become unreadable or answer EIO, while the pool is busy and at mount time."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.pools import Pool, digest

MIB = 1 << 20
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): from then on the filesystem answers EIO
SHUTDOWN_WITHOUT_LOG_FLUSH = 2


def fill(directory: Path, seed: int, count: int = 80) -> dict[Path, str]:
    """Files of many sizes, synced; path → digest."""
    choice = random.Random(seed)
    found = {}
    for number in range(count):
        path = directory / f"file-{number}"
        path.write_bytes(choice.randbytes(choice.choice((100, 8192, 100_000, 3 * MIB))))
        found[path] = digest(path)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return found


def forget_caches(pool: Pool, files: dict[Path, str]) -> None:
    """Make the next reads come from the filesystem."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def check(files: dict[Path, str]) -> list[int]:
    """Compare all files; the errnos of those that can't be read. Wrong bytes fail at once."""
    errors = []
    for path, expected in files.items():
        try:
            assert digest(path) == expected, f"{path} came back with other bytes"
        except OSError as error:
            errors.append(error.errno or 0)
    return errors


@contextmanager
def load(directory: Path) -> Iterator[list[OSError]]:
    """A writer that creates, overwrites, syncs and reads back; yields the errors it meets."""
    stop, errors = threading.Event(), list[OSError]()

    def work() -> None:
        number, block = 0, os.urandom(200_000)
        while not stop.is_set():
            path = directory / f"load-{number % 50}"
            try:
                with path.open("wb", buffering=0) as file:
                    file.write(block)
                    os.fsync(file.fileno())
                assert path.read_bytes() == block
            except OSError as error:
                errors.append(error)
                return
            number += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield errors
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive(), "the mount hangs"


def test_two_disks_deleted_under_load(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed)
    with load(mounted.mountpoint) as errors:
        mounted.lose(1, 4)
        forget_caches(mounted, files)
        assert check(files) == []
        after = mounted.mountpoint / "written-degraded"
        after.write_bytes(os.urandom(6 * MIB))
        files[after] = digest(after)
        status = mounted.wait_for(lambda status: status["redundancy_left"] == 0)
    assert errors == []
    assert status["health"] == "at-risk"
    assert sorted(disk["state"] != "online" for disk in status["disks"]) == [False] * 4 + [True] * 2
    mounted.remount()
    assert check(files) == []


def test_one_disk_lost_is_degraded(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed, 30)
    mounted.lose(3)
    status = mounted.wait_for(lambda status: status["health"] != "healthy")
    assert (status["health"], status["redundancy_left"]) == ("degraded", 1)
    forget_caches(mounted, files)
    assert check(files) == []


def test_new_data_is_fully_redundant_if_disks_suffice(bare_pool: Pool, seed: int) -> None:
    pool = bare_pool.create(disks=8).mount()
    pool.lose(0, 1)
    pool.wait_for(lambda status: status["health"] != "healthy")
    files = fill(pool.mountpoint, seed, 40)
    pool.lose(2, 3)  # two more: only new data had its full redundancy on the disks that were left
    pool.umount()
    pool.mount()
    assert check(files) == []


def test_a_third_disk_lost_is_eio_for_what_is_gone(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed)
    mounted.remount()
    mounted.lose(0, 2, 5)
    status = mounted.wait_for(lambda status: status["health"] == "failed")
    assert status["redundancy_left"] == 0
    errors = check(files)
    assert set(errors) == {errno.EIO}
    assert len(errors) < len(files), "small files on the disks that are left can be read"
    assert set(os.listdir(mounted.mountpoint)) >= {path.name for path in files}


def test_a_third_disk_lost_at_mount_time(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed)
    mounted.umount()
    mounted.lose(0, 2, 5)
    done = mounted.run("mount", mounted.name, mounted.mountpoint, "--keyfile", mounted.keyfile)
    if done.returncode != 0:  # allowed only as one clear line
        pytest.fail(f"with three of six disks gone, what is left is not served: {done.stderr}")
    assert mounted.status()["health"] == "failed"
    errors = check(files)
    assert set(errors) <= {errno.EIO}
    assert len(errors) < len(files)


def test_two_disks_lost_at_mount_time_with_the_state(mounted: Pool, seed: int) -> None:
    files = fill(mounted.mountpoint, seed)
    mounted.umount()
    mounted.lose(1, 2)
    subprocess.run(["rm", "-r", mounted.root / "lib"], check=True)
    mounted.mount()
    assert check(files) == []
    assert mounted.status()["redundancy_left"] == 0


def test_damaged_bytes_are_repaired_or_reported_never_returned(mounted: Pool, seed: int) -> None:
    files, choice = fill(mounted.mountpoint, seed), random.Random(seed)
    mounted.umount()
    for disk in mounted.disks[:2]:  # rot on as many disks as may be lost
        for path in (disk / "segments").iterdir():
            with path.open("r+b") as file:
                size = path.stat().st_size
                for _ in range(max(3, size // 200_000)):
                    file.seek(choice.randrange(size))
                    file.write(choice.randbytes(16))
    mounted.mount()
    assert check(files) == []


@pytest.mark.needs_root
def test_disks_that_answer_eio(bare_pool: Pool, seed: int) -> None:
    disks = [bare_pool.home / f"ext4-{number}" for number in range(2)]
    plain = [bare_pool.home / f"disk{number}" for number in range(4)]
    try:
        for disk in disks:
            image = disk.with_suffix(".image")
            with image.open("wb") as file:
                file.truncate(1024 * MIB)
            disk.mkdir()
            subprocess.run(["mkfs.ext4", "-q", "-E", "root_owner", image], check=True)
            subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        for directory in plain:
            directory.mkdir()
        bare_pool.disks = [disk / "share" for disk in disks] + plain
        for disk in disks:
            (disk / "share").mkdir()
        pool = bare_pool.create().mount()
        files = fill(pool.mountpoint, seed)
        with load(pool.mountpoint) as errors:
            for disk in disks:
                shut_down(disk)
            forget_caches(pool, files)
            assert check(files) == []
            pool.wait_for(lambda status: status["redundancy_left"] == 0)
        assert errors == []
        pool.umount()
    finally:
        bare_pool.close()
        for disk in disks:
            subprocess.run(["umount", "-l", disk], capture_output=True)


def shut_down(disk: Path) -> None:
    """Make an ext4 filesystem fail every operation from now on."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_LOG_FLUSH))
    finally:
        os.close(descriptor)

"""File contents on a real mount: open flags, sparse files, mappings, truncation, space."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.pools import Pool, digest

MIB = 1 << 20
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """The system call; Python's posix_fallocate knows no modes."""
    _libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if _libc.fallocate(descriptor, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def test_append_exclusive_truncate(folder: Path) -> None:
    path = folder / "f"
    first = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND)
    second = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(100):
        os.write(first if number % 2 else second, b"%04d" % number)
    assert path.read_bytes() == b"".join(b"%04d" % number for number in range(100))
    os.close(first)
    os.close(second)
    with pytest.raises(FileExistsError):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, os.O_DIRECT, os.O_DIRECT | os.O_SYNC])
def test_direct_and_synchronous_writes(folder: Path, flags: int) -> None:
    path, page = folder / "f", mmap.mmap(-1, 8192)
    page[:] = os.urandom(8192)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | flags)
    for number in range(8):
        assert os.pwrite(descriptor, page, number * 8192) == 8192
    again = mmap.mmap(-1, 8192)
    assert os.preadv(descriptor, [again], 3 * 8192) == 8192
    assert again[:] == page[:]
    os.close(descriptor)
    assert path.read_bytes() == page[:] * 8


def test_direct_and_buffered_see_each_other(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"a" * 16384)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    page[:] = b"b" * 4096
    os.pwrite(direct, page, 4096)
    assert path.read_bytes() == b"a" * 4096 + b"b" * 4096 + b"a" * 8192
    with path.open("r+b", buffering=0) as file:
        file.write(b"c" * 4096)
    os.preadv(direct, [page], 0)
    assert page[:] == b"c" * 4096
    os.close(direct)


def test_sparse_files(folder: Path) -> None:
    path = folder / "f"
    with path.open("wb") as file:
        file.seek(3 * 2**40)
        file.write(b"end")
    assert path.stat().st_size == 3 * 2**40 + 3
    assert path.stat().st_blocks < 2048
    with path.open("rb") as file:
        file.seek(2**40 + 12345)
        assert file.read(MIB) == bytes(MIB)
        file.seek(-8, os.SEEK_END)
        assert file.read() == bytes(5) + b"end"


def test_punching_holes_is_refused_and_changes_nothing(folder: Path) -> None:
    # pyfuse3 3.5 hands no fallocate to filesystems (docs/posix.md); programs fall back on EOPNOTSUPP.
    path = folder / "f"
    content = os.urandom(MIB)
    path.write_bytes(content)
    with path.open("r+b") as file, pytest.raises(OSError, match="not supported") as caught:
        fallocate(file.fileno(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 4096)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert path.read_bytes() == content


def test_allocation_as_programs_ask_for_it(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"kept")
    with path.open("r+b") as file:  # the C library falls back to writing where it must
        os.posix_fallocate(file.fileno(), 0, MIB)
    assert path.read_bytes() == b"kept" + bytes(MIB - 4)


def test_truncation_both_ways(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 100_000)
    os.truncate(path, 50_001)
    os.truncate(path, 120_000)
    assert path.read_bytes() == b"x" * 50_001 + bytes(69_999)
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    with pytest.raises(OSError, match="Invalid argument"):
        os.truncate(path, -1)


def test_mappings(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(bytes(64 * 4096))
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
        private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        shared[10_000:10_005] = b"hello"
        private[20_000:20_005] = b"alone"
        assert private[10_000:10_005] == b"hello"
        shared.flush()
        file.seek(20_000)
        assert file.read(5) == bytes(5)
        private.close()
        shared.close()
    assert path.read_bytes()[10_000:10_005] == b"hello"


def test_random_writes_against_a_model(folder: Path, seed: int) -> None:
    choice, path = random.Random(seed), folder / "f"
    model = bytearray()
    with path.open("w+b", buffering=0) as file:
        for _ in range(400):
            offset = choice.randrange(3 * MIB)
            match choice.randrange(8):
                case 0:
                    os.ftruncate(file.fileno(), offset)
                    model = model[:offset].ljust(offset, b"\0")
                case 1 | 2:
                    length = choice.randrange(1, 300_000)
                    file.seek(offset)
                    assert file.read(length) == model[offset : offset + length]
                case 3:
                    os.fsync(file.fileno())
                case _:
                    data = choice.randbytes(choice.choice((1, 100, 4096, 5000, 200_000)))
                    os.pwrite(file.fileno(), data, offset)
                    model = model.ljust(offset + len(data), b"\0")
                    model[offset : offset + len(data)] = data
    assert path.read_bytes() == model


def test_contents_survive_a_remount(mounted: Pool, seed: int) -> None:
    choice = random.Random(seed)
    digests = {}
    for number in range(60):
        path = mounted.mountpoint / f"f{number}"
        path.write_bytes(choice.randbytes(choice.choice((0, 1, 5000, 16384, 300_000, 5 * MIB))))
        digests[path] = digest(path)
    mounted.remount()
    assert {path: digest(path) for path in digests} == digests
    assert mounted.status()["health"] == "healthy"


@pytest.mark.needs_root
def test_statfs_tells_the_truth_and_full_is_enospc(bare_pool: Pool) -> None:
    disks = [bare_pool.home / f"small{number}" for number in range(6)]
    try:
        for disk in disks:
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "none", disk], check=True)
        bare_pool.disks = disks
        pool = bare_pool.create().mount()
        path = pool.mountpoint
        (path / "victim").write_bytes(os.urandom(8 * MIB))
        space = os.statvfs(path)
        promised = space.f_bavail * space.f_frsize
        written, block = 0, os.urandom(MIB)
        with (path / "filler").open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
            while True:
                written += file.write(block)
                os.fsync(file.fileno())
        assert caught.value.errno == errno.ENOSPC
        assert 0.85 * promised <= written <= 1.15 * promised
        (path / "victim").unlink()  # deleting always works, and gives room again
        (path / "filler").unlink()
        pool.wait_for(lambda status: status["usage"]["free_bytes"] > 0.8 * promised)
        (path / "again").write_bytes(block)
        pool.remount()
        assert (path / "again").read_bytes() == block
    finally:
        bare_pool.close()
        for disk in disks:
            subprocess.run(["umount", "-l", disk], capture_output=True)


@pytest.mark.needs_root
def test_remount_read_only_and_back(mounted: Pool) -> None:
    path = mounted.mountpoint
    (path / "f").write_text("before")
    # -i: without the helper in /sbin, which a test doesn't install; then what the helper does. Without
    # it, util-linux 2.41 (Debian 13) must be told to call mount(2): the kernel's FUSE refuses all options
    # that come by fsconfig(2), and mount(8) repeats those that are in force.
    environment = {**mounted.environment, "LIBMOUNT_FORCE_MOUNT2": "always"}
    by_mount = ["mount", "-i", "-o"]
    by_dwfs = [sys.executable, "-m", "dwfs", "mount", mounted.name, str(path), "-o"]
    for command in (by_mount, by_dwfs):
        for option in ("remount,ro", "remount,rw"):
            words = [*command, option, *([str(path)] if command is by_mount else [])]
            subprocess.run(words, check=True, env=environment)
            if option.endswith("ro"):
                with pytest.raises(OSError, match="Read-only"):
                    (path / "g").touch()
                assert (path / "f").read_text() == "before"
        (path / "g").touch()
        (path / "g").unlink()

"""`kill -9` at any moment, then mount: a prefix, all that was synced, no manual step, no leak."""

from __future__ import annotations

import os
import time

import pytest

from tests.integration.crash_cycles import run_cycles
from tests.integration.pools import Pool

MIB = 1 << 20


@pytest.mark.timeout(3600)
def test_crash_cycles(pool: Pool, seed: int, long: bool) -> None:
    cycles = run_cycles(pool, 100 if long else 6, seed)
    assert max(cycles.mount_seconds) < 30


@pytest.mark.timeout(7200)
def test_crash_cycles_amid_repair_drain_and_damage(bare_pool: Pool, seed: int, long: bool) -> None:
    run_cycles(bare_pool.create(disks=7), 100 if long else 6, seed, operations=True)


def test_unlinked_open_files_leave_no_leak(mounted: Pool) -> None:
    (mounted.mountpoint / "stays").write_bytes(os.urandom(MIB))
    mounted.remount()
    before = mounted.status()["usage"]["logical_bytes"]
    descriptor = os.open(mounted.mountpoint / "goes", os.O_CREAT | os.O_RDWR)
    try:
        for _ in range(48):
            os.write(descriptor, os.urandom(MIB))
        os.unlink(mounted.mountpoint / "goes")
        os.fsync(descriptor)
        mounted.kill()
    finally:
        os.close(descriptor)
    mounted.mount()
    assert os.listdir(mounted.mountpoint) == ["stays"]
    mounted.wait_for(lambda status: status["usage"]["logical_bytes"] <= before + 4 * MIB, 60)
    mounted.wait_for(lambda status: status["usage"]["stored_bytes"] < 24 * MIB, 60)


def test_a_crash_loses_no_more_than_five_seconds(mounted: Pool) -> None:
    path = mounted.mountpoint / "unsynced-name"
    path.mkdir()
    time.sleep(7)
    mounted.kill()
    mounted.mount()
    assert path.is_dir()


def test_fsynced_is_there_although_two_disks_went_with_the_crash(mounted: Pool) -> None:
    content = os.urandom(100_000)
    path = mounted.mountpoint / "f"
    with path.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    mounted.kill()
    mounted.lose(0, 1)
    mounted.mount()
    assert path.read_bytes() == content


def test_synchronous_writes_survive_without_the_state_directory(mounted: Pool) -> None:
    path = mounted.mountpoint / "f"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_SYNC)
    for number in range(50):
        os.write(descriptor, b"%08d" % number)
    os.close(descriptor)
    mounted.kill()
    for item in (mounted.root / "lib" / mounted.name).iterdir():
        item.unlink()
    mounted.mount()
    assert path.read_bytes() == b"".join(b"%08d" % number for number in range(50))


def test_recovery_time_is_bounded_by_what_was_written(mounted: Pool, long: bool) -> None:
    size_mib = 1024 if long else 256
    block = os.urandom(MIB)
    with (mounted.mountpoint / "big").open("wb", buffering=0) as file:
        for _ in range(size_mib):
            file.write(block)
        os.fsync(file.fileno())
    mounted.kill()
    started = time.monotonic()
    mounted.mount()
    assert time.monotonic() - started < 2 + 2.5 * size_mib / 1024

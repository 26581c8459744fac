"""Small reads that are given a moment: when they are, and when never."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs.disk import reading as store_module
from dwfs.disk.medium import POSIX_MEDIUM, PosixMedium
from dwfs.disk.patience import Patience
from tests.contract.store_harness import running_store, shard_key

PAYLOAD = os.urandom(16_400)


def forget_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def test_a_disk_that_is_late_now_and_then_is_always_tried() -> None:
    patience = Patience()
    for number in range(100):
        assert patience.worthwhile()
        patience.learn(arrived=number % 3 == 2)


def test_a_slow_disk_is_tried_ever_more_seldom_and_recovers() -> None:
    patience = Patience()
    tried = 0
    for _ in range(10_000):
        if patience.worthwhile():
            tried += 1
            patience.learn(arrived=False)
    assert 10_000 // 256 <= tried < 60
    while not patience.worthwhile():
        pass
    patience.learn(arrived=True)
    assert all(patience.worthwhile() for _ in range(100))


def test_what_never_arrives_costs_no_more_than_the_patience(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(PAYLOAD)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert POSIX_MEDIUM.read_cached(descriptor, 100, 1000, 1.0) == PAYLOAD[100:1100]
        began = time.perf_counter()
        assert POSIX_MEDIUM.read_cached(descriptor, 0, 2 * len(PAYLOAD), 0.01) is None
        assert 0.01 <= time.perf_counter() - began < 1.0
    finally:
        os.close(descriptor)


async def test_cold_bytes_arrive_without_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PATIENCE_SECONDS", 5.0)
    async with running_store(tmp_path) as (store, harness):
        await store.put(shard_key(1), b"", memoryview(PAYLOAD))
        for path in harness.segments():
            forget_pages(path)
        assert store.read_cached(shard_key(1), 5, 9_000) == PAYLOAD[5:9_005]


async def test_a_disk_with_a_call_under_way_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(
        _: PosixMedium, handle: int, offset: int, length: int, patience_seconds: float = 0.0
    ) -> None:
        assert not patience_seconds, "it might hang"

    async with running_store(tmp_path) as (store, harness):
        await store.put(shard_key(1), b"", memoryview(PAYLOAD))
        for path in harness.segments():
            forget_pages(path)
        monkeypatch.setattr(PosixMedium, "read_cached", never)
        go_on = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.executor.run, lambda: go_on.wait())  # noqa: PLW0108  # for mypy
            await trio.testing.wait_all_tasks_blocked()
            try:
                assert store.read_cached(shard_key(1), 0, 9_000) in (None, PAYLOAD[:9_000])
            finally:
                go_on.set()

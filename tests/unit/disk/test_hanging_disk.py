"""The segment store on a disk that hangs: nothing waits for ever, and nothing goes astray later."""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs import limits
from dwfs.disk import SegmentStore
from dwfs.disk.access import RETIRED
from dwfs.errors import DiskTimeoutError, MediumError
from dwfs.types import DiskPosition, ShardKey
from tests.contract.store_harness import DISK, Harness, shard_key
from tests.unit.disk.hanging_medium import HangingMedium

DEADLINE = 0.05


def content(number: int, size: int = 20_000) -> memoryview:
    return memoryview(number.to_bytes(4, "big") * (size // 4))


class Rig:
    def __init__(self, harness: Harness, medium: HangingMedium, store: SegmentStore) -> None:
        self.harness = harness
        self.medium = medium
        self.store = store

    async def put(self, *numbers: int) -> None:
        for number in numbers:
            await self.store.put(shard_key(number), b"h", content(number))

    async def timed_out(self, operation: Callable[[], Awaitable[object]]) -> None:
        """The operation hangs and is given up."""
        executor = self.harness.executor
        async with trio.open_nursery() as nursery:

            async def caller() -> None:
                with pytest.raises(DiskTimeoutError, match="timed out"):
                    await operation()

            nursery.start_soon(caller)
            with trio.fail_after(10):
                while not executor.expire(time.monotonic(), DEADLINE):
                    await trio.sleep(0.005)
        assert executor.stalled

    async def recovered(self) -> None:
        self.medium.let_go()
        with trio.fail_after(10):
            while self.harness.executor.stalled or self.harness.executor.waiting():
                await trio.sleep(0.001)


@asynccontextmanager
async def hanging_store(root: Path) -> AsyncIterator[Rig]:
    harness, medium = Harness(root), HangingMedium()
    store = await SegmentStore.open(
        harness.directory, DISK, harness.index, harness.executor, trusted=True, medium=medium
    )
    try:
        yield Rig(harness, medium, store)
    finally:
        medium.let_go()
        await store.close()
        harness.executor.close()
        for thread in harness.executor._threads:
            thread.join(10)
        harness.source.close(commit=True)
    assert not medium.open_handles


async def reopened(root: Path) -> list[ShardKey]:
    harness = Harness(root)
    store = await harness.open(trusted=False)
    try:
        keys = store.keys(None, 100)
        for key in keys:
            await store.read_verified(key)
        return keys
    finally:
        await store.close()
        harness.executor.close()
        harness.source.close(commit=True)


async def test_a_put_that_hangs_is_given_up_and_its_late_bytes_do_no_harm(tmp_path: Path) -> None:
    async with hanging_store(tmp_path) as rig:
        await rig.put(1)
        rig.medium.hang("write")
        await rig.timed_out(lambda: rig.store.put(shard_key(2), b"h", content(2)))
        with pytest.raises(DiskTimeoutError):  # at once: the circuit is open
            await rig.store.put(shard_key(3), b"h", content(3))
        await rig.recovered()
        assert not rig.store.has(shard_key(2))
        await rig.put(3)
        await rig.store.sync()
        assert len(rig.harness.segments()) == 2  # nothing more beside a write that may come yet
        assert (await rig.store.read_verified(shard_key(3)))[1] == bytes(content(3))
        assert rig.store.check_accounts() == []
    # The late record lies in a place that is dead: a rebuild passes over it.
    assert await reopened(tmp_path) == [shard_key(1), shard_key(3)]


async def test_a_sync_that_hangs_counts_as_failed(tmp_path: Path) -> None:
    async with hanging_store(tmp_path) as rig:
        await rig.put(1)
        await rig.store.sync()
        await rig.put(2)
        rig.medium.hang("sync")
        await rig.timed_out(rig.store.sync)
        await rig.recovered()
        with pytest.raises(MediumError, match="1 shards were lost by an earlier failed sync"):
            await rig.store.sync()
        await rig.put(2)
        await rig.store.sync()
        assert (await rig.store.read_verified(shard_key(1)))[1] == bytes(content(1))
    assert await reopened(tmp_path) == [shard_key(1), shard_key(2)]


async def test_a_segment_stays_open_as_long_as_a_hung_thread_may_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OPEN_SEGMENTS_MAX", 0)
    async with hanging_store(tmp_path) as rig:
        await rig.put(1)
        [handle] = rig.medium.open_handles
        rig.medium.hang("sync")
        await rig.timed_out(rig.store.sync)
        rig.store.retire()
        rig.harness.executor.abandon()
        await trio.testing.wait_all_tasks_blocked()
        assert rig.medium.open_handles == {handle}
        rig.medium.let_go()
        with trio.fail_after(10):
            while rig.medium.open_handles:
                await trio.sleep(0.001)


async def test_deletes_new_segments_and_reads_that_hang(tmp_path: Path) -> None:
    async with hanging_store(tmp_path) as rig:
        rig.medium.hang("create")
        await rig.timed_out(lambda: rig.put(1))
        await rig.recovered()
        assert not rig.medium.open_handles  # the handle that came too late was closed
        await rig.put(1, 2, 3)
        await rig.store.sync()
        rig.medium.hang("punch")
        await rig.timed_out(lambda: rig.store.delete([shard_key(1)]))
        assert not rig.store.has(shard_key(1))
        await rig.recovered()
        rig.medium.hang("read")
        await rig.timed_out(lambda: rig.store.read(shard_key(2), 0, 100))
        with pytest.raises(DiskTimeoutError):
            await rig.store.read_verified(shard_key(2))
        with pytest.raises(DiskTimeoutError):
            await rig.store.scrub(DiskPosition(0, 0), 1_000)
        await rig.recovered()
        assert await rig.store.read(shard_key(2), 0, 4) == bytes(content(2))[:4]
    assert await reopened(tmp_path) == [shard_key(2), shard_key(3)]


async def test_a_reader_that_loses_patience_leaves_at_once(tmp_path: Path) -> None:
    async with hanging_store(tmp_path) as rig:
        await rig.put(1)
        mean, _ = rig.store.read_latency()
        assert mean is None
        rig.medium.hang("read")
        with trio.fail_after(5), trio.move_on_after(0.05) as scope:
            await rig.store.read(shard_key(1), 0, 100)
        assert scope.cancelled_caught
        mean, high = rig.store.read_latency()
        assert mean is not None
        assert high is not None
        assert 0.05 <= mean < 2  # what was not waited for is known to take so long at least
        await rig.recovered()
        assert await rig.store.read(shard_key(1), 0, 4) == bytes(content(1))[:4]


async def test_a_retired_store_touches_nothing_any_more(tmp_path: Path) -> None:
    async with hanging_store(tmp_path) as rig:
        await rig.put(1)
        await rig.store.sync()
        rig.medium.hang("write", "punch")
        seen: list[str] = []

        async def caller(operation: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(MediumError) as caught:
                await operation()
            seen.append(caught.value.operation)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller, lambda: rig.store.put(shard_key(2), b"", content(2)))
            nursery.start_soon(caller, lambda: rig.store.delete([shard_key(1)]))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(caller, rig.store.sync)
            await trio.testing.wait_all_tasks_blocked()
            before = rig.harness.index.keys(None, 10)
            accounts = rig.harness.index.accounts()
            rig.store.retire()
            rig.store.retire()
            rig.medium.let_go()
        assert seen == [RETIRED] * 3
        assert rig.harness.index.keys(None, 10) == before
        assert rig.harness.index.accounts() == accounts
        store = rig.store
        assert not store.has(shard_key(1))
        assert store.keys(None, 5) == []
        assert store.read_cached(shard_key(1), 0, 1) is None
        assert store.space().size_bytes > 0
        for operation in (
            lambda: store.read(shard_key(1), 0, 1),
            lambda: store.read_verified(shard_key(1)),
            lambda: store.put(shard_key(1), b"", content(1)),
            lambda: store.delete([shard_key(1)]),
            lambda: store.scrub(DiskPosition(0, 0), 10),
            store.sync,
        ):
            with pytest.raises(MediumError) as caught:
                await operation()
            assert caught.value.operation == RETIRED


async def test_a_thread_that_wakes_up_late_leaves_the_next_store_alone(tmp_path: Path) -> None:
    """The disk hangs in a delete, goes, comes back and has another store before the thread wakes."""
    async with hanging_store(tmp_path) as rig:
        await rig.put(1)
        await rig.store.close()
        harness = rig.harness
        store = await SegmentStore.open(
            harness.directory, DISK, harness.index, harness.executor, trusted=True,
            medium=rig.medium,
        )  # fmt: skip
        await store.put(shard_key(2), b"", content(2))
        await store.sync()
        rig.medium.hang("punch")
        rig.store = store
        await rig.timed_out(lambda: store.delete([shard_key(2)]))
        store.retire()
        harness.executor.abandon()
        again = Harness.again(harness)
        following = await SegmentStore.open(
            harness.directory, DISK, again.index, again.executor, trusted=False,
            first_number=store.next_number,
        )  # fmt: skip
        assert following.has(shard_key(1))
        await following.delete([shard_key(number) for number in (1, 2)])
        await following.put(shard_key(3), b"", content(3))
        await following.sync()
        rig.medium.let_go()
        for thread in harness.executor._threads:
            thread.join(10)
        assert await following.read_verified(shard_key(3)) == (b"", bytes(content(3)))
        assert int(harness.segments()[-1].stem) >= store.next_number
        await following.close()
        again.executor.close()


async def test_without_holes_headers_are_overwritten(tmp_path: Path) -> None:
    async with hanging_store(tmp_path) as rig:
        rig.medium.failing["holes"] = errno.EOPNOTSUPP
        await rig.put(1, 2, 3)
        await rig.store.delete([shard_key(1), shard_key(2)])
        await rig.store.sync()
    assert await reopened(tmp_path) == [shard_key(3)]

"""The contract of the `ShardStore` port, for every implementation."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dwfs.errors import ShardMissingError
from dwfs.ports import ScrubFinding, ShardFault, ShardStore
from dwfs.types import DiskPosition
from tests.contract.memory_shard_store import MemoryShardStore
from tests.contract.store_harness import DISK, running_store, shard_key

KINDS: Sequence[str] = ("segments", "memory")


@asynccontextmanager
async def store_of(kind: str, root: Path) -> AsyncIterator[ShardStore]:
    if kind == "memory":
        yield MemoryShardStore(DISK)
    else:
        async with running_store(root) as (store, _):
            yield store


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 4095, 16_400, 1_000_003])
async def test_what_is_put_can_be_read(kind: str, length: int, tmp_path: Path) -> None:
    payload = os.urandom(length)
    async with store_of(kind, tmp_path) as store:
        key = shard_key(1, 3)
        assert not store.has(key)
        await store.put(key, b"header", memoryview(payload))
        assert store.has(key)
        assert store.length(key) == length
        assert await store.read_verified(key) == (b"header", payload)
        assert await store.read(key, 0, length) == payload
        assert await store.read(key, 10, 100) == payload[10:110]
        assert await store.read(key, length, 5) == b""
        assert await store.read(key, max(0, length - 3), 50) == payload[max(0, length - 3) :]
        assert store.read_cached(key, 7, 9) in (None, payload[7:16])
        assert store.disk == DISK


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_shards_are_missing(kind: str, tmp_path: Path) -> None:
    async with store_of(kind, tmp_path) as store:
        key = shard_key(9)
        with pytest.raises(ShardMissingError):
            store.length(key)
        with pytest.raises(ShardMissingError):
            await store.read(key, 0, 1)
        with pytest.raises(ShardMissingError):
            await store.read_verified(key)
        assert store.read_cached(key, 0, 1) is None
        await store.delete([key])
        await store.sync()


@pytest.mark.parametrize("kind", KINDS)
async def test_put_replaces(kind: str, tmp_path: Path) -> None:
    async with store_of(kind, tmp_path) as store:
        key = shard_key(1)
        await store.put(key, b"old", memoryview(b"x" * 9_000))
        await store.put(key, b"new", memoryview(b"y" * 50))
        assert await store.read_verified(key) == (b"new", b"y" * 50)
        await store.sync()
        assert await store.read_verified(key) == (b"new", b"y" * 50)
        assert store.keys(None, 10) == [key]


@pytest.mark.parametrize("kind", KINDS)
async def test_deleted_shards_are_gone_and_others_stay(kind: str, tmp_path: Path) -> None:
    async with store_of(kind, tmp_path) as store:
        keys = [shard_key(number) for number in range(20)]
        for key in keys:
            await store.put(key, b"", memoryview(key.stripe * 700))
        used = store.space().used_bytes
        await store.delete([*keys[::2], shard_key(99)])
        assert store.space().used_bytes < used
        for key in keys[::2]:
            assert not store.has(key)
        for key in keys[1::2]:
            assert (await store.read_verified(key))[1] == key.stripe * 700


@pytest.mark.parametrize("kind", KINDS)
async def test_keys_come_in_order_and_in_pages(kind: str, tmp_path: Path) -> None:
    async with store_of(kind, tmp_path) as store:
        expected = [shard_key(stripe, number) for stripe in range(5) for number in (0, 1, 200)]
        for key in reversed(expected):
            await store.put(key, b"", memoryview(b""))
        assert store.keys(None, 100) == expected
        assert store.keys(None, 4) == expected[:4]
        assert store.keys(expected[3], 4) == expected[4:8]
        assert store.keys(shard_key(2, 100), 1) == [shard_key(2, 200)]
        assert store.keys(expected[-1], 5) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_many_at_once(kind: str, tmp_path: Path) -> None:
    async with store_of(kind, tmp_path) as store:

        async def worker(number: int) -> None:
            for turn in range(10):
                key = shard_key(number, turn)
                await store.put(key, bytes([number]), memoryview(bytes([number]) * 5_000))
                await store.sync()
                assert await store.read_verified(key) == (bytes([number]), bytes([number]) * 5_000)
                if turn % 3 == 0:
                    await store.delete([key])

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(worker, number)
        assert len(store.keys(None, 1_000)) == 12 * 6


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_synced_can_be_read_back(kind: str, tmp_path: Path) -> None:
    async with store_of(kind, tmp_path) as store:
        key = shard_key(4, 1)
        await store.put(key, b"header", memoryview(b"payload" * 900))
        await store.sync()
        assert await store.read_back(key) == (b"header", b"payload" * 900)
        with pytest.raises(ShardMissingError):
            await store.read_back(shard_key(5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_bytes", [1, 20_000, 1 << 30])
async def test_a_scrub_goes_once_through_all_in_pieces(
    kind: str, size_bytes: int, tmp_path: Path
) -> None:
    async with store_of(kind, tmp_path) as store:
        assert (await store.scrub(DiskPosition(0, 0), size_bytes)).findings == ()
        for number in range(12):
            await store.put(shard_key(number), b"h", memoryview(os.urandom(5_000)))
        await store.delete([shard_key(number) for number in (3, 7)])
        await store.put(shard_key(1), b"h", memoryview(b"again"))
        await store.sync()
        position: DiskPosition | None = DiskPosition(0, 0)
        records = read_bytes = 0
        while position is not None:
            piece = await store.scrub(position, size_bytes)
            assert piece.findings == ()
            assert piece.following is None or piece.following > position
            records += piece.records
            read_bytes += piece.size_bytes
            position = piece.following
        assert records == 10
        assert read_bytes >= 9 * 5_000


@pytest.mark.parametrize("kind", KINDS)
async def test_findings_that_are_gone_or_live_by_now_are_ignored(kind: str, tmp_path: Path) -> None:
    async with store_of(kind, tmp_path) as store:
        key = shard_key(1)
        await store.put(key, b"h", memoryview(b"payload"))
        await store.sync()
        for fault in (ShardFault.STRAY, ShardFault.DUPLICATE):
            for position in (DiskPosition(1, 64), DiskPosition(77, 0)):
                finding = ScrubFinding(fault, key, position, "made up")
                await store.adopt(finding)
                await store.erase(finding)
        assert await store.read_verified(key) == (b"h", b"payload")

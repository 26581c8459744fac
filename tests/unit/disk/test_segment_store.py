"""The segment store: crashes, rot, failing disks, and space given back."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs import limits
from dwfs.disk import POSIX_MEDIUM, Medium, recovery, scan
from dwfs.disk.record import HEADER_SIZE
from dwfs.disk.scan import SegmentScan, scan_segment
from dwfs.disk.segment import read_footer
from dwfs.errors import DiskFullError, MediumError, ShardDamagedError
from dwfs.types import DiskId, ShardKey
from tests.contract.store_harness import running_store, shard_key

SHARD = 10_000


def content(number: int, size: int = SHARD) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_SIZE", 4 * SHARD + 1_000)


async def test_full_segments_are_closed_with_a_footer(tmp_path: Path, small_segments: None) -> None:
    async with running_store(tmp_path) as (store, harness):
        for number in range(10):
            await store.put(shard_key(number), b"", memoryview(content(number)))
        await store.sync()
        closed = []
        for path in harness.segments():
            descriptor = os.open(path, os.O_RDONLY)
            closed.append(read_footer(POSIX_MEDIUM, descriptor, int(path.stem)))
            os.close(descriptor)
        assert [len(footer.entries) if footer else None for footer in closed] == [4, 4, None]


async def test_the_index_is_rebuilt_from_footers_and_walks(
    tmp_path: Path, small_segments: None
) -> None:
    async with running_store(tmp_path, crash=True) as (store, harness):
        for number in range(10):
            await store.put(shard_key(number), b"h%d" % number, memoryview(content(number)))
        await store.put(shard_key(1), b"newer", memoryview(content(77)))
        await store.sync()
        await store.delete([shard_key(0), shard_key(5), shard_key(9)])
        expected = store.keys(None, 100)
        harness.source.commit()
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 100) == expected
        assert await store.read_verified(shard_key(1)) == (b"newer", content(77))
        assert (await store.read_verified(shard_key(8)))[0] == b"h8"


async def test_a_segment_without_a_footer_is_walked_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_store(tmp_path, crash=True) as (store, _):
        for number in range(30):
            await store.put(shard_key(number), b"", memoryview(content(number)))
        await store.delete([shard_key(number) for number in range(5, 12)])
        used = store.used_bytes
    pieces = []

    def spy(medium: Medium, path: Path, disk: DiskId, number: int, start: int) -> SegmentScan:
        found = scan_segment(medium, path, disk, number, start)
        pieces.append((start, found.finished))
        return found

    monkeypatch.setattr(recovery, "scan_segment", spy)
    monkeypatch.setattr(scan, "PIECE_BYTES", 40_000)
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 99) == [shard_key(n) for n in range(30) if not 5 <= n < 12]
        assert store.check_accounts() == []
        assert abs(store.used_bytes - used) < 32_768
    assert len(pieces) >= 5
    assert [finished for _, finished in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sorted(pieces) == pieces


async def test_after_a_process_crash_only_the_tail_is_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_store(tmp_path, crash=True) as (store, harness):
        await store.put(shard_key(1), b"", memoryview(content(1)))
        harness.source.commit()
        await store.put(shard_key(2), b"", memoryview(content(2)))
    starts = []

    def spy(medium: Medium, path: Path, disk: DiskId, number: int, start: int) -> SegmentScan:
        starts.append(start)
        return scan_segment(medium, path, disk, number, start)

    monkeypatch.setattr(recovery, "scan_segment", spy)
    async with running_store(tmp_path) as (store, _):
        assert store.keys(None, 9) == [shard_key(1), shard_key(2)]
        assert (await store.read_verified(shard_key(2)))[1] == content(2)
        await store.put(shard_key(3), b"", memoryview(content(3)))
    assert starts == [pytest.approx(SHARD + HEADER_SIZE + 64, abs=8)]


@pytest.mark.parametrize("cut", [1, SHARD // 2, SHARD, SHARD + 30, SHARD + HEADER_SIZE])
async def test_a_torn_tail_is_ignored(tmp_path: Path, cut: int) -> None:
    async with running_store(tmp_path, crash=True) as (store, harness):
        await store.put(shard_key(1), b"", memoryview(content(1)))
        await store.put(shard_key(2), b"", memoryview(content(2)))
        [path] = harness.segments()
    os.truncate(path, path.stat().st_size - cut)
    async with running_store(tmp_path, trusted=False) as (store, harness):
        assert store.keys(None, 9) == [shard_key(1)]
        await store.put(shard_key(2), b"", memoryview(content(2)))
        assert len(harness.segments()) == 2  # never appended to an old segment


async def test_records_behind_a_torn_one_are_found(tmp_path: Path) -> None:
    async with running_store(tmp_path, crash=True) as (store, harness):
        for number in range(4):
            await store.put(shard_key(number), b"", memoryview(content(number)))
        [path] = harness.segments()
        places = [store._ledger.index.get(shard_key(number)) for number in range(4)]
    first, second = places[1], places[2]
    assert first is not None
    assert second is not None
    with path.open("r+b") as file:
        file.seek(first.offset)
        file.write(bytes(100))  # the header never reached the disk
        file.seek(second.payload_offset + 5)
        file.write(b"\xff\xff")  # the payload is torn
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 9) == [shard_key(0), shard_key(3)]


async def test_bit_rot_is_found_by_verified_reads(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (store, harness):
        key = shard_key(1)
        await store.put(key, b"meta", memoryview(content(1)))
        [path] = harness.segments()
        place = store._ledger.index.get(key)
        assert place is not None
        for position in (place.offset, place.offset + 30, place.opaque_offset, place.end - 1):
            with path.open("r+b") as file:
                file.seek(position)
                [byte] = file.read(1)
                file.seek(position)
                file.write(bytes([byte ^ 1]))
                file.flush()
                with pytest.raises(ShardDamagedError):
                    await store.read_verified(key)
                file.seek(position)
                file.write(bytes([byte]))
        assert await store.read_verified(key) == (b"meta", content(1))


async def test_a_damaged_footer_means_a_walk_and_a_damaged_liveness_byte_a_look(
    tmp_path: Path,
) -> None:
    async with running_store(tmp_path) as (store, harness):
        for number in range(5):
            await store.put(shard_key(number), b"", memoryview(content(number)))
        await store.delete([shard_key(2)])
    [path] = harness.segments()
    intact = path.read_bytes()
    descriptor = os.open(path, os.O_RDONLY)
    footer = read_footer(POSIX_MEDIUM, descriptor, 1)
    os.close(descriptor)
    assert footer is not None
    rots = [
        footer.offset + 40,
        footer.liveness_offset + 1,
        footer.liveness_offset + 2,
        len(intact) - 1,
    ]
    for rot in rots:
        with path.open("r+b") as file:
            file.seek(rot)
            file.write(bytes([intact[rot] ^ 0x10]))
        async with running_store(tmp_path, trusted=False) as (store, _):
            assert store.keys(None, 9) == [shard_key(number) for number in (0, 1, 3, 4)]
        with path.open("r+b") as file:
            file.write(intact)


async def test_deletes_give_blocks_back_and_empty_segments_vanish(
    tmp_path: Path, small_segments: None
) -> None:
    async with running_store(tmp_path) as (store, harness):
        for number in range(9):
            await store.put(shard_key(number), b"", memoryview(content(number)))
        await store.sync()
        first, second, _ = harness.segments()
        before = second.stat().st_blocks
        await store.delete([shard_key(number) for number in (0, 1, 2, 3, 5, 6)])
        assert not first.exists()
        assert second.stat().st_blocks < before
        assert (await store.read_verified(shard_key(4)))[1] == content(4)
        await store.delete([shard_key(number) for number in (4, 7)])
        assert not second.exists()
        await store.delete([shard_key(8)])
    assert harness.segments() == []


async def test_blocks_shared_by_dead_neighbours_are_freed(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (store, harness):
        for number in range(64):
            await store.put(shard_key(number), b"", memoryview(content(number, 1_000)))
    async with running_store(tmp_path) as (store, harness):
        [path] = harness.segments()
        for number in range(1, 63):
            await store.delete([shard_key(number)])
        await store.sync()
        os.sync()
        assert path.stat().st_blocks * 512 <= 6 * 4096
        assert (await store.read_verified(shard_key(63)))[1] == content(63, 1_000)


async def test_a_replaced_shard_survives_until_its_successor_is_durable(tmp_path: Path) -> None:
    async with running_store(tmp_path, crash=True) as (store, harness):
        await store.put(shard_key(1), b"old", memoryview(content(1)))
        await store.sync()
        await store.put(shard_key(1), b"new", memoryview(content(2)))
        [path] = harness.segments()
        place = store._ledger.index.get(shard_key(1))
        assert place is not None
    os.truncate(path, place.offset + 20)  # power was lost before the new one reached the disk
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert await store.read_verified(shard_key(1)) == (b"old", content(1))


async def test_a_shard_deleted_after_a_replacement_does_not_come_back(tmp_path: Path) -> None:
    async with running_store(tmp_path, crash=True) as (store, _):
        await store.put(shard_key(1), b"old", memoryview(content(1)))
        await store.put(shard_key(1), b"new", memoryview(content(2)))
        await store.delete([shard_key(1)])
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 9) == []


async def test_a_failed_sync_is_never_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_store(tmp_path) as (store, harness):
        await store.put(shard_key(1), b"", memoryview(content(1)))
        await store.sync()
        await store.put(shard_key(2), b"", memoryview(content(2)))

        def broken(descriptor: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(MediumError, match="sync: EIO"):
                await store.sync()
        with pytest.raises(MediumError, match="1 shards were lost"):
            await store.sync()
        await store.put(shard_key(3), b"", memoryview(content(3)))
        assert len(harness.segments()) == 2
        with pytest.raises(MediumError):
            await store.sync()
        await store.put(shard_key(2), b"", memoryview(content(2)))
        await store.sync()
        assert store.keys(None, 9) == [shard_key(number) for number in (1, 2, 3)]


async def test_a_sync_covers_what_returned_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_store(tmp_path) as (store, _):
        gate = threading.Event()
        synced: list[int] = []
        real = os.fdatasync

        def slow(descriptor: int) -> None:
            gate.wait(5)
            real(descriptor)
            synced.append(descriptor)

        monkeypatch.setattr(os, "fdatasync", slow)
        await store.put(shard_key(1), b"", memoryview(content(1)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.sync)
            await trio.testing.wait_all_tasks_blocked()
            await store.put(shard_key(2), b"", memoryview(content(2)))
            for _ in range(5):
                nursery.start_soon(store.sync)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        assert len(synced) == 2  # the first, and one for all five that came while it ran


async def test_a_full_disk_is_told_apart_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_store(tmp_path, crash=True) as (store, _):
        await store.put(shard_key(1), b"", memoryview(content(1)))
        real = os.pwritev
        calls = []

        def full_after_a_part(descriptor: int, parts: list[memoryview], offset: int) -> int:
            calls.append(offset)
            if len(calls) == 1:
                return real(descriptor, [parts[0], parts[1][:2_000]], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", full_after_a_part)
            with pytest.raises(DiskFullError, match="ENOSPC"):
                await store.put(shard_key(2), b"", memoryview(content(2)))
        assert not store.has(shard_key(2))
        await store.put(shard_key(3), b"", memoryview(content(3)))
        await store.sync()
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 9) == [shard_key(1), shard_key(3)]


@pytest.mark.expect_log("index will be brought in step")
async def test_a_vanished_directory(tmp_path: Path, small_segments: None) -> None:
    async with running_store(tmp_path) as (store, harness):
        await store.put(shard_key(1), b"", memoryview(content(1)))
        shutil.rmtree(harness.directory)
        assert (await store.read_verified(shard_key(1)))[1] == content(1)
        with pytest.raises(MediumError, match="new segment: ENOENT"):
            for number in range(2, 9):
                await store.put(shard_key(number), b"", memoryview(content(number)))
        with pytest.raises(MediumError):
            await store.sync()


async def test_a_missing_disk_is_not_made(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (_, harness):
        shutil.rmtree(harness.directory)
        with pytest.raises(MediumError, match="open: ENOENT"):
            await harness.open()
        assert not harness.directory.exists()
        harness.directory.mkdir()
        (harness.directory / "segments").mkdir()


async def test_descriptors_are_bounded(
    tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OPEN_SEGMENTS_MAX", 3)
    async with running_store(tmp_path) as (store, harness):
        keys: list[ShardKey] = [shard_key(number) for number in range(40)]
        for number, key in enumerate(keys):
            await store.put(key, b"", memoryview(content(number)))
        await store.sync()

        async def reader(offset: int) -> None:
            for key in keys[offset:] + keys[:offset]:
                number = int.from_bytes(key.stripe, "big")
                assert await store.read(key, 0, SHARD) == content(number)

        async with trio.open_nursery() as nursery:
            for offset in range(0, 40, 7):
                nursery.start_soon(reader, offset)
        disk = str(harness.directory)
        links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        assert sum(link.startswith(disk) for link in links) <= 3


@pytest.mark.expect_log("not of this disk")
async def test_a_foreign_segment_is_passed_over(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (store, harness):
        await store.put(shard_key(1), b"", memoryview(content(1)))
    shutil.copy(harness.segments()[0], harness.directory / "segments" / "0000000007.seg")
    async with running_store(tmp_path, trusted=False) as (store, harness):
        assert store.keys(None, 9) == [shard_key(1)]
        await store.put(shard_key(2), b"", memoryview(content(2)))
        assert harness.segments()[-1].stem == "0000000008"

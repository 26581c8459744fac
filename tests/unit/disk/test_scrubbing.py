"""Scrubbing a real segment store: each kind of damage is told apart, and races are none."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs import limits
from dwfs.disk import POSIX_MEDIUM, SegmentStore
from dwfs.disk.record import HEADER_SIZE, Location, pack_header
from dwfs.disk.scrubbing import SEGMENT_KEY
from dwfs.disk.segment import read_footer, segment_path
from dwfs.errors import MediumError
from dwfs.ports import ScrubFinding, ShardFault
from dwfs.types import DiskPosition, ShardKey
from tests.contract.store_harness import DISK, Harness, running_store, shard_key
from tests.unit.disk.hanging_medium import HangingMedium

SHARD = 10_000
START = DiskPosition(0, 0)


def content(number: int, size: int = SHARD) -> bytes:
    return random.Random(number).randbytes(size)


async def put(store: SegmentStore, *numbers: int) -> None:
    for number in numbers:
        await store.put(shard_key(number), b"head", memoryview(content(number)))
    await store.sync()


async def whole_scrub(
    store: SegmentStore, size_bytes: int = 15_000
) -> tuple[list[ScrubFinding], int]:
    findings: list[ScrubFinding] = []
    records = 0
    position: DiskPosition | None = START
    pieces = 0
    while position is not None:
        piece = await store.scrub(position, size_bytes)
        assert piece.following is None or piece.following > position
        findings += piece.findings
        records += piece.records
        position = piece.following
        pieces += 1
        assert pieces < 1_000
    return findings, records


def faults(findings: Sequence[ScrubFinding]) -> dict[ShardKey, ShardFault]:
    assert len({finding.key for finding in findings}) == len(findings)
    return {finding.key: finding.fault for finding in findings}


def place_of(store: SegmentStore, number: int) -> Location:
    place = store._ledger.index.get(shard_key(number))
    assert place is not None
    return place


def overwrite(harness: Harness, segment: int, offset: int, content: bytes) -> None:
    with segment_path(harness.directory, segment).open("r+b") as file:
        file.seek(offset)
        file.write(content)


def read(harness: Harness, place: Location) -> bytes:
    with segment_path(harness.directory, place.segment).open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_SIZE", 8 * SHARD)


@asynccontextmanager
async def damaged_store(root: Path, *, closed: bool) -> AsyncIterator[tuple[SegmentStore, Harness]]:
    """Eight shards in one segment that is closed by a footer, or left open by a crash."""
    async with running_store(root, crash=not closed) as (store, harness):
        await put(store, *range(8))
        harness.source.commit()
    async with running_store(root) as (store, harness):
        yield store, harness


async def test_a_sound_disk_has_no_findings(tmp_path: Path, small_segments: None) -> None:
    async with running_store(tmp_path) as (store, _):
        await put(store, *range(40))
        await store.delete([shard_key(number) for number in range(0, 40, 3)])
        await store.put(shard_key(1), b"newer", memoryview(content(77)))
        await store.put(shard_key(50), b"", memoryview(b""))
        assert await whole_scrub(store) == ([], 27)
        await store.sync()
        assert await whole_scrub(store, 1) == ([], 27)
        assert await whole_scrub(store, 1 << 30) == ([], 27)


async def test_an_empty_disk(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (store, _):
        assert await whole_scrub(store) == ([], 0)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "left open"])
async def test_faults_of_live_records_are_told_apart(tmp_path: Path, closed: bool) -> None:
    async with damaged_store(tmp_path, closed=closed) as (store, harness):
        places = {number: place_of(store, number) for number in range(8)}
        overwrite(harness, 1, places[1].offset, bytes(places[1].size))
        overwrite(harness, 1, places[2].payload_offset + 5_000, bytes(5_000))
        overwrite(harness, 1, places[3].payload_offset + 77, b"\xff\x00\xff")
        overwrite(harness, 1, places[4].offset + 20, b"\x55" * 5)
        overwrite(harness, 1, places[5].offset, read(harness, places[6]))
        impostor = memoryview(content(99))
        at = places[7]
        forged = pack_header(shard_key(99), at, b"head", impostor) + impostor
        overwrite(harness, 1, at.offset, forged)
        findings, records = await whole_scrub(store)
        assert records == 8
        assert faults(findings) == {
            shard_key(1): ShardFault.MISSING,
            shard_key(2): ShardFault.TORN,
            shard_key(3): ShardFault.ROTTEN,
            shard_key(4): ShardFault.ROTTEN,
            shard_key(5): ShardFault.MISDIRECTED,
            shard_key(7): ShardFault.MISDIRECTED,
        }
        for finding in findings:
            number = int.from_bytes(finding.key.stripe, "big")
            assert finding.position == DiskPosition(1, places[number].offset)
        assert "from byte 5000 on" in findings[1].detail
        # A put of the same key on the same disk heals each of them.
        await put(store, 1, 2, 3, 4, 5, 7)
        assert await whole_scrub(store) == ([], 8)


async def test_a_segment_that_was_cut_short_or_is_gone(
    tmp_path: Path, small_segments: None
) -> None:
    async with running_store(tmp_path) as (store, harness):
        await put(store, *range(20))
        first, second, *_ = harness.segments()
        place = next(
            place for n in range(20) if (place := place_of(store, n)).segment == 1 and n >= 4
        )
        os.truncate(first, place.payload_offset + 100)
        second.unlink()
        findings, records = await whole_scrub(store)
        assert records == 20
        kinds = faults([finding for finding in findings if finding.key != SEGMENT_KEY])
        in_second = {shard_key(n) for n in range(20) if place_of(store, n).segment == 2}
        assert in_second
        assert {kinds[key] for key in in_second} == {ShardFault.MISSING}
        assert kinds[shard_key(4)] is ShardFault.TORN
        assert kinds[shard_key(5)] is ShardFault.MISSING
        assert shard_key(3) not in kinds


class BadSector(HangingMedium):
    """One byte of every file can't be read."""

    def __init__(self) -> None:
        super().__init__()
        self.bad = -1

    def read(self, handle: int, offset: int, length: int) -> bytes:
        if offset <= self.bad < offset + length:
            raise OSError(5, "Input/output error")
        return super().read(handle, offset, length)


@pytest.mark.expect_log("can't be read everywhere")
@pytest.mark.parametrize("place", ["footer", "payload"])
async def test_a_bad_sector_costs_a_rebuild_no_more_than_what_lies_in_it(
    tmp_path: Path, place: str
) -> None:
    harness, medium = Harness(tmp_path), BadSector()
    store = await SegmentStore.open(
        harness.directory, DISK, harness.index, harness.executor, trusted=True, medium=medium
    )
    await put(store, 1, 2, 3)
    if place == "footer":
        await store._writer.close_segments()
        medium.bad = segment_path(harness.directory, 1).stat().st_size - 5
    else:
        medium.bad = place_of(store, 2).payload_offset + 50
    store.retire()
    again = await SegmentStore.open(
        harness.directory, DISK, harness.index, harness.executor, trusted=False, medium=medium
    )
    found = [number for number in (1, 2, 3) if again.has(shard_key(number))]
    assert found == ([1, 2, 3] if place == "footer" else [1, 3])
    medium.bad = -1
    for number in found:
        assert await again.read(shard_key(number), 0, SHARD) == content(number)
    await again.close()
    assert harness.executor.close()
    harness.source.close(commit=False)


async def test_a_place_that_the_disk_cannot_read(tmp_path: Path) -> None:
    harness, medium = Harness(tmp_path), BadSector()
    store = await SegmentStore.open(
        harness.directory, DISK, harness.index, harness.executor, trusted=True, medium=medium
    )
    await put(store, 1, 2, 3)
    medium.bad = place_of(store, 2).payload_offset + 50
    findings, records = await whole_scrub(store)
    assert records == 3
    assert faults(findings) == {shard_key(2): ShardFault.UNREADABLE}
    with pytest.raises(MediumError, match="read back: EIO"):
        await store.read_back(shard_key(2))
    medium.failing["open"] = 5
    findings, _ = await whole_scrub(store)
    assert set(faults(findings).values()) == {ShardFault.UNREADABLE}
    assert [finding.key == SEGMENT_KEY for finding in findings] == [True, False, False, False]
    medium.failing["names"] = 5
    with pytest.raises(MediumError, match="scrub: EIO"):
        await store.scrub(START, 1_000)
    medium.failing.clear()
    await store.close()
    harness.executor.close()
    harness.source.close(commit=True)


async def resurrect(
    root: Path, deleted: Sequence[int]
) -> tuple[dict[int, Location], dict[int, bytes]]:
    """Eight shards of which some are deleted; returns what and where these were."""
    async with running_store(root) as (store, harness):
        await put(store, *range(8))
        places = {number: place_of(store, number) for number in deleted}
        bytes_of = {number: read(harness, place) for number, place in places.items()}
    async with running_store(root) as (store, _):
        await store.delete([shard_key(number) for number in deleted])
        await store.sync()
    return places, bytes_of


async def test_strays_are_adopted_or_erased(tmp_path: Path) -> None:
    places, kept = await resurrect(tmp_path, [2, 5, 6])
    async with running_store(tmp_path) as (store, harness):
        for number in (2, 5):
            overwrite(harness, 1, places[number].offset, kept[number])
        overwrite(harness, 1, places[6].offset, kept[6][:5_000])  # an unfinished write
        findings, records = await whole_scrub(store)
        assert records == 5
        assert faults(findings) == {
            shard_key(2): ShardFault.STRAY,
            shard_key(5): ShardFault.STRAY,
            shard_key(6): ShardFault.DUPLICATE,
        }
        by_key = {finding.key: finding for finding in findings}
        used = store.used_bytes
        await store.adopt(by_key[shard_key(2)])
        await store.adopt(by_key[shard_key(2)])
        await store.erase(by_key[shard_key(5)])
        await store.erase(by_key[shard_key(5)])
        await store.adopt(by_key[shard_key(6)])
        assert not store.has(shard_key(6))  # not whole
        await store.erase(by_key[shard_key(6)])
        await store.erase(by_key[shard_key(2)])  # live by now: ignored
        await store.sync()
        assert store.used_bytes < used
        assert await store.read_verified(shard_key(2)) == (b"head", content(2))
        assert store.check_accounts() == []
        assert await whole_scrub(store) == ([], 6)
    async with running_store(tmp_path, trusted=False) as (store, _):  # also for a rebuilt index
        assert store.keys(None, 99) == [shard_key(number) for number in (0, 1, 2, 3, 4, 7)]
        assert await whole_scrub(store) == ([], 6)


async def test_a_stray_is_adopted_whose_line_in_the_table_is_blank(tmp_path: Path) -> None:
    """The table was made again from an index that didn't know the shard either."""
    places, kept = await resurrect(tmp_path, [2, 5])
    async with running_store(tmp_path) as (store, harness):
        overwrite(harness, 1, store._ledger.account(1).scanned + 50, b"\xa5\x5a\xa5")
        overwrite(harness, 1, places[2].offset, kept[2])
        findings, _ = await whole_scrub(store)
        by_key = {finding.key: finding for finding in findings}
        assert by_key.keys() == {SEGMENT_KEY, shard_key(2)}
        await store.delete([shard_key(7)])
        await store.adopt(by_key[shard_key(2)])
        await store.sync()
        assert await whole_scrub(store) == ([], 6)
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 99) == [shard_key(number) for number in (0, 1, 2, 3, 4, 6)]
        assert await store.read_verified(shard_key(2)) == (b"head", content(2))
        assert await whole_scrub(store) == ([], 6)


async def test_strays_in_a_segment_left_open(tmp_path: Path) -> None:
    async with running_store(tmp_path, crash=True) as (store, harness):
        await put(store, *range(8))
        place = place_of(store, 3)
        kept = read(harness, place)
        await store.delete([shard_key(3)])
        await store.sync()
        harness.source.commit()
    async with running_store(tmp_path) as (store, harness):
        overwrite(harness, 1, place.offset, kept)
        [finding], _ = await whole_scrub(store)
        assert finding.fault is ShardFault.STRAY
        await store.adopt(finding)
        await store.sync()
        assert await store.read_back(shard_key(3)) == (b"head", content(3))
        assert await whole_scrub(store) == ([], 8)


async def test_an_older_record_is_a_duplicate_but_not_while_a_crash_may_need_it(
    tmp_path: Path,
) -> None:
    places, kept = await resurrect(tmp_path, [4])
    async with running_store(tmp_path) as (store, harness):
        await put(store, 4)
        overwrite(harness, 1, places[4].offset, kept[4])
        [finding], _ = await whole_scrub(store)
        assert finding.fault is ShardFault.DUPLICATE
        assert finding.position == DiskPosition(1, places[4].offset)
        await store.erase(finding)
        assert await whole_scrub(store) == ([], 8)
        await store.put(shard_key(5), b"newer", memoryview(content(55)))
        assert await whole_scrub(store) == ([], 8)  # its older record waits for the sync
        assert await store.read_verified(shard_key(5)) == (b"newer", content(55))


@pytest.mark.parametrize("where", ["table", "trailer"])
async def test_a_damaged_footer_is_found_and_made_again(tmp_path: Path, where: str) -> None:
    async with running_store(tmp_path) as (store, harness):
        await put(store, *range(8))
        await store.delete([shard_key(2), shard_key(6)])
    [path] = harness.segments()
    async with running_store(tmp_path) as (store, harness):
        account = store._ledger.account(1)
        end = path.stat().st_size
        at = account.scanned + 50 if where == "table" else end - 3
        overwrite(harness, 1, at, b"\xa5\x5a\xa5")
        [finding], records = await whole_scrub(store)
        assert records == 6
        assert (finding.fault, finding.key) == (ShardFault.ROTTEN, SEGMENT_KEY)
        assert "table" in finding.detail
        expected = [shard_key(number) for number in (0, 1, 3, 4, 5, 7)]
        assert await whole_scrub(store) == ([], 6)
        assert store.keys(None, 99) == expected
    with path.open("rb") as file:
        footer = read_footer(POSIX_MEDIUM, file.fileno(), 1)
    assert footer is not None
    assert len(footer.entries) == 8
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 99) == expected
        for key in expected:
            await store.read_verified(key)


async def test_a_damaged_prefix_is_written_again(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (store, harness):
        await put(store, *range(4))
    async with running_store(tmp_path) as (store, harness):
        overwrite(harness, 1, 10, b"\xff")
        [finding], records = await whole_scrub(store)
        assert (finding.key, records) == (SEGMENT_KEY, 4)
        assert "prefix" in finding.detail
        assert await whole_scrub(store) == ([], 4)
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert len(store.keys(None, 9)) == 4


async def test_what_changes_during_the_look_is_no_finding(tmp_path: Path) -> None:
    async with damaged_store(tmp_path, closed=True) as (store, harness):
        gate = threading.Event()
        for number in (1, 2):
            overwrite(harness, 1, place_of(store, number).payload_offset, b"rot")
        pieces = []

        async def scrubber() -> None:
            pieces.append(await store.scrub(DiskPosition(1, place_of(store, 0).offset), 1 << 20))

        await store.scrub(START, 1)  # the segment is known now: the next step is the look
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(harness.executor.run, lambda: gate.wait())  # noqa: PLW0108  # for mypy
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(scrubber)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(store.delete, [shard_key(1), shard_key(3)])
            nursery.start_soon(store.put, shard_key(2), b"", memoryview(content(2)))
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        [piece] = pieces
        assert faults(piece.findings) in ({}, {shard_key(2): ShardFault.ROTTEN})
        assert await whole_scrub(store) == ([], 6)


async def test_random_damage_while_shards_come_and_go(
    tmp_path: Path, seed: int, small_segments: None
) -> None:
    """Nothing sound is ever called bad, whatever is put and deleted at the same time."""
    chance = random.Random(seed)
    async with running_store(tmp_path) as (store, _):
        await put(store, *range(30))
        done = False

        async def churn() -> None:
            for number in range(120):
                key = shard_key(chance.randrange(60))
                if chance.random() < 0.4:
                    await store.delete([key])
                else:
                    payload = content(number, chance.randrange(1, 20_000))
                    await store.put(key, b"", memoryview(payload))
                if chance.random() < 0.2:
                    await store.sync()
            nonlocal done
            done = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn)
            while not done:
                findings, _ = await whole_scrub(store, chance.randrange(1, 40_000))
                assert findings == []
        await store.sync()
        assert (await whole_scrub(store))[0] == []
        assert store.check_accounts() == []


async def test_read_back_sees_what_the_disk_holds(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (store, harness):
        await put(store, 1)
        assert await store.read_back(shard_key(1)) == (b"head", content(1))
        overwrite(harness, 1, place_of(store, 1).end - 1, b"?")
        with pytest.raises(MediumError, match="read back: the payload's checksum"):
            await store.read_back(shard_key(1))


def test_the_header_of_a_record_is_where_the_tests_think() -> None:
    place = Location(1, 64, 0, 4, SHARD)
    assert place.payload_offset == 64 + HEADER_SIZE + 4


@pytest.mark.parametrize("round_number", range(6))
async def test_a_scrub_finds_exactly_what_reading_would(
    tmp_path: Path, seed: int, round_number: int, small_segments: None
) -> None:
    """Random bytes at random places: the oracle is to read every shard."""
    chance = random.Random(seed + round_number)
    async with running_store(tmp_path, crash=chance.random() < 0.5) as (store, harness):
        await put(store, *range(25))
        await store.delete([shard_key(number) for number in range(25) if chance.random() < 0.3])
        await store.sync()
        harness.source.commit()
    async with running_store(tmp_path) as (store, harness):
        await put(store, *range(30, 34))
        for _ in range(12):
            path = chance.choice(harness.segments())
            size = path.stat().st_size
            hurt = chance.choice([bytes(3_000), chance.randbytes(1), chance.randbytes(700)])
            at = chance.randrange(size)
            overwrite(harness, int(path.stem), at, hurt[: size - at])
        bad = set()
        keys = store.keys(None, 99)
        for key in keys:
            try:
                await store.read_verified(key)
            except MediumError:
                bad.add(key)
        findings, records = await whole_scrub(store, chance.randrange(1, 60_000))
        assert records == len(keys)
        live = [finding for finding in findings if finding.key in keys]
        assert set(faults(live)) == bad
        for finding in findings:
            if finding.fault in (ShardFault.STRAY, ShardFault.DUPLICATE):
                await store.erase(finding)
        # What is put again is sound, and the segments' own tables were mended on the way.
        for key in bad:
            await store.put(key, b"head", memoryview(b"good again" * 100))
        await store.sync()
        assert (await whole_scrub(store))[0] == []
        assert store.check_accounts() == []
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert set(keys) <= set(store.keys(None, 99))
        for key in keys:
            await store.read_verified(key)


async def test_a_delete_while_the_footer_is_made_again_stays_a_delete(tmp_path: Path) -> None:
    async with damaged_store(tmp_path, closed=True) as (store, harness):
        overwrite(harness, 1, store._ledger.account(1).scanned + 50, b"\xa5\x5a\xa5")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.scrub, START, 1 << 20)
            for number in range(6):
                await trio.sleep(0)
                nursery.start_soon(store.delete, [shard_key(number)])
        await store.sync()
    async with running_store(tmp_path, trusted=False) as (store, _):
        assert store.keys(None, 99) == [shard_key(6), shard_key(7)]

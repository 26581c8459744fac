"""`dwfs check`: it finds what is wrong, says what that means, and mends what can be mended."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.errors import DamageError
from dwfs.node.assembly import Pool
from dwfs.node.check import CheckReport, check_pool
from dwfs.node.checking.mending import mend
from dwfs.node.checking.paths import printable
from dwfs.node.checking.references import cover, covers
from dwfs.node.closed_check import check_closed_pool
from dwfs.stripe import DiskScrub, ScrubState
from dwfs.types import BackReference, Extent, Geometry, InodeNumber, ShardKey, StripeId
from dwfs.volume.store import KIND_SUMMARY
from tests.unit.node.pools import Rig, no_progress, read_file, write_file

BIG = os.urandom(9 << 20)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on four disks."""
    return await Rig(tmp_path, Geometry(2, 1), 4).create()


async def check(pool: Pool, *, read: bool = True, repair: bool = False) -> CheckReport:
    """Check an open pool."""
    return await check_pool(pool, read=read, repair=repair, progress=no_progress)


async def check_closed(rig: Rig, *, repair: bool) -> CheckReport:
    """Check a pool that nobody has open."""
    return await check_closed_pool(
        rig.directories,
        rig.config,
        rig.credential(),
        read=True,
        repair=repair,
        progress=no_progress,
    )


def areas(report: CheckReport) -> set[str]:
    """Of its findings."""
    return {finding.area for finding in report.findings}


def flip(disk: Path, count: int, seed: int) -> None:
    """Overwrite some places in a disk's segments with other bytes."""
    chance = random.Random(seed)
    segments = [path for path in disk.rglob("*.seg") if path.stat().st_size]
    assert segments
    for _ in range(count):
        path = chance.choice(segments)
        # Not the very end: footers are no shards.
        position = chance.randrange(4096, int(path.stat().st_size * 0.9))
        with path.open("r+b") as file:
            file.seek(position)
            before = file.read(1)
            file.seek(position)
            file.write(bytes([before[0] ^ 0x5A]))


async def filled(rig: Rig) -> None:
    """Put some files into the pool, and close it."""
    async with rig.open() as pool:
        for number in range(3):
            await write_file(pool, f"f{number}", BIG)


async def assert_whole(rig: Rig) -> None:
    """All files are what was written, and nothing is wrong."""
    async with rig.open() as pool:
        for number in range(3):
            assert await read_file(pool, f"f{number}") == BIG
        report = await check(pool)
        assert report.clean, report.findings


async def test_a_sound_pool_is_clean(rig: Rig) -> None:
    await filled(rig)
    await assert_whole(rig)
    report = await check_closed(rig, repair=True)
    assert report.clean
    assert report.repaired == []
    assert report.stripes > 0
    assert report.read_bytes > 0


@pytest.mark.expect_log("scrub", "is suspect", "damaged", "header", "footer")
async def test_rotten_shards_are_found_and_repaired(rig: Rig, seed: int) -> None:
    await filled(rig)
    flip(rig.disks[1], 5, seed)
    async with rig.open() as pool:
        report = await check(pool)
        assert not report.clean
        assert report.shards_damaged > 0
        assert report.stripes_lost == 0
        assert areas(report) <= {"segment", "stripe"}
        report = await check(pool, repair=True)
        assert report.clean, report.findings
        assert report.repaired
    await assert_whole(rig)


@pytest.mark.expect_log("scrub", "is suspect", "damaged", "can't", "header", "footer")
async def test_what_is_beyond_repair_is_named_by_path(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "whole", BIG)
        await pool.volume.destage()
        before = {seal.stripe for seal in pool.volume.catalog.seals(None, 1000)}
        await write_file(pool, "broken", BIG)
        await pool.volume.destage()
        broken = [s for s in pool.volume.catalog.seals(None, 1000) if s.stripe not in before]
        for shard in (0, 1):
            store = pool.foundation.disks.get(broken[0].placement[shard])
            assert store is not None
            await store.delete([ShardKey(broken[0].stripe, shard)])
        report = await check(pool, read=False)
        assert report.stripes_lost == 1
        assert report.damaged_files == ["/broken"]
        report = await check(pool, repair=True)
        assert report.damaged_files == ["/broken"]
        assert await read_file(pool, "whole") == BIG


async def test_shards_that_nobody_claims_are_deleted(rig: Rig) -> None:
    await filled(rig)
    async with rig.open() as pool:
        store = pool.foundation.disks.writable()[0]
        await pool.sweep.wait_idle()
        await store.put(ShardKey(StripeId(b"?" * 16), 0), b"header", memoryview(b"x" * 5000))
        await store.sync()
        report = await check(pool, read=False)
        assert report.orphans == 1
        assert areas(report) == {"disk"}
        report = await check(pool, read=False, repair=True)
        assert report.clean, report.findings
        assert "1 shards" in " ".join(report.repaired)
    await assert_whole(rig)


async def test_a_shard_of_a_wrong_length_is_written_anew(rig: Rig) -> None:
    await filled(rig)
    async with rig.open() as pool:
        seal = pool.volume.catalog.seals(None, 1)[0]
        store = pool.foundation.disks.get(seal.placement[0])
        assert store is not None
        await store.put(ShardKey(seal.stripe, 0), b"header", memoryview(b"short"))
        report = await check(pool, read=False)
        assert areas(report) == {"stripe"}
        assert "has 5 bytes" in report.findings[0].text
        report = await check(pool, read=False, repair=True)
        assert report.clean, report.findings
    await assert_whole(rig)


async def test_copies_of_the_snapshot_are_made_again(rig: Rig) -> None:
    await filled(rig)
    async with rig.open() as pool:
        assert pool.snapshotter is not None
        await pool.snapshotter.take()
        (path, *_) = [
            file
            for disk in rig.disks
            for file in disk.rglob("*")
            if file.is_file() and "snap" in file.name
        ]
        path.unlink()
        report = await check(pool, read=False)
        assert areas(report) == {"log"}
        report = await check(pool, read=False, repair=True)
        assert report.clean, report.findings
    await assert_whole(rig)


async def test_a_damaged_header_is_written_anew(rig: Rig) -> None:
    await filled(rig)
    async with rig.open() as pool:
        os.truncate(rig.disks[2] / "dwfs-disk", 100)
        report = await check(pool, read=False)
        assert areas(report) == {"header"}
        report = await check(pool, read=False, repair=True)
        assert report.clean, report.findings


async def test_a_state_that_contradicts_itself_is_rebuilt(rig: Rig) -> None:
    await filled(rig)
    async with rig.open() as pool:
        stripe = pool.volume.catalog.seals(None, 1)[0].stripe
        pool.volume.catalog.adjust(stripe, 4096)
        await write_file(pool, "later", b"so that the state is committed")
    report = await check_closed(rig, repair=False)
    assert report.needs_reopen
    assert "live bytes" in report.findings[0].text
    report = await check_closed(rig, repair=True)
    assert report.clean, report.findings
    assert "rebuilt" in report.repaired[0]
    await assert_whole(rig)


@pytest.mark.expect_log("old state is in its place", "snapshot")
async def test_a_rebuild_that_fails_leaves_the_state_that_was_there(rig: Rig) -> None:
    await filled(rig)
    async with rig.open() as pool:
        assert pool.snapshotter is not None
        await pool.snapshotter.take()
        pool.volume.catalog.adjust(pool.volume.catalog.seals(None, 1)[0].stripe, 4096)
        await write_file(pool, "later", b"so that the state is committed")
    for path in [path for disk in rig.disks for path in disk.rglob("*.snap")]:
        path.unlink()
    with pytest.raises(DamageError):
        await check_closed(rig, repair=True)
    async with rig.open() as pool:
        assert await read_file(pool, "f0") == BIG


async def test_a_rebuilt_state_that_was_in_use_is_not_replaced_by_the_old_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(rig)
    async with rig.open() as pool:
        pool.volume.catalog.adjust(pool.volume.catalog.seals(None, 1)[0].stripe, 4096)
        await write_file(pool, "later", b"so that the state is committed")
    looks = 0

    async def interrupted(pool: Pool, **options: object) -> CheckReport:
        nonlocal looks
        looks += 1
        if looks == 1:
            return CheckReport(pool.name, False, needs_reopen=True)
        raise DamageError("the check came to nothing")

    monkeypatch.setattr("dwfs.node.closed_check.check_pool", interrupted)
    with pytest.raises(DamageError, match="came to nothing"):
        await check_closed(rig, repair=True)
    assert not list(rig.directories.state_directory(rig.name).parent.glob("*.before-check"))
    monkeypatch.undo()
    await assert_whole(rig)


async def test_an_extent_without_back_reference_is_found(rig: Rig) -> None:
    await filled(rig)
    async with rig.open() as pool:
        stripe = pool.volume.catalog.seals(None, 1)[0].stripe
        wrong = (BackReference(InodeNumber(999), 0, 4096, 0),)
        store = pool.foundation.state_store
        assert store is not None
        store.put(KIND_SUMMARY + stripe, msgspec.msgpack.encode(wrong))
        report = await check(pool, read=False)
        assert areas(report) == {"state"}
        assert "summary" in report.findings[0].text


def test_covering() -> None:
    number = InodeNumber(7)
    stripe = StripeId(b"s" * 16)
    covered = cover(
        [
            BackReference(number, 0, 100, 1000),
            BackReference(number, 100, 100, 1100),
            BackReference(number, 500, 100, 1500),
            BackReference(number, 500, 100, 3000),
        ]
    )
    assert covers(covered, number, Extent(50, 100, stripe, 1050))
    assert covers(covered, number, Extent(0, 200, stripe, 1000))
    assert covers(covered, number, Extent(510, 90, stripe, 3010))
    assert not covers(covered, number, Extent(50, 200, stripe, 1050))
    assert not covers(covered, number, Extent(50, 100, stripe, 1051))
    assert not covers(covered, InodeNumber(8), Extent(50, 100, stripe, 1050))
    assert not covers(covered, number, Extent(450, 100, stripe, 1450))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name", "plain name"),
        ("grün".encode(), "grün"),
        (b"not \xff utf-8", "not \\xff utf-8"),
        (b"two\nlines", "two\\x0alines"),
        (b"\x1b[2J", "\\x1b[2J"),
        ("\x9b2J".encode(), "\\x9b2J"),
    ],
)
def test_names_of_files_are_harmless_on_a_terminal(name: bytes, text: str) -> None:
    assert printable(name) == text


async def test_whoever_waits_for_segments_to_be_mended_is_not_left_in_silence(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all disks takes hours, and after ten minutes without a word a command gives up."""
    told: list[object] = []

    async def progress(event: Mapping[str, object]) -> None:
        told.append(event["what"])

    async def read_for_long(scrub: DiskScrub) -> ScrubState:
        while told.count("segments") < 3:
            await trio.sleep(0.01)
        return scrub.state

    monkeypatch.setattr("dwfs.node.checking.mending._TELL_SECONDS", 0.01)
    monkeypatch.setattr("dwfs.stripe.DiskScrub.run", read_for_long)
    report = CheckReport(pool="rig", read=True)
    report.add("segment", "shortage", "a shard is rotten")
    async with rig.open() as pool:
        with trio.fail_after(10):
            done = await mend(pool, report, {}, {}, progress)
    assert "0 faults in segments were dealt with, 0 shards were repaired" in done

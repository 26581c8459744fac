"""Snapshots as their users meet them: names, limits, views, what is given back, and rollback."""

from __future__ import annotations

import errno
import random
import stat
from pathlib import Path

import pytest

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.limits import EXTENT_NODE_SPAN as SPAN
from dwfs.types import (
    NO_EPOCH,
    ROOT_INODE,
    BackReference,
    Extent,
    InodeNumber,
    StripeId,
    StripeSeal,
)
from dwfs.volume import Snapshot, SnapshotView, Volume, directories, view
from dwfs.volume.commands import (
    Create,
    Relocate,
    SetAttributes,
    SetXattr,
    Unlink,
    WriteExtents,
)
from dwfs.volume.store import KIND_KEPT_BYTES, KIND_KEPT_VERSION
from tests.unit.volume.fakes import GEOMETRY, PLACEMENT, Bench

OLD = StripeId(b"o" * 16)
NEW = StripeId(b"n" * 16)
GOOD_NAMES = [
    "a",
    "before the upgrade",
    "2026-11-21T14:00Z",
    "ä" * 127,
    "x" * 255,
    ".hidden",
    "a-b",
]
BAD_NAMES = [
    "",
    ".",
    "..",
    "a/b",
    "a@b",
    "-x",
    "a\0b",
    "a\nb",
    "a\x7f",
    "a\x85",
    "x" * 256,
    "\udc80",
]


async def progress(done: int, total: int | None) -> None:
    """Nobody looks."""


async def make(bench: Bench, name: bytes) -> InodeNumber:
    number = bench.volume.allocate_inode()
    await bench.volume.propose(
        Create(ROOT_INODE, name, number, stat.S_IFREG | 0o644, 1, 2, 0, b"", (), 10)
    )
    return number


async def write(bench: Bench, number: InodeNumber, *extents: Extent) -> None:
    await bench.volume.propose(WriteExtents(number, extents, 20, None))


async def take(bench: Bench, name: str) -> Snapshot:
    return await bench.volume.take_snapshot(name, 1000)


async def reap_all(bench: Bench) -> None:
    while await bench.volume.reap(7):
        pass


def seal(stripe: StripeId, length: int, *references: BackReference) -> StripeSeal:
    return StripeSeal(stripe, bytes(24), 1, GEOMETRY, length, 16384, PLACEMENT, references)


# --- names and records ------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD_NAMES)
async def test_good_names_are_taken(bench: Bench, name: str) -> None:
    snapshot = await take(bench, name)
    assert bench.volume.snapshot(name) == snapshot
    assert bench.volume.snapshots() == [snapshot]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_names_are_refused(bench: Bench, name: str) -> None:
    with pytest.raises(PosixError) as caught:
        await take(bench, name)
    assert caught.value.errno == errno.EINVAL
    assert bench.volume.snapshots() == []


async def test_what_is_not_there_or_there_already_is_told(bench: Bench) -> None:
    await take(bench, "one")
    with pytest.raises(PosixError) as caught:
        await take(bench, "one")
    assert caught.value.errno == errno.EEXIST
    for attempt in (bench.volume.destroy_snapshot("two"), bench.volume.rollback("two", progress)):
        with pytest.raises(PosixError) as caught:
            await attempt
        assert caught.value.errno == errno.ENOENT


async def test_there_is_a_limit_that_destruction_lifts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOTS_MAX", 3)
    for number in range(3):
        await take(bench, f"s{number}")
    with pytest.raises(PosixError) as caught:
        await take(bench, "one too many")
    assert caught.value.errno == errno.ENOSPC
    await bench.volume.destroy_snapshot("s1")
    await take(bench, "fits")


async def test_slots_come_back_only_after_all_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_SLOTS_MAX", 4)
    slots = [(await take(bench, "stays")).slot]
    for number in range(6):
        slots.append((await take(bench, f"s{number}")).slot)
        await bench.volume.destroy_snapshot(f"s{number}")
    assert slots == [1, 2, 3, 4, 2, 2, 3]


async def test_snapshots_are_there_after_opening_again(tmp_path: Path, bench: Bench) -> None:
    number = await make(bench, b"file")
    await write(bench, number, Extent(0, 10, OLD, 0))
    taken = [await take(bench, "one"), await bench.volume.take_snapshot("two", 5, automatic=True)]
    await bench.volume.commit()
    bench.close()
    bench.open()
    assert bench.volume.snapshots() == taken
    assert [one.automatic for one in taken] == [False, True]
    await write(bench, number, Extent(0, 10, NEW, 0))
    assert bench.volume.view(taken[1]).extents(number, 0, 10)[0].stripe == OLD


# --- views ------------------------------------------------------------------------------------


async def test_a_view_shows_the_past_and_ends_with_its_snapshot(bench: Bench) -> None:
    number = await make(bench, b"file")
    await write(bench, number, Extent(0, 10, OLD, 0))
    await bench.volume.propose(SetXattr(number, b"user.x", b"old", 0, 21, None))
    snapshot = await take(bench, "one")
    view = bench.volume.view(snapshot)
    await bench.volume.propose(Unlink(ROOT_INODE, b"file", 30))
    await bench.volume.purge([number])
    other = await make(bench, b"other")
    assert view.lookup(ROOT_INODE, b"file") == number
    assert view.lookup(ROOT_INODE, b"other") is None
    assert [entry.name for entry in view.read_directory(ROOT_INODE, 0, 10)] == [b"file"]
    assert view.get_xattr(number, b"user.x") == b"old"
    assert view.list_xattrs(number) == [b"user.x"]
    assert view.next_data(number, 0) == 0
    assert view.next_hole(number, 0) == 10
    assert view.usage() == (2, 10)
    assert bench.volume.usage() == (2, 0)
    with pytest.raises(PosixError) as caught:
        view.inode(other)
    assert caught.value.errno == errno.ENOENT
    await bench.volume.destroy_snapshot("one")
    with pytest.raises(PosixError) as caught:
        view.inode(number)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(PosixError) as caught:
        bench.volume.view(snapshot)
    assert caught.value.errno == errno.ENOENT


async def test_a_listing_of_the_past_ignores_what_happens_now(bench: Bench) -> None:
    names = [b"n%d" % number for number in range(200)]
    for name in names:
        await make(bench, name)
    view = bench.volume.view(await take(bench, "one"))
    seen: list[bytes] = []
    cookie = 0
    while entries := view.read_directory(ROOT_INODE, cookie, 9):
        seen += [entry.name for entry in entries]
        cookie = entries[-1].cookie
        await bench.volume.propose(Unlink(ROOT_INODE, names[len(seen) % 200], 30))
        await make(bench, b"new-%d" % len(seen))
    assert sorted(seen) == sorted(names)


async def test_taking_one_writes_the_same_whatever_the_volume_holds(bench: Bench) -> None:
    before = bench.store.count()
    for count in (10, 3000):
        for number in range(count):
            await make(bench, b"%d-%d" % (count, number))
        bench.state.flush()
        files = bench.store.count()
        await take(bench, f"at {count}")
        bench.state.flush()
        assert bench.store.count() == files + 1, "its own record"
    assert bench.store.count() > before + 6000


# --- space ------------------------------------------------------------------------------------


async def test_the_middle_of_a_hundred_gives_back_exactly_what_it_alone_kept(
    bench: Bench, seed: int
) -> None:
    dice = random.Random(seed)
    files = [await make(bench, b"%d" % number) for number in range(20)]
    stripes = [StripeId(bytes([number]) * 16) for number in range(9)]
    place = 0
    for number in range(100):
        for _ in range(30):
            extent = Extent(dice.randrange(200) * 10, 10, dice.choice(stripes), place)
            await write(bench, dice.choice(files), extent)
            place += 10
        await take(bench, f"s{number}")
    catalog = bench.volume.catalog
    for name in ("s50", "s0", "s99", "s51"):
        alone = bench.volume.unique_bytes(name)
        before = sum(catalog.live_bytes(stripe) for stripe in stripes)
        kept = bench.volume.kept_bytes
        await bench.volume.destroy_snapshot(name)
        await reap_all(bench)
        assert before - sum(catalog.live_bytes(stripe) for stripe in stripes) == alone
        assert kept - bench.volume.kept_bytes == alone
    assert bench.volume.reaping == 0


async def test_what_only_a_snapshot_maps_is_found_and_moved(bench: Bench) -> None:
    small, large = await make(bench, b"small"), await make(bench, b"large")
    await write(bench, small, Extent(0, 100, OLD, 0))
    pieces = [Extent(2 * SPAN + 20 * i, 10, OLD, 100 + 10 * i) for i in range(10)]
    await write(bench, large, *pieces)
    references = (
        BackReference(small, 0, 100, 0),
        *(BackReference(large, one.offset, 10, one.stripe_offset) for one in pieces),
    )
    bench.state.stripes.apply_seal(seal(OLD, 200, *references))
    view = bench.volume.view(await take(bench, "one"))
    await bench.volume.propose(Unlink(ROOT_INODE, b"small", 30))
    await bench.volume.purge([small])
    await bench.volume.propose(
        SetAttributes(large, None, None, None, 2 * SPAN + 100, None, None, 31)
    )
    found = await bench.volume.mapped_ranges(OLD)
    assert sum(one.length for one in found) == 200 == bench.volume.catalog.live_bytes(OLD)
    gone = [one for one in found if one.newest != NO_EPOCH]
    assert {one.newest for one in gone} == {view.snapshot.epoch}
    assert sum(one.length for one in gone) == 150 == bench.volume.kept_bytes
    place = 0
    for one in found:
        await bench.volume.propose(
            Relocate(
                one.inode,
                one.offset,
                one.length,
                OLD,
                one.stripe_offset,
                (Extent(one.offset, one.length, NEW, place),),
            )
        )
        place += one.length
    assert await bench.volume.mapped_ranges(OLD) == []
    assert bench.volume.catalog.dead_stripes(10) == [OLD]
    assert bench.volume.catalog.live_bytes(NEW) == 200
    assert {one.stripe for one in view.extents(small, 0, 1000)} == {NEW}
    assert sum(one.length for one in view.extents(large, 0, 3 * SPAN)) == 100
    assert sum(one.length for one in bench.volume.extents(large, 0, 3 * SPAN)) == 50
    await bench.volume.destroy_snapshot("one")
    await reap_all(bench)
    assert bench.volume.catalog.live_bytes(NEW) == 50


async def test_bytes_are_settled_before_versions_are_swept(bench: Bench) -> None:
    files = [await make(bench, b"%d" % number) for number in range(50)]
    for number in files:
        await write(bench, number, Extent(0, 10, OLD, int(number) * 10))
    await take(bench, "one")
    for number in files:
        await write(bench, number, Extent(0, 10, NEW, int(number) * 10))
    bench.state.flush()  # or the old versions would be overwritten when the snapshot is gone
    await bench.volume.destroy_snapshot("one")
    assert (bench.volume.settling, bench.volume.reaping) == (1, 1)
    assert await bench.volume.reap(5)
    assert (bench.volume.settling, bench.volume.reaping) == (0, 1)
    assert bench.volume.catalog.live_bytes(OLD) == 0
    assert list(bench.volume.check()) == []
    await reap_all(bench)
    assert bench.volume.reaping == 0


# --- rollback ---------------------------------------------------------------------------------


async def test_rollback_brings_back_names_bytes_and_orphans(bench: Bench) -> None:
    kept, open_file = await make(bench, b"kept"), await make(bench, b"open")
    await write(bench, kept, Extent(0, 10, OLD, 0))
    await write(bench, open_file, Extent(0, 7, OLD, 100))
    await bench.volume.propose(Unlink(ROOT_INODE, b"open", 25))
    await take(bench, "one")
    await bench.volume.purge([open_file])
    await write(bench, kept, Extent(5, 10, NEW, 0))
    fresh = await make(bench, b"fresh")
    await write(bench, fresh, Extent(0, 50, NEW, 100))
    await bench.volume.rollback("one", progress, batch=1)
    assert bench.volume.lookup(ROOT_INODE, b"fresh") is None
    assert bench.volume.inode(kept).size == 10
    assert bench.volume.orphans() == [open_file]
    assert bench.volume.catalog.live_bytes(OLD) == 17
    assert bench.volume.catalog.live_bytes(NEW) == 0
    assert bench.volume.kept_bytes == 0
    assert bench.volume.usage() == (3, 17)
    await bench.volume.purge([open_file])
    assert bench.volume.kept_bytes == 7
    assert bench.volume.allocate_inode() > fresh, "numbers are never given twice"


async def test_rollback_past_a_newer_snapshot_is_refused(bench: Bench) -> None:
    await take(bench, "one")
    await take(bench, "two")
    with pytest.raises(PosixError) as caught:
        await bench.volume.rollback("one", progress)
    assert caught.value.errno == errno.EBUSY
    await bench.volume.destroy_snapshot("two")
    await bench.volume.rollback("one", progress)


# --- the check --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KIND_KEPT_BYTES, KIND_KEPT_VERSION])
async def test_the_check_finds_what_is_missing(tmp_path: Path, kind: bytes) -> None:
    bench = Bench(tmp_path, make_root=False)
    await bench.volume.create_root(0o755, 0, 0, 1)
    number = await make(bench, b"file")
    await write(bench, number, Extent(0, 10, OLD, 0))
    await take(bench, "one")
    await write(bench, number, Extent(0, 10, NEW, 0))
    bench.state.flush()
    assert list(bench.volume.check()) == []
    key, _ = next(bench.store.scan(kind))
    bench.store.delete(key)
    assert list(bench.volume.check()) != []
    bench.close()


@pytest.mark.parametrize("stays", [set[int](), {17}, {3, 250, 251, 799}])
async def test_a_page_of_names_takes_bounded_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stays: set[int]
) -> None:
    monkeypatch.setattr(view, "PAGE_KEYS_MAX", 50)
    monkeypatch.setattr(directories, "PAGE_KEYS_MAX", 50)
    names = [b"%d" % number for number in range(800)]
    staying = {names[number] for number in stays}
    for name in names:
        await make(bench, name)
    await take(bench, "full")
    for name in names:
        if name not in staying:
            await bench.volume.propose(Unlink(ROOT_INODE, name, 30))
    await take(bench, "thin")
    for number in range(800):
        await make(bench, b"later %d" % number)
    volume = bench.volume
    trees: list[tuple[Volume | SnapshotView, set[bytes]]] = [
        (volume, staying | {b"later %d" % number for number in range(800)}),
        (volume.view(volume.snapshot("full")), set(names)),
        (volume.view(volume.snapshot("thin")), staying),
    ]
    for tree, wanted in trees:
        found: list[bytes] = []
        following: int | None = 0
        pages = 0
        while following is not None:
            entries, following = tree.directory_page(ROOT_INODE, following, 7)
            found += [entry.name for entry in entries]
            pages += 1
        assert len(found) == len(wanted)
        assert set(found) == wanted
        assert pages > 1600 // 50

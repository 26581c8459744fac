"""Clones share bytes, and nothing else: changing, deleting or moving either side leaves the other."""

from __future__ import annotations

import errno
import stat

import pytest

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
from dwfs.volume import Properties
from dwfs.volume.cloning import LENGTH_MAX
from dwfs.volume.commands import (
    CloneRange,
    Create,
    DropStripes,
    Relocate,
    SetAttributes,
    Unlink,
    WriteExtents,
)
from dwfs.volume.store import KIND_REFERENCE
from tests.unit.volume.fakes import GEOMETRY, PLACEMENT, Bench

OLD = StripeId(b"o" * 16)
NEW = StripeId(b"n" * 16)


async def make(bench: Bench, name: bytes, kind: int = stat.S_IFREG) -> InodeNumber:
    number = bench.volume.allocate_inode()
    await bench.volume.propose(
        Create(ROOT_INODE, name, number, kind | 0o4755, 1, 2, 0, b"", (), 10)
    )
    return number


async def pair(bench: Bench, *extents: Extent) -> tuple[InodeNumber, InodeNumber]:
    """A file with these extents, and an empty one."""
    source, target = await make(bench, b"source"), await make(bench, b"target")
    if extents:
        await bench.volume.propose(WriteExtents(source, extents, 20, None))
    return source, target


def places(bench: Bench, number: InodeNumber) -> list[tuple[int, int, StripeId, int]]:
    """The file's map."""
    found = bench.volume.extents(number, 0, 2**50)
    return [(one.offset, one.length, one.stripe, one.stripe_offset) for one in found]


async def clone(bench: Bench, source: InodeNumber, target: InodeNumber, *place: int) -> None:
    offset, length, goal = place or (0, bench.volume.inode(source).size, 0)
    await bench.volume.clone_range(CloneRange(source, offset, length, target, goal, 30, 0o755))


async def test_a_clone_maps_the_same_bytes_and_outlives_its_source(bench: Bench) -> None:
    source, target = await pair(bench, Extent(0, 100, OLD, 0), Extent(SPAN - 5, 20, OLD, 100))
    await clone(bench, source, target)
    assert places(bench, target) == places(bench, source)
    inode = bench.volume.inode(target)
    assert (inode.size, inode.mtime_ns, inode.mode & 0o7777) == (SPAN + 15, 30, 0o755)
    assert bench.volume.usage().allocated_bytes == 240 == bench.volume.catalog.live_bytes(OLD)
    await bench.volume.propose(Unlink(ROOT_INODE, b"source", 40))
    await bench.volume.purge([source])
    assert bench.volume.catalog.live_bytes(OLD) == 120
    assert len(places(bench, target)) == 3


async def test_a_clone_is_not_touched_by_writes_to_its_source(bench: Bench) -> None:
    source, target = await pair(bench, Extent(0, 100, OLD, 0))
    await clone(bench, source, target)
    await bench.volume.propose(WriteExtents(source, (Extent(10, 10, NEW, 0),), 40, None))
    assert places(bench, target) == [(0, 100, OLD, 0)]
    await clone(bench, source, target, 5, 10, 50)
    assert places(bench, target) == [
        (0, 50, OLD, 0),
        (50, 5, OLD, 5),
        (55, 5, NEW, 0),
        (60, 40, OLD, 60),
    ]


async def test_holes_are_cloned_at_any_length(bench: Bench) -> None:
    far = 3 * LENGTH_MAX
    source, target = await pair(bench, Extent(far, 10, OLD, 0))
    await bench.volume.propose(SetAttributes(source, None, None, None, 2**45, None, None, 25))
    await bench.volume.propose(WriteExtents(target, (Extent(0, 50, NEW, 0),), 26, None))
    await clone(bench, source, target)
    assert places(bench, target) == [(far, 10, OLD, 0)]
    assert bench.volume.inode(target).size == 2**45
    assert bench.volume.catalog.live_bytes(NEW) == 0


async def test_each_piece_leaves_a_sound_file(bench: Bench) -> None:
    """A crash may come after any of them; the fixture checks the volume."""
    source, target = await pair(bench, Extent(0, 10, OLD, 0), Extent(LENGTH_MAX + 5, 10, OLD, 50))
    await bench.volume.propose(CloneRange(source, 0, LENGTH_MAX, target, 0, 30, None))
    assert bench.volume.inode(target).size == LENGTH_MAX
    assert places(bench, target) == [(0, 10, OLD, 0)]


async def test_a_file_can_be_cloned_into_itself_but_not_onto_itself(bench: Bench) -> None:
    source, _ = await pair(bench, Extent(0, 100, OLD, 0))
    await clone(bench, source, source, 0, 100, 100)
    assert places(bench, source) == [(0, 100, OLD, 0), (100, 100, OLD, 0)]
    with pytest.raises(PosixError) as caught:
        await clone(bench, source, source, 0, 100, 50)
    assert caught.value.errno == errno.EINVAL


async def test_bad_ranges_and_files_are_refused(bench: Bench) -> None:
    source, target = await pair(bench, Extent(0, 100, OLD, 0))
    directory = await make(bench, b"directory", stat.S_IFDIR)
    cases = [
        (source, target, (0, 101, 0), errno.EINVAL),
        (source, target, (-1, 10, 0), errno.EINVAL),
        (source, target, (0, 0, 0), errno.EINVAL),
        (source, target, (0, 10, 2**63 - 5), errno.EFBIG),
        (directory, target, (0, 10, 0), errno.EISDIR),
        (source, directory, (0, 10, 0), errno.EISDIR),
        (InodeNumber(999), target, (0, 10, 0), errno.ENOENT),
    ]
    for one, other, place, wanted in cases:
        with pytest.raises(PosixError) as caught:
            await clone(bench, one, other, *place)
        assert caught.value.errno == wanted
    with pytest.raises(PosixError) as caught:
        await bench.volume.propose(CloneRange(source, 0, 10**9, target, 0, 30, None))
    assert caught.value.errno == errno.EINVAL
    assert places(bench, target) == []


async def test_clones_count_against_the_quota(bench: Bench) -> None:
    source, target = await pair(bench, Extent(0, 100, OLD, 0))
    await bench.volume.set_properties(Properties(quota_bytes=150))
    with pytest.raises(PosixError) as caught:
        await clone(bench, source, target)
    assert caught.value.errno == errno.EDQUOT
    assert places(bench, target) == []
    await clone(bench, source, target, 0, 50, 0)


async def test_the_cleaner_finds_clones_also_those_in_snapshots(bench: Bench) -> None:
    source, target = await pair(bench, Extent(0, 100, OLD, 0))
    reference = BackReference(source, 0, 100, 0)
    seal = StripeSeal(OLD, bytes(24), 1, GEOMETRY, 100, 16384, PLACEMENT, (reference,))
    bench.state.stripes.apply_seal(seal)
    await clone(bench, source, target, 20, 30, SPAN - 10)
    snapshot = await bench.volume.take_snapshot("one", 1)
    await bench.volume.propose(Unlink(ROOT_INODE, b"target", 40))
    await bench.volume.purge([target])
    found = sorted(await bench.volume.mapped_ranges(OLD))
    assert [(one.inode, one.offset, one.length, one.newest) for one in found] == [
        (source, 0, 100, NO_EPOCH),
        (target, SPAN - 10, 10, snapshot.epoch),
        (target, SPAN, 20, snapshot.epoch),
    ]
    place = 0
    for one in found:
        moved = (Extent(one.offset, one.length, NEW, place),)
        await bench.volume.propose(
            Relocate(one.inode, one.offset, one.length, OLD, one.stripe_offset, moved)
        )
        place += one.length
    assert bench.volume.catalog.dead_stripes(10) == [OLD]
    await bench.volume.propose(DropStripes((OLD,)))
    assert not list(bench.store.scan(KIND_REFERENCE))
    view = bench.volume.view(snapshot)
    assert sum(one.length for one in view.extents(target, 0, 2 * SPAN)) == 30


async def test_what_was_cloned_is_no_summary_where_the_writers_are_not_known(bench: Bench) -> None:
    """A stripe that came back from the log has none; `dwfs check` must not take the clone for all."""
    source, target = await pair(bench, Extent(0, 100, OLD, 0))
    await clone(bench, source, target)
    seal = StripeSeal(OLD, bytes(24), 1, GEOMETRY, 100, 16384, PLACEMENT, ())
    bench.state.stripes.apply_seal(seal)
    assert bench.volume.summary(OLD) == ()
    assert [one.inode for one in await bench.volume.mapped_ranges(OLD)] == [target]

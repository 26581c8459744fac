"""The facade: listings, bounded drivers for huge files, and what is refused."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from dwfs import limits
from dwfs.errors import FormatError, PosixError, StateError
from dwfs.types import ROOT_INODE, Extent, InodeNumber, StripeId
from dwfs.volume import StateStore
from dwfs.volume.commands import (
    Create,
    InodeCommand,
    PunchHole,
    RemoveDirectory,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    WriteExtents,
)
from dwfs.volume.filemap import NODES_MAX, SPAN
from dwfs.volume.records import Inode
from dwfs.volume.store import META_KEY
from tests.unit.volume.fakes import Bench

STRIPE = StripeId(b"s" * 16)


async def make(bench: Bench, name: bytes, mode: int = stat.S_IFREG | 0o644) -> Inode:
    number = bench.volume.allocate_inode()
    return await bench.volume.propose(Create(ROOT_INODE, name, number, mode, 1, 2, 0, b"", (), 10))


async def test_a_listing_is_stable_while_names_come_and_go(bench: Bench) -> None:
    names = [b"name-%d" % number for number in range(500)]
    for name in names:
        await make(bench, name)
    seen: list[bytes] = []
    cookie, round_number = 0, 0
    while entries := bench.volume.read_directory(ROOT_INODE, cookie, 7):
        seen += [entry.name for entry in entries]
        cookie = entries[-1].cookie
        await bench.volume.propose(Unlink(ROOT_INODE, entries[0].name, 20))
        await make(bench, b"new-%d" % round_number)
        round_number += 1
    assert len(seen) == len(set(seen))
    assert set(names) <= set(seen)


async def test_equal_hashes_share_a_bucket_up_to_its_slots(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hashes=1, make_root=False)
    await bench.volume.create_root(0o755, 0, 0, 1)
    for number in range(8):
        await make(bench, b"%d" % number)
    with pytest.raises(PosixError) as caught:
        await make(bench, b"one too many")
    assert caught.value.errno == errno.ENOSPC
    first = bench.volume.read_directory(ROOT_INODE, 0, 3)
    await bench.volume.propose(Unlink(ROOT_INODE, first[0].name, 20))
    rest = bench.volume.read_directory(ROOT_INODE, first[-1].cookie, 100)
    assert {entry.name for entry in first + rest} == {b"%d" % number for number in range(8)}
    assert list(bench.volume.check()) == []
    bench.close()


async def test_huge_files_are_cut_purged_and_punched_in_bounded_steps(bench: Bench) -> None:
    nodes = 3 * NODES_MAX + 5
    inode = await make(bench, b"huge")
    number = inode.number
    for index in range(nodes):
        extent = Extent(index * SPAN + 7, 100, STRIPE, index * 100)
        await bench.volume.propose(WriteExtents(number, (extent,), 11, None))
    assert bench.volume.usage().allocated_bytes == nodes * 100
    with pytest.raises(PosixError) as caught:
        await bench.volume.propose(SetAttributes(number, None, None, None, 5, None, None, 12))
    assert caught.value.errno == errno.E2BIG
    result = await bench.volume.punch_hole(PunchHole(number, 0, (NODES_MAX + 9) * SPAN, 12))
    assert result.allocated_bytes == (nodes - NODES_MAX - 9) * 100
    await bench.volume.truncate(
        SetAttributes(number, None, None, None, (nodes - 2) * SPAN + 50, None, None, 13)
    )
    inode = bench.volume.inode(number)
    assert (inode.size, inode.mtime_ns) == ((nodes - 2) * SPAN + 50, 13)
    assert inode.allocated_bytes == (nodes - NODES_MAX - 11) * 100 + 43
    await bench.volume.propose(Unlink(ROOT_INODE, b"huge", 14))
    await bench.volume.purge([number])
    assert bench.volume.orphans() == []
    assert bench.volume.usage() == (1, 0)


async def test_what_was_cut_off_reads_as_a_hole_after_growing(bench: Bench) -> None:
    number = (await make(bench, b"f")).number
    await bench.volume.propose(WriteExtents(number, (Extent(0, 100, STRIPE, 0),), 11, None))
    for size in (40, 100):
        await bench.volume.truncate(SetAttributes(number, None, None, None, size, None, None, 12))
    assert bench.volume.extents(number, 0, 1000) == [Extent(0, 40, STRIPE, 0)]
    assert bench.volume.next_hole(number, 0) == 40
    assert bench.volume.next_data(number, 40) is None


async def test_seek_crosses_nodes(bench: Bench) -> None:
    number = (await make(bench, b"f")).number
    await bench.volume.propose(WriteExtents(number, (Extent(SPAN - 5, 10, STRIPE, 0),), 11, None))
    assert bench.volume.next_data(number, 0) == SPAN - 5
    assert bench.volume.next_hole(number, SPAN - 2) == SPAN + 5
    assert bench.volume.next_hole(number, 0) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
    ],
)
async def test_bad_names_are_refused(bench: Bench, name: bytes, expected: int) -> None:
    with pytest.raises(PosixError) as caught:
        await make(bench, name)
    assert caught.value.errno == expected


async def test_numbers_beyond_64_bits_change_nothing(bench: Bench) -> None:
    number = (await make(bench, b"f")).number
    with pytest.raises(PosixError) as caught:
        await bench.volume.propose(SetAttributes(number, 0o600, None, None, None, 2**64, None, 12))
    assert caught.value.errno == errno.EINVAL
    assert bench.volume.inode(number).mode == stat.S_IFREG | 0o644


async def test_limits_on_links_size_and_xattrs(bench: Bench) -> None:
    root = bench.volume.inode(ROOT_INODE)
    links, root.nlink = root.nlink, limits.LINKS_MAX
    with pytest.raises(PosixError) as caught:
        await make(bench, b"d", stat.S_IFDIR | 0o755)
    assert caught.value.errno == errno.EMLINK
    root.nlink = links
    number = (await make(bench, b"f")).number
    cases: list[tuple[InodeCommand, int]] = [
        (SetAttributes(number, None, None, None, 2**63, None, None, 1), errno.EFBIG),
        (SetXattr(number, b"user." + b"x" * 255, b"", 0, 1, None), errno.ERANGE),
        (SetXattr(number, b"user.x", bytes(64 * 1024 + 1), 0, 1, None), errno.E2BIG),
        (WriteExtents(number, (Extent(2**63 - 2, 5, STRIPE, 0),), 1, None), errno.EFBIG),
        (WriteExtents(number, (Extent(0, 0, STRIPE, 0),), 1, None), errno.EINVAL),
    ]
    for command, expected in cases:
        with pytest.raises(PosixError) as caught:
            await bench.volume.propose(command)
        assert caught.value.errno == expected, command


async def test_times_of_parents_and_children(bench: Bench) -> None:
    await make(bench, b"d", stat.S_IFDIR | 0o755)
    directory = bench.volume.lookup(ROOT_INODE, b"d")
    assert directory is not None
    file = await make(bench, b"f")
    assert await bench.volume.propose(Rename(ROOT_INODE, b"f", directory, b"g", 0, 50)) is None
    root, parent = bench.volume.inode(ROOT_INODE), bench.volume.inode(directory)
    assert {root.mtime_ns, root.ctime_ns, parent.mtime_ns, parent.ctime_ns, file.ctime_ns} == {50}
    assert (file.mtime_ns, file.parent, parent.entry_count) == (10, directory, 1)
    removed = await bench.volume.propose(Unlink(directory, b"g", 60))
    assert (removed.nlink, removed.ctime_ns) == (0, 60)
    assert bench.volume.is_orphan(removed.number)
    gone = await bench.volume.propose(RemoveDirectory(ROOT_INODE, b"d", 70))
    assert (gone.nlink, bench.volume.inode(ROOT_INODE).nlink) == (0, 2)
    with pytest.raises(PosixError):
        await bench.volume.propose(
            Create(gone.number, b"x", InodeNumber(99), 0o100644, 0, 0, 0, b"", (), 80)
        )


async def test_moved_and_damaged_values_freeze_instead_of_lying(bench: Bench) -> None:
    await make(bench, b"f")
    await bench.volume.commit()
    pairs = dict(bench.store.pairs())
    inodes = sorted(key for key in pairs if key[:1] == b"I")
    pairs[inodes[1]] = pairs[inodes[0]]
    bench.store.load(pairs.items())
    bench.store.close()
    bench.open()
    with pytest.raises(PosixError) as caught:
        bench.volume.inode(InodeNumber(2))
    assert caught.value.errno == errno.EIO
    with pytest.raises(PosixError):
        await bench.volume.propose(Unlink(ROOT_INODE, b"f", 20))
    assert bench.volume.frozen
    with pytest.raises(PosixError):
        await bench.volume.commit()
    bench.store.close()
    bench.path.unlink()
    bench.log.next = 1
    bench.open()  # an empty one, for the fixture's check


def test_foreign_and_newer_states_are_refused(tmp_path: Path, bench: Bench) -> None:
    foreign = tmp_path / "foreign.mdb"
    foreign.write_bytes(b"not a database" * 1000)
    with pytest.raises(StateError):
        StateStore(foreign, bench.store_cipher, bench.names)
    bench.state.flush()
    bench.state.meta.format_version = 3
    bench.state.flush()
    bench.store.commit()
    assert bench.store.get(META_KEY)
    bench.store.close()
    with pytest.raises(FormatError):
        bench.open()
    bench.store.close()
    bench.path.unlink()
    bench.log.next = 1
    bench.open()

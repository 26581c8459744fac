"""Quotas in the machine: exactly at the border, by every command that adds or gives back."""

from __future__ import annotations

import errno
import random
import stat
from pathlib import Path

import msgspec
import pytest

from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE, Extent, InodeNumber, StripeId
from dwfs.volume import Properties
from dwfs.volume.commands import (
    RENAME_EXCHANGE,
    CloneRange,
    Create,
    Link,
    PunchHole,
    Purge,
    Relocate,
    Rename,
    SetAttributes,
    SetProperties,
    Unlink,
    WriteExtents,
    encode_command,
)
from dwfs.volume.filemap import SPAN
from dwfs.volume.recovery import recover
from tests.unit.volume.fakes import Bench

STRIPE = StripeId(b"s" * 16)
OTHER = StripeId(b"t" * 16)


async def make(bench: Bench, name: bytes, mode: int = stat.S_IFREG | 0o644) -> InodeNumber:
    number = bench.volume.allocate_inode()
    command = Create(ROOT_INODE, name, number, mode, 1, 2, 0, b"", (), 10)
    return (await bench.volume.propose(command)).number


async def limit(bench: Bench, quota: int | None = None, inodes: int | None = None) -> None:
    await bench.volume.set_properties(Properties(quota_bytes=quota, quota_inodes=inodes))


async def write(
    bench: Bench, number: InodeNumber, *ranges: tuple[int, int], stripe: StripeId = STRIPE
) -> None:
    extents = tuple(Extent(offset, length, stripe, offset) for offset, length in ranges)
    await bench.volume.propose(WriteExtents(number, extents, 11, None))


async def refused(bench: Bench, number: InodeNumber, *ranges: tuple[int, int]) -> None:
    """The write gives EDQUOT and changes nothing: neither record nor log."""
    before = msgspec.msgpack.encode(bench.volume.inode(number))
    used, buffered = bench.volume.usage(), bench.replicator.buffered
    with pytest.raises(PosixError) as caught:
        await write(bench, number, *ranges)
    assert caught.value.errno == errno.EDQUOT
    assert msgspec.msgpack.encode(bench.volume.inode(number)) == before
    assert (bench.volume.usage(), bench.replicator.buffered) == (used, buffered)


@pytest.mark.parametrize("quota", [1, 2, 4095, 4096, 4097, SPAN - 1, SPAN, SPAN + 1, 3 * SPAN + 7])
async def test_a_write_may_reach_the_quota_and_not_one_byte_more(bench: Bench, quota: int) -> None:
    number = await make(bench, b"f")
    await limit(bench, quota)
    await refused(bench, number, (0, quota + 1))
    if quota > 1:
        await write(bench, number, (0, quota - 1))
    await refused(bench, number, (quota - 1, 2))
    await write(bench, number, (quota - 1, 1))
    assert bench.volume.usage().allocated_bytes == quota
    await refused(bench, number, (quota, 1))
    await write(bench, number, (0, quota), stripe=OTHER)  # in place: adds nothing
    assert bench.volume.usage().allocated_bytes == quota


async def test_what_overlaps_within_one_command_counts_once(bench: Bench) -> None:
    number = await make(bench, b"f")
    await limit(bench, 100)
    await write(bench, number, (50, 30))
    await refused(bench, number, (0, 60), (40, 60), (100, 1))
    await write(bench, number, (0, 60), (40, 60), (20, 10))
    assert bench.volume.usage().allocated_bytes == 100


async def test_holes_are_free_and_filling_them_is_not(bench: Bench) -> None:
    number = await make(bench, b"sparse")
    await limit(bench, 10)
    await bench.volume.propose(SetAttributes(number, None, None, None, 1 << 50, None, None, 12))
    await write(bench, number, (1 << 49, 10))
    await refused(bench, number, (0, 1))
    await bench.volume.propose(PunchHole(number, 1 << 49, 4, 13))
    await write(bench, number, (0, 4))
    await refused(bench, number, ((1 << 49) + 3, 2))


async def test_cutting_gives_room_at_once_and_deleting_with_the_purge(bench: Bench) -> None:
    first, second = await make(bench, b"a"), await make(bench, b"b")
    await limit(bench, 100)
    await write(bench, first, (0, 100))
    await bench.volume.truncate(SetAttributes(first, None, None, None, 60, None, None, 12))
    await write(bench, second, (0, 40))
    await refused(bench, second, (40, 1))
    await bench.volume.propose(Unlink(ROOT_INODE, b"a", 13))
    await refused(bench, second, (40, 1))  # somebody may have it open: it counts
    await bench.volume.propose(Purge((first,)))
    await write(bench, second, (40, 60))


async def test_names_cost_nothing_and_a_rename_over_a_file_gives_its_bytes_back(
    bench: Bench,
) -> None:
    first, second = await make(bench, b"a"), await make(bench, b"b")
    await limit(bench, 100, 3)
    await write(bench, first, (0, 50))
    await write(bench, second, (0, 50))
    for name in (b"link", b"link too"):
        await bench.volume.propose(Link(first, ROOT_INODE, name, 12))
    await bench.volume.propose(Rename(ROOT_INODE, b"a", ROOT_INODE, b"b", RENAME_EXCHANGE, 12))
    await refused(bench, first, (50, 1))
    await bench.volume.propose(Rename(ROOT_INODE, b"link", ROOT_INODE, b"a", 0, 12))
    await refused(bench, first, (50, 1))  # the second is an orphan
    await bench.volume.purge([first, second])
    assert bench.volume.usage() == (2, 50)
    await write(bench, first, (50, 50))
    await refused(bench, first, (100, 1))


async def test_a_quota_below_use_stops_growth_only(bench: Bench) -> None:
    number = await make(bench, b"f")
    await write(bench, number, (0, 100))
    await limit(bench, 40, 1)
    await refused(bench, number, (100, 1))
    await refused(bench, number, (99, 2))
    await write(bench, number, (10, 90), stripe=OTHER)
    await bench.volume.propose(Relocate(number, 10, 90, OTHER, 10, (Extent(10, 90, STRIPE, 500),)))
    await bench.volume.propose(SetAttributes(number, 0o600, 3, 4, None, 5, 6, 7))
    await bench.volume.truncate(SetAttributes(number, None, None, None, 41, None, None, 12))
    await refused(bench, number, (41, 1))
    await bench.volume.truncate(SetAttributes(number, None, None, None, 39, None, None, 12))
    await write(bench, number, (39, 1))
    await refused(bench, number, (40, 1))
    with pytest.raises(PosixError) as caught:
        await make(bench, b"one more")
    assert caught.value.errno == errno.EDQUOT
    await bench.volume.propose(Unlink(ROOT_INODE, b"f", 13))
    await bench.volume.purge([number])
    assert bench.volume.usage() == (1, 0)


async def test_inodes_are_counted_exactly(bench: Bench) -> None:
    await limit(bench, None, 4)  # the root is one
    kinds = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO)
    for position, kind in enumerate(kinds):
        await make(bench, b"%d" % position, kind | 0o700)
    for kind in kinds:
        with pytest.raises(PosixError) as caught:
            await make(bench, b"too many", kind | 0o700)
        assert caught.value.errno == errno.EDQUOT
    with pytest.raises(PosixError) as caught:  # which name it is comes before how many there are
        await make(bench, b"0")
    assert caught.value.errno == errno.EEXIST
    removed = bench.volume.lookup(ROOT_INODE, b"0")
    assert removed is not None
    await bench.volume.propose(Unlink(ROOT_INODE, b"0", 12))
    with pytest.raises(PosixError):
        await make(bench, b"again")
    await bench.volume.purge([removed])
    await make(bench, b"again")


async def test_a_clone_counts_what_it_adds_less_what_it_replaces(bench: Bench) -> None:
    source, target = await make(bench, b"a"), await make(bench, b"b")
    await write(bench, source, (40, 30))
    await write(bench, target, (0, 20))
    command = CloneRange(source, 0, 70, target, 0, 30, None)
    await limit(bench, 59)
    with pytest.raises(PosixError) as caught:
        await bench.volume.propose(command)
    assert caught.value.errno == errno.EDQUOT
    assert bench.volume.usage().allocated_bytes == 50
    await limit(bench, 60)
    await bench.volume.propose(command)
    assert bench.volume.usage().allocated_bytes == 60
    await limit(bench, 10)
    await bench.volume.clone_range(command)  # in place


async def test_wrong_properties_change_nothing(bench: Bench) -> None:
    good = Properties("zstd-19", 1, 2**63 - 1, 36_500, True)
    await bench.volume.set_properties(good)
    for wrong in (
        {"compression": "lzma"},
        {"compression": "zstd-20"},
        {"compression": "zstd-0"},
        {"compression": ""},
        {"quota_bytes": 0},
        {"quota_bytes": -1},
        {"quota_inodes": 0},
        {"quota_inodes": 2**63},
        {"trash_days": -1},
        {"trash_days": 36_501},
    ):
        with pytest.raises(PosixError) as caught:
            await bench.volume.set_properties(msgspec.structs.replace(good, **wrong))
        assert caught.value.errno == errno.EINVAL
        assert bench.volume.properties == good


async def test_properties_survive_a_commit_and_a_replay(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    bench = Bench(tmp_path / "one", make_root=False)
    await bench.volume.create_root(0o755, 0, 0, 1)
    wanted = Properties("zstd", 1000, 20, 7, True)
    await bench.volume.set_properties(wanted)
    await bench.volume.commit()
    bench.store.close()
    bench.open()
    assert bench.volume.properties == wanted
    bench.close()
    (tmp_path / "two").mkdir()
    fresh = Bench(tmp_path / "two", make_root=False)
    recover(fresh.state, fresh.data, bench.log.records)
    assert fresh.volume.properties == wanted
    fresh.close()


def test_the_command_is_as_documented() -> None:
    command = SetProperties(Properties("zstd", 5, None, 7, True))
    assert msgspec.msgpack.decode(encode_command(command)) == [20, ["zstd", 5, None, 7, True]]


async def test_parts_of_a_write_that_fit(bench: Bench) -> None:
    number = await make(bench, b"f")
    await write(bench, number, (20, 10), (50, 10))
    await limit(bench, 25)
    fitting = bench.volume.next_fitting
    assert fitting(number, 0, 5) == (0, 5)
    assert fitting(number, 0, 6) == (0, 5)
    assert fitting(number, 0, 100) == (0, 5)
    assert fitting(number, 18, 100) == (18, 15)  # 2 before, 10 that are there, 3 behind
    assert fitting(number, 55, 100) == (55, 10)
    await write(bench, number, (100, 5))
    assert fitting(number, 0, 100) == (20, 10)
    assert fitting(number, 30, 70) == (50, 10)
    assert fitting(number, 25, 3) == (25, 3)
    assert fitting(number, 60, 40) is None
    assert not bench.volume.surely_fits(1)


@pytest.mark.parametrize("quota", [0, 7, 40, 63, 64, 65, 200])
async def test_parts_that_fit_are_all_that_a_dumb_count_lets_pass(
    bench: Bench, quota: int, seed: int
) -> None:
    dice = random.Random(seed + quota)
    number = await make(bench, b"f")
    mapped: set[int] = set()
    for _ in range(4):
        offset, length = dice.randrange(120), dice.randrange(1, 15)
        await write(bench, number, (offset, length))
        mapped |= set(range(offset, offset + length))
    await limit(bench, max(quota, 1))
    for _ in range(60):
        offset, length = dice.randrange(140), dice.randrange(1, 40)
        wanted = set()
        room = max(quota, 1) - len(mapped)
        for byte in range(offset, offset + length):
            if byte in mapped:
                wanted.add(byte)
            elif room > 0:
                room -= 1
                wanted.add(byte)
        written: set[int] = set()
        position = offset
        while part := bench.volume.next_fitting(number, position, offset + length - position):
            await write(bench, number, part)
            written |= set(range(part[0], part[0] + part[1]))
            position = part[0] + part[1]
            if position == offset + length:
                break
        assert written == wanted
        mapped |= written
        assert bench.volume.usage().allocated_bytes == len(mapped)
        if dice.random() < 0.3:
            size = dice.randrange(140)
            await bench.volume.truncate(
                SetAttributes(number, None, None, None, size, None, None, 12)
            )
            mapped = {byte for byte in mapped if byte < size}


async def test_snapshots_count_for_nothing_and_a_rollback_leaves_the_quota(bench: Bench) -> None:
    async def silent(done: int, total: int | None) -> None:
        """Nobody looks."""

    number = await make(bench, b"f")
    await write(bench, number, (0, 100))
    await bench.volume.take_snapshot("full", 12)
    await limit(bench, 60, 2)
    await bench.volume.propose(Unlink(ROOT_INODE, b"f", 13))
    await bench.volume.purge([number])
    other = await make(bench, b"g")
    await write(bench, other, (0, 60))
    await refused(bench, other, (60, 1))
    await bench.volume.rollback("full", silent)
    assert bench.volume.usage() == (2, 100)
    assert bench.volume.properties == Properties(quota_bytes=60, quota_inodes=2)
    await refused(bench, number, (100, 1))
    await write(bench, number, (0, 100), stripe=OTHER)
    await bench.volume.truncate(SetAttributes(number, None, None, None, 59, None, None, 14))
    await write(bench, number, (59, 1))
    with pytest.raises(PosixError):
        await make(bench, b"one too many")

"""Quotas as the callers of a filesystem meet them, write(2) and statfs(2) included."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs.errors import PosixError
from dwfs.limits import MIB
from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.vfs import BLOCK_SIZE, SYSTEM, Space
from dwfs.volume import Properties
from tests.unit.vfs.small_pool import SmallPool, small_pool


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path) as pool:
        yield pool


async def limit(pool: SmallPool, quota: int | None = None, inodes: int | None = None) -> None:
    await pool.volume.set_properties(Properties(quota_bytes=quota, quota_inodes=inodes))


async def refused(pool: SmallPool, handle: int, offset: int, content: bytes) -> None:
    with pytest.raises(PosixError) as caught:
        await pool.fs.write(handle, offset, content)
    assert caught.value.errno == errno.EDQUOT


def used(pool: SmallPool) -> int:
    return pool.volume.usage().allocated_bytes


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_APPEND])
async def test_a_file_is_filled_to_the_last_byte(pool: SmallPool, flags: int) -> None:
    await limit(pool, 3 * MIB + 1)
    number = await pool.file(b"f")
    handle = await pool.open(number, flags)
    content = os.urandom(4 * MIB)
    await refused(pool, handle, 0, content)
    assert used(pool) == 3 * MIB + 1
    assert await pool.content(number) == content[: 3 * MIB + 1]
    await refused(pool, handle, 3 * MIB + 1, b"x")
    assert pool.inode(number).size == 3 * MIB + 1


async def test_refused_writes_take_no_room_in_stripes(pool: SmallPool) -> None:
    await limit(pool, 10)
    number = await pool.file(b"f", b"0123456789")
    handle = await pool.open(number)
    before = sum(map(len, pool.data.stripes.values()))
    for _ in range(50):
        await refused(pool, handle, 10, bytes(MIB))
    assert sum(map(len, pool.data.stripes.values())) == before


async def test_of_one_request_every_part_that_fits_is_written(pool: SmallPool) -> None:
    number = await pool.file(b"f", b"a" * 10)
    handle = await pool.open(number)
    await pool.fs.write(handle, 30, b"b" * 10)
    await limit(pool, 25)
    await refused(pool, handle, 0, b"c" * 50)
    assert await pool.content(number) == b"c" * 15 + bytes(15) + b"c" * 10
    await pool.fs.write(handle, 0, b"d" * 15)
    await pool.fs.write(handle, 30, b"e" * 10)
    assert used(pool) == 25


async def test_writers_at_once_fill_the_quota_exactly(pool: SmallPool) -> None:
    await limit(pool, 1000)
    written: list[int] = []
    errors: set[int] = set()

    async def writer(name: bytes) -> None:
        handle = await pool.open(await pool.file(name))
        for offset in range(0, 700, 7):
            try:
                await pool.fs.write(handle, offset, b"7 bytes")
            except PosixError as error:
                errors.add(error.errno)
            else:
                written.append(7)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for position in range(5):
            nursery.start_soon(writer, b"%d" % position)
        nursery.start_soon(pool.volume.commit)
    assert used(pool) == 1000
    assert errors == {errno.EDQUOT}
    assert len(written) == 142  # the last 6 bytes went in as a part


async def test_deleting_makes_room_without_waiting_for_the_purger(pool: SmallPool) -> None:
    await limit(pool, 100, 3)
    await forget_file(pool, await pool.file(b"a", b"x" * 60))
    await forget_file(pool, await pool.file(b"b", b"x" * 40))
    await pool.fs.unlink(ROOT_INODE, b"a")
    number = await pool.file(b"c", b"y" * 60)
    assert await pool.content(number) == b"y" * 60
    await pool.fs.unlink(ROOT_INODE, b"b")
    handle = await pool.open(number)
    await pool.fs.write(handle, 60, b"z" * 40)
    await refused(pool, handle, 100, b"z")


async def forget_file(pool: SmallPool, number: InodeNumber) -> None:
    pool.fs.forget([(number, 1)])


async def test_writers_who_wait_for_a_commit_together_get_what_is_left(pool: SmallPool) -> None:
    await limit(pool, 1000)
    handles = [await pool.open(await pool.file(b"%d" % position)) for position in range(4)]
    append, gate = pool.log.append, trio.Event()

    async def slow_append(*arguments: object) -> None:
        await gate.wait()
        await append(*arguments)  # type: ignore[arg-type]  # passed on as they come

    pool.log.append = slow_append  # type: ignore[assignment,method-assign]  # a log that takes its time
    refusals: list[int] = []

    async def writer(handle: int) -> None:
        try:
            await pool.fs.write(handle, 0, b"x" * 300)
        except PosixError as error:
            refusals.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.volume.commit)
        await trio.testing.wait_all_tasks_blocked()
        for handle in handles:
            nursery.start_soon(writer, handle)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert refusals == [errno.EDQUOT]
    assert used(pool) == 1000


async def test_writers_who_are_refused_while_orphans_are_purged(pool: SmallPool) -> None:
    handle = await pool.open(await pool.file(b"f"))
    refusals: list[int] = []

    async def writer() -> None:
        for _ in range(20):
            await refused(pool, handle, 0, b"x" * 101)
            refusals.append(1)
            await trio.lowlevel.checkpoint()

    await limit(pool, 100)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(writer)
            for position in range(40):
                pool.fs.forget([(await pool.file(b"%d" % position), 1)])
                await pool.fs.unlink(ROOT_INODE, b"%d" % position)
                await trio.lowlevel.checkpoint()
    assert len(refusals) == 80


async def test_an_open_file_that_was_deleted_counts_until_it_is_closed(pool: SmallPool) -> None:
    await limit(pool, 100, 3)
    number = await pool.file(b"a", b"x" * 60)
    handle = await pool.open(number)
    pool.fs.forget([(number, 1)])
    await pool.fs.unlink(ROOT_INODE, b"a")
    other = await pool.file(b"b", b"y" * 40)
    second = await pool.open(other)
    await refused(pool, second, 40, b"z")
    with pytest.raises(PosixError) as caught:
        await pool.file(b"c")
    assert caught.value.errno == errno.EDQUOT
    pool.fs.release(handle)
    await pool.fs.write(second, 40, b"z" * 60)
    await pool.file(b"c")


async def test_copies_and_rewrites_obey_it_too(pool: SmallPool) -> None:
    number = await pool.file(b"a", b"x" * 60)
    await limit(pool, 100)
    source, target = await pool.open(number), await pool.open(await pool.file(b"b"))
    with pytest.raises(PosixError) as caught:
        await pool.fs.copy_range(source, 0, target, 0, 60)
    assert caught.value.errno == errno.EDQUOT
    assert used(pool) == 100
    await pool.fs.fallocate(source, 0, 0, MIB)  # a size, no bytes
    await refused(pool, source, 60, b"x")
    await pool.fs.setattr(number, size=59)
    await pool.fs.write(source, 59, b"x")
    await refused(pool, source, 60, b"x")


async def test_opening_what_exists_needs_no_inode(pool: SmallPool) -> None:
    await pool.file(b"a")
    await limit(pool, None, 2)
    await pool.fs.create(ROOT_INODE, b"a", 0o644, os.O_RDWR, SYSTEM)
    with pytest.raises(PosixError) as caught:
        await pool.fs.create(ROOT_INODE, b"b", 0o644, os.O_RDWR, SYSTEM)
    assert caught.value.errno == errno.EDQUOT
    with pytest.raises(PosixError) as caught:
        await pool.fs.mkdir(ROOT_INODE, b"b", 0o755, SYSTEM)
    assert caught.value.errno == errno.EDQUOT
    await pool.fs.link(pool.fs.lookup(ROOT_INODE, b"a").number, ROOT_INODE, b"b")  # type: ignore[union-attr]  # it is there


async def test_a_refusal_is_told_once_to_each_who_has_the_file_open(pool: SmallPool) -> None:
    number = await pool.file(b"f")
    first, second = await pool.open(number), await pool.open(number)
    reader = await pool.open(number, os.O_RDONLY)
    elsewhere = await pool.open(await pool.file(b"g"))
    assert pool.fs.put_off_refusal(first)
    later = await pool.open(number)
    handles = (first, second, reader, elsewhere, later, first)
    told = [pool.fs.take_refusal(handle) for handle in handles]
    assert told == [True, True, False, False, False, False]
    direct = await pool.open(number, os.O_RDWR | os.O_DIRECT)
    assert not pool.fs.put_off_refusal(direct)


async def test_statfs_shows_the_smaller_of_quota_and_pool(pool: SmallPool) -> None:
    await pool.file(b"f", b"x" * (2 * MIB))
    pool.space = Space(100 * MIB, 90 * MIB)
    blocks = MIB // BLOCK_SIZE
    assert pool.fs.statfs()[:2] == (100 * blocks, 90 * blocks)
    await limit(pool, 50 * MIB, 10)
    assert pool.fs.statfs() == (50 * blocks, 48 * blocks, 10, 8)
    await limit(pool, 1000 * MIB, 10**9)  # more than the pool has
    found = pool.fs.statfs()
    assert found[:2] == (92 * blocks, 90 * blocks)
    assert found.free_inodes < 10**9
    await limit(pool, MIB, 1)  # less than is used
    assert pool.fs.statfs() == (2 * blocks, 0, 2, 0)

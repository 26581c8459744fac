"""Clones as the filesystem makes them: what they share, what they refuse, who they wait for."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dwfs.errors import PosixError
from dwfs.limits import MIB
from dwfs.types import CLONE_NAME_PREFIX, ROOT_INODE, InodeNumber
from dwfs.vfs import SYSTEM
from dwfs.vfs.snapshots import FIRST_SNAPSHOT_INODE
from dwfs.volume import Properties
from tests.unit.vfs.small_pool import SmallPool, small_pool

NAME = CLONE_NAME_PREFIX.encode() + b"1"
CONTENT = os.urandom(300_000)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path) as pool:
        yield pool


async def silent(done: int, total: int) -> None:
    """Nobody looks at the progress."""


async def make(pool: SmallPool, size: int, name: bytes = NAME) -> InodeNumber:
    """A file that is all hole."""
    number = await pool.file(name)
    await pool.fs.setattr(number, size=size)
    return number


async def refused(pool: SmallPool, source: InodeNumber, name: bytes = NAME) -> int:
    with pytest.raises(PosixError) as caught:
        await pool.fs.clone(source, ROOT_INODE, name, silent)
    return caught.value.errno


async def test_the_bytes_are_shared_and_holes_stay_holes(pool: SmallPool) -> None:
    source = await pool.file(b"source", CONTENT)
    handle = await pool.open(source)
    await pool.fs.write(handle, 600 * MIB, b"far away")
    target = await make(pool, 700 * MIB)
    await pool.fs.setattr(source, size=700 * MIB)
    stored = sum(map(len, pool.data.stripes.values()))
    told: list[tuple[int, int]] = []

    async def report(done: int, total: int) -> None:
        told.append((done, total))

    made = await pool.fs.clone(source, ROOT_INODE, NAME, report)
    assert (made.number, made.size) == (target, 700 * MIB)
    assert made.allocated_bytes == pool.inode(source).allocated_bytes
    assert sum(map(len, pool.data.stripes.values())) == stored
    assert told == [(256 * MIB, 700 * MIB), (700 * MIB, 700 * MIB)]
    await pool.fs.write(handle, 0, b"changed")
    assert (await pool.fs.read_inode(target, 0, len(CONTENT))) == CONTENT
    assert await pool.fs.read_inode(target, 600 * MIB, 8) == b"far away"
    assert await pool.fs.read_inode(target, 300 * MIB, 8) == bytes(8)


async def test_what_cannot_be_cloned(pool: SmallPool) -> None:
    source = await pool.file(b"source", CONTENT)
    directory = await pool.fs.mkdir(ROOT_INODE, b"directory", 0o755, SYSTEM)
    assert await refused(pool, source) == errno.ENOENT
    target = await make(pool, len(CONTENT) + 1)
    assert await refused(pool, source) == errno.EINVAL
    await pool.fs.setattr(target, size=len(CONTENT))
    assert await refused(pool, directory.number) == errno.EISDIR
    assert await refused(pool, InodeNumber(999)) == errno.ENOENT
    in_snapshot = InodeNumber(FIRST_SNAPSHOT_INODE | source)
    assert await refused(pool, in_snapshot) == errno.EXDEV
    assert await refused(pool, source, b"source") == errno.EEXIST
    assert not pool.inode(target).allocated_bytes
    assert await pool.content(source) == CONTENT


async def test_what_waits_to_be_purged_makes_room(pool: SmallPool) -> None:
    source = await pool.file(b"source", CONTENT)
    doomed = await pool.file(b"doomed", CONTENT)
    await make(pool, len(CONTENT))
    await pool.volume.set_properties(Properties(quota_bytes=2 * len(CONTENT)))
    assert await refused(pool, source) == errno.EDQUOT
    await pool.fs.unlink(ROOT_INODE, b"doomed")
    pool.fs.forget([(doomed, 1)])
    made = await pool.fs.clone(source, ROOT_INODE, NAME, silent)
    assert made.allocated_bytes == len(CONTENT)


async def test_files_that_are_deleted_meanwhile_stay_until_the_end(pool: SmallPool) -> None:
    source = await pool.file(b"source", CONTENT)
    target = await make(pool, len(CONTENT))

    async def delete(done: int, total: int) -> None:
        for name, number in ((b"source", source), (NAME, target)):
            await pool.fs.unlink(ROOT_INODE, name)
            pool.fs.forget([(number, 1)])
        assert not pool.fs.orphans_waiting

    made = await pool.fs.clone(source, ROOT_INODE, NAME, delete)
    assert (made.number, made.nlink) == (target, 0)
    assert pool.fs.orphans_waiting == 2


async def test_unfinished_ones_do_not_go_to_the_trash(pool: SmallPool) -> None:
    await pool.volume.set_properties(Properties(trash_days=3))
    await make(pool, 100)
    await pool.fs.unlink(ROOT_INODE, NAME)
    assert pool.volume.lookup(ROOT_INODE, b".trash") is None

"""chmod, chown, times and access times."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE
from dwfs.vfs import SYSTEM, AccessTime, Credentials, FilesystemOptions
from tests.unit.vfs.small_pool import START_NS, small_pool

DAY_NS = 24 * 60 * 60 * 1_000_000_000


async def test_chmod_keeps_the_type_and_sets_ctime(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        before = pool.inode(number).ctime_ns
        inode = await pool.fs.setattr(number, mode=0o4711)
        assert inode.mode == stat.S_IFREG | 0o4711
        assert inode.ctime_ns > before


@pytest.mark.parametrize(
    ("mode", "after"),
    [
        (0o6777, 0o0777),
        (0o4755, 0o0755),
        (0o2755, 0o0755),
        (0o2745, 0o2745),  # without group execution the bit does not give privilege
        (0o1777, 0o1777),
    ],
)
async def test_chown_clears_set_id_bits(tmp_path: Path, mode: int, after: int) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        await pool.fs.setattr(number, mode=mode)
        inode = await pool.fs.setattr(number, uid=5, gid=6)
        assert (inode.uid, inode.gid, stat.S_IMODE(inode.mode)) == (5, 6, after)


async def test_chown_of_a_directory_keeps_set_group_id(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o2775, SYSTEM)).number
        assert stat.S_IMODE((await pool.fs.setattr(number, gid=7)).mode) == 0o2775


async def test_chown_with_a_mode_takes_that_mode(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        inode = await pool.fs.setattr(number, uid=5, mode=0o4755)
        assert stat.S_IMODE(inode.mode) == 0o4755


async def test_times_have_nanoseconds_and_may_precede_1970(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        inode = await pool.fs.setattr(number, atime_ns=-1, mtime_ns=1_234_567_890_123_456_789)
        assert (inode.atime_ns, inode.mtime_ns) == (-1, 1_234_567_890_123_456_789)
        changed = inode.ctime_ns
        assert changed > START_NS
        inode = await pool.fs.setattr(number, mtime_ns=5)
        assert (inode.atime_ns, inode.mtime_ns) == (-1, 5)
        assert inode.ctime_ns > changed


async def test_an_explicit_ctime_is_taken(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        inode = await pool.fs.setattr(number, mtime_ns=7, ctime_ns=8)
        assert (inode.mtime_ns, inode.ctime_ns) == (7, 8)


async def test_truncate_sets_both_times_and_both_ways(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"0123456789")
        before = pool.inode(number).mtime_ns
        inode = await pool.fs.setattr(number, size=4)
        assert inode.size == 4
        assert inode.mtime_ns == inode.ctime_ns > before
        await pool.fs.setattr(number, size=8)
        assert await pool.content(number) == b"0123\0\0\0\0"


@pytest.mark.parametrize(
    ("name", "size", "code"),
    [
        (b"f", -1, errno.EINVAL),
        (b"f", 2**63, errno.EFBIG),
        (b"d", 0, errno.EISDIR),
        (b"p", 0, errno.EINVAL),
    ],
)
async def test_sizes_that_cannot_be(tmp_path: Path, name: bytes, size: int, code: int) -> None:
    async with small_pool(tmp_path) as pool:
        await pool.file(b"f")
        await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)
        await pool.fs.mknod(ROOT_INODE, b"p", stat.S_IFIFO | 0o600, 0, SYSTEM)
        inode = pool.fs.lookup(ROOT_INODE, name)
        assert inode is not None
        with pytest.raises(PosixError) as caught:
            await pool.fs.setattr(inode.number, size=size)
        assert caught.value.errno == code


async def test_truncate_without_privilege_clears_set_id(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"x")
        await pool.fs.setattr(number, mode=0o6777)
        inode = await pool.fs.setattr(number, size=0, clear_set_id=True)
        assert stat.S_IMODE(inode.mode) == 0o777


@pytest.mark.parametrize(("uid", "mode"), [(0, 0o6777), (1000, 0o777)])
async def test_write_without_privilege_clears_set_id(tmp_path: Path, uid: int, mode: int) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"x")
        await pool.fs.setattr(number, mode=0o6777)
        handle = await pool.open(number, caller=Credentials(uid=uid))
        await pool.fs.write(handle, 0, b"y")
        assert stat.S_IMODE(pool.inode(number).mode) == mode


@pytest.mark.parametrize(("uid", "mode"), [(0, 0o6777), (1000, 0o777)])
async def test_open_with_truncation_clears_set_id(tmp_path: Path, uid: int, mode: int) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"x")
        await pool.fs.setattr(number, mode=0o6777)
        await pool.open(number, 0o1001, Credentials(uid=uid))  # O_WRONLY | O_TRUNC
        inode = pool.inode(number)
        assert (stat.S_IMODE(inode.mode), inode.size) == (mode, 0)


@pytest.mark.parametrize(
    ("policy", "first", "second", "next_day"),
    [
        ("relatime", True, False, True),
        ("noatime", False, False, False),
        ("strictatime", True, True, True),
    ],
)
async def test_reading_sets_the_access_time_by_policy(
    tmp_path: Path, policy: AccessTime, first: bool, second: bool, next_day: bool
) -> None:
    async with small_pool(tmp_path, FilesystemOptions(access_time=policy)) as pool:
        number = await pool.file(b"f", b"content")
        handle = await pool.open(number)
        changed = pool.inode(number).ctime_ns
        seen = []
        for step in (0, 0, DAY_NS):
            pool.clock.wall += step
            before = pool.inode(number).atime_ns
            await pool.fs.read(handle, 0, 3)
            seen.append(pool.inode(number).atime_ns > before)
        assert seen == [first, second, next_day]
        assert pool.inode(number).ctime_ns == changed


async def test_a_remount_changes_the_policy(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"content")
        pool.fs.set_access_time("noatime")
        before = pool.inode(number).atime_ns
        await pool.fs.read(await pool.open(number), 0, 3)
        assert pool.inode(number).atime_ns == before


async def test_flushed_times_of_an_invisible_orphan_are_not_logged(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        await pool.fs.unlink(ROOT_INODE, b"f")
        before = pool.inode(number).ctime_ns
        inode = await pool.fs.setattr(number, mtime_ns=1, ctime_ns=2)
        assert inode.ctime_ns == before

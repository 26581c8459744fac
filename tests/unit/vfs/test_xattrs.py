"""Extended attributes, and the interplay of ACLs with the mode."""

from __future__ import annotations

import errno
import stat
from collections.abc import Set
from pathlib import Path

import pytest

from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE
from dwfs.vfs import SYSTEM, Credentials, FilesystemOptions
from dwfs.vfs.acl import ACCESS_NAME, DEFAULT_NAME, decode, encode
from tests.unit.vfs.small_pool import small_pool
from tests.unit.vfs.test_acl import acl

CREATE, REPLACE = 1, 2


async def test_values_come_back(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        values = {
            b"user.empty": b"",
            b"user.large": bytes(range(256)) * 256,
            b"trusted.t": b"1",
            b"security.capability": b"\0\xff",
        }
        for name, value in values.items():
            await pool.fs.setxattr(number, name, value, 0, SYSTEM)
        assert set(pool.fs.listxattr(number)) == set(values)
        for name, value in values.items():
            assert pool.fs.getxattr(number, name) == value
            await pool.fs.removexattr(number, name)
        assert pool.fs.listxattr(number) == []


@pytest.mark.parametrize(
    ("name", "value", "flags", "code"),
    [
        (b"user.there", b"", CREATE, errno.EEXIST),
        (b"user.absent", b"", REPLACE, errno.ENODATA),
        (b"user.x", bytes(64 * 1024 + 1), 0, errno.E2BIG),
        (b"user." + b"x" * 251, b"", 0, errno.ERANGE),
        (b"user.", b"", 0, errno.EOPNOTSUPP),
        (b"system.other", b"", 0, errno.EOPNOTSUPP),
        (b"nonsense", b"", 0, errno.EOPNOTSUPP),
        (ACCESS_NAME, b"nonsense", 0, errno.EINVAL),
        (DEFAULT_NAME, encode(acl("u:7 g:5 o:0")), 0, errno.EACCES),
    ],
)
async def test_refusals(tmp_path: Path, name: bytes, value: bytes, flags: int, code: int) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        await pool.fs.setxattr(number, b"user.there", b"1", 0, SYSTEM)
        with pytest.raises(PosixError) as caught:
            await pool.fs.setxattr(number, name, value, flags, SYSTEM)
        assert caught.value.errno == code
        assert pool.fs.listxattr(number) == [b"user.there"]


async def test_user_attributes_are_for_files_and_directories(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        await pool.fs.setxattr(ROOT_INODE, b"user.x", b"1", 0, SYSTEM)
        link = (await pool.fs.symlink(ROOT_INODE, b"l", b"t", SYSTEM)).number
        with pytest.raises(PosixError) as caught:
            await pool.fs.setxattr(link, b"user.x", b"1", 0, SYSTEM)
        assert caught.value.errno == errno.EPERM
        await pool.fs.setxattr(link, b"trusted.x", b"1", 0, SYSTEM)


async def test_reading_what_is_not_there(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        for name, code in ((b"security.capability", errno.ENODATA), (b"odd.x", errno.EOPNOTSUPP)):
            with pytest.raises(PosixError) as caught:
                pool.fs.getxattr(number, name)
            assert caught.value.errno == code
        with pytest.raises(PosixError) as caught:
            await pool.fs.removexattr(number, b"user.x")
        assert caught.value.errno == errno.ENODATA


async def test_setting_a_list_sets_the_mode(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", mode=0o600)
        entries = acl("u:7 u5:6 g:4 m:6 o:1")
        await pool.fs.setxattr(number, ACCESS_NAME, encode(entries), 0, SYSTEM)
        assert stat.S_IMODE(pool.inode(number).mode) == 0o761
        assert decode(pool.fs.getxattr(number, ACCESS_NAME)) == entries


async def test_a_trivial_list_is_only_a_mode(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        for before in (None, "u:7 u5:6 g:4 m:6 o:1"):
            if before:
                await pool.fs.setxattr(number, ACCESS_NAME, encode(acl(before)), 0, SYSTEM)
            await pool.fs.setxattr(number, ACCESS_NAME, encode(acl("u:6 g:5 o:4")), 0, SYSTEM)
            assert stat.S_IMODE(pool.inode(number).mode) == 0o654
            assert pool.fs.listxattr(number) == []


async def test_chmod_of_a_file_with_a_list(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        await pool.fs.setxattr(number, ACCESS_NAME, encode(acl("u:7 u5:7 g:7 m:7 o:0")), 0, SYSTEM)
        inode = await pool.fs.setattr(number, mode=0o4650)
        assert stat.S_IMODE(inode.mode) == 0o4650
        assert decode(pool.fs.getxattr(number, ACCESS_NAME)) == acl("u:6 u5:7 g:7 m:5 o:0")
        inode = await pool.fs.setattr(number, mode=0o777, uid=3, mtime_ns=9)
        assert (stat.S_IMODE(inode.mode), inode.uid, inode.mtime_ns) == (0o777, 3, 9)


async def test_removing_a_list_keeps_the_mode(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        value = encode(acl("u:7 u5:7 g:4 m:6 o:0"))
        for remove in ("remove", "empty"):
            await pool.fs.setxattr(number, ACCESS_NAME, value, 0, SYSTEM)
            if remove == "remove":
                await pool.fs.removexattr(number, ACCESS_NAME)
            else:
                await pool.fs.setxattr(number, ACCESS_NAME, b"", 0, SYSTEM)
            assert stat.S_IMODE(pool.inode(number).mode) == 0o760
            assert pool.fs.listxattr(number) == []


async def test_default_lists_are_stored_even_if_trivial(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        value = encode(acl("u:7 g:0 o:0"))
        mode = pool.inode(ROOT_INODE).mode
        await pool.fs.setxattr(ROOT_INODE, DEFAULT_NAME, value, 0, SYSTEM)
        assert pool.fs.getxattr(ROOT_INODE, DEFAULT_NAME) == value
        assert pool.inode(ROOT_INODE).mode == mode
        await pool.fs.setxattr(ROOT_INODE, DEFAULT_NAME, b"", 0, SYSTEM)
        assert pool.fs.listxattr(ROOT_INODE) == []


def groups_of_process(process: int) -> Set[int]:
    """Process 1 is in group 50, process 2 in none, others have ended."""
    if process not in (1, 2):
        raise ProcessLookupError(process)
    return {50} if process == 1 else set()


@pytest.mark.parametrize(
    ("caller", "keeps"),
    [
        (Credentials(uid=0, gid=0), True),
        (Credentials(uid=1000, gid=50), True),
        (Credentials(uid=1000, gid=1000, pid=1), True),
        (Credentials(uid=1000, gid=1000, pid=2), False),
        (Credentials(uid=1000, gid=1000, pid=3), False),
    ],
)
async def test_set_group_id_is_for_members(
    tmp_path: Path, caller: Credentials, keeps: bool
) -> None:
    async with small_pool(tmp_path, FilesystemOptions(groups_of=groups_of_process)) as pool:
        number = await pool.file(b"f")
        await pool.fs.setattr(number, gid=50, mode=0o2755)
        value = encode(acl("u:7 u5:7 g:5 m:7 o:5"))
        await pool.fs.setxattr(number, ACCESS_NAME, value, 0, caller)
        assert bool(pool.inode(number).mode & stat.S_ISGID) is keeps

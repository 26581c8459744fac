"""Names: making, linking, moving, removing; inheritance; what lives on without a name."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.vfs import SYSTEM, Credentials
from dwfs.vfs.acl import ACCESS_NAME, DEFAULT_NAME, decode, encode
from dwfs.vfs.references import PURGE_BATCH_INODES, PURGE_DELAY_SECONDS
from dwfs.volume.commands import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.unit.vfs.small_pool import SmallPool, small_pool
from tests.unit.vfs.test_acl import acl

USER = Credentials(uid=1000, gid=1001, umask=0o027)


async def errno_of(call: object) -> int:
    """The errno with which an awaitable fails."""
    with pytest.raises(PosixError) as caught:
        await call  # type: ignore[misc]  # any coroutine of the filesystem
    return caught.value.errno


def child(pool: SmallPool, name: bytes, parent: InodeNumber = ROOT_INODE) -> InodeNumber:
    """The number behind a name that must be there; leaves no lookup behind."""
    inode = pool.fs.lookup(parent, name)
    assert inode is not None
    pool.fs.forget([(inode.number, 1)])
    return inode.number


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("file", stat.S_IFREG | 0o640),
        ("directory", stat.S_IFDIR | 0o750),
        ("fifo", stat.S_IFIFO | 0o640),
        ("link", stat.S_IFLNK | 0o777),
    ],
)
async def test_new_files_are_the_callers_and_masked(tmp_path: Path, kind: str, mode: int) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        if kind == "file":
            _, inode = await fs.create(ROOT_INODE, b"n", 0o666, os.O_RDWR, USER)
        elif kind == "directory":
            inode = await fs.mkdir(ROOT_INODE, b"n", 0o777, USER)
        elif kind == "fifo":
            inode = await fs.mknod(ROOT_INODE, b"n", stat.S_IFIFO | 0o666, 0, USER)
        else:
            inode = await fs.symlink(ROOT_INODE, b"n", b"somewhere", USER)
            assert fs.readlink(inode.number) == b"somewhere"
            assert inode.size == len(b"somewhere")
        assert (inode.mode, inode.uid, inode.gid) == (mode, 1000, 1001)


async def test_device_nodes_keep_their_number(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        inode = await pool.fs.mknod(
            ROOT_INODE, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), SYSTEM
        )
        assert inode.device == os.makedev(1, 3)


async def test_set_group_id_directories_hand_down_group_and_bit(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        parent = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o775, SYSTEM)).number
        await pool.fs.setattr(parent, mode=0o2775, gid=77)
        directory = await pool.fs.mkdir(parent, b"sub", 0o755, USER)
        assert (directory.gid, directory.mode & stat.S_ISGID) == (77, stat.S_ISGID)
        _, file = await pool.fs.create(parent, b"f", 0o644, os.O_RDWR, USER)
        assert (file.gid, file.mode & stat.S_ISGID) == (77, 0)


@pytest.mark.parametrize(
    ("default", "directory_mode", "file_mode", "file_acl"),
    [
        # The umask is 027 throughout and must not matter.
        ("u:7 g:7 o:7", 0o777, 0o666, None),
        ("u:7 g:5 o:0", 0o750, 0o640, None),
        ("u:7 u9:7 g:5 m:7 o:5", 0o775, 0o664, "u:6 u9:7 g:5 m:6 o:4"),
        ("u:7 g:7 g9:3 m:3 o:0", 0o730, 0o620, "u:6 g:7 g9:3 m:2 o:0"),
    ],
)
async def test_default_lists_are_inherited(
    tmp_path: Path, default: str, directory_mode: int, file_mode: int, file_acl: str | None
) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        parent = (await fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        await fs.setxattr(parent, DEFAULT_NAME, encode(acl(default)), 0, SYSTEM)

        directory = await fs.mkdir(parent, b"sub", 0o777, USER)
        assert stat.S_IMODE(directory.mode) == directory_mode
        assert decode(fs.getxattr(directory.number, DEFAULT_NAME)) == acl(default)

        _, file = await fs.create(parent, b"f", 0o666, os.O_RDWR, USER)
        number = file.number
        assert stat.S_IMODE(file.mode) == file_mode
        if file_acl is None:
            assert fs.listxattr(number) == []
        else:
            assert decode(fs.getxattr(number, ACCESS_NAME)) == acl(file_acl)
            assert fs.listxattr(number) == [ACCESS_NAME]

        link = await fs.symlink(parent, b"l", b"t", USER)
        assert stat.S_IMODE(link.mode) == 0o777


async def test_create_honours_exclusive_and_existing(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"content")
        fs = pool.fs
        call = fs.create(ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_EXCL, SYSTEM)
        assert await errno_of(call) == errno.EEXIST
        handle, inode = await fs.create(ROOT_INODE, b"f", 0o600, os.O_RDWR, SYSTEM)
        assert (inode.number, inode.size) == (number, 7)
        fs.release(handle.number)
        _, inode = await fs.create(ROOT_INODE, b"f", 0o600, os.O_RDWR | os.O_TRUNC, SYSTEM)
        assert (inode.number, inode.size) == (number, 0)


async def test_names_of_any_bytes_up_to_255(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        name = bytes(byte for byte in range(1, 256) if byte != ord("/")) + b"x"
        assert len(name) == 255
        number = await pool.file(name)
        assert child(pool, name) == number
        assert pool.names() == {name}
        call = pool.fs.mkdir(ROOT_INODE, name + b"y", 0o755, SYSTEM)
        assert await errno_of(call) == errno.ENAMETOOLONG
        with pytest.raises(PosixError):
            pool.fs.lookup(ROOT_INODE, name + b"y")


async def test_lookup_by_number(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        assert child(pool, b".", number) == number
        assert child(pool, b"..", number) == ROOT_INODE
        assert child(pool, b"..", ROOT_INODE) == ROOT_INODE
        assert pool.fs.lookup(ROOT_INODE, b"absent") is None


async def test_link_counts(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        number = await pool.file(b"a")
        assert (await fs.link(number, ROOT_INODE, b"b")).nlink == 2
        await fs.unlink(ROOT_INODE, b"a")
        assert pool.inode(number).nlink == 1
        assert child(pool, b"b") == number
        directory = (await fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        assert pool.inode(ROOT_INODE).nlink == 3
        assert await errno_of(fs.link(directory, ROOT_INODE, b"e")) == errno.EPERM
        await fs.rmdir(ROOT_INODE, b"d")
        assert pool.inode(ROOT_INODE).nlink == 2


async def test_removal_minds_the_kind(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        await pool.file(b"f")
        directory = (await fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        await fs.mkdir(directory, b"sub", 0o755, SYSTEM)
        assert await errno_of(fs.unlink(ROOT_INODE, b"d")) == errno.EISDIR
        assert await errno_of(fs.rmdir(ROOT_INODE, b"f")) == errno.ENOTDIR
        assert await errno_of(fs.rmdir(ROOT_INODE, b"d")) == errno.ENOTEMPTY
        assert await errno_of(fs.rmdir(directory, b".")) == errno.EINVAL
        assert await errno_of(fs.rmdir(directory, b"..")) == errno.ENOTEMPTY
        assert await errno_of(fs.unlink(ROOT_INODE, b"absent")) == errno.ENOENT


async def test_rename_replaces_at_once(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        first, second = await pool.file(b"a", b"first"), await pool.file(b"b", b"second")
        await pool.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 0)
        assert pool.names() == {b"b"}
        assert child(pool, b"b") == first
        assert pool.volume.is_orphan(second)


async def test_rename_flags(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        first = await pool.file(b"a")
        directory = (await fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        call = fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"d", RENAME_NOREPLACE)
        assert await errno_of(call) == errno.EEXIST
        await fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"d", RENAME_EXCHANGE)
        assert (child(pool, b"a"), child(pool, b"d")) == (directory, first)
        call = fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"absent", RENAME_EXCHANGE)
        assert await errno_of(call) == errno.ENOENT


async def test_a_directory_does_not_move_below_itself(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        upper = (await fs.mkdir(ROOT_INODE, b"upper", 0o755, SYSTEM)).number
        lower = (await fs.mkdir(upper, b"lower", 0o755, SYSTEM)).number
        call = fs.rename(ROOT_INODE, b"upper", lower, b"x", 0)
        assert await errno_of(call) == errno.EINVAL


async def test_an_unlinked_file_lives_while_it_is_open(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        number = await pool.file(b"f", b"content")
        handle = await pool.open(number)
        await fs.unlink(ROOT_INODE, b"f")
        fs.forget([(number, 1)])
        await fs.write(handle, 7, b" and more")
        assert await fs.read(handle, 0, 100) == b"content and more"
        assert fs.orphans_waiting == 0
        fs.release(handle)
        assert fs.orphans_waiting == 1
        await fs.close()
        with pytest.raises(PosixError):
            fs.getattr(number)


async def test_an_unlinked_file_lives_while_the_kernel_knows_it(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        assert pool.fs.lookup(ROOT_INODE, b"f") is not None
        await pool.fs.unlink(ROOT_INODE, b"f")
        pool.fs.forget([(number, 1)])
        assert pool.fs.orphans_waiting == 0
        pool.fs.forget([(number, 1)])
        assert pool.fs.orphans_waiting == 1


async def test_forget_is_never_wrong_footed(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        pool.fs.forget([(12345, 7), (1, 99)])
        assert pool.fs.orphans_waiting == 0


async def test_orphans_of_a_crash_are_purged_by_the_next_session(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"content")
        await pool.open(number)
        await pool.fs.unlink(ROOT_INODE, b"f")
        # The session dies here, with the file open.
        fs = pool.remount()
        assert fs.orphans_waiting == 1
        await fs.close()
        assert pool.volume.usage() == (1, 0)


async def test_the_purger_collects_batches(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        numbers = [await pool.file(b"%d" % i) for i in range(PURGE_BATCH_INODES + 5)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.run_purger)
            for i, number in enumerate(numbers):
                await fs.unlink(ROOT_INODE, b"%d" % i)
                fs.forget([(number, 1)])
            await trio.testing.wait_all_tasks_blocked()
            assert fs.orphans_waiting == 5  # a full batch went at once
            await trio.sleep(PURGE_DELAY_SECONDS * 2)
            assert fs.orphans_waiting == 0  # the rest waited for company, but not for long
            nursery.cancel_scope.cancel()
        assert pool.volume.usage().inode_count == 1

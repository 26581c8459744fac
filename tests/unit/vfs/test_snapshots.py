"""Snapshots as directories: they show what was, nobody changes them, and they end without harm."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dwfs.errors import PosixError
from dwfs.fuse.operations import entry_attributes
from dwfs.limits import (
    KERNEL_CACHE_SECONDS,
    SNAPSHOT_CONTENT_CACHE_SECONDS,
    SNAPSHOT_NAME_CACHE_SECONDS,
)
from dwfs.types import INODE_NUMBER_BITS, ROOT_INODE, Extent, InodeNumber, StripeId
from dwfs.vfs import SYSTEM, Credentials, FilesystemOptions, SnapshotInode
from dwfs.vfs import snapshots as snapshots_module
from dwfs.vfs.acl import ACCESS_NAME, encode
from dwfs.vfs.snapshots import SNAPSHOTS_INODE, SNAPSHOTS_NAME
from dwfs.volume.commands import RENAME_EXCHANGE, Relocate
from tests.unit.vfs.small_pool import STRIPE_SIZE, SmallPool, small_pool
from tests.unit.vfs.test_acl import acl


async def take(pool: SmallPool, name: str = "s") -> InodeNumber:
    """Take a snapshot; the number of its root."""
    await pool.volume.take_snapshot(name, pool.clock.wall_ns())
    return find(pool, SNAPSHOTS_NAME, name.encode())


async def destroy(pool: SmallPool, name: str = "s") -> None:
    """Destroy a snapshot, and give back all that it kept."""
    await pool.volume.destroy_snapshot(name)
    while await pool.volume.reap():
        pass


def find(pool: SmallPool, *names: bytes, start: InodeNumber = ROOT_INODE) -> InodeNumber:
    """The number behind a path, as a kernel would walk it."""
    number = start
    for name in names:
        inode = pool.fs.lookup(number, name)
        assert inode is not None, names
        number = inode.number
    return number


def code_of(action: Callable[[], object]) -> int:
    """The errno with which a call fails."""
    with pytest.raises(PosixError) as caught:
        action()
    return caught.value.errno


async def errno_of(call: Awaitable[object]) -> int:
    """The errno with which an awaitable fails."""
    with pytest.raises(PosixError) as caught:
        await call
    return caught.value.errno


async def test_it_is_there_by_name_and_listed_on_request(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        await pool.file(b"f")
        directory = find(pool, SNAPSHOTS_NAME)
        assert directory == SNAPSHOTS_INODE
        assert pool.names(directory) == set()
        root = await take(pool, "first")
        assert pool.names(directory) == {b"first"}
        assert pool.names() == {b"f"}
        properties = pool.volume.properties
        await pool.volume.set_properties(
            msgspec.structs.replace(properties, snapshots_visible=True)
        )
        assert pool.names() == {b"f", SNAPSHOTS_NAME}
        assert pool.names(root) == {b"f"}


async def test_the_way_up_leads_out(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        parent = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        await pool.fs.mkdir(parent, b"e", 0o755, SYSTEM)
        root = await take(pool)
        inner = find(pool, b"d", b"e", start=root)
        assert find(pool, b"..", start=inner) == find(pool, b"d", start=root)
        assert find(pool, b"..", b"..", start=inner) == root
        assert find(pool, b"..", b"..", b"..", start=inner) == SNAPSHOTS_INODE
        assert find(pool, b"..", b"..", b"..", b"..", start=inner) == ROOT_INODE
        for number, expected in ((inner, find(pool, b"..", start=inner)), (root, SNAPSHOTS_INODE)):
            handle = pool.fs.opendir(number)
            dots = [entry.inode for entry, _ in islice(pool.fs.directory_entries(handle, 0), 2)]
            assert dots == [number, expected]


async def test_what_was_is_seen_after_everything_changed(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        content = os.urandom(3 * STRIPE_SIZE + 77)
        number = await pool.file(b"f", content)
        await fs.link(number, ROOT_INODE, b"again")
        await fs.setxattr(number, b"user.x", b"then", 0, SYSTEM)
        await fs.setxattr(number, ACCESS_NAME, encode(acl("u:6 u9:4 g:4 m:4 o:0")), 0, SYSTEM)
        await fs.symlink(ROOT_INODE, b"l", b"target then", SYSTEM)
        sparse = await pool.file(b"sparse")
        handle = await pool.open(sparse)
        await fs.write(handle, 100, b"middle")
        await fs.setattr(sparse, size=1000)
        fs.release(handle)
        before = {name: pool.inode(find(pool, name)) for name in (b"f", b"l", b"sparse")}
        expected = {name: msgspec.structs.asdict(inode) for name, inode in before.items()}
        root = await take(pool)

        handle = await pool.open(number)
        await fs.write(handle, 5, b"changed")
        fs.release(handle)
        await fs.setattr(number, mode=0o777, uid=5, mtime_ns=1)
        await fs.setxattr(number, b"user.x", b"now", 0, SYSTEM)
        await fs.setxattr(number, b"user.y", b"new", 0, SYSTEM)
        await fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"g", 0)
        for name in (b"again", b"l", b"sparse"):
            await fs.unlink(ROOT_INODE, name)
        await pool.file(b"new")

        assert pool.names(root) == {b"f", b"again", b"l", b"sparse"}
        old = find(pool, b"f", start=root)
        assert old == find(pool, b"again", start=root)
        assert old == root - ROOT_INODE + number
        assert await pool.content(old) == content
        assert fs.getxattr(old, b"user.x") == b"then"
        assert set(fs.listxattr(old)) == {b"user.x", ACCESS_NAME}
        assert code_of(lambda: fs.getxattr(old, b"user.y")) == errno.ENODATA
        assert fs.readlink(find(pool, b"l", start=root)) == b"target then"
        old_sparse = find(pool, b"sparse", start=root)
        assert await pool.content(old_sparse) == bytes(100) + b"middle" + bytes(894)
        handle = await pool.open(old_sparse, os.O_RDONLY)
        assert fs.seek(handle, 0, os.SEEK_DATA) == 100
        assert fs.seek(handle, 100, os.SEEK_HOLE) == 106
        assert await fs.read(handle, 90, 20) == bytes(10) + b"middle" + bytes(4)
        for name, fields in expected.items():
            shown = msgspec.structs.asdict(pool.inode(find(pool, name, start=root)))
            same = (
                "mode",
                "nlink",
                "uid",
                "gid",
                "size",
                "mtime_ns",
                "ctime_ns",
                "allocated_bytes",
            )
            assert {key: shown[key] for key in same} == {key: fields[key] for key in same}
        assert await pool.content(number) == content[:5] + b"changed" + content[12:]


async def test_data_that_has_to_be_waited_for_or_has_moved(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        content = os.urandom(20 * STRIPE_SIZE)
        number = await pool.file(b"f", content)
        root = await take(pool)
        await pool.fs.setattr(number, size=0)
        pool.data.cold = set(pool.data.stripes)
        handle = await pool.open(find(pool, b"f", start=root), os.O_RDONLY)
        found = b""
        while piece := await pool.fs.read(handle, len(found), 50_000):
            found += piece
        assert found == content
        assert len(set(pool.data.prefetched)) > 5  # of the right file


async def test_the_cleaner_moves_what_only_a_snapshot_has_while_it_is_read(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"content")
        place = pool.volume.extents(number, 0, 7)[0]
        root = await take(pool)
        await pool.fs.unlink(ROOT_INODE, b"f")
        pool.data.lost = {place.stripe}
        read = pool.data.read

        async def clean_then_fail(stripe: StripeId, offset: int, length: int) -> bytes:
            if stripe == place.stripe:
                new = StripeId(b"n" * 16)
                pool.data.stripes[new] = bytearray(b"content")
                moved = (Extent(0, 7, new, 0),)
                await pool.volume.propose(
                    Relocate(number, 0, 7, place.stripe, place.stripe_offset, moved)
                )
            return await read(stripe, offset, length)

        pool.data.read = clean_then_fail  # type: ignore[method-assign]  # the cleaner's race
        handle = await pool.open(find(pool, b"f", start=root), os.O_RDONLY)
        assert await pool.fs.read(handle, 0, 7) == b"content"
        pool.data.lost = set(pool.data.stripes)  # and what is lost is an error, not zeros
        assert await errno_of(pool.fs.read(handle, 0, 7)) == errno.EIO


async def test_numbers_and_what_a_kernel_may_keep(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        first, second = await take(pool, "first"), await take(pool, "second")
        inodes = [pool.inode(find(pool, b"f", start=root)) for root in (first, second)]
        slots = [inode.number >> INODE_NUMBER_BITS for inode in inodes]
        assert slots == [pool.volume.snapshot(name).slot for name in ("first", "second")]
        assert len({number, *(inode.number for inode in inodes)}) == 3
        epochs = [pool.volume.snapshot(name).epoch for name in ("first", "second")]
        assert [entry_attributes(inode).generation for inode in inodes] == epochs
        assert entry_attributes(pool.inode(number)).entry_timeout == KERNEL_CACHE_SECONDS
        assert entry_attributes(inodes[0]).attr_timeout == SNAPSHOT_CONTENT_CACHE_SECONDS
        for virtual in (first, SNAPSHOTS_INODE):
            entry = entry_attributes(pool.inode(virtual))
            assert entry.entry_timeout == entry.attr_timeout == SNAPSHOT_NAME_CACHE_SECONDS
        directory = pool.inode(SNAPSHOTS_INODE)
        assert isinstance(directory, SnapshotInode)
        assert (directory.mode, directory.nlink) == (stat.S_IFDIR | 0o555, 4)
        assert directory.mtime_ns == pool.volume.snapshot("second").time_ns
        assert pool.inode(first).mtime_ns < directory.mtime_ns
        # None of them: they come without the kernel, which shall not remember that they are absent.
        for parent in (SNAPSHOTS_INODE, first):
            assert code_of(partial(pool.fs.lookup, parent, b"absent")) == errno.ENOENT
        assert code_of(lambda: pool.fs.lookup(SNAPSHOTS_INODE, b"\xff")) == errno.ENOENT
        assert code_of(lambda: pool.inode(InodeNumber(SNAPSHOTS_INODE + 1))) == errno.ENOENT
        assert code_of(lambda: pool.inode(InodeNumber(first + 1000))) == errno.ENOENT


Change = Callable[[SmallPool, InodeNumber, InodeNumber], Awaitable[Any]]  # Any: nothing is returned

CHANGES: dict[str, Change] = {
    "mknod": lambda pool, d, f: pool.fs.mknod(d, b"new", 0o644, 0, SYSTEM),
    "mkdir": lambda pool, d, f: pool.fs.mkdir(d, b"new", 0o755, SYSTEM),
    "symlink": lambda pool, d, f: pool.fs.symlink(d, b"new", b"x", SYSTEM),
    "create": lambda pool, d, f: pool.fs.create(d, b"new", 0o644, os.O_RDWR, SYSTEM),
    "create existing": lambda pool, d, f: pool.fs.create(d, b"f", 0o644, os.O_RDWR, SYSTEM),
    "link": lambda pool, d, f: pool.fs.link(f, d, b"new"),
    "link from outside": lambda pool, d, f: pool.fs.link(InodeNumber(2), d, b"new"),
    "unlink": lambda pool, d, f: pool.fs.unlink(d, b"f"),
    "rmdir": lambda pool, d, f: pool.fs.rmdir(d, b"d"),
    "rename": lambda pool, d, f: pool.fs.rename(d, b"f", d, b"g", 0),
    "rename out": lambda pool, d, f: pool.fs.rename(d, b"f", ROOT_INODE, b"g", 0),
    "rename in": lambda pool, d, f: pool.fs.rename(ROOT_INODE, b"f", d, b"g", 0),
    "exchange": lambda pool, d, f: pool.fs.rename(ROOT_INODE, b"f", d, b"f", RENAME_EXCHANGE),
    "open for writing": lambda pool, d, f: pool.open(f, os.O_WRONLY),
    "open for both": lambda pool, d, f: pool.open(f, os.O_RDWR),
    "truncating open": lambda pool, d, f: pool.open(f, os.O_RDONLY | os.O_TRUNC),
    "chmod": lambda pool, d, f: pool.fs.setattr(f, mode=0o600),
    "chown": lambda pool, d, f: pool.fs.setattr(f, uid=1),
    "truncate": lambda pool, d, f: pool.fs.setattr(f, size=0),
    "utimens": lambda pool, d, f: pool.fs.setattr(f, atime_ns=1, mtime_ns=1),
    "chmod of the directory": lambda pool, d, f: pool.fs.setattr(d, mode=0o700),
    "chmod of all": lambda pool, d, f: pool.fs.setattr(SNAPSHOTS_INODE, mode=0o700),
    "setxattr": lambda pool, d, f: pool.fs.setxattr(f, b"user.x", b"", 0, SYSTEM),
    "removexattr": lambda pool, d, f: pool.fs.removexattr(f, b"user.there"),
    "mkdir beside": lambda pool, d, f: pool.fs.mkdir(SNAPSHOTS_INODE, b"new", 0o755, SYSTEM),
    "rmdir of it": lambda pool, d, f: pool.fs.rmdir(SNAPSHOTS_INODE, b"s"),
    "rename of it": lambda pool, d, f: pool.fs.rename(SNAPSHOTS_INODE, b"s", ROOT_INODE, b"t", 0),
    "rmdir of all": lambda pool, d, f: pool.fs.rmdir(ROOT_INODE, SNAPSHOTS_NAME),
    "unlink of all": lambda pool, d, f: pool.fs.unlink(ROOT_INODE, SNAPSHOTS_NAME),
    "rename of all": lambda pool, d, f: pool.fs.rename(ROOT_INODE, SNAPSHOTS_NAME, d, b"t", 0),
    "rename onto all": lambda pool, d, f: pool.fs.rename(
        ROOT_INODE, b"f", ROOT_INODE, SNAPSHOTS_NAME, 0
    ),
    "mkdir of all": lambda pool, d, f: pool.fs.mkdir(ROOT_INODE, SNAPSHOTS_NAME, 0o755, SYSTEM),
    "create of all": lambda pool, d, f: pool.fs.create(
        ROOT_INODE, SNAPSHOTS_NAME, 0o644, os.O_RDWR, SYSTEM
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_nothing_can_be_changed(tmp_path: Path, change: str) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"content")
        assert number == 2
        await pool.fs.setxattr(number, b"user.there", b"", 0, SYSTEM)
        await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)
        root = await take(pool)
        records = pool.log.records
        code = await errno_of(CHANGES[change](pool, root, find(pool, b"f", start=root)))
        assert code == errno.EROFS
        assert pool.log.records == records
        assert pool.names(root) == pool.names() == {b"f", b"d"}
        assert pool.fs.open_handles == 0


async def test_files_come_out_by_copying_not_by_linking(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        await pool.file(b"f", b"content")
        root = await take(pool)
        old = find(pool, b"f", start=root)
        assert await errno_of(pool.fs.link(old, ROOT_INODE, b"g")) == errno.EXDEV
        source, target = await pool.open(old, os.O_RDONLY), await pool.open(await pool.file(b"g"))
        assert await errno_of(pool.fs.write(source, 0, b"x")) == errno.EBADF
        assert await errno_of(pool.fs.fallocate(source, 0, 0, 10)) == errno.EBADF
        assert await pool.fs.copy_range(source, 1, target, 0, 100) == 6
        assert await pool.content(find(pool, b"g")) == b"ontent"
        await pool.fs.fsync(source)


@pytest.mark.parametrize("policy", ["relatime", "strictatime"])
async def test_reading_leaves_no_trace(
    tmp_path: Path, policy: Any
) -> None:  # Any: one of three words
    async with small_pool(tmp_path, FilesystemOptions(policy)) as pool:
        await pool.file(b"f", b"content")
        root = await take(pool)
        records = pool.log.records
        handle = await pool.open(find(pool, b"f", start=root), os.O_RDONLY, Credentials(uid=1))
        assert await pool.fs.read(handle, 0, 100) == b"content"
        for number in (root, SNAPSHOTS_INODE):
            await pool.fs.mark_directory_read(pool.fs.opendir(number))
        assert pool.log.records == records


async def test_listings_in_pieces_while_snapshots_come_and_go(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        for number in range(100):
            await pool.volume.take_snapshot(f"s {number}", pool.clock.wall_ns())
        handle = pool.fs.opendir(SNAPSHOTS_INODE)
        found: list[bytes] = []
        cookie = step = 0
        while piece := list(islice(pool.fs.directory_entries(handle, cookie), 7)):
            found += [entry.name for entry, _ in piece]
            assert all(entry.inode == inode.number for entry, inode in piece)
            cookie = piece[-1][0].cookie
            if step < 10:
                await destroy(pool, f"s {2 * step}")
                await pool.volume.take_snapshot(f"later {step}", pool.clock.wall_ns())
                step += 1
        assert len(found) == len(set(found))
        assert {b"s %d" % number for number in range(50, 100)} <= set(found)
        assert found[2:5] == [b"s 0", b"s 1", b"s 2"]


async def test_a_destroyed_snapshot_is_stale_for_who_still_holds_it(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        fs = pool.fs
        number = await pool.file(b"f", b"then")
        root = await take(pool)
        old = find(pool, b"f", start=root)
        handle, listing = await pool.open(old, os.O_RDONLY), fs.opendir(root)
        await fs.unlink(ROOT_INODE, b"f")
        fs.forget([(number, 1000)])
        await destroy(pool)
        assert await errno_of(fs.read(handle, 0, 10)) == errno.ESTALE
        assert code_of(lambda: fs.seek(handle, 0, os.SEEK_DATA)) == errno.ESTALE
        assert code_of(lambda: list(fs.directory_entries(listing, 0))) == errno.ESTALE
        for gone in (old, root):
            assert code_of(partial(pool.inode, gone)) == errno.ESTALE
        assert code_of(lambda: fs.lookup(root, b"f")) == errno.ESTALE
        assert code_of(lambda: fs.opendir(root)) == errno.ESTALE
        assert code_of(lambda: fs.getxattr(old, b"user.x")) == errno.ESTALE
        assert await errno_of(pool.open(old, os.O_RDONLY)) == errno.ESTALE
        assert code_of(lambda: fs.lookup(SNAPSHOTS_INODE, b"s")) == errno.ENOENT
        await pool.file(b"f", b"now")
        again = await take(pool)  # the same name, another snapshot
        assert again != root
        assert await pool.content(find(pool, b"f", start=again)) == b"now"
        assert await errno_of(fs.read(handle, 0, 10)) == errno.ESTALE
        fs.release(handle)
        fs.releasedir(listing)
        fs.forget([(old, 2), (root, 1)])


async def test_a_slot_that_is_used_again_shows_nobody_anothers_files(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        await pool.file(b"f", b"then")
        root = await take(pool)
        old = find(pool, b"f", start=root)
        handle = await pool.open(old, os.O_RDONLY)
        slot = pool.volume.snapshot("s").slot
        await destroy(pool)
        # As it is when all other slots have been used in between.
        pool.state.snapshots.slot_for = lambda epoch: slot  # type: ignore[method-assign]  # as said
        await pool.fs.setattr(find(pool, b"f"), size=0)
        await pool.volume.take_snapshot("s", pool.clock.wall_ns())
        assert code_of(lambda: pool.inode(old)) == errno.ESTALE  # nobody has looked it up yet
        again = find(pool, SNAPSHOTS_NAME, b"s")
        assert again == root
        assert await pool.content(find(pool, b"f", start=again)) == b""
        assert entry_attributes(pool.inode(again)).generation == pool.volume.snapshot("s").epoch
        assert await errno_of(pool.fs.read(handle, 0, 10)) == errno.ESTALE


async def test_numbers_outlive_the_session(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        await pool.file(b"f", b"then")
        old = find(pool, b"f", start=await take(pool))
        gone = find(pool, b"f", start=await take(pool, "gone"))
        await destroy(pool, "gone")
        pool.remount()
        assert find(pool, b".", start=old) == old
        assert await pool.content(old) == b"then"
        assert code_of(lambda: pool.fs.lookup(gone, b".")) == errno.ESTALE


async def test_more_snapshots_than_are_kept_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots_module, "READERS_MAX", 3)
    async with small_pool(tmp_path) as pool:
        await pool.file(b"f")
        handles = []
        for number in range(10):
            handle = await pool.open(find(pool, b"f"))
            await pool.fs.write(handle, 0, b"%d" % number)
            pool.fs.release(handle)
            root = await take(pool, f"s {number}")
            handles.append(await pool.open(find(pool, b"f", start=root), os.O_RDONLY))
        for number, handle in enumerate(handles):
            assert await pool.fs.read(handle, 0, 10) == b"%d" % number
            assert await pool.content(find(pool, SNAPSHOTS_NAME, b"s %d" % number, b"f")) == (
                b"%d" % number
            )
        assert len(pool.names(SNAPSHOTS_INODE)) == 10


async def test_a_name_below_is_nothing_special(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        parent = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        assert pool.fs.lookup(parent, SNAPSHOTS_NAME) is None
        own = await pool.fs.mkdir(parent, SNAPSHOTS_NAME, 0o755, SYSTEM)
        assert find(pool, b"d", SNAPSHOTS_NAME) == own.number

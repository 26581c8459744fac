"""Listings: complete, stable under change, paged; and statfs."""

from __future__ import annotations

import errno
import random
from itertools import islice
from pathlib import Path

import pytest

from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE
from dwfs.vfs import SYSTEM, FilesystemStatistics
from dwfs.volume import directories, view
from tests.unit.vfs.small_pool import small_pool


async def test_dot_and_dot_dot_come_first(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        await pool.fs.mkdir(number, b"sub", 0o755, SYSTEM)
        handle = pool.fs.opendir(number)
        found = [
            (entry.name, entry.inode, inode.number)
            for entry, inode in pool.fs.directory_entries(handle, 0)
        ]
        assert found[:2] == [(b".", number, number), (b"..", ROOT_INODE, ROOT_INODE)]
        assert found[2][0] == b"sub"


async def test_listings_in_pieces_are_complete(tmp_path: Path, seed: int) -> None:
    async with small_pool(tmp_path) as pool:
        chance = random.Random(seed)
        names = {b"name %d" % i for i in range(500)}
        for name in names:
            await pool.file(name)
        handle = pool.fs.opendir(ROOT_INODE)
        found: list[bytes] = []
        cookie = 0
        while piece := list(
            islice(pool.fs.directory_entries(handle, cookie), chance.randrange(1, 60))
        ):
            found += [entry.name for entry, _ in piece]
            cookie = piece[-1][0].cookie
        assert len(found) == 502
        assert set(found) == names | {b".", b".."}


async def test_what_stays_is_listed_once_whatever_else_changes(tmp_path: Path, seed: int) -> None:
    async with small_pool(tmp_path) as pool:
        chance = random.Random(seed)
        staying = {b"stay %d" % i for i in range(200)}
        going = [b"go %d" % i for i in range(200)]
        for name in (*staying, *going):
            await pool.file(name)
        handle = pool.fs.opendir(ROOT_INODE)
        found: list[bytes] = []
        cookie = fresh = 0
        while piece := list(islice(pool.fs.directory_entries(handle, cookie), 20)):
            found += [entry.name for entry, _ in piece]
            cookie = piece[-1][0].cookie
            for _ in range(8):
                await pool.fs.unlink(ROOT_INODE, going.pop(chance.randrange(len(going))))
                await pool.file(b"new %d" % fresh)
                fresh += 1
        assert len(found) == len(set(found))
        assert staying <= set(found)


async def test_a_listing_passes_deleted_names_that_snapshots_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "PAGE_KEYS_MAX", 30)
    monkeypatch.setattr(directories, "PAGE_KEYS_MAX", 30)
    async with small_pool(tmp_path) as pool:
        number = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        for directory in (ROOT_INODE, number):
            for name in range(300):
                await pool.fs.mkdir(directory, b"%d" % name, 0o755, SYSTEM)
        await pool.volume.take_snapshot("s", pool.clock.wall_ns())
        for name in range(300):
            await pool.fs.rmdir(number, b"%d" % name)
            if name != 250:
                await pool.fs.rmdir(ROOT_INODE, b"%d" % name)
        for directory, wanted in ((ROOT_INODE, {b"d", b"250"}), (number, set[bytes]())):
            handle = pool.fs.opendir(directory)
            found: list[bytes] = []
            cookie = await pool.fs.find_directory_entry(handle, 0)
            while piece := list(islice(pool.fs.directory_entries(handle, cookie), 3)):
                found += [entry.name for entry, _ in piece]
                cookie = await pool.fs.find_directory_entry(handle, piece[-1][0].cookie)
            assert found[:2] == [b".", b".."]
            assert len(found[2:]) == len(wanted)
            assert set(found[2:]) == wanted
            # Who asks without it waits, and is not told of an end that is none.
            assert {entry.name for entry, _ in pool.fs.directory_entries(handle, 2)} >= set(
                found[2:3]
            )


async def test_a_removed_directory_is_empty(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = (await pool.fs.mkdir(ROOT_INODE, b"d", 0o755, SYSTEM)).number
        handle = pool.fs.opendir(number)
        await pool.fs.rmdir(ROOT_INODE, b"d")
        assert list(pool.fs.directory_entries(handle, 0)) == []
        call = pool.fs.mkdir(number, b"sub", 0o755, SYSTEM)
        with pytest.raises(PosixError) as caught:
            await call
        assert caught.value.errno == errno.ENOENT
        pool.fs.releasedir(handle)


async def test_reading_sets_the_access_time(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        handle = pool.fs.opendir(ROOT_INODE)
        before = pool.inode(ROOT_INODE).atime_ns
        await pool.fs.mark_directory_read(handle)
        assert pool.inode(ROOT_INODE).atime_ns > before


async def test_only_directories_are_listed(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        with pytest.raises(PosixError) as caught:
            pool.fs.opendir(number)
        assert caught.value.errno == errno.ENOTDIR
        with pytest.raises(PosixError):
            pool.fs.releasedir(1)


async def test_statfs_counts_usable_space(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        await pool.file(b"f")
        free = (1 << 29) // 2048
        assert pool.fs.statfs() == FilesystemStatistics(1 << 18, 1 << 17, free + 2, free)

"""The trash: what goes there, under which name, who gets it back, and when it is gone."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs.errors import PosixError
from dwfs.limits import MIB
from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.vfs import SYSTEM, Credentials, Space
from dwfs.vfs.trash import PRUNE_BATCH, deletion_time_ns, name_in_trash
from dwfs.volume import Properties
from tests.unit.vfs.small_pool import START_NS, SmallPool, small_pool

DAY_NS = 86_400 * 10**9
USER = Credentials(1000, 1000)


class Listener:
    """A kernel that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def changed(self, number: InodeNumber) -> None:
        self.told.append(("changed", number))

    def made(self, parent: InodeNumber, name: bytes) -> None:
        self.told.append(("made", parent, name))

    def removed(self, parent: InodeNumber, name: bytes, number: InodeNumber) -> None:
        self.told.append(("removed", parent, name, number))


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    """A pool that keeps deleted files for 7 days."""
    async with small_pool(tmp_path) as pool:
        await pool.volume.set_properties(Properties(trash_days=7))
        yield pool


def find(pool: SmallPool, *path: bytes) -> InodeNumber:
    number = ROOT_INODE
    for name in path:
        found = pool.volume.lookup(number, name)
        assert found is not None, path
        number = found
    return number


def in_trash(pool: SmallPool, uid: int = 0) -> set[bytes]:
    return pool.names(find(pool, b".trash", b"%d" % uid))


async def test_a_deleted_file_can_be_taken_back_as_it_was(pool: SmallPool) -> None:
    number = await pool.file(b"notes.txt", b"dear diary", 0o640, USER)
    await pool.fs.unlink(ROOT_INODE, b"notes.txt")
    assert pool.names() == {b".trash"}
    (name,) = in_trash(pool, 1000)
    assert name == b"notes.txt~20231114T221320Z~%d" % number
    top, place = find(pool, b".trash"), find(pool, b".trash", b"1000")
    assert pool.inode(top).mode == stat.S_IFDIR | 0o1755
    assert (pool.inode(top).uid, pool.inode(place).uid) == (0, 1000)
    assert pool.inode(place).mode == stat.S_IFDIR | 0o700
    await pool.fs.rename(place, name, ROOT_INODE, b"notes.txt", 0)
    inode = pool.inode(number)
    assert (inode.mode, inode.uid, inode.nlink) == (stat.S_IFREG | 0o640, 1000, 1)
    assert await pool.content(number) == b"dear diary"
    assert pool.volume.orphans() == []


async def test_deleting_in_the_trash_is_for_good(pool: SmallPool) -> None:
    number = await pool.file(b"f", b"x")
    await pool.fs.unlink(ROOT_INODE, b"f")
    place = find(pool, b".trash", b"0")
    (name,) = in_trash(pool)
    await pool.fs.unlink(place, name)
    assert in_trash(pool) == set()
    assert pool.volume.orphans() == [number]
    below = (await pool.fs.mkdir(place, b"sub", 0o755, SYSTEM)).number
    await pool.fs.create(below, b"g", 0o644, os.O_RDWR, SYSTEM)
    await pool.fs.unlink(below, b"g")
    assert in_trash(pool) == {b"sub"}


async def test_only_the_last_name_of_a_regular_file_goes_there(pool: SmallPool) -> None:
    number = await pool.file(b"a", b"x")
    await pool.fs.link(number, ROOT_INODE, b"b")
    await pool.fs.symlink(ROOT_INODE, b"s", b"a", SYSTEM)
    await pool.fs.mknod(ROOT_INODE, b"p", stat.S_IFIFO | 0o600, 0, SYSTEM)
    for name in (b"a", b"s", b"p"):
        await pool.fs.unlink(ROOT_INODE, name)
    assert pool.names() == {b"b"}
    other = await pool.file(b"c", b"y")
    await pool.fs.rename(ROOT_INODE, b"c", ROOT_INODE, b"b", 0)  # overwritten: not deleted
    assert pool.names() == {b"b"}
    assert find(pool, b"b") == other
    await pool.fs.unlink(ROOT_INODE, b"b")
    assert len(in_trash(pool)) == 1
    for name, wanted in ((b"nothing", errno.ENOENT), (b".trash", errno.EISDIR)):
        with pytest.raises(PosixError) as caught:
            await pool.fs.unlink(ROOT_INODE, name)
        assert caught.value.errno == wanted


async def test_without_the_property_there_is_no_trash(pool: SmallPool) -> None:
    await pool.volume.set_properties(Properties())
    await pool.file(b"f", b"x")
    await pool.fs.unlink(ROOT_INODE, b"f")
    assert pool.names() == set()


async def test_one_name_deleted_again_and_again(pool: SmallPool) -> None:
    for _ in range(20):
        number = await pool.file(b"f", b"x")
        await pool.fs.unlink(ROOT_INODE, b"f")
    assert len(in_trash(pool)) == 20
    (name,) = (name for name in in_trash(pool) if name.endswith(b"~%d" % number))
    place = find(pool, b".trash", b"0")
    await pool.fs.rename(place, name, ROOT_INODE, b"f", 0)
    await pool.fs.create(place, name, 0o644, os.O_RDWR, SYSTEM)  # its name is taken meanwhile
    await pool.fs.unlink(ROOT_INODE, b"f")
    assert len(in_trash(pool)) == 21


async def test_what_is_there_for_long_enough_is_pruned(pool: SmallPool) -> None:
    for position in range(PRUNE_BATCH + 10):
        await forgotten_file(pool, b"old %d" % position)
    await pool.file(b"held", b"h")
    held = await pool.open(find(pool, b"held"))
    names = pool.names() - {b".trash"}
    for name in names:
        await pool.fs.unlink(ROOT_INODE, name)
    pool.clock.wall += 6 * DAY_NS
    await forgotten_file(pool, b"young")
    await pool.fs.unlink(ROOT_INODE, b"young")
    place = find(pool, b".trash", b"0")
    foreign = {b"mine", b"mine~20200101T000000Z~99", b"d~20200101T000000Z~99"}
    for name in foreign:
        if name.startswith(b"d"):
            await pool.fs.mkdir(place, name, 0o755, SYSTEM)
        else:
            await pool.fs.create(place, name, 0o644, os.O_RDWR, SYSTEM)
    assert await prune(pool) == 0
    pool.clock.wall += DAY_NS + 10**9
    pool.fs.trash.kernel = listener = Listener()
    assert await prune(pool) == PRUNE_BATCH + 11
    assert sum(told[0] == "removed" for told in listener.told) == PRUNE_BATCH + 11
    left = in_trash(pool)
    assert foreign < left
    assert len(left) == len(foreign) + 1
    assert await pool.fs.read(held, 0, 1) == b"h"  # open: as any deleted file


async def forgotten_file(pool: SmallPool, name: bytes) -> None:
    pool.fs.forget([(await pool.file(name, b"x"), 1)])


async def prune(pool: SmallPool) -> int:
    files = 0
    for place in pool.fs.trash.places():
        cookie: int | None = 0
        while cookie is not None:
            step = await pool.fs.trash.prune(place, cookie)
            files, cookie = files + step.files, step.following
    return files


async def test_nothing_is_pruned_while_the_trash_is_off(pool: SmallPool) -> None:
    await pool.file(b"f", b"x")
    await pool.fs.unlink(ROOT_INODE, b"f")
    await pool.volume.set_properties(Properties())
    pool.clock.wall += 100 * DAY_NS
    assert await prune(pool) == 0
    place = find(pool, b".trash", b"0")
    assert await pool.fs.trash.prune(place) == (0, None)
    await pool.volume.set_properties(Properties(trash_days=101))
    assert await prune(pool) == 0
    await pool.volume.set_properties(Properties(trash_days=99))
    assert await prune(pool) == 1


async def test_a_clock_that_went_back_does_not_date_deletions_back(pool: SmallPool) -> None:
    await pool.file(b"a", b"x")
    await pool.fs.unlink(ROOT_INODE, b"a")
    pool.clock.wall -= 20 * 365 * DAY_NS
    pool.remount()
    number = await pool.file(b"b", b"x")
    await pool.fs.unlink(ROOT_INODE, b"b")
    (name,) = (name for name in in_trash(pool) if name.startswith(b"b"))
    when = deletion_time_ns(name, number)
    assert when is not None
    assert when >= START_NS // 10**9 * 10**9
    assert await prune(pool) == 0
    pool.clock.wall += 20 * 365 * DAY_NS
    assert await prune(pool) == 0


async def test_a_full_pool_deletes_for_good(pool: SmallPool) -> None:
    for space, kept in (
        (Space(1 << 40, 1 << 39), True),
        (Space(1 << 40, (1 << 34) - 1), False),
        (Space(1 << 40, 1 << 34), True),
        (Space(256 * MIB, 16 * MIB - 1), False),
        (Space(256 * MIB, 0), False),
        (Space(256 * MIB, 16 * MIB), True),
    ):
        pool.space = space
        await pool.file(b"f", b"x")
        before = len(in_trash(pool)) if b".trash" in pool.names() else 0
        await pool.fs.unlink(ROOT_INODE, b"f")
        assert (len(in_trash(pool)) > before) == kept, space


async def test_without_an_inode_for_the_trash_files_are_deleted_for_good(pool: SmallPool) -> None:
    number = await pool.file(b"f", b"x")
    await pool.volume.set_properties(Properties(trash_days=7, quota_inodes=2))
    await pool.fs.unlink(ROOT_INODE, b"f")
    assert pool.names() == set()
    assert pool.volume.orphans() == [number]


async def test_first_deletions_at_once_meet_in_one_trash(pool: SmallPool) -> None:
    names = [b"%d" % position for position in range(4)]
    for name in names:
        await pool.file(name, b"x")
    append, gate = pool.log.append, trio.Event()

    async def slow_append(*arguments: object) -> None:
        await gate.wait()
        await append(*arguments)  # type: ignore[arg-type]  # passed on as they come

    pool.log.append = slow_append  # type: ignore[assignment,method-assign]  # it takes its time
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.volume.commit)
        await trio.testing.wait_all_tasks_blocked()
        for name in names:
            nursery.start_soon(pool.fs.unlink, ROOT_INODE, name)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert pool.names() == {b".trash"}
    assert len(in_trash(pool)) == len(names)


async def test_somebody_elses_trash_is_not_used(
    pool: SmallPool, caplog: pytest.LogCaptureFixture
) -> None:
    await pool.fs.mkdir(ROOT_INODE, b".trash", 0o777, USER)
    await pool.file(b"f", b"x")
    with caplog.at_level(logging.WARNING):
        await pool.fs.unlink(ROOT_INODE, b"f")
        await pool.file(b"f", b"x")
        await pool.fs.unlink(ROOT_INODE, b"f")
    assert pool.names() == {b".trash"}
    assert len(caplog.records) == 1
    caplog.clear()
    await pool.fs.rmdir(ROOT_INODE, b".trash")
    await pool.file(b"f", b"x", caller=USER)
    await pool.fs.unlink(ROOT_INODE, b"f")
    assert len(in_trash(pool, 1000)) == 1


async def test_the_kernel_is_told_of_what_it_did_not_do(pool: SmallPool) -> None:
    pool.fs.trash.kernel = listener = Listener()
    with pytest.raises(PosixError) as caught:  # an error is not kept, an absence would be
        pool.fs.lookup(ROOT_INODE, b".trash")
    assert caught.value.errno == errno.ENOENT
    await pool.file(b"f", b"x")
    await pool.fs.unlink(ROOT_INODE, b"f")
    top, place = find(pool, b".trash"), find(pool, b".trash", b"0")
    assert listener.told == [
        ("made", ROOT_INODE, b".trash"),
        ("changed", ROOT_INODE),
        ("made", top, b"0"),
        ("changed", top),
        ("changed", place),
    ]


def test_names_say_what_when_and_which() -> None:
    moment = START_NS
    assert name_in_trash(b"a b~c", moment, InodeNumber(7)) == b"a b~c~20231114T221320Z~7"
    for name in (b"x" * 255, "ü".encode() * 127, b"\xff" * 255, b"y" + "€".encode() * 84):
        made = name_in_trash(name, moment, InodeNumber(2**48 - 1))
        assert len(made) <= 255
        assert len(made) > 250
        assert name.startswith(made[: made.index(b"~")])
        assert deletion_time_ns(made, InodeNumber(2**48 - 1)) == moment // 10**9 * 10**9
    assert name_in_trash("ü".encode() * 127, moment, InodeNumber(1)).decode()
    for name in (
        b"a", b"a~20231114T221320Z", b"a~20231314T221320Z~7", b"a~20231114T221320~7",
        b"a~20231114T221320Z~8", b"a~20231114T221320Z~07x", b"a~20231114T221320Z~" + b"9" * 40,
    ):  # fmt: skip
        assert deletion_time_ns(name, InodeNumber(7)) is None, name

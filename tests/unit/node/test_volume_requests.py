"""What administrators set of an open pool's volume, and what comes of it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.errors import PosixError, UsageError
from dwfs.node.administration import Administration
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.volume_administration import CLOSE_WARNING
from dwfs.node.volume_status import VolumeAnswer, VolumeStatus
from dwfs.types import ROOT_INODE, Geometry
from dwfs.volume import Properties
from tests.unit.node.pools import Rig, write_file


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on three disks."""
    return await Rig(tmp_path, Geometry(2, 1), 3).create()


async def silent(event: Mapping[str, object]) -> None:
    """Nobody looks at the progress."""


async def change(pool: Pool, **values: object) -> VolumeAnswer:
    answer = await Administration(pool).handlers()["volume.set"](values, silent)
    assert isinstance(answer, VolumeAnswer)
    return answer


async def test_what_is_set_survives_reopening_and_the_loss_of_the_machine(rig: Rig) -> None:
    async with rig.open() as pool:
        answer = await change(
            pool, compression="zstd-5", quota_bytes=5000, trash_days=3, snapshots_visible=True
        )
        assert (answer.before.quota_bytes, answer.volume.quota_bytes) == (None, 5000)
        assert answer.warnings == []
        await change(pool, quota_inodes=7)
    wanted = Properties("zstd-5", 5000, 7, 3, True)
    async with rig.open() as pool:
        assert pool.volume.properties == wanted
        await pool.snapshotter.take()  # type: ignore[union-attr]  # a pool that can be written has one
    shutil.rmtree(rig.directories.state_directory(rig.name))
    async with rig.open() as pool:
        assert pool.volume.properties == wanted
        status = await Administration(pool).handlers()["volume.get"]({}, silent)
        assert isinstance(status, VolumeStatus)
        assert (status.name, status.used_inodes, status.available_bytes) == (rig.name, 1, 5000)


async def test_all_or_nothing(rig: Rig) -> None:
    async with rig.open() as pool:
        for wrong, said in (
            ({"compression": "lzma"}, "zstd-1 to zstd-19"),
            ({"quota_bytes": 0}, "none is for no limit"),
            ({"quota_inodes": -1}, "none is for no limit"),
            ({"quota_bytes": 2**63}, "2\\*\\*63"),
            ({"trash_days": 36_501}, "up to 36500"),
        ):
            with pytest.raises(UsageError, match=said):
                await change(pool, **{"snapshots_visible": True, **wrong})
        for foreign in ({"colour": "blue"}, {"quota_bytes": "5G"}, {"compression": None}):
            with pytest.raises(msgspec.ValidationError):
                await change(pool, **foreign)
        assert pool.volume.properties == Properties()


async def test_changes_at_once_do_not_take_each_other_back(rig: Rig) -> None:
    async with rig.open() as pool:
        handlers = Administration(pool).handlers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.committer.commit)
            for name in ("quota_bytes", "trash_days", "quota_inodes"):
                values: dict[str, object] = {name: 9}
                nursery.start_soon(handlers["volume.set"], values, silent)
        assert pool.volume.properties == Properties("off", 9, 9, 9)


async def test_warnings(rig: Rig) -> None:
    async with rig.open(OpenOptions(mountpoint="/mnt")) as pool:
        await write_file(pool, "f", bytes(1000))
        answer = await change(pool, quota_bytes=999, quota_inodes=1, trash_days=5)
        assert [warning.split(":")[0] for warning in answer.warnings] == [
            "rig uses 1000 bytes, which is more than its quota of 999",
            "rig has 2 inodes, which is more than its quota of 1",
            CLOSE_WARNING,
        ]
        assert answer.warnings[0].endswith("nothing can be added until it uses less")
        (warning,) = (await change(pool, trash_days=0)).warnings
        assert warning.startswith("what lies in .trash stays")
        assert (await change(pool, quota_bytes=1000)).warnings == []
        with pytest.raises(PosixError) as caught:
            await write_file(pool, "f", bytes(1001))
        assert caught.value.errno == errno.EDQUOT


async def test_the_trash_is_pruned_when_days_are_set(rig: Rig) -> None:
    async with rig.open() as pool:
        await change(pool, trash_days=1)
        await write_file(pool, "f", bytes(1000))
        await pool.filesystem.unlink(ROOT_INODE, b"f")
        assert await pool.trash.prune() == 0
        (place,) = pool.filesystem.trash.places()
        (entry,) = pool.volume.read_directory(place, 0, 10)
        old = b"f~20200101T000000Z~%d" % entry.inode
        await pool.filesystem.rename(place, entry.name, place, old, 0)
        await change(pool, trash_days=2)
        with trio.fail_after(4):
            while pool.volume.read_directory(place, 0, 10):
                await trio.sleep(0.05)

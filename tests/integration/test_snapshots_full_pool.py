"""A pool that snapshots have filled: they can be taken and given up, and that gives the space back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.node.assembly import Pool
from dwfs.node.check import CheckReport
from dwfs.types import ROOT_INODE
from tests.integration.loop_disks import LoopDisks
from tests.integration.test_full_pool import BigFile, rig_on
from tests.unit.node.test_snapshot_requests import change, request


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[LoopDisks]:
    made = LoopDisks(tmp_path, [192] * 3)
    yield made
    made.close()


async def written_until_full(file: BigFile, blocks: int) -> int:
    """Write blocks from the first on until there is no room; how many it were."""
    written = 0
    with pytest.raises(PosixError) as caught:
        for number in range(blocks):
            await file.write(number)
            written = number + 1
    assert caught.value.errno == ENOSPC
    return written


async def room(pool: Pool, name: bytes, blocks: int) -> None:
    """Write a file as soon as there is room for it."""
    file = BigFile(pool, name)
    await file.create()
    with trio.fail_after(60):
        while len(file.versions) < blocks:
            try:
                await file.write(len(file.versions))
            except PosixError as error:
                if error.errno != ENOSPC:
                    raise
                await trio.sleep(0.5)
    await file.check()


async def test_space_comes_back_with_the_last_snapshot(disks: LoopDisks, tmp_path: Path) -> None:
    rig = await rig_on(tmp_path, disks.directories, os.urandom(64)).create()
    async with rig.open() as pool:
        file = BigFile(pool, b"big")
        await file.create()
        blocks = await file.fill()
        await pool.volume.destage()
        await change(pool, "snapshot.create", name="one")
        await change(pool, "snapshot.create", name="two")
        # What is overwritten stays; a little room is always left when the last stripe is full.
        assert await written_until_full(file, blocks) < blocks // 8
        await file.check()
        pool.filesystem.release(file.handle)
        await pool.filesystem.unlink(ROOT_INODE, b"big")
    async with rig.open() as pool:
        await change(pool, "snapshot.destroy", names=["one"])
        other = BigFile(pool, b"other")
        await other.create()
        assert await written_until_full(other, blocks) < blocks // 8
        await change(pool, "snapshot.destroy", names=["two"])
        await room(pool, b"another", blocks // 2)
        report = await request(pool, "check", read=True)
        assert isinstance(report, CheckReport)
        assert report.clean, report.findings

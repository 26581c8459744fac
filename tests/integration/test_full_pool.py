"""A full pool on small real disks: overwritten at random, filled to the brim, killed, emptied."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.limits import KIB, MIB
from dwfs.node.assembly import Pool
from dwfs.node.creation import PoolPlan
from dwfs.types import ROOT_INODE, Geometry, InodeNumber
from dwfs.vfs import SYSTEM
from tests.integration.loop_disks import LoopDisks
from tests.unit.node.pools import Rig

BLOCK_SIZE = 64 * KIB
GEOMETRY = Geometry(2, 1)
OVERWRITES = 600


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[LoopDisks]:
    made = LoopDisks(tmp_path, [192] * 3)
    yield made
    made.close()


def rig_on(home: Path, directories: list[Path], key: bytes) -> Rig:
    rig = Rig(home, GEOMETRY, 0)
    rig.disks, rig.key = directories, key
    rig.plan = PoolPlan(rig.name, tuple(directories), GEOMETRY)
    return rig


class BigFile:
    """One file of blocks that say which version of which block they are."""

    def __init__(self, pool: Pool, name: bytes) -> None:
        self.files = pool.filesystem
        self.name = name
        self.inode = InodeNumber(0)
        self.handle = 0
        self.versions: dict[int, int] = {}

    async def create(self) -> None:
        mode = stat.S_IFREG | 0o644
        handle, inode = await self.files.create(ROOT_INODE, self.name, mode, os.O_RDWR, SYSTEM)
        self.inode, self.handle = inode.number, handle.number

    def content(self, number: int) -> bytes:
        version = self.versions[number]
        return (number.to_bytes(4, "little") + version.to_bytes(4, "little")) * (BLOCK_SIZE // 8)

    async def write(self, number: int) -> None:
        """The block's next version; the old one stays if it can't be written."""
        before = self.versions.get(number)
        self.versions[number] = 0 if before is None else before + 1
        try:
            await self.files.write(self.handle, number * BLOCK_SIZE, self.content(number))
        except PosixError:
            del self.versions[number]
            if before is not None:
                self.versions[number] = before
            raise

    async def fill(self) -> int:
        """Append blocks until the pool is full; their number."""
        with pytest.raises(PosixError) as caught:
            while True:
                await self.write(len(self.versions))
        assert caught.value.errno == ENOSPC
        return len(self.versions)

    async def check(self) -> None:
        for number in self.versions:
            found = await self.files.read(self.handle, number * BLOCK_SIZE, BLOCK_SIZE)
            assert found == self.content(number)

    async def remove(self) -> None:
        self.files.release(self.handle)
        self.files.forget([(self.inode, 1)])
        await self.files.unlink(ROOT_INODE, self.name)


async def wait_until_free(pool: Pool, free_bytes: float) -> None:
    with trio.fail_after(20):
        while pool.stripes.free_bytes() < free_bytes:
            await trio.sleep(0.05)


async def test_nearly_full_pool_is_overwritten_filled_and_emptied(
    disks: LoopDisks, tmp_path: Path, seed: int
) -> None:
    choice = random.Random(seed)
    rig = await rig_on(tmp_path, disks.directories, os.urandom(64)).create()
    async with rig.open() as pool:
        predicted = pool.stripes.free_bytes()
        big = BigFile(pool, b"big")
        await big.create()
        for number in range(int(predicted * 0.9) // BLOCK_SIZE):
            await big.write(number)
        for _ in range(OVERWRITES):
            await big.write(choice.randrange(len(big.versions)))
        assert pool.cleaner.dropped_stripes > 0
        stored = await big.fill() * BLOCK_SIZE
        # A disk has room for 70 shards of 2 MiB; a few of them are 3 %.
        assert 0.95 * predicted < stored <= predicted
        await pool.volume.barrier()
        await big.check()
        # What needs no room for data still works, and deletes give everything back.
        for number in range(200):
            handle, inode = await pool.filesystem.create(
                ROOT_INODE, b"empty-%d" % number, stat.S_IFREG | 0o644, os.O_RDWR, SYSTEM
            )
            pool.filesystem.release(handle.number)
            pool.filesystem.forget([(inode.number, 1)])
        await pool.volume.barrier()
        await big.remove()
        await pool.volume.barrier()
        await wait_until_free(pool, 0.95 * predicted)


def fill_and_die(home: str, key: str) -> None:
    """In a process of its own: fill the pool, make it durable, and be killed."""

    async def run() -> None:
        directories = [Path(home) / f"loop-{number}" / "share" for number in range(3)]
        async with rig_on(Path(home), directories, bytes.fromhex(key)).open() as pool:
            big = BigFile(pool, b"big")
            await big.create()
            await big.fill()
            await pool.volume.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

    trio.run(run)


async def test_pool_that_was_killed_while_it_was_full_can_be_emptied(
    disks: LoopDisks, tmp_path: Path
) -> None:
    rig = await rig_on(tmp_path, disks.directories, os.urandom(64)).create()
    script = f"from {__name__} import fill_and_die as f; f({str(tmp_path)!r}, {rig.key.hex()!r})"
    done = await trio.run_process(
        [sys.executable, "-c", script], check=False, stdout=subprocess.DEVNULL
    )
    assert done.returncode == -signal.SIGKILL
    async with rig.open() as pool:
        files = pool.filesystem
        capacity = pool.stripes.capacity_bytes()
        assert pool.stripes.free_bytes() < 8 * MIB
        found = files.lookup(ROOT_INODE, b"big")
        assert found is not None
        assert found.size > 0.95 * capacity
        files.forget([(found.number, 1)])
        await files.unlink(ROOT_INODE, b"big")
        await pool.volume.barrier()
        await wait_until_free(pool, 0.95 * capacity)

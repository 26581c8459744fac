"""A pool for tests of the node layer: real directories, real stores, no kernel."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dwfs.config import Directories, PoolConfig, load_config
from dwfs.node import marker
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.check import check_pool
from dwfs.node.creation import PoolPlan, create_pool
from dwfs.node.credential import Credential
from dwfs.node.disks.survey import read_newest_header
from dwfs.node.pool import first_opening, open_pool
from dwfs.types import ROOT_INODE, Geometry
from dwfs.vfs import SYSTEM


class Rig:
    """A pool below `home`, which can be opened again and again."""

    name = "rig"

    def __init__(self, home: Path, geometry: Geometry, disks: int) -> None:
        self.directories = Directories.from_environment({"DWFS_ROOT": str(home / "root")})
        self.disks = [home / f"disk{number}" for number in range(disks)]
        self.key = os.urandom(64)
        self.plan = PoolPlan(self.name, tuple(self.disks), geometry)

    def credential(self) -> Credential:
        """What opens the pool."""
        return Credential("keyfile", self.key)

    @property
    def config(self) -> PoolConfig:
        """As it is on disk."""
        return load_config(self.directories, self.name)

    def closed_in_order(self) -> bool:
        """Whether the state directory says so."""
        header = read_newest_header(self.config)
        directory = self.directories.state_directory(self.name)
        return marker.is_clean(directory, header.pool, header.state_id)

    async def create(self) -> Rig:
        """Make the pool, first opening included."""
        await trio.to_thread.run_sync(
            create_pool, self.directories, self.plan, self.credential(), first_opening
        )
        return self

    @asynccontextmanager
    async def open(self, options: OpenOptions | None = None) -> AsyncIterator[Pool]:
        """Own the pool for a while."""
        async with open_pool(self.directories, self.config, self.credential(), options) as pool:
            yield pool


async def write_file(pool: Pool, name: str, content: bytes) -> None:
    """Make (or replace the beginning of) a file in the root directory."""
    files = pool.filesystem
    mode = stat.S_IFREG | 0o644
    handle, _ = await files.create(ROOT_INODE, name.encode(), mode, os.O_RDWR, SYSTEM)
    await files.write(handle.number, 0, content)
    files.release(handle.number)


async def read_file(pool: Pool, name: str) -> bytes:
    """The whole content of a file in the root directory."""
    inode = pool.filesystem.lookup(ROOT_INODE, name.encode())
    assert inode is not None, f"{name} is gone"
    return await pool.filesystem.read_inode(inode.number, 0, inode.size)


async def until_clean(pool: Pool) -> None:
    """Wait until repair and sweep have brought everything to what it should be."""
    with trio.fail_after(30):
        while not (report := await check_pool(pool, read=True, progress=no_progress)).clean:
            assert not report.stripes_lost
            await trio.sleep(0.1)


async def no_progress(event: object) -> None:
    """For who asks without looking at the progress."""

"""The cleaner over a real pool with snapshots: what only they map is moved, found again, and given back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from dwfs.node.administration import Administration
from dwfs.node.assembly import Pool
from dwfs.node.check import CheckReport
from dwfs.types import ROOT_INODE, Extent, Geometry, StripeId
from dwfs.volume import SnapshotView
from dwfs.volume.commands import CloneRange
from tests.unit.node.pools import Rig, read_file, write_file

KEPT = os.urandom(50_000)
JUNK = os.urandom(1 << 20)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on three disks."""
    return await Rig(tmp_path, Geometry(2, 1), 3).create()


def stripes(pool: Pool) -> set[StripeId]:
    """All that the state knows."""
    return {seal.stripe for seal in pool.volume.catalog.seals(None, 1000)}


async def remove(pool: Pool, name: bytes) -> None:
    """Name and bytes."""
    await pool.filesystem.unlink(ROOT_INODE, name)
    await pool.volume.purge(pool.volume.orphans())


async def read_kept(pool: Pool, view: SnapshotView, name: bytes) -> bytes:
    """A file's content as a snapshot has it."""
    number = view.lookup(ROOT_INODE, name)
    assert number is not None
    extents: list[Extent] = view.extents(number, 0, view.inode(number).size)
    pieces = [await pool.stripes.read(e.stripe, e.stripe_offset, e.length) for e in extents]
    return b"".join(pieces)


async def check(pool: Pool) -> list[str]:
    """What `dwfs check --read` finds."""

    async def progress(event: Mapping[str, object]) -> None:
        """Nobody looks."""

    report = await Administration(pool).handlers()["check"]({"read": True}, progress)
    assert isinstance(report, CheckReport)
    return [finding.text for finding in report.findings]


async def test_what_only_a_snapshot_maps_is_moved_and_readable(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "kept", KEPT)
        await write_file(pool, "stays", KEPT[::-1])
        await write_file(pool, "junk", JUNK)
        await pool.volume.destage()
        await remove(pool, b"junk")
        snapshot = await pool.volume.take_snapshot("one", 1)
        await remove(pool, b"kept")
        old = stripes(pool)
        await pool.cleaner.run_once(hurry=True)
        await pool.volume.destage()
        await pool.cleaner.run_once(hurry=True)
        assert pool.cleaner.moved_bytes >= 2 * len(KEPT)
        assert not old & stripes(pool)
        view = pool.volume.view(snapshot)
        assert await read_kept(pool, view, b"kept") == KEPT
        assert await read_kept(pool, view, b"stays") == KEPT[::-1]
        assert await read_file(pool, "stays") == KEPT[::-1]
        assert await check(pool) == []
        assert pool.volume.unique_bytes("one") == len(KEPT)
    async with rig.open() as pool:
        snapshot = pool.volume.snapshot("one")
        assert await read_kept(pool, pool.volume.view(snapshot), b"kept") == KEPT


async def test_clones_are_moved_and_the_check_knows_them(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "source", KEPT)
        await write_file(pool, "clone", b"old content")
        await write_file(pool, "junk", JUNK)
        await pool.volume.destage()
        source, target = (pool.volume.lookup(ROOT_INODE, name) for name in (b"source", b"clone"))
        assert source is not None
        assert target is not None
        await pool.volume.clone_range(CloneRange(source, 0, len(KEPT), target, 0, 1, None))
        await remove(pool, b"source")
        await remove(pool, b"junk")
        await pool.volume.destage()
        assert await check(pool) == []
        old = stripes(pool)
        await pool.cleaner.run_once(hurry=True)
        await pool.volume.destage()
        await pool.cleaner.run_once(hurry=True)
        assert not old & stripes(pool)
        assert await read_file(pool, "clone") == KEPT
        assert await check(pool) == []


async def test_a_writer_that_waits_for_space_gets_what_destroyed_snapshots_kept(rig: Rig) -> None:
    async with rig.open() as pool:
        await write_file(pool, "junk", JUNK)
        await pool.volume.destage()
        await pool.volume.take_snapshot("one", 1)
        await remove(pool, b"junk")
        assert not await pool.cleaner.run_once(hurry=True)
        assert stripes(pool)
        await pool.volume.destroy_snapshot("one")
        assert pool.volume.settling
        assert await pool.cleaner.run_once(hurry=True)
        assert not pool.volume.settling
        assert not stripes(pool)

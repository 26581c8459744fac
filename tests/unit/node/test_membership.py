"""Changes of the pool header while disks come and go."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
from msgspec.structs import replace

from dwfs.disk import Executor, read_header
from dwfs.errors import NotEnoughDisksError
from dwfs.node.assembly import OpenOptions
from dwfs.node.disks.listing import PoolDisk
from dwfs.node.disks.timing import DiskTiming
from dwfs.types import Geometry
from tests.unit.node.pools import Rig

# Nothing else touches the executors during the test.
OPTIONS = OpenOptions(timing=DiskTiming(probe_seconds=3600.0, expire_seconds=3600.0))

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """1+1 on two disks."""
    return await Rig(tmp_path, Geometry(1, 1), 2).create()


class Rival:
    """An executor at whose first call the other disk loses its own."""

    def __init__(self, executor: Executor, other: PoolDisk) -> None:
        self._executor = executor
        self._other = other

    async def run(
        self, function: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT
    ) -> ResultT:
        self._other.executor = None
        return await self._executor.run(function, *arguments)


async def test_a_disk_taken_down_amid_a_change_does_not_break_it_off(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        one, other = pool.foundation.disks.all()
        executors = one.executor, other.executor
        assert executors[0] is not None
        assert executors[1] is not None
        one.executor = Rival(executors[0], other)  # type: ignore[assignment]  # all that is asked for
        other.executor = Rival(executors[1], one)  # type: ignore[assignment]  # as above
        try:
            await pool.foundation.membership.change_header(
                lambda header: replace(header, name="renamed")
            )
        finally:
            one.executor, other.executor = executors
        assert pool.foundation.header.name == "renamed"
        assert [read_header(disk).header.name for disk in rig.disks] == ["renamed", "renamed"]


class Late:
    """An executor whose calls are made, and given up all the same."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def run(
        self, function: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT
    ) -> ResultT:
        await self._executor.run(function, *arguments)
        raise OSError(errno.ETIMEDOUT, "timed out")


@pytest.mark.expect_log("can't write the header", "is suspect")
async def test_a_change_that_arrived_too_late_keeps_no_disk_away(rig: Rig) -> None:
    """It counts as one that never happened, but the disks have it."""
    async with rig.open(OPTIONS) as pool:
        membership = pool.foundation.membership
        disks = pool.foundation.disks.all()
        executors = [disk.executor for disk in disks]
        for disk in disks:
            assert disk.executor is not None
            disk.executor = Late(disk.executor)  # type: ignore[assignment]  # all that is asked for
        try:
            with pytest.raises(NotEnoughDisksError):
                await membership.change_header(lambda header: replace(header, name="late"))
        finally:
            for disk, executor in zip(disks, executors, strict=True):
                disk.executor = executor
        assert pool.foundation.header.name == "rig"
        late = read_header(rig.disks[0])
        assert late.header.name == "late"
        membership.verify(late)
        await membership.change_header(lambda header: replace(header, name="next"))
        assert read_header(rig.disks[0]).header.generation > late.header.generation

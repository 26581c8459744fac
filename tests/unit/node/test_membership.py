"""Changes of the pool header while disks come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import msgspec
import pytest

from dwfs.disk import Executor, read_header
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
                lambda header: msgspec.structs.replace(header, name="renamed")
            )
        finally:
            one.executor, other.executor = executors
        assert pool.foundation.header.name == "renamed"
        assert [read_header(disk).header.name for disk in rig.disks] == ["renamed", "renamed"]

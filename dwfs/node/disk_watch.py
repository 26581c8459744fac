"""Watching the disks: is each still there, and how much room is left.

A disk's own errors are only seen when it is used; one that vanishes while nobody reads must be found
too, because the next failure counts from there. So every disk's identity is looked at once a
second, past the page cache, in a thread of its own: a disk that hangs must not hide the others. A probe
that does not come back in time makes the disk missing, for whoever used it would hang as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from dwfs.disk import DiskCondition, DiskExecutor, free_space, probe
from dwfs.limits import DISK_HANG_SECONDS, DISK_PROBE_SECONDS
from dwfs.node.disks import PoolDisk, PoolDisks
from dwfs.node.status import DiskState

_SPACE_SECONDS: Final = 2.0  # how old the free space that writes are admitted against may be
_VERDICTS: Final[dict[DiskCondition, tuple[DiskState, str]]] = {
    DiskCondition.MISSING: ("missing", "its directory is gone or holds no dwfs disk"),
    DiskCondition.FOREIGN: ("missing", "another disk is in its place"),
    DiskCondition.UNREADABLE: ("missing", "its identity can't be read"),
    DiskCondition.READ_ONLY: ("failing", "its filesystem has become read-only"),
}


async def watch_disks(disks: PoolDisks, interval_seconds: float = DISK_PROBE_SECONDS) -> None:
    """Probe all disks for ever."""
    async with trio.open_nursery() as nursery:
        for disk in disks.all():
            if disk.state != "missing":
                nursery.start_soon(_watch, disks, disk, interval_seconds)


async def watch_space(disks: PoolDisks, interval_seconds: float = _SPACE_SECONDS) -> None:
    """Measure free space for ever. Disks that share a filesystem are told their part of it."""
    executor = DiskExecutor("space", threads=1)
    try:
        while True:
            await trio.sleep(interval_seconds)
            await measure_space(disks, executor)
    finally:
        executor.close()


async def measure_space(disks: PoolDisks, executor: DiskExecutor) -> None:
    """Measure free space once."""
    directories = [disk.directory for disk in disks.all() if disk.state != "missing"]
    measured = await executor.run(free_space, directories)
    for disk in disks.all():
        if disk.store is not None and disk.directory in measured:
            disk.store.update_space(measured[disk.directory])


async def _watch(disks: PoolDisks, disk: PoolDisk, interval_seconds: float) -> None:
    executor = DiskExecutor(f"probe-{disk.id.hex()[:8]}", threads=1)
    try:
        while disk.state != "missing":
            await trio.sleep(interval_seconds)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_notice_hang, disks, disk)
                condition = await executor.run(probe, Path(disk.directory), disk.id)
                nursery.cancel_scope.cancel()
            verdict = _VERDICTS.get(condition)
            if verdict is not None:
                disks.change_state(disk, *verdict)
    finally:
        executor.close()


async def _notice_hang(disks: PoolDisks, disk: PoolDisk) -> None:
    await trio.sleep(DISK_HANG_SECONDS)
    disks.change_state(disk, "missing", f"it does not answer for {DISK_HANG_SECONDS:.0f} s")

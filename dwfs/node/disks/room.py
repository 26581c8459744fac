"""Measuring how much room is left on each disk.

Each disk is asked in its own threads, so that one that hangs leaves the others' figures fresh. Disks
that share a filesystem are told their part of it.
"""

from __future__ import annotations

import trio

from dwfs.disk import Executor, Medium, MediumSpace, share_space
from dwfs.node.disks.listing import PoolDisk, PoolDisks
from dwfs.node.disks.timing import DiskTiming


async def watch_space(disks: PoolDisks, medium: Medium, timing: DiskTiming) -> None:
    """Measure free space, and compare the disks' speed, for ever."""
    while True:
        await trio.sleep(timing.space_seconds)
        await measure_space(disks, medium)
        disks.judge_slowness()


async def measure_space(disks: PoolDisks, medium: Medium) -> None:
    """Measure free space once. Disks that can't be asked keep their old figures."""
    found: dict[PoolDisk, MediumSpace] = {}
    # The slowest disk answers last; what the others have put or deleted until then must still count.
    marks: dict[PoolDisk, int] = {}

    # The executor is taken now: the disk may be taken down before its task begins.
    async def measure(disk: PoolDisk, executor: Executor) -> None:
        try:
            found[disk] = await executor.run(medium.space, disk.directory)
            if disk.store is not None:
                marks[disk] = disk.store.space_mark()
        except OSError:
            return  # the probe, not the space count, tells what is wrong with it

    async with trio.open_nursery() as nursery:
        for disk in disks.all():
            if disk.store is not None and disk.executor is not None:
                nursery.start_soon(measure, disk, disk.executor)
    for disk, space in share_space(found).items():
        if disk.store is not None:
            disk.store.update_space(space, marks.get(disk))

"""Micro benchmark of `append`: `python -m tests.sim.log_benchmark DIR` (three directories in DIR)."""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import trio

from dwfs.disk.executor import DiskExecutor
from dwfs.log import LogDisk, LogSettings, MirroredLog, PosixMedium
from dwfs.types import LogSequence
from tests.sim.log_rig import POOL, VOLUMES, GcmCipher, disk_id


async def measure(root: Path, count: int, size: int, *, parallel: bool) -> None:
    """Print the percentiles of `count` appends of `size` bytes on three disks."""
    disks = [LogDisk(disk_id(number), root / f"d{number}") for number in range(3)]
    for disk in disks:
        disk.directory.mkdir(parents=True, exist_ok=True)
    settings = LogSettings(
        POOL,
        3,
        GcmCipher(),
        lambda: disks,
        lambda name: DiskExecutor(name, 1),
        lambda disk, error: print("failed", disk.hex(), error),
        os.urandom,
        PosixMedium(),
    )
    volume = VOLUMES[0]
    inventory = MirroredLog.recover(
        {disk.disk: disk.directory for disk in disks}, POOL, GcmCipher(), PosixMedium()
    )
    tail = inventory.tails.get(volume)
    first = tail.sequence if tail is not None else LogSequence(1)
    log = await MirroredLog.open(settings, inventory, {volume: (GcmCipher(), first)})
    if parallel:
        log._files._estimator.sequential = lambda *_: False  # type: ignore[method-assign]  # force it
    payload = os.urandom(size)
    times = []
    for number in range(count):
        before = time.perf_counter()
        sequence = LogSequence(first + number)
        await log.append(volume, payload, sequence, sequence)
        times.append(time.perf_counter() - before)
    await log.trim(volume, LogSequence(first + count - 1))
    await log.close()
    times.sort()
    way = "parallel  " if parallel else "adaptive  "
    print(
        f"{way} {size:>8} B  median {statistics.median(times) * 1e6:7.0f} µs  "
        f"p90 {times[int(count * 0.9)] * 1e6:7.0f} µs  p99 {times[int(count * 0.99)] * 1e6:7.0f} µs"
    )


async def main() -> None:
    """All sizes, both ways."""
    root = Path(sys.argv[1])
    for size, count in ((4608, 2000), (65536, 500), (1 << 20, 50)):
        for parallel in (False, True):
            await measure(root, count, size, parallel=parallel)


if __name__ == "__main__":
    trio.run(main)

"""The status of an open pool, as its owner knows it."""

from __future__ import annotations

import os

from dwfs.erasure import describe
from dwfs.node.assembly import Pool
from dwfs.node.status import PoolStatus, UsageStatus, WorkStatus, assess, explain


def report_status(pool: Pool) -> PoolStatus:
    """What `dwfs status` shows; microseconds, no I/O."""
    header = pool.foundation.header
    parity = header.geometry.parity
    disks = [disk.status() for disk in pool.foundation.disks.all()]
    short_stripes, short_by = pool.redundancy.short_stripes, pool.redundancy.short_by
    health, left = assess(parity, [disk.state for disk in disks], short_by)
    return PoolStatus(
        pool=pool.name,
        uuid=pool.config.uuid,
        pid=os.getpid(),
        health=health,
        redundancy_left=left,
        data=header.geometry.data,
        parity=parity,
        disks=disks,
        usage=UsageStatus(
            logical_bytes=pool.volume.usage().allocated_bytes,
            stored_bytes=sum(disk.used_bytes or 0 for disk in disks),
            free_bytes=pool.stripes.free_bytes(),
        ),
        work=_work(pool),
        mountpoint=pool.options.mountpoint,
        erasure="isa-l" if describe().startswith("ISA-L") else "zfec",
        unforeseen_errors=pool.supervisor.unforeseen_errors + pool.options.unforeseen_errors(),
        read_only=pool.read_only,
        degraded_stripes=short_stripes,
        advice=[*explain(health, left, parity, disks, short_stripes), *_complaints(pool)],
    )


def _complaints(pool: Pool) -> list[str]:
    """What stands in the way of writing, besides the disks."""
    lines = []
    if pool.read_only:
        lines.append("read-only, because too many disks are gone; attach them and mount again")
    if pool.volume.frozen:
        lines.append(pool.volume.frozen)
    if pool.log is not None:
        status = pool.log.status()
        if status.copies < status.copies_wanted:
            lines.append(
                f"the log has {status.copies} of {status.copies_wanted} copies, for want of disks"
            )
    return lines


def _work(pool: Pool) -> list[WorkStatus]:
    work = pool.work.current()
    in_flight = pool.stripes.counters().in_flight
    if in_flight:
        work.append(WorkStatus("write", f"writing {in_flight} stripes"))
    return work

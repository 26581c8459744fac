"""The status of an open pool, as its owner knows it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import msgspec

from dwfs.erasure import describe
from dwfs.node.assembly import Pool
from dwfs.node.disks.listing import PoolDisk
from dwfs.node.status import (
    DiskStatus,
    IfAdded,
    PoolStatus,
    ScrubStatus,
    SnapshotSummary,
    SpaceStatus,
    UsageStatus,
    WorkStatus,
    assess,
    explain,
)
from dwfs.stripe import DiskRoom, forecast, recommend, room_of
from dwfs.types import Geometry, StripeId

_WORTH_ANOTHER_CODE: Final = 1.05  # less gain is not worth making a pool anew


def report_status(pool: Pool, if_added_bytes: int | None = None) -> PoolStatus:
    """What `dwfs status` shows; microseconds, no I/O.

    `if_added_bytes`: tell what a disk of that size would give; default: one like the largest.
    """
    header = pool.foundation.header
    parity = header.geometry.parity
    disks = disk_statuses(pool)
    count = pool.redundancy
    health, left = assess(
        header.geometry,
        [disk.state for disk in disks],
        count.short_by,
        counted=count.counted,
        unreadable_stripes=count.unreadable_stripes,
    )
    lines = explain(health, left, parity, disks, count.short_stripes, count.unreadable_stripes)
    services = pool.services
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
            stored_bytes=sum(disk.shard_bytes or 0 for disk in disks),
            free_bytes=pool.stripes.free_bytes(),
        ),
        work=_work(pool),
        mountpoint=pool.options.mountpoint,
        erasure="isa-l" if describe().startswith("ISA-L") else "zfec",
        unforeseen_errors=pool.supervisor.unforeseen_errors + pool.options.unforeseen_errors(),
        read_only=pool.read_only,
        degraded_stripes=count.short_stripes,
        advice=[*lines, *_complaints(pool), *_scrub_advice(pool)],
        unreadable_stripes=count.unreadable_stripes,
        jobs=[] if services is None else services.statuses(),
        finished_jobs=[] if services is None else list(services.jobs.book.finished),
        scrub=None if services is None else services.scrub.status(),
        space=_space(pool, if_added_bytes),
        history=pool.foundation.disks.history(),
        snapshots=_snapshots(pool),
    )


def disk_statuses(pool: Pool) -> list[DiskStatus]:
    """All disks, with what log and snapshots take on them."""
    members = pool.foundation.disks.all()
    statuses = pool.foundation.disks.statuses()
    return [_with_log(pool, *pair) for pair in zip(members, statuses, strict=True)]


def disk_status(pool: Pool, disk: PoolDisk) -> DiskStatus | None:
    """One disk; None if it is no member any more."""
    for member, status in zip(
        pool.foundation.disks.all(), pool.foundation.disks.statuses(), strict=True
    ):
        if member.id == disk.id:
            return _with_log(pool, member, status)
    return None


def _with_log(pool: Pool, disk: PoolDisk, status: DiskStatus) -> DiskStatus:
    if pool.log is None or pool.snapshots is None or status.used_bytes is None:
        return status
    log_bytes = pool.log.used_bytes(disk.id) + pool.snapshots.used_bytes(disk.id)
    return msgspec.structs.replace(
        status, log_bytes=log_bytes, used_bytes=status.used_bytes + log_bytes
    )


def _snapshots(pool: Pool) -> SnapshotSummary:
    volume = pool.volume
    snapshots = volume.snapshots()
    return SnapshotSummary(
        count=len(snapshots),
        automatic=sum(1 for one in snapshots if one.automatic),
        kept_bytes=volume.kept_bytes,
        reaping=volume.reaping,
        newest_ns=snapshots[-1].time_ns if snapshots else None,
    )


def _space(pool: Pool, if_added_bytes: int | None) -> SpaceStatus | None:
    geometry = pool.foundation.header.geometry
    stores = pool.foundation.disks.writable()
    rooms = [room_of(store.disk, store.space()) for store in stores]
    if not rooms:
        return None
    now = forecast(rooms, geometry)
    if if_added_bytes is None:
        if_added_bytes = max(store.space().size_bytes for store in stores)
    then = forecast(rooms, geometry, if_added_bytes)
    return SpaceStatus(
        usable_bytes=now.usable_bytes,
        free_bytes=pool.stripes.free_bytes(),
        stranded_bytes=now.stranded_bytes,
        geometry_advice=_geometry_advice(rooms, geometry, now.usable_bytes),
        if_added=IfAdded(
            disk_bytes=if_added_bytes,
            usable_bytes=then.usable_bytes,
            gained_bytes=then.usable_bytes - now.usable_bytes,
            stranded_bytes=then.stranded_bytes,
        ),
    )


def _geometry_advice(rooms: Sequence[DiskRoom], geometry: Geometry, usable_bytes: int) -> str:
    best = recommend([room.capacity_bytes for room in rooms], geometry.parity)
    if best is None or best == geometry:
        return ""
    gain = forecast(rooms, best).usable_bytes
    if gain < usable_bytes * _WORTH_ANOTHER_CODE:
        return ""
    percent = round(100 * gain / usable_bytes - 100) if usable_bytes else 100
    return (
        f"a new pool with a {best.data}+{best.parity} code would hold {percent} % more on these "
        "disks, with as many that may fail"
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


def _scrub_advice(pool: Pool) -> list[str]:
    scrub = ScrubStatus("never") if pool.services is None else pool.services.scrub.status()
    if pool.services is None or not scrub.unrepairable:
        return []
    # Deleted or overwritten since, or their files restored: nothing of them is needed any more.
    lost = pool.services.jobs.book.lost_stripes
    if lost and not any(pool.volume.catalog.seal_of(StripeId(stripe)) for stripe in lost):
        return []
    files = ", ".join(scrub.damaged_files[:3])
    more = len(scrub.damaged_files) - 3
    files += f" and {more} more" if more > 0 else ""
    text = f"the last scrub found {scrub.unrepairable} stripes that can't be repaired; files: "
    return [f"{text}{files or 'none'}; restore them from a backup"]


def _work(pool: Pool) -> list[WorkStatus]:
    work = pool.work.current()
    in_flight = pool.stripes.counters().in_flight
    if in_flight:
        work.append(WorkStatus("write", f"writing {in_flight} stripes"))
    return work

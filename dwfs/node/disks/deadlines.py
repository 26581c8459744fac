"""Nobody waits for a disk for ever: what takes too long is given up, and a disk that hangs is missing.

Looked at several times a second, as long as anything uses the disks, recovery and closing included.
Three steps, per disk:

1. an operation that takes longer than the deadline is given up: its caller gets an error and turns
   to other disks (`Executor.expire`);
2. while such an operation is still under way in the kernel the disk is stalled: it is asked nothing,
   and is suspect;
3. if that goes on for too long, the disk is missing.

When `parity` other disks are out of service or stalled already, giving up would only turn a delay into
an error: it's the machine that is slow then, or nothing is left to turn to. So the deadline is as long
as that of step 3.
"""

from __future__ import annotations

from dwfs.node.disks.listing import PoolDisk, PoolDisks
from dwfs.node.disks.states import DiskEvent
from dwfs.node.disks.timing import DiskTiming


def look_at_answers(disks: PoolDisks, now: float, timing: DiskTiming) -> None:
    """Give up what is overdue, and tell the states of disks what that means. Never awaits."""
    for disk in disks.all():
        _look(disks, disk, now, timing)
    disks.look_at_time()


def _look(disks: PoolDisks, disk: PoolDisk, now: float, timing: DiskTiming) -> None:
    executors = [one for one in (disk.executor, disk.prober) if one is not None]
    deadline_seconds = timing.deadline_seconds if disks.can_spare(disk) else timing.hang_seconds
    for executor in executors:
        executor.expire(now, deadline_seconds)
    if disk.state in ("missing", "offline"):
        return
    stalled = any(executor.stalled for executor in executors)
    if stalled and not disk.machine.stalled:
        reason = f"it has not answered for {timing.deadline_seconds:.0f} s"
        disks.note(disk.id, DiskEvent.STALLED, reason)
    elif not stalled and disk.machine.stalled:
        disks.note(disk.id, DiskEvent.ANSWERED, "it answers again")
    oldest = max((executor.oldest_seconds(now) for executor in executors), default=0.0)
    if stalled and oldest >= timing.hang_seconds:
        reason = f"it does not answer for {timing.hang_seconds:.0f} s"
        disks.note(disk.id, DiskEvent.HUNG, reason)

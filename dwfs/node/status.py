"""What a pool says about itself: the answer to `dwfs status`.

The health model is deliberately small, because it is read by people who don't know what parity is:

- `healthy`:  every disk works and all data has its full redundancy;
- `degraded`: something is gone, but at least one more disk may fail without loss;
- `at-risk`:  nothing is lost, but the next failure loses data;
- `failed`:   more disks are gone than the code can replace; some data can't be read.

It is conservative: a disk that is only failing counts as lost, although it is still read, and a
pool with more disks than a stripe has shards is judged as if every stripe used every disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Health = Literal["healthy", "degraded", "at-risk", "failed"]
DiskState = Literal["online", "missing", "failing"]


class DiskStatus(msgspec.Struct, frozen=True):
    """One disk of the pool."""

    id: str
    path: str
    state: DiskState
    size_bytes: int | None
    used_bytes: int | None  # by dwfs
    errors: int  # failed operations since the pool was opened
    reason: str = ""  # why the state is not "online"; for people


class UsageStatus(msgspec.Struct, frozen=True):
    """Space, in bytes. `None` where only the owner of the pool could tell."""

    logical_bytes: int | None  # what users have stored
    stored_bytes: int | None  # what the disks hold for it, redundancy included
    free_bytes: int | None  # what users may still store


class WorkStatus(msgspec.Struct, frozen=True):
    """One background activity."""

    kind: str
    detail: str
    done: int | None = None
    total: int | None = None


class PoolStatus(msgspec.Struct, frozen=True):
    """All that `dwfs status --json` prints; field names are stable."""

    pool: str
    uuid: str
    pid: int | None  # of the owning process; null if the pool is not open
    health: Health
    redundancy_left: int  # disks that may still fail without loss
    data: int
    parity: int
    disks: list[DiskStatus]
    usage: UsageStatus
    work: list[WorkStatus]
    mountpoint: str | None
    erasure: str | None  # "isa-l" or "zfec"; null if the pool is not open
    unforeseen_errors: int  # exceptions that no code expected; each is in the log
    read_only: bool
    degraded_stripes: int | None  # stripes that were written with fewer shards than they should
    advice: list[str]  # for people: what failed, how much more may fail, what is being done


def assess(
    parity: int, states: Sequence[DiskState], stripes_short_by: int = 0
) -> tuple[Health, int]:
    """Health and redundancy left of a pool whose disks are in `states`.

    `stripes_short_by` is the largest number of shards that any stripe was written without.
    """
    lost = sum(1 for state in states if state != "online")
    gone = sum(1 for state in states if state == "missing")
    left = max(0, parity - max(lost, stripes_short_by))
    if gone > parity:
        return "failed", 0
    if lost == 0 and stripes_short_by == 0:
        return "healthy", parity
    return ("degraded" if left else "at-risk"), left


def explain(
    health: Health, left: int, parity: int, disks: Sequence[DiskStatus], degraded_stripes: int
) -> list[str]:
    """The advice lines that go with a health, most important first."""
    lines = []
    for disk in disks:
        if disk.state != "online":
            reason = f": {disk.reason}" if disk.reason else ""
            lines.append(f"disk {disk.path} is {disk.state}{reason}")
    if degraded_stripes:
        lines.append(
            f"{degraded_stripes} stripes lack a shard, because a disk was gone when written"
        )
    match health:
        case "healthy":
            lines.append(f"all disks work; any {_disks(left)} may fail without loss of data")
        case "degraded":
            lines.append(f"no data is lost; {_disks(left)} more may fail without loss")
        case "at-risk":
            lines.append("no data is lost, but ONE MORE failed disk loses data: act now")
        case "failed":
            gone = sum(1 for disk in disks if disk.state == "missing")
            lines.append(
                f"{_disks(gone)} are gone but only {parity} can be replaced from redundancy; "
                "what needs them answers EIO until they are back"
            )
    return lines


def _disks(count: int) -> str:
    return "1 disk" if count == 1 else f"{count} disks"

"""What a pool says about itself: the answer to `dwfs status`.

The health model is deliberately small, because it is read by people who don't know what parity is:

- `healthy`:  every disk works and all data has its full redundancy;
- `degraded`: something is gone, but at least one more disk may fail without loss;
- `at-risk`:  nothing is lost, but the next failure loses data;
- `failed`:   more is gone than the code can replace; some data can't be read.

Between a disk's failure and the end of the next count of all stripes only the disks are known, and
the verdict is conservative: every disk that does not work in full counts as lost, although a
failing or suspect one is still read, and although no stripe may use all of the lost ones. Once the
stripes were counted against the disks as they are now, the worst stripe decides: a disk that is
gone for good, but whose shards were all rebuilt elsewhere, takes nothing from what may still fail,
as long as the disks that are left are enough for stripes with all their shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from dwfs.types import Geometry

Health = Literal["healthy", "degraded", "at-risk", "failed"]
DiskState = Literal["online", "suspect", "offline", "missing", "failing", "removing"]
JobKind = Literal["scrub", "repair", "remove", "balance", "replace"]
JobState = Literal["running", "waiting", "stopped", "finished", "failed"]

# A disk in one of these states works in full, even if it is to be emptied.
_WORKING: Final[frozenset[DiskState]] = frozenset({"online", "removing"})
# A disk in one of these states gives nothing.
_UNREADABLE: Final[frozenset[DiskState]] = frozenset({"missing", "offline"})


class DiskStatus(msgspec.Struct, frozen=True):
    """One disk of the pool."""

    id: str
    path: str
    state: DiskState
    size_bytes: int | None
    used_bytes: int | None  # by dwfs: shards, log and snapshots
    errors: int  # failed operations since the pool was opened
    reason: str = ""  # why the state is not "online"; for people
    label: str = ""
    free_bytes: int | None = None  # that shards may still take
    shard_bytes: int | None = None  # of used_bytes
    log_bytes: int | None = None  # of used_bytes: log and snapshots
    errors_by_kind: dict[str, int] = {}  # "read", "write", "checksum", "timeout", …
    latency_seconds: float | None = None  # smoothed mean of reads
    latency_high_seconds: float | None = None  # what few reads exceed
    slow: str = ""  # a sentence when it is much slower than the others
    since_ns: int | None = None  # when the state began


class StateChange(msgspec.Struct, frozen=True):
    """A disk that went from one state to another."""

    at_ns: int  # since the Unix epoch
    disk: str  # path
    before: DiskState
    after: DiskState
    reason: str


class UsageStatus(msgspec.Struct, frozen=True):
    """Space, in bytes. `None` where only the owner of the pool could tell."""

    logical_bytes: int | None  # what users have stored
    stored_bytes: int | None  # what the disks hold for it, redundancy included
    free_bytes: int | None  # what users may still store


class IfAdded(msgspec.Struct, frozen=True):
    """What one more disk would give."""

    disk_bytes: int  # of the disk's filesystem
    usable_bytes: int  # of the pool then
    gained_bytes: int
    stranded_bytes: int  # on the disks then, beyond what stripes can use


class SpaceStatus(msgspec.Struct, frozen=True):
    """Space for planning: bytes of user data unless said otherwise."""

    usable_bytes: int  # of the empty pool
    free_bytes: int
    stranded_bytes: int  # raw bytes on disks that no stripe can ever use
    geometry_advice: str = ""  # another code that would use these disks better; or empty
    if_added: IfAdded | None = None


class WorkStatus(msgspec.Struct, frozen=True):
    """One background activity."""

    kind: str
    detail: str
    done: int | None = None
    total: int | None = None


class JobStatus(msgspec.Struct, frozen=True):
    """Long work that people start, wait for and stop, or that the pool started to heal itself."""

    kind: JobKind
    state: JobState
    detail: str  # what it is doing, or what it waits for
    disk: str = ""  # path of the disk that it is about, if it is about one
    done_bytes: int = 0
    total_bytes: int | None = None  # None: not known yet
    done_stripes: int = 0
    total_stripes: int | None = None
    bytes_per_second: float | None = None
    seconds_left: float | None = None
    started_ns: int = 0
    ended_ns: int | None = None
    result: str = ""  # of one that ended


class DiskAnswer(msgspec.Struct, frozen=True):
    """The answer to a request that concerns one disk, or all of them (balancing)."""

    disk: DiskStatus | None
    text: str  # one line for people
    job: JobStatus | None = None  # what goes on in the background because of it
    done: bool = True  # nothing is left to do


class DiskScrubStatus(msgspec.Struct, frozen=True):
    """How far a scrub is on one disk."""

    path: str
    state: str  # "waiting", "running", "done", "skipped"
    done_bytes: int
    total_bytes: int | None


class ScrubStatus(msgspec.Struct, frozen=True):
    """The scrub that runs, or was stopped, or else the last one that ended."""

    state: Literal["never", "idle", "running", "stopped"]
    started_ns: int | None = None
    ended_ns: int | None = None
    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_second: float | None = None
    seconds_left: float | None = None
    faults: dict[str, int] = {}  # by kind of fault
    repaired: int = 0  # shards
    unrepairable: int = 0  # stripes
    unrepaired: int = 0  # shards that could not be repaired yet: no disk had room, or one failed
    damaged_files: list[str] = []  # that unrepairable stripes belong to
    every_days: float | None = None  # None: never by itself
    due_ns: int | None = None  # when the next one begins by itself
    disks: list[DiskScrubStatus] = []


class SnapshotStatus(msgspec.Struct, frozen=True):
    """One snapshot."""

    name: str
    created_ns: int
    unique_bytes: int  # that come back when it alone is destroyed
    logical_bytes: int  # what users had stored then
    inodes: int  # files of all types then
    automatic: bool  # taken by the schedule


class SnapshotList(msgspec.Struct, frozen=True):
    """What `dwfs snapshot list --json` prints."""

    pool: str
    snapshots: list[SnapshotStatus]  # oldest first
    kept_bytes: int  # that are there for all snapshots together, and not in use any more
    reaping: int  # destroyed snapshots whose space has not wholly come back


class SnapshotAnswer(msgspec.Struct, frozen=True):
    """The answer to a request that changes snapshots."""

    text: str  # one line for people
    snapshots: list[SnapshotStatus]  # that it concerned
    complete: bool = True  # one that was taken has all that was written before


class CloneAnswer(msgspec.Struct, frozen=True):
    """A file that was cloned."""

    pool: str
    size_bytes: int
    shared_bytes: int  # of these; the rest are holes


class SnapshotSummary(msgspec.Struct, frozen=True):
    """All snapshots of a pool together."""

    count: int
    automatic: int  # of them taken by the schedule
    kept_bytes: int  # as in SnapshotList
    reaping: int
    newest_ns: int | None  # when the last one was taken


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
    degraded_stripes: int | None  # readable stripes with fewer shards than they should have
    advice: list[str]  # for people: what failed, how much more may fail, what is being done
    unreadable_stripes: int | None = None  # with fewer shards than reading needs
    jobs: list[JobStatus] = []  # under way, waiting or stopped
    finished_jobs: list[JobStatus] = []  # newest first
    scrub: ScrubStatus | None = None
    space: SpaceStatus | None = None
    history: list[StateChange] = []  # of disks, oldest first
    snapshots: SnapshotSummary | None = None  # null if the pool is not open


def assess(
    geometry: Geometry,
    states: Sequence[DiskState],
    stripes_short_by: int = 0,
    *,
    counted: bool = False,
    unreadable_stripes: int = 0,
) -> tuple[Health, int]:
    """Health and redundancy left of a pool whose disks are in `states`.

    `stripes_short_by` is the largest number of sound shards that any stripe lacks. `counted` says
    that it was found with the disks as they are now. What is still to be written bears no more
    failures than leave as many disks as reading needs.
    """
    parity = geometry.parity
    lost = sum(1 for state in states if state not in _WORKING)
    gone = sum(1 for state in states if state in _UNREADABLE)
    short_by = stripes_short_by if counted else max(lost, stripes_short_by)
    if unreadable_stripes or (gone > parity and not counted):
        return "failed", 0
    left = max(0, min(parity - short_by, len(states) - lost - geometry.data))
    if lost == 0 and stripes_short_by == 0:
        return "healthy", parity
    return ("degraded" if left else "at-risk"), left


def explain(
    health: Health,
    left: int,
    parity: int,
    disks: Sequence[DiskStatus],
    degraded_stripes: int,
    unreadable_stripes: int = 0,
) -> list[str]:
    """The advice lines that go with a health, most important first."""
    lines = [_sentence(disk) for disk in disks if disk.state != "online"]
    lines += [f"disk {disk.path} is slow: {disk.slow}" for disk in disks if disk.slow]
    if unreadable_stripes:
        lines.append(
            f"{_count(unreadable_stripes, 'stripe')} can't be read in full now; "
            "`dwfs check` names the files that need them"
        )
    if degraded_stripes:
        lack = "lacks" if degraded_stripes == 1 else "lack"
        lines.append(f"{_count(degraded_stripes, 'stripe')} {lack} shards; nothing of them is lost")
    match health:
        case "healthy":
            lines.append(
                f"all disks work; any {_count(left, 'disk')} may fail without loss of data"
            )
        case "degraded":
            lines.append(f"no data is lost; {_count(left, 'disk')} more may fail without loss")
        case "at-risk":
            lines.append("no data is lost, but ONE MORE failed disk loses data: act now")
        case "failed":
            gone = sum(1 for disk in disks if disk.state in _UNREADABLE)
            if gone:
                are = "is" if gone == 1 else "are"
                lines.append(
                    f"{_count(gone, 'disk')} {are} gone but only {parity} can be replaced from "
                    "redundancy; what needs them answers EIO until they are back, and is whole then"
                )
    return lines


def _sentence(disk: DiskStatus) -> str:
    reason = f": {disk.reason}" if disk.reason else ""
    match disk.state:
        case "removing":
            return f"disk {disk.path} is being emptied, and leaves the pool when that is done"
        case "failing":
            return f"disk {disk.path} is failing{reason}; what it holds is moved: replace it"
        case "suspect":
            return f"disk {disk.path} is suspect{reason}; it is watched and gets no new data"
        case "offline":
            return f"disk {disk.path} is offline{reason}; 'dwfs disk online' brings it back"
        case _:
            return f"disk {disk.path} is {disk.state}{reason}"


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"

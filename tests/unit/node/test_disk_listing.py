"""What the pool knows of its disks: roles, patience, slow ones, and what counts against a disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs.disk.access import RETIRED
from dwfs.disk.faults import medium_error
from dwfs.errors import DiskFullError, DiskTimeoutError, MediumError, ShardMissingError
from dwfs.limits import HEDGE_SECONDS_MAX, HEDGE_SECONDS_MIN
from dwfs.node.disks.changes import Changes
from dwfs.node.disks.listing import PoolDisks, make_disk
from dwfs.node.disks.slowness import SLOW_FOR_SECONDS, SlownessJudge, patience_seconds
from dwfs.node.disks.states import DiskEvent
from dwfs.ports import DiskRole
from dwfs.types import DiskId

IDS = [DiskId(bytes([number]) * 16) for number in range(5)]


class HandClock:
    """Moved by hand."""

    seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wall_ns(self) -> int:
        return int(self.seconds * 1e9)


class AnyStore:
    """As much of a store as the listing asks for."""

    def read_latency(self) -> tuple[float | None, float | None]:
        return 0.004, 0.010


def listing(
    clock: HandClock, parity: int = 2, on_doubt: Callable[[DiskId], None] = lambda _disk: None
) -> PoolDisks:
    disks = [make_disk(one, Path(f"/disk{one[0]}"), "active", clock, present=True) for one in IDS]
    for disk in disks:
        disk.store = AnyStore()  # type: ignore[assignment]  # as much of it as is asked for
    return PoolDisks(disks, clock, parity, 900.0, on_doubt)


def state(disks: PoolDisks, disk: DiskId) -> str:
    found = disks.find(disk)
    assert found is not None
    return found.state


def test_strangers_are_gone() -> None:
    disks = listing(HandClock())
    assert disks.role(DiskId(b"stranger" * 2)) is DiskRole.GONE
    assert disks.role(DiskId(b"")) is DiskRole.GONE
    assert disks.get(DiskId(b"stranger" * 2)) is None
    disks.failed(OSError(5, "EIO"), DiskId(b"stranger" * 2))


@pytest.mark.expect_log("is suspect", "is failing")
def test_what_counts_against_a_disk() -> None:
    disks = listing(HandClock())
    disk = IDS[0]
    for harmless in (
        DiskFullError(disk, "put", "ENOSPC"),
        ShardMissingError(disk, "find", "no shard"),
        MediumError(disk, RETIRED, "the disk went away meanwhile"),
        MediumError(disk, "read", "EIO"),
    ):
        disks.failed(harmless, disk)
        assert state(disks, disk) == "online"
    disks.log_failed(disk, OSError(errno.ENOSPC, "full"))
    assert state(disks, disk) == "online"
    disks.failed(DiskTimeoutError(disk, "read", "timed out"), disk)
    assert state(disks, disk) == "suspect"
    assert disks.patience_seconds(disk) == 0.0
    disks.failed(MediumError(IDS[1], "sync", "EIO"), IDS[1])
    assert state(disks, IDS[1]) == "suspect"
    refused = OSError(errno.EROFS, "read-only")
    error = medium_error(IDS[2], "put", refused)
    error.__cause__ = refused
    disks.failed(error, IDS[2])
    assert state(disks, IDS[2]) == "failing"
    disks.log_failed(IDS[3], refused)
    assert state(disks, IDS[3]) == "failing"
    found = disks.find(disk)
    assert found is not None
    assert found.errors_by_kind == {"missing": 1, "read": 1, "timeout": 1}
    assert [change.after for change in disks.history()] == [
        "suspect",
        "suspect",
        "failing",
        "failing",
    ]


@pytest.mark.expect_log("is suspect", "is failing")
def test_what_makes_an_index_doubtful() -> None:
    """A filesystem that gave up has dropped what its page cache had promised, like a failed sync."""
    doubted: list[DiskId] = []
    disks = listing(HandClock(), on_doubt=doubted.append)
    disks.failed(MediumError(IDS[0], "read", "EIO"), IDS[0])
    disks.failed(DiskFullError(IDS[0], "put", "ENOSPC"), IDS[0])
    assert not doubted
    disks.failed(MediumError(IDS[1], "sync", "EIO"), IDS[1])
    disks.failed(OSError(errno.EROFS, "read-only"), IDS[2])
    disks.note(IDS[3], DiskEvent.READ_ONLY, "its filesystem has become read-only")
    assert doubted == [IDS[1], IDS[2], IDS[3]]


@pytest.mark.expect_log("is suspect")
def test_a_machine_that_is_slow_for_all_disks_goes_on_writing() -> None:
    disks = listing(HandClock(), parity=2)
    for disk in IDS:
        disks.note(disk, DiskEvent.STALLED, "late")
    assert disks.states() == ["suspect", "suspect", "online", "online", "online"]
    assert [disks.patience_seconds(disk) for disk in IDS] == [0.0] * 5
    assert len(disks.writable()) == 3


@pytest.mark.expect_log("is missing", "stays missing")
async def test_a_disk_that_stays_missing_is_told_once() -> None:
    clock = HandClock()
    disks = listing(clock)
    disks.note(IDS[0], DiskEvent.PROBE_MISSING, "unplugged")
    generation = disks.changes.generation
    clock.seconds = 899.0
    disks.look_at_time()
    assert disks.changes.generation == generation
    assert disks.role(IDS[0]) is DiskRole.AWAY
    clock.seconds = 900.0
    disks.look_at_time()
    disks.look_at_time()
    assert disks.changes.generation == generation + 1
    assert disks.role(IDS[0]) is DiskRole.GONE


async def test_nobody_misses_a_change() -> None:
    changes = Changes()
    seen: list[int] = []

    async def wait(generation: int) -> None:
        seen.append(await changes.after(generation))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait, 0)
        await trio.testing.wait_all_tasks_blocked()
        changes.note()
    assert seen == [1, 1, 1]
    changes.note()
    assert await changes.after(1) == 2  # it came before anybody waited


def test_patience() -> None:
    assert patience_seconds(None) == HEDGE_SECONDS_MAX
    assert patience_seconds(0.0001) == HEDGE_SECONDS_MIN
    assert patience_seconds(0.05) == 0.2
    assert patience_seconds(10.0) == HEDGE_SECONDS_MAX


def test_a_slow_disk_is_said_after_a_while() -> None:
    judge = SlownessJudge()
    means = dict.fromkeys(IDS, 0.008)
    means[IDS[3]] = 0.2
    judge.judge(means, 0.0)
    assert judge.note(IDS[3]) == ""
    judge.judge(means, SLOW_FOR_SECONDS)
    assert "200 ms" in judge.note(IDS[3])
    assert "8.0 ms" in judge.note(IDS[3])
    assert judge.note(IDS[0]) == ""
    means[IDS[3]] = 0.01
    judge.judge(means, SLOW_FOR_SECONDS + 1)
    assert judge.note(IDS[3]) == ""


def test_fast_disks_are_never_slow_and_neither_is_a_lone_one() -> None:
    judge = SlownessJudge()
    for now in (0.0, SLOW_FOR_SECONDS):
        judge.judge({IDS[0]: 0.0001, IDS[1]: 0.0001, IDS[2]: 0.015}, now)
    assert judge.note(IDS[2]) == ""
    for now in (100.0, 100.0 + SLOW_FOR_SECONDS):
        judge.judge({IDS[0]: 3.0}, now)
    assert judge.note(IDS[0]) == ""

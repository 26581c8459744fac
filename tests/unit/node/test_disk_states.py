"""The table of disk states, entry by entry, and how trouble is weighed over time."""

from __future__ import annotations

import random
import re
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from dwfs.node.disks.states import (
    TRANSITIONS,
    Bucket,
    DiskEvent,
    Rules,
    StateMachine,
    Wish,
)
from dwfs.node.status import DiskState
from dwfs.ports import DiskRole

E = DiskEvent
STATES: tuple[DiskState, ...] = get_args(DiskState)
DOCUMENT = Path(__file__).parents[3] / "docs" / "disk-states.md"
DAY = 86_400.0

# The whole table once more, in words that a person can compare with the document. Left: the state.
EXPECTED: dict[DiskState, str] = {
    "online": """
        suspect: write-error timeout stalled errors-many rot-many doubted probe-unreadable
        missing: probe-missing probe-foreign unusable hung
        failing: read-only health-failing
        offline: wish-offline
        removing: wish-remove""",
    "suspect": """
        online: cleared wish-online
        failing: relapsed errors-many rot-many read-only health-failing
        missing: probe-unreadable probe-missing probe-foreign unusable hung
        offline: wish-offline
        removing: wish-remove""",
    "failing": """
        online: wish-online
        missing: probe-unreadable probe-missing probe-foreign unusable hung
        offline: wish-offline
        removing: wish-remove""",
    "removing": """
        online: wish-keep
        missing: probe-unreadable probe-missing probe-foreign unusable hung""",
    "missing": """
        home: returned
        offline: wish-offline""",
    "offline": """
        missing: wish-online wish-remove""",
}


def expected_target(state: DiskState, event: DiskEvent) -> str | None:
    for line in EXPECTED[state].strip().splitlines():
        target, _, events = line.strip().partition(": ")
        if event.value in events.split():
            return target
    return None


@pytest.mark.parametrize(("state", "event"), list(product(STATES, DiskEvent)))
def test_the_table(state: DiskState, event: DiskEvent) -> None:
    assert TRANSITIONS[state].get(event) == expected_target(state, event)


def test_the_document_shows_the_table() -> None:
    text = DOCUMENT.read_text()
    for state, events in TRANSITIONS.items():
        for event, target in events.items():
            line = f"| {state} | `{event.value}` | {target} |"
            assert line in text, f"docs/disk-states.md lacks {line!r}"
    assert len(re.findall(r"^\| \w+ \| `", text, re.MULTILINE)) == sum(
        len(events) for events in TRANSITIONS.values()
    )


def machine(wish: Wish = "active", **rules: float) -> StateMachine:
    return StateMachine(wish, 0.0, present=True, rules=Rules(**rules))  # type: ignore[arg-type]  # numbers


def state_of(disk: StateMachine) -> str:
    """As a plain string: the type checker doesn't see that events change it."""
    return disk.state


def test_where_disks_are_at_first() -> None:
    assert machine().state == "online"
    assert machine("removing").state == "removing"
    assert machine("offline").state == "offline"
    assert StateMachine("active", 0.0, present=False, reason="gone").state == "missing"
    assert StateMachine("removing", 0.0, present=False).state == "missing"
    assert StateMachine("offline", 0.0, present=False).state == "offline"


def test_one_read_error_is_no_verdict() -> None:
    disk = machine()
    for year in range(50):
        assert disk.handle(E.READ_ERROR, year * 365 * DAY, "a bad sector") == []
    assert state_of(disk) == "online"


def test_many_read_errors_in_a_day_make_suspect_and_then_failing() -> None:
    disk = machine(errors_max=4)
    for second in range(4):
        changes = disk.handle(E.READ_ERROR, float(second), f"sector {second}")
    assert [change.after for change in changes] == ["suspect"]
    assert "4 errors" in disk.reason
    assert "sector 3" in disk.reason
    for second in range(4):
        disk.handle(E.READ_ERROR, 10.0 + second, "more")
    assert state_of(disk) == "failing"


def test_damage_within_a_minute_is_one_incident() -> None:
    disk = machine(rot_incidents_max=3)
    for tick in range(10_000):
        disk.handle(E.CHECKSUM, tick / 1000, "damaged")
    assert state_of(disk) == "online"
    disk.handle(E.CHECKSUM, 100.0, "damaged")
    assert state_of(disk) == "online"
    disk.handle(E.CHECKSUM, 200.0, "damaged")
    assert state_of(disk) == "suspect"


def test_probation_ends_after_good_probes_and_a_time_without_trouble() -> None:
    disk = machine(probation_probes=5, probation_seconds=10.0)
    disk.handle(E.WRITE_ERROR, 0.0, "EIO")
    assert state_of(disk) == "suspect"
    for second in range(1, 9):
        assert disk.handle(E.PROBE_OK, float(second), "") == []
    disk.handle(E.READ_ERROR, 9.0, "EIO")  # trouble begins the probation anew
    for second in range(10, 19):
        assert disk.handle(E.PROBE_OK, float(second), "") == []
    (change,) = disk.handle(E.PROBE_OK, 19.0, "")
    assert (change.before, change.after, change.event) == ("suspect", "online", E.CLEARED)
    assert disk.reason == ""


def test_no_probation_ends_while_an_operation_hangs() -> None:
    disk = machine(probation_probes=1, probation_seconds=1.0)
    disk.handle(E.STALLED, 0.0, "hangs")
    disk.handle(E.PROBE_OK, 50.0, "")
    assert state_of(disk) == "suspect"
    disk.handle(E.ANSWERED, 60.0, "")
    disk.handle(E.PROBE_OK, 61.0, "")
    assert state_of(disk) == "online"


def test_the_third_suspicion_in_a_day_makes_failing() -> None:
    disk = machine(probation_probes=1, probation_seconds=1.0)
    for hour in (0, 1):
        disk.handle(E.TIMEOUT, hour * 3600.0, "late")
        assert state_of(disk) == "suspect"
        disk.handle(E.PROBE_OK, hour * 3600.0 + 10, "")
        assert state_of(disk) == "online"
    changes = disk.handle(E.TIMEOUT, 2 * 3600.0, "late")
    assert [change.after for change in changes] == ["suspect", "failing"]
    assert "3 times" in disk.reason


def test_three_suspicions_in_three_days_do_not() -> None:
    disk = machine(probation_probes=1, probation_seconds=1.0)
    for day in range(10):
        disk.handle(E.TIMEOUT, day * 1.1 * DAY, "late")
        assert state_of(disk) == "suspect"
        disk.handle(E.PROBE_OK, day * 1.1 * DAY + 10, "")
        assert state_of(disk) == "online"


def test_lateness_makes_nobody_suspect_whom_redundancy_needs() -> None:
    disk = machine()
    assert disk.handle(E.TIMEOUT, 0.0, "late", may_suspect=False) == []
    assert disk.handle(E.STALLED, 0.0, "late", may_suspect=False) == []
    assert state_of(disk) == "online"
    assert disk.stalled  # but readers know
    disk.handle(E.WRITE_ERROR, 0.0, "EIO", may_suspect=False)
    assert state_of(disk) == "suspect"  # an error is no mere lateness


def test_a_disk_that_was_suspect_comes_back_on_probation() -> None:
    disk = machine()
    disk.handle(E.STALLED, 0.0, "hangs")
    disk.handle(E.HUNG, 30.0, "hangs on")
    assert state_of(disk) == "missing"
    changes = disk.handle(E.RETURNED, 100.0, "back")
    assert [change.after for change in changes] == ["online", "suspect"]
    assert not disk.stalled


def test_a_disk_that_was_only_unplugged_comes_back_as_it_was() -> None:
    for wish, state in (("active", "online"), ("removing", "removing")):
        disk = machine(wish)  # type: ignore[arg-type]  # both are wishes
        disk.handle(E.PROBE_MISSING, 0.0, "unplugged")
        disk.handle(E.RETURNED, 1.0, "plugged in")
        assert state_of(disk) == state


def test_roles() -> None:
    disk = machine()
    assert disk.role(0.0, 900.0) is DiskRole.KEEP
    disk.handle(E.WRITE_ERROR, 0.0, "EIO")
    assert disk.role(0.0, 900.0) is DiskRole.KEEP
    disk.handle(E.READ_ONLY, 0.0, "read-only")
    assert disk.role(0.0, 900.0) is DiskRole.LEAVE
    disk.handle(E.PROBE_MISSING, 10.0, "gone")
    assert disk.role(909.0, 900.0) is DiskRole.AWAY
    assert disk.role(910.0, 900.0) is DiskRole.GONE
    disk.handle(E.WISH_OFFLINE, 1000.0, "service")
    assert disk.role(10**9, 900.0) is DiskRole.AWAY
    disk.handle(E.WISH_REMOVE, 1001.0, "remove")
    assert disk.role(1001.0, 900.0) is DiskRole.GONE  # nobody waits for what is to leave


def test_a_missing_disk_that_is_to_leave_is_not_waited_for() -> None:
    disk = machine()
    disk.handle(E.PROBE_MISSING, 0.0, "gone")
    assert disk.role(1.0, 900.0) is DiskRole.AWAY
    disk.handle(E.WISH_REMOVE, 1.0, "remove")
    assert disk.role(1.0, 900.0) is DiskRole.GONE
    disk.handle(E.WISH_KEEP, 2.0, "keep")
    assert disk.role(2.0, 900.0) is DiskRole.AWAY


def test_the_state_follows_the_wish_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        disk = machine(probation_probes=2, probation_seconds=5.0, errors_max=3)
        now = 0.0
        for _ in range(100):
            now += chance.choice((0.1, 1.0, 100.0, 3600.0))
            before = disk.state
            changes = disk.handle(
                chance.choice(list(DiskEvent)), now, "why", may_suspect=chance.random() < 0.5
            )
            assert (disk.state == "offline") == (disk.wish == "offline")
            if disk.state == "removing":
                assert disk.wish == "removing"
            if disk.state == "online":
                assert disk.wish == "active"
            for change in changes:
                assert change.before == before
                assert change.after != before or change.event is E.RETURNED
                before = change.after
            assert before == disk.state


def test_a_bucket_forgets_evenly() -> None:
    bucket = Bucket(3, forgotten_seconds=30.0)  # one each ten seconds
    assert not bucket.add(0.0)
    assert not bucket.add(0.0)
    assert not bucket.add(15.0)
    assert bucket.add(15.0)
    assert not bucket.add(15.0)

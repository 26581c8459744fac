"""A schedule takes what it says, keeps what it says, and never touches what people made."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dwfs.config import SnapshotSchedule
from dwfs.node.retention import due_snapshot, name_of, surplus_snapshots

USUAL = SnapshotSchedule(hourly=24, daily=7, weekly=4)
START = datetime(2026, 11, 21, 14, 0, 7, tzinfo=UTC)


class One(msgspec.Struct, frozen=True):
    """A snapshot, as far as the planner looks."""

    name: str
    time_ns: int
    automatic: bool = True


def nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def step(
    schedule: SnapshotSchedule, moment: datetime, snapshots: list[One]
) -> tuple[list[One], list[str]]:
    """What the owner does when it looks at the schedule: the snapshots then, and what it gave up."""
    name = due_snapshot(schedule, nanoseconds(moment), snapshots)
    if name is not None:
        snapshots = [*snapshots, One(name, nanoseconds(moment))]
    gone = surplus_snapshots(schedule, snapshots)
    return [one for one in snapshots if one.name not in gone], gone


def run(
    schedule: SnapshotSchedule,
    moment: datetime,
    until: datetime,
    every: timedelta,
    snapshots: list[One] | None = None,
) -> list[One]:
    snapshots = [] if snapshots is None else snapshots
    while moment < until:
        snapshots, _ = step(schedule, moment, snapshots)
        moment += every
    return snapshots


def kinds(snapshots: list[One]) -> Counter[str]:
    return Counter(one.name.rpartition("-")[2] for one in snapshots)


def test_names_sort_by_time_and_tell_their_kind() -> None:
    assert name_of(nanoseconds(START), 0) == "auto-2026-11-21T1400Z-hourly"
    names = [one.name for one in run(USUAL, START, START + timedelta(days=3), timedelta(minutes=9))]
    assert names == sorted(names)
    assert len(names) > 24


def test_the_first_takes_the_longest_kind_and_there_is_one_an_hour_after_it() -> None:
    snapshots, gone = step(USUAL, START, [])
    assert [one.name for one in snapshots] == ["auto-2026-11-21T1400Z-weekly"]
    assert gone == []
    for minutes in (1, 30, 59):
        assert step(USUAL, START + timedelta(minutes=minutes), snapshots)[0] == snapshots
    snapshots, _ = step(USUAL, START + timedelta(hours=1), snapshots)
    assert [one.name for one in snapshots][1:] == ["auto-2026-11-21T1500Z-hourly"]


def test_months_leave_what_the_schedule_says() -> None:
    schedule = SnapshotSchedule(hourly=24, daily=7, weekly=4, monthly=6)
    newest = START + timedelta(days=250)
    snapshots = run(schedule, START, newest, timedelta(hours=1))
    moments = [datetime.fromtimestamp(one.time_ns / 1e9, UTC) for one in snapshots]
    assert sum(moment >= newest - timedelta(hours=24) for moment in moments) == 24
    days = {moment.date() for moment in moments}
    assert all((newest - timedelta(days=back)).date() in days for back in range(1, 7))
    assert len({moment.isocalendar()[:2] for moment in moments}) >= 4
    assert len({(moment.year, moment.month) for moment in moments}) == 6
    assert 24 + 6 <= len(snapshots) <= 24 + 7 + 4 + 6


def test_after_a_long_time_off_one_is_taken_and_nothing_is_lost() -> None:
    snapshots = run(USUAL, START, START + timedelta(days=9), timedelta(minutes=20))
    before = len(snapshots)
    later = START + timedelta(days=100)
    after, gone = step(USUAL, later, snapshots)
    assert after[-1].time_ns == nanoseconds(later)
    assert len(gone) <= 3  # one of a kind made room for it
    assert len(after) >= before - 2
    assert step(USUAL, later + timedelta(seconds=30), after) == (after, [])


def test_people_s_own_are_left_alone_and_their_names_too() -> None:
    mine = [
        One("auto-2026-11-21T1400Z-weekly", 5, automatic=False),
        One("before-upgrade", 6, automatic=False),
        One("auto-received-hourly-or-what", 7),
    ]
    snapshots, gone = step(USUAL, START, mine)
    assert (snapshots, gone) == (mine, [])  # its name is taken for a minute
    snapshots, _ = step(USUAL, START + timedelta(minutes=1), mine)
    assert [one.name for one in snapshots[3:]] == ["auto-2026-11-21T1401Z-weekly"]
    snapshots = run(USUAL, START, START + timedelta(days=60), timedelta(hours=1), mine)
    assert snapshots[:3] == mine


def test_a_lost_schedule_loses_no_snapshot() -> None:
    snapshots = run(USUAL, START, START + timedelta(days=9), timedelta(minutes=20))
    assert step(SnapshotSchedule(), START + timedelta(days=10), snapshots) == (snapshots, [])


def test_a_kind_that_is_no_longer_wanted_goes() -> None:
    snapshots = run(USUAL, START, START + timedelta(days=9), timedelta(minutes=20))
    fewer = msgspec.structs.replace(USUAL, hourly=0)
    left, _ = step(fewer, START + timedelta(days=9), snapshots)
    assert kinds(left)["hourly"] == 0
    assert kinds(left)["daily"] >= 5
    left, _ = step(msgspec.structs.replace(USUAL, hourly=3), START + timedelta(days=9), snapshots)
    assert kinds(left)["hourly"] in (2, 3)


def test_a_clock_that_jumps_costs_a_few_places_and_not_the_rest() -> None:
    snapshots = run(USUAL, START, START + timedelta(days=9), timedelta(minutes=20))
    wrong = START + timedelta(days=36500)
    during, gone = step(USUAL, wrong, snapshots)
    assert len(gone) <= 3
    back = START + timedelta(days=9)
    after = run(USUAL, back, back + timedelta(hours=40), timedelta(minutes=20), during)
    hourly = [one for one in after if one.time_ns < nanoseconds(wrong)]
    assert len(hourly) >= 24


@given(
    st.builds(
        SnapshotSchedule,
        hourly=st.integers(0, 5),
        daily=st.integers(0, 5),
        weekly=st.integers(0, 5),
        monthly=st.integers(0, 5),
    ),
    st.lists(st.integers(-(10**6), 4 * 10**6), max_size=60),
)
def test_it_comes_to_rest_and_keeps_within_its_numbers(
    schedule: SnapshotSchedule, seconds: list[int]
) -> None:
    moment = START
    mine = One("mine", 1, automatic=False)
    snapshots = [mine]
    for more in seconds:
        moment += timedelta(seconds=more)
        snapshots, _ = step(schedule, moment, snapshots)
        assert step(schedule, moment, snapshots) == (snapshots, [])
        assert mine in snapshots
        wanted = sum(getattr(schedule, kind) for kind in schedule.__struct_fields__)
        assert len(snapshots) - 1 <= wanted

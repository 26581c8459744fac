"""Which snapshots a schedule takes now, and which of those that it took it gives up. No I/O.

Time is cut in periods: hours, days, weeks (Monday to Sunday) and months, all in UTC. The schedule says for
each kind of period how many of them are to be represented by a snapshot. In the first moment of a period
in which the pool is open, one is due. One moment takes one snapshot, of the longest kind that is due,
and it counts for the shorter kinds as well; so a pool that was closed for a month takes one when it is
opened, not one for each hour that it missed.

What is kept is counted, not aged: of each kind the newest so many periods that have a snapshot. A pool that
was closed for a month therefore still has its 24 hourly ones afterwards. Newer means taken later
(the order of the list), whatever the clock said then: a clock that was wrong for a day costs the places
that its snapshots took, and not everything else.

Only snapshots that a schedule took are ever given up, and of them only those whose name tells their
kind. A schedule without any kind gives up none: it may have got lost with the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from dwfs.config import SnapshotSchedule

# The shortest first: a snapshot counts for its own kind and for those before it.
KINDS: Final = ("hourly", "daily", "weekly", "monthly")
_PREFIX: Final = "auto-"

Period = tuple[int, ...]


class Taken(Protocol):
    """What the planner needs to know of a snapshot; `dwfs.volume.records.Snapshot`."""

    @property
    def name(self) -> str:
        """Unique in the volume."""

    @property
    def time_ns(self) -> int:
        """When it was taken, since the Unix epoch."""

    @property
    def automatic(self) -> bool:
        """Taken by a schedule."""


def due_snapshot(schedule: SnapshotSchedule, now_ns: int, snapshots: Sequence[Taken]) -> str | None:
    """The name of the snapshot that is to be taken now, or None. `snapshots`: all that there are."""
    ranked = _ranked(snapshots)
    due = [
        rank
        for rank, count in enumerate(_counts(schedule))
        if count
        and not any(
            other >= rank and _period(rank, one.time_ns) == _period(rank, now_ns)
            for other, one in ranked
        )
    ]
    if not due:
        return None
    name = name_of(now_ns, due[-1])
    # If somebody's own has that name: the next minute brings another.
    return None if any(one.name == name for one in snapshots) else name


def surplus_snapshots(schedule: SnapshotSchedule, snapshots: Sequence[Taken]) -> list[str]:
    """Names of the snapshots that no kind keeps any more, oldest first.

    `snapshots`: all that there are, in the order in which they were taken.
    """
    counts = _counts(schedule)
    if not any(counts):
        return []
    ranked = _ranked(snapshots)
    kept: set[str] = set()
    for rank, count in enumerate(counts):
        periods: set[Period] = set()
        for other, one in reversed(ranked):
            if len(periods) == count:
                break
            period = _period(rank, one.time_ns)
            if other >= rank and period not in periods:
                periods.add(period)
                kept.add(one.name)
    return [one.name for _, one in ranked if one.name not in kept]


def name_of(now_ns: int, rank: int) -> str:
    """`auto-2026-11-21T1400Z-hourly`: in the order of names is the order of time."""
    moment = datetime.fromtimestamp(now_ns // 10**9, UTC)
    return f"{_PREFIX}{moment:%Y-%m-%dT%H%MZ}-{KINDS[rank]}"


def _counts(schedule: SnapshotSchedule) -> list[int]:
    """How many are kept, by rank."""
    return [getattr(schedule, kind) for kind in KINDS]


def _ranked(snapshots: Sequence[Taken]) -> list[tuple[int, Taken]]:
    """The scheduled ones, each with its rank."""
    return [(rank, one) for one in snapshots if (rank := _rank(one)) is not None]


def _rank(one: Taken) -> int | None:
    """Place in `KINDS` of a scheduled snapshot, by its name; None: not one that may be given up."""
    kind = one.name.rpartition("-")[2]
    if not one.automatic or not one.name.startswith(_PREFIX) or kind not in KINDS:
        return None
    return KINDS.index(kind)


def _period(rank: int, time_ns: int) -> Period:
    """The period of that kind that the moment lies in."""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    match KINDS[rank]:
        case "hourly":
            return (moment.year, moment.month, moment.day, moment.hour)
        case "daily":
            return (moment.year, moment.month, moment.day)
        case "weekly":
            return tuple(moment.isocalendar()[:2])
        case _:
            return (moment.year, moment.month)

"""The states of a disk, and the table that says which event leads from one to another.

    online    works; takes new data
    suspect   on probation: it failed a write, did not answer in time, or erred too often. Still read,
              but others are asked first; it gets no new data
    failing   not to be relied on: its shards are copied elsewhere while it can still be read
    removing  an administrator wants it out; its shards are copied elsewhere
    missing   it does not answer, or is not there; after a time its shards are rebuilt elsewhere
    offline   an administrator took it away for a while; nothing is rebuilt

Three of them are what people wish (`wish`: "active", "offline", "removing"; kept in the pool header,
so they survive restarts), the others are found out while the pool is open, and forgotten with it.

Errors are weighed, not counted: each kind fills a bucket that leaks, so that one bad sector a year
is no verdict but many in a day are. Damaged shards weigh once a minute: one incident (a scratch, a bad
cable) shows in thousands of shards, and a disk that rotted once can still take their repair.

A disk returns from suspicion after a number of good probes and a time without trouble. The third
suspicion in a day makes it failing, and only people turn that back.

Suspicion for slowness alone is a luxury that redundancy must afford: while `parity` disks are not
online already, a disk that is late stays what it is (`may_suspect`), or a machine that is too slow
for all its disks would stop writing altogether.

The table is data, decided without I/O, printed in docs/disk-states.md, and tested entry by entry.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from dwfs.limits import DISK_ERRORS_MAX
from dwfs.node.status import DiskState
from dwfs.ports import DiskRole

Wish = Literal["active", "offline", "removing"]
Target = DiskState | Literal["home"]  # "home": where the wish wants the disk to be


class DiskEvent(enum.Enum):
    """What happens to a disk. The last group is concluded here, from the others and the time."""

    READ_ERROR = "read-error"
    WRITE_ERROR = "write-error"  # any operation that changes something, syncs included
    CHECKSUM = "checksum"  # a shard is not what was written
    TIMEOUT = "timeout"  # an operation was given up
    STALLED = "stalled"  # an operation that was given up is still under way
    ANSWERED = "answered"  # … and has ended now
    HUNG = "hung"  # … or has not for so long that nobody waits any more
    PROBE_OK = "probe-ok"
    PROBE_MISSING = "probe-missing"  # no such directory, or no dwfs disk in it
    PROBE_FOREIGN = "probe-foreign"  # another disk is in its place
    PROBE_UNREADABLE = "probe-unreadable"
    READ_ONLY = "read-only"  # its filesystem gave up writing
    HEALTH_FAILING = "health-failing"  # the disk says so itself
    UNUSABLE = "unusable"  # it is there, but its store could not be opened
    RETURNED = "returned"  # it was missing; now it is there, verified and opened

    WISH_OFFLINE = "wish-offline"
    WISH_ONLINE = "wish-online"
    WISH_REMOVE = "wish-remove"
    WISH_KEEP = "wish-keep"

    ERRORS_MANY = "errors-many"
    ROT_MANY = "rot-many"
    CLEARED = "cleared"  # probation is over
    RELAPSED = "relapsed"  # suspect too often
    DOUBTED = "doubted"  # it returned, but was suspect not long ago


_E = DiskEvent

# What is not listed changes nothing.
TRANSITIONS: Final[Mapping[DiskState, Mapping[DiskEvent, Target]]] = {
    "online": {
        _E.WRITE_ERROR: "suspect",
        _E.TIMEOUT: "suspect",
        _E.STALLED: "suspect",
        _E.ERRORS_MANY: "suspect",
        _E.ROT_MANY: "suspect",
        _E.DOUBTED: "suspect",
        _E.PROBE_UNREADABLE: "suspect",  # once may be chance
        _E.PROBE_MISSING: "missing",
        _E.PROBE_FOREIGN: "missing",
        _E.UNUSABLE: "missing",
        _E.HUNG: "missing",
        _E.READ_ONLY: "failing",
        _E.HEALTH_FAILING: "failing",
        _E.WISH_OFFLINE: "offline",
        _E.WISH_REMOVE: "removing",
    },
    "suspect": {
        _E.CLEARED: "online",
        _E.WISH_ONLINE: "online",
        _E.RELAPSED: "failing",
        _E.ERRORS_MANY: "failing",
        _E.ROT_MANY: "failing",
        _E.READ_ONLY: "failing",
        _E.HEALTH_FAILING: "failing",
        _E.PROBE_UNREADABLE: "missing",
        _E.PROBE_MISSING: "missing",
        _E.PROBE_FOREIGN: "missing",
        _E.UNUSABLE: "missing",
        _E.HUNG: "missing",
        _E.WISH_OFFLINE: "offline",
        _E.WISH_REMOVE: "removing",
    },
    "failing": {
        _E.WISH_ONLINE: "online",
        _E.PROBE_UNREADABLE: "missing",
        _E.PROBE_MISSING: "missing",
        _E.PROBE_FOREIGN: "missing",
        _E.UNUSABLE: "missing",
        _E.HUNG: "missing",
        _E.WISH_OFFLINE: "offline",
        _E.WISH_REMOVE: "removing",
    },
    "removing": {
        _E.WISH_KEEP: "online",
        _E.PROBE_UNREADABLE: "missing",
        _E.PROBE_MISSING: "missing",
        _E.PROBE_FOREIGN: "missing",
        _E.UNUSABLE: "missing",
        _E.HUNG: "missing",
    },
    "missing": {
        _E.RETURNED: "home",
        _E.WISH_OFFLINE: "offline",
    },
    "offline": {
        _E.WISH_ONLINE: "missing",  # until it has been looked at, verified and opened
        _E.WISH_REMOVE: "missing",
    },
}

_HOMES: Final[Mapping[Wish, DiskState]] = {
    "active": "online",
    "offline": "offline",
    "removing": "removing",
}
_WISHES: Final[Mapping[DiskEvent, Wish]] = {
    _E.WISH_OFFLINE: "offline",
    _E.WISH_ONLINE: "active",
    _E.WISH_REMOVE: "removing",
    _E.WISH_KEEP: "active",
}
_TROUBLE: Final = frozenset({
    _E.READ_ERROR, _E.WRITE_ERROR, _E.CHECKSUM, _E.TIMEOUT, _E.STALLED, _E.PROBE_UNREADABLE,
})  # fmt: skip
_LATENESS: Final = frozenset({_E.TIMEOUT, _E.STALLED})
_ABSENT: Final[frozenset[DiskState]] = frozenset({"missing", "offline"})


class Rules(msgspec.Struct, frozen=True):
    """How trouble is weighed. Times in seconds."""

    errors_max: int = DISK_ERRORS_MAX
    errors_forgotten_seconds: float = 86_400.0  # a full bucket of errors leaks empty in this time
    rot_incidents_max: int = 8
    rot_incident_seconds: float = 60.0  # damage within this time is one incident
    rot_forgotten_seconds: float = 86_400.0
    suspicions_max: int = 3
    suspicions_forgotten_seconds: float = 86_400.0
    probation_probes: int = 10
    probation_seconds: float = 60.0


class Transition(msgspec.Struct, frozen=True):
    """One change of a disk's state."""

    before: DiskState
    after: DiskState
    event: DiskEvent
    reason: str  # for people


class Bucket:
    """Counts what happens, and forgets it evenly over time."""

    def __init__(self, capacity: int, forgotten_seconds: float) -> None:
        self._capacity = capacity
        self._leak = capacity / forgotten_seconds  # a second
        self._level = 0.0
        self._at = 0.0

    def add(self, now: float) -> bool:
        """One more. True if that is too many; the bucket is empty again then."""
        self._level = max(0.0, self._level - (now - self._at) * self._leak) + 1.0
        self._at = now
        if self._level <= self._capacity - 1:  # so many at once, or almost at once, are too many
            return False
        self._level = 0.0
        return True


class StateMachine:
    """The state of one disk. No I/O, no clock: whoever drives it says what time it is.

    Invariant: the state is "offline" exactly while the wish is, and "removing" only while the wish is.
    """

    def __init__(
        self, wish: Wish, now: float, *, present: bool, reason: str = "", rules: Rules | None = None
    ) -> None:
        self.wish: Wish = wish
        self.state: DiskState = _HOMES[wish] if present or wish == "offline" else "missing"
        self.reason = reason
        self.since = now
        self.stalled = False
        self._rules = rules or Rules()
        self._errors = Bucket(self._rules.errors_max, self._rules.errors_forgotten_seconds)
        self._rot = Bucket(self._rules.rot_incidents_max, self._rules.rot_forgotten_seconds)
        self._rot_until = float("-inf")
        self._suspicions: list[float] = []
        self._trouble_at = now
        self._good_probes = 0

    def role(self, now: float, rebuild_after_seconds: float) -> DiskRole:
        """What is to become of the disk's shards."""
        match self.state:
            case "online" | "suspect":
                return DiskRole.KEEP
            case "removing" | "failing":
                return DiskRole.LEAVE
            case "offline":
                return DiskRole.AWAY
            case "missing":
                given_up = self.wish == "removing" or now - self.since >= rebuild_after_seconds
                return DiskRole.GONE if given_up else DiskRole.AWAY

    def handle(
        self, event: DiskEvent, now: float, reason: str, *, may_suspect: bool = True
    ) -> list[Transition]:
        """Take an event; returns the changes of state that it causes, in order."""
        if event in _WISHES and not self._take_wish(event, now):
            return []
        self._note_answers(event)
        changes: list[Transition] = []
        follow_up = self._weigh(event, now)
        if may_suspect or event not in _LATENESS:
            self._go(event, now, reason, changes)
        if event is DiskEvent.RETURNED and self._recent_suspicions(now):
            self._go(DiskEvent.DOUBTED, now, "it was suspect not long ago", changes)
        if follow_up is not None:
            self._go(follow_up, now, self._conclusion(follow_up, reason), changes)
        return changes

    def _take_wish(self, event: DiskEvent, now: float) -> bool:
        # There is but one wish: a disk that is to leave is to be kept before it is wanted otherwise.
        leaving = self.wish == "removing"
        if event is not DiskEvent.WISH_REMOVE and leaving != (event is DiskEvent.WISH_KEEP):
            return False
        self.wish = _WISHES[event]
        if event is DiskEvent.WISH_ONLINE:  # somebody has seen to it
            self._suspicions.clear()
            self._trouble_at = now
        return True

    def _note_answers(self, event: DiskEvent) -> None:
        if event is DiskEvent.STALLED:
            self.stalled = True
        elif event in (DiskEvent.ANSWERED, DiskEvent.RETURNED):
            self.stalled = False

    def _weigh(self, event: DiskEvent, now: float) -> DiskEvent | None:
        """Keep the counts; returns what they lead to."""
        if self.state in _ABSENT:
            return None
        if event in _TROUBLE:
            self._trouble_at = now
            self._good_probes = 0
        if event in (DiskEvent.READ_ERROR, DiskEvent.WRITE_ERROR):
            return DiskEvent.ERRORS_MANY if self._errors.add(now) else None
        if event is DiskEvent.CHECKSUM and now >= self._rot_until:
            self._rot_until = now + self._rules.rot_incident_seconds
            return DiskEvent.ROT_MANY if self._rot.add(now) else None
        if event is DiskEvent.PROBE_OK:
            self._good_probes += 1
            if self._probation_over(now):
                return DiskEvent.CLEARED
        return None

    def _probation_over(self, now: float) -> bool:
        return (
            self.state == "suspect"
            and not self.stalled
            and self._good_probes >= self._rules.probation_probes
            and now - self._trouble_at >= self._rules.probation_seconds
        )

    def _go(self, event: DiskEvent, now: float, reason: str, changes: list[Transition]) -> None:
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            return
        after = _HOMES[self.wish] if target == "home" else target
        changes.append(Transition(self.state, after, event, reason))
        self.state, self.since = after, now
        self.reason = "" if after == "online" else reason
        if after == "suspect":
            self._good_probes = 0
            self._trouble_at = now
            self._suspicions.append(now)
            if self._recent_suspicions(now) >= self._rules.suspicions_max:
                times = self._rules.suspicions_max
                self._suspicions.clear()
                self._go(
                    DiskEvent.RELAPSED, now, f"{reason}; suspect {times} times in a day", changes
                )

    def _recent_suspicions(self, now: float) -> int:
        horizon = now - self._rules.suspicions_forgotten_seconds
        self._suspicions = [at for at in self._suspicions if at > horizon]
        return len(self._suspicions)

    def _conclusion(self, event: DiskEvent, reason: str) -> str:
        match event:
            case DiskEvent.ERRORS_MANY:
                return f"{self._rules.errors_max} errors within a day, the last: {reason}"
            case DiskEvent.ROT_MANY:
                return f"it has returned damaged data again and again, the last: {reason}"
            case _:
                return "it works again"

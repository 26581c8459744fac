"""The pool's disks while it is open: which may be written, which may be read, and why not.

Everything that happens to a disk arrives here as an event: failed operations from the stripe layer
and the log, probes from the watch, wishes from administrators. The disk's `StateMachine` decides, and
each change is logged with its reason, kept in a bounded history, and told to all who wait for
`changes`.

What counts against a disk, and what does not: a full disk is no fault at all. A shard that is
missing from the index is damage to that shard. Operations of a store that was taken out of service
fail by design (`RETIRED`), which says nothing about the store that the disk has now.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from dwfs.config import format_uuid
from dwfs.disk import Executor, SegmentStore
from dwfs.disk.access import RETIRED
from dwfs.errors import (
    DiskFullError,
    DiskTimeoutError,
    MediumError,
    ShardDamagedError,
    ShardMissingError,
)
from dwfs.limits import DISK_REBUILD_SECONDS
from dwfs.log import LogDisk
from dwfs.node.disks.changes import Changes
from dwfs.node.disks.slowness import SlownessJudge, patience_seconds
from dwfs.node.disks.states import DiskEvent, Rules, StateMachine, Transition, Wish
from dwfs.node.status import DiskState, DiskStatus, StateChange
from dwfs.ports import Clock, DiskRole, ShardStore
from dwfs.types import DiskId

_log = logging.getLogger(__name__)

HISTORY_MAX: Final = 256
# Operations that only read; the failure of any other is one of writing.
_READS: Final = frozenset({"read", "verify", "find", "read back", "scrub"})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_KINDS: Final = {
    DiskEvent.READ_ERROR: "read",
    DiskEvent.WRITE_ERROR: "write",
    DiskEvent.CHECKSUM: "checksum",
    DiskEvent.TIMEOUT: "timeout",
}
# Nothing is wrong with the disk when its state changes for one of these.
_HARMLESS: Final = frozenset({
    DiskEvent.WISH_OFFLINE, DiskEvent.WISH_ONLINE, DiskEvent.WISH_REMOVE, DiskEvent.WISH_KEEP,
    DiskEvent.RETURNED, DiskEvent.CLEARED,
})  # fmt: skip
# After these, something that was written may not have arrived.
_DOUBTFUL: Final = frozenset({
    DiskEvent.WRITE_ERROR, DiskEvent.TIMEOUT, DiskEvent.STALLED, DiskEvent.READ_ONLY,
})  # fmt: skip
_READABLE: Final[frozenset[DiskState]] = frozenset({"online", "suspect", "failing", "removing"})


class PoolDisk:
    """One member of the pool. One that is missing or offline has neither store nor executor."""

    def __init__(
        self,
        disk: DiskId,
        directory: Path,
        machine: StateMachine,
        *,
        label: str = "",
        since_ns: int | None = None,
    ) -> None:
        self.id = disk
        self.directory = directory
        self.label = label
        self.machine = machine
        self.since_ns = since_ns
        self.errors_by_kind: Counter[str] = Counter()
        self.store: SegmentStore | None = None
        self.executor: Executor | None = None
        self.prober: Executor | None = None  # looks at it from time to time, in a thread of its own
        self.returning = trio.Lock()  # held while it is looked for and taken back
        self.first_segment = 1  # lower numbers may still be used by a store that hangs
        self.given_up = False  # missing for so long that its shards are rebuilt

    @property
    def state(self) -> DiskState:
        """As people see it."""
        return self.machine.state

    @property
    def reason(self) -> str:
        """Why the state is not "online"."""
        return self.machine.reason

    @property
    def wish(self) -> Wish:
        """What administrators want."""
        return self.machine.wish

    @property
    def errors(self) -> int:
        """Failed operations since the pool was opened."""
        return self.errors_by_kind.total()

    @property
    def readable(self) -> bool:
        """Whether shards and logs on it can be read now."""
        return self.store is not None and self.state in _READABLE

    def status(self, slow: str = "") -> DiskStatus:
        """For `dwfs status`."""
        space = self.store.space() if self.store is not None and self.readable else None
        mean, high = self.latency()
        return DiskStatus(
            id=format_uuid(self.id),
            path=str(self.directory),
            state=self.state,
            size_bytes=None if space is None else space.size_bytes,
            used_bytes=None if space is None else space.used_bytes,
            errors=self.errors,
            reason=self.reason,
            label=self.label,
            free_bytes=None if space is None else space.available_bytes,
            shard_bytes=None if space is None else space.used_bytes,
            errors_by_kind=dict(self.errors_by_kind),
            latency_seconds=mean,
            latency_high_seconds=high,
            slow=slow,
            since_ns=self.since_ns,
        )

    def latency(self) -> tuple[float | None, float | None]:
        """Smoothed mean of its reads and what few of them exceed, in seconds; None: not known."""
        return (None, None) if self.store is None else self.store.read_latency()


class PoolDisks:
    """Implements `ports.DiskListing`, and gives the log its disks. Belongs to the loop thread.

    Invariant: a disk has a store exactly while it is readable; who takes a disk out of service takes
    its store, too (`watch`), after the state has changed.
    """

    def __init__(
        self,
        disks: Sequence[PoolDisk],
        clock: Clock,
        parity: int,
        rebuild_after_seconds: float = DISK_REBUILD_SECONDS,
        on_doubt: Callable[[DiskId], None] = lambda _disk: None,
    ) -> None:
        """`on_doubt` is told of disks that may hold less than their index says."""
        self._disks = {disk.id: disk for disk in disks}
        self._clock = clock
        self._parity = parity
        self._on_doubt = on_doubt
        self._rebuild_after_seconds = rebuild_after_seconds
        self._history: deque[StateChange] = deque(maxlen=HISTORY_MAX)
        self._slowness = SlownessJudge()
        self._unswept: dict[DiskId, ShardStore] = {}
        self.changes = Changes()

    def __iter__(self) -> Iterator[ShardStore]:
        for disk in list(self._disks.values()):
            if disk.store is not None and disk.readable:
                yield disk.store

    # --- ports.DiskListing -------------------------------------------------------------------

    def role(self, disk: DiskId) -> DiskRole:
        """What is to become of shards on the disk."""
        found = self._disks.get(disk)
        if found is None:
            return DiskRole.GONE
        role = found.machine.role(self._clock.now(), self._rebuild_after_seconds)
        if role in (DiskRole.KEEP, DiskRole.LEAVE) and found.store is None:
            return DiskRole.AWAY  # just taken up, or just about to be missing
        return role

    def patience_seconds(self, disk: DiskId) -> float:
        """How long a reader waits for this disk before it asks others as well."""
        found = self._disks.get(disk)
        if found is None or found.state == "suspect" or found.machine.stalled:
            return 0.0
        _, high = found.latency()
        return patience_seconds(high)

    def writable(self) -> list[ShardStore]:
        """Disks that new shards may go to."""
        return [
            disk.store
            for disk in self._disks.values()
            if disk.store is not None and disk.state == "online"
        ]

    def get(self, disk: DiskId) -> ShardStore | None:
        """A disk that can be read now, or None."""
        found = self._disks.get(disk)
        return found.store if found is not None and found.readable else None

    def failed(self, error: Exception, disk: DiskId) -> None:
        """An operation of the disk failed; may take it out of service for writing."""
        found = self._disks.get(disk)
        if found is None or isinstance(error, DiskFullError) or not found.readable:
            return
        if isinstance(error, MediumError) and error.operation == RETIRED:
            return
        if isinstance(error, ShardMissingError):
            found.errors_by_kind["missing"] += 1
            return
        self.note(disk, _event_of(error), str(error))

    # --- the log's disks ---------------------------------------------------------------------

    def log_disks(self) -> list[LogDisk]:
        """Disks that take copies of the log."""
        return [
            _log_disk(disk)
            for disk in self._disks.values()
            if disk.state == "online" and disk.store is not None
        ]

    def readable_log_disks(self) -> list[LogDisk]:
        """Disks whose copies of the log may still be read."""
        return [_log_disk(disk) for disk in self._disks.values() if disk.readable]

    def log_failed(self, disk: DiskId, error: OSError) -> None:
        """A copy of the log could not be written."""
        # A full disk can't take the log but may well give shards; it stays what it is.
        if error.errno is not None and error.errno in _FULL:
            return
        self.note(disk, write_event(error), f"log: {error.strerror or error}")

    # --- events ------------------------------------------------------------------------------

    def note(self, disk: DiskId, event: DiskEvent, reason: str) -> None:
        """Something happened to the disk. Never awaits."""
        found = self._disks.get(disk)
        if found is None:
            return
        if event in _KINDS:
            found.errors_by_kind[_KINDS[event]] += 1
        if event in _DOUBTFUL:
            self._on_doubt(found.id)
        wish = found.wish
        transitions = found.machine.handle(
            event, self._clock.now(), reason, may_suspect=self.can_spare(found)
        )
        for transition in transitions:
            self._tell(found, transition)
        if transitions or wish != found.wish:
            self.changes.note()

    def can_spare(self, disk: PoolDisk) -> bool:
        """Whether all others together are enough, as far as redundancy goes."""
        out = sum(
            1
            for other in self._disks.values()
            if other is not disk and (other.state != "online" or other.machine.stalled)
        )
        return out < self._parity

    def look_at_time(self) -> None:
        """Notice what changes by time alone: a disk that has been missing for too long."""
        for disk in self._disks.values():
            given_up = disk.state == "missing" and self.role(disk.id) is DiskRole.GONE
            if given_up == disk.given_up:
                continue
            disk.given_up = given_up
            if given_up:
                _log.warning(
                    "disk %s stays missing: what it held is rebuilt elsewhere", disk.directory
                )
            self.changes.note()

    def judge_slowness(self) -> None:
        """Compare the disks' latencies; to be called every few seconds."""
        means = {}
        for disk in self._disks.values():
            mean, _ = disk.latency()
            if disk.readable and mean is not None:
                means[disk.id] = mean
        before = {disk: self._slowness.note(disk) for disk in means}
        self._slowness.judge(means, self._clock.now())
        for identity, note in before.items():
            now = self._slowness.note(identity)
            if now and not note:
                _log.warning("disk %s is slow: %s", self._disks[identity].directory, now)

    def _tell(self, disk: PoolDisk, transition: Transition) -> None:
        level = logging.INFO if transition.event in _HARMLESS else logging.WARNING
        _log.log(
            level,
            "disk %s is %s, was %s: %s",
            disk.directory,
            transition.after,
            transition.before,
            transition.reason,
        )
        disk.since_ns = self._clock.wall_ns()
        self._history.append(
            StateChange(
                at_ns=disk.since_ns,
                disk=str(disk.directory),
                before=transition.before,
                after=transition.after,
                reason=transition.reason,
            )
        )

    # --- members -----------------------------------------------------------------------------

    def find(self, disk: DiskId) -> PoolDisk | None:
        """A member."""
        return self._disks.get(disk)

    def all(self) -> list[PoolDisk]:
        """Every member, whatever its state."""
        return list(self._disks.values())

    def states(self) -> list[DiskState]:
        """The state of every member."""
        return [disk.state for disk in self._disks.values()]

    def statuses(self) -> list[DiskStatus]:
        """Every member, for `dwfs status`."""
        return [disk.status(self._slowness.note(disk.id)) for disk in self._disks.values()]

    def history(self) -> list[StateChange]:
        """Changes of state since the pool was opened, the oldest first; of very many, the last."""
        return list(self._history)

    def admit(self, disk: PoolDisk) -> None:
        """A new member, whose store is about to be opened."""
        assert disk.id not in self._disks
        self._disks[disk.id] = disk
        self.changes.note()

    def dismiss(self, disk: DiskId) -> None:
        """No member any more; its shards count as gone."""
        del self._disks[disk]
        self._unswept.pop(disk, None)
        self._slowness.forget(disk)
        self.changes.note()

    def opened(self, disk: PoolDisk) -> None:
        """The disk's store was opened: what it holds is still to be compared with the state."""
        assert disk.store is not None
        self._unswept[disk.id] = disk.store
        self.changes.note()

    def unswept(self) -> list[ShardStore]:
        """Stores that were opened since this was last asked."""
        stores = [store for disk, store in self._unswept.items() if self.get(disk) is store]
        self._unswept.clear()
        return stores


def make_disk(
    disk: DiskId,
    directory: Path,
    wish: str,
    clock: Clock,
    *,
    present: bool,
    label: str = "",
    problem: str = "",
    rules: Rules | None = None,
) -> PoolDisk:
    """A member as the pool's opening finds it. `wish` is the member's state in the pool header."""
    kept: Wish = "offline" if wish == "offline" else "removing" if wish == "removing" else "active"
    reason = "taken offline by an administrator" if kept == "offline" else problem
    machine = StateMachine(kept, clock.now(), present=present, reason=reason, rules=rules)
    return PoolDisk(disk, directory, machine, label=label, since_ns=clock.wall_ns())


def _event_of(error: Exception) -> DiskEvent:
    if isinstance(error, DiskTimeoutError):
        return DiskEvent.TIMEOUT
    if isinstance(error, ShardDamagedError):
        return DiskEvent.CHECKSUM
    if isinstance(error, MediumError) and error.operation in _READS:
        return DiskEvent.READ_ERROR
    cause = error.__cause__ if isinstance(error, MediumError) else error
    return write_event(cause) if isinstance(cause, OSError) else DiskEvent.WRITE_ERROR


def write_event(error: OSError) -> DiskEvent:
    """What it says of a disk that an operation which changes something has failed so."""
    if error.errno == errno.ETIMEDOUT:
        return DiskEvent.TIMEOUT
    # A filesystem that gave up need not show it in its flags (ext4 after an error, Linux 6.6 and later).
    return DiskEvent.READ_ONLY if error.errno == errno.EROFS else DiskEvent.WRITE_ERROR


def _log_disk(disk: PoolDisk) -> LogDisk:
    assert disk.store is not None
    return LogDisk(disk.id, disk.directory, disk.store.space().available_bytes)

"""The pool's disks while it is open: which may be written, which may be read, and why not.

A disk is in one of three states:

    online ──(a write failed, or too many reads)──▶ failing ──▶ missing
       └───────(its identity is gone or unreadable)────────────────▲

- `failing` disks get no new data but are still read: what they can still give need not be rebuilt.
- `missing` disks are left alone.

Only the probe (`disk_watch`) finds a disk missing, and it is the state for which there is no way
back while the pool is open: a disk that was away has missed writes and deletes, and opening it
again means bringing its index in step.

Errors are counted for people; only failures of the medium change the state. A shard that is missing
or rotten is damage to that shard, and a full disk is no fault at all.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dwfs.config import format_uuid
from dwfs.disk import DiskExecutor, SegmentStore
from dwfs.errors import DiskFullError, MediumError, ShardDamagedError, ShardMissingError
from dwfs.limits import DISK_ERRORS_MAX
from dwfs.log import LogDisk
from dwfs.node.status import DiskState, DiskStatus
from dwfs.ports import ShardStore
from dwfs.types import DiskId

_log = logging.getLogger(__name__)

# Operations after whose failure a disk gets no new data; the others only read.
_READS = frozenset({"read", "verify", "find"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class PoolDisk:
    """One member of the pool. A missing one has neither store nor executor."""

    def __init__(self, disk: DiskId, directory: Path, problem: str = "") -> None:
        self.id = disk
        self.directory = directory
        self.state: DiskState = "missing" if problem else "online"
        self.reason = problem
        self.errors = 0
        self.store: SegmentStore | None = None
        self.executor: DiskExecutor | None = None

    def status(self) -> DiskStatus:
        """For `dwfs status`."""
        space = None if self.store is None else self.store.space()
        known = space is not None and self.state != "missing"
        return DiskStatus(
            id=format_uuid(self.id),
            path=str(self.directory),
            state=self.state,
            size_bytes=space.size_bytes if space is not None and known else None,
            used_bytes=space.used_bytes if space is not None and known else None,
            errors=self.errors,
            reason=self.reason,
        )


class PoolDisks:
    """Implements `ports.DiskListing`, and gives the log its disks. Belongs to the loop thread.

    `on_change` is called after each change of a disk's state.
    """

    def __init__(self, disks: Sequence[PoolDisk], on_change: Callable[[PoolDisk], None]) -> None:
        self._disks = {disk.id: disk for disk in disks}
        self._on_change = on_change

    def __iter__(self) -> Iterator[ShardStore]:
        for disk in self._disks.values():
            if disk.store is not None and disk.state != "missing":
                yield disk.store

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
        return None if found is None or found.state == "missing" else found.store

    def failed(self, error: Exception, disk: DiskId) -> None:
        """An operation of the disk failed; may take it out of service for writing."""
        found = self._disks.get(disk)
        if found is None or isinstance(error, DiskFullError):
            return
        found.errors += 1
        if isinstance(error, ShardMissingError | ShardDamagedError):
            return
        operation = error.operation if isinstance(error, MediumError) else "write"
        if operation not in _READS:
            self.change_state(found, "failing", str(error))
        elif found.errors >= DISK_ERRORS_MAX:
            self.change_state(found, "failing", f"{found.errors} errors, the last: {error}")

    def log_disks(self) -> list[LogDisk]:
        """Disks that may hold copies of the log."""
        return [
            LogDisk(disk.id, disk.directory, disk.store.space().available_bytes)
            for disk in self._disks.values()
            if disk.store is not None and disk.state == "online"
        ]

    def log_failed(self, disk: DiskId, error: OSError) -> None:
        """A copy of the log could not be written."""
        found = self._disks.get(disk)
        if found is None:
            return
        # A full disk can't take the log but may well give shards; it stays what it is.
        if error.errno is not None and error.errno in _FULL:
            return
        found.errors += 1
        self.change_state(found, "failing", f"log: {error.strerror or error}")

    def change_state(self, disk: PoolDisk, state: DiskState, reason: str) -> None:
        """Move a disk to a worse state; a better one is not believed while the pool is open."""
        order: dict[DiskState, int] = {"online": 0, "failing": 1, "missing": 2}
        if order[state] <= order[disk.state]:
            return
        disk.state = state
        disk.reason = reason
        _log.warning("disk %s is %s: %s", disk.directory, state, reason)
        self._on_change(disk)

    def all(self) -> list[PoolDisk]:
        """Every member, whatever its state."""
        return list(self._disks.values())

    def states(self) -> list[DiskState]:
        """The state of every member."""
        return [disk.state for disk in self._disks.values()]

"""Disks that are to leave: how far they are emptied, and the last step when they are.

The wish stands in the pool's header and survives restarts; moving the shards away is repair's work
(`DiskRole.LEAVE`). This service keeps the record of it for people, gives log and snapshots their copies
elsewhere, and asks the life cycle to finish as soon as nothing lies on the disk any more. The life
cycle looks for itself whether that is true, so asking too early does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from dwfs.errors import DwfsError, MediumError, PosixError
from dwfs.node.disks.listing import PoolDisk, PoolDisks
from dwfs.node.services.jobs import JobStore, RemovalRecord
from dwfs.node.status import JobKind, JobState, JobStatus
from dwfs.stripe import Repairer
from dwfs.types import DiskId

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 5.0  # after a last step that was refused
_STAYS: Final = "it stays in the pool"
_DONE: Final = "it is no part of the pool any more and can be taken out"


class Finisher(Protocol):
    """The last step; `LifeCycle` has it."""

    async def finish_removal(self, disk: DiskId) -> None:
        """Take an empty disk out of the pool. Raises DwfsError while it isn't empty."""


class RemovalService:
    """`run` it; `jobs` tells how it goes.

    `heal` gives log and snapshots their copies on the disks that stay.
    """

    def __init__(
        self,
        disks: PoolDisks,
        finisher: Finisher,
        repairer: Repairer,
        heal: Callable[[], Awaitable[object]],
        jobs: JobStore,
    ) -> None:
        self._disks = disks
        self._finisher = finisher
        self._repairer = repairer
        self._heal = heal
        self._jobs = jobs
        self._hindrance: dict[DiskId, str] = {}  # why the last step was refused
        self._not_before: dict[DiskId, float] = {}

    def leaving(self) -> frozenset[DiskId]:
        """Disks that are to be removed."""
        return frozenset(disk.id for disk in self._disks.all() if disk.wish == "removing")

    def note_begin(self, disk: PoolDisk, kind: JobKind) -> JobStatus:
        """A removal begins: remember how much there is to do."""
        record = RemovalRecord(kind, str(disk.directory), self._jobs.now_ns(), _used(disk))
        self._jobs.book.removals[disk.id.hex()] = record
        self._jobs.changed()
        self._repairer.walk_soon()
        return self._job(disk)

    def note_cancel(self, disk: PoolDisk) -> None:
        """The disk stays after all."""
        record = self._jobs.book.removals.pop(disk.id.hex(), None)
        if record is not None:
            self._end(record, "stopped", _STAYS)

    def jobs(self) -> list[JobStatus]:
        """All removals under way."""
        return [self._job(disk) for disk in self._disks.all() if disk.wish == "removing"]

    def job_of(self, disk: PoolDisk) -> JobStatus:
        """One removal under way."""
        self._record_of(disk)
        return self._job(disk)

    def follow(self, disk: PoolDisk) -> Callable[[], JobStatus]:
        """A look at one removal, also when it has ended."""
        record = self._record_of(disk)

        def look() -> JobStatus:
            ended = self._jobs.ended(record.kind, record.path, record.started_ns)
            if ended is not None:
                return ended
            if disk.wish != "removing":
                return self._ended(record, "stopped", _STAYS)
            return self._job(disk)  # also while the last step is being taken

        return look

    async def run(self) -> None:
        """Finish removals for ever."""
        self._conclude_interrupted()
        while True:
            for disk in self._disks.all():
                if disk.wish == "removing":
                    await self._attend(disk)
            await trio.sleep(_LOOK_SECONDS)

    async def _attend(self, disk: PoolDisk) -> None:
        progress = self._repairer.progress()
        if progress.leaving_bytes.get(disk.id):
            self._hindrance.pop(disk.id, None)
            self._not_before.pop(disk.id, None)
            return
        if progress.walking or trio.current_time() < self._not_before.get(disk.id, 0.0):
            return
        record = self._record_of(disk)
        try:
            await self._heal()
            await self._finisher.finish_removal(disk.id)
        except (DwfsError, PosixError, MediumError, OSError) as error:
            self._hindrance[disk.id] = str(error)
            self._not_before[disk.id] = trio.current_time() + _RETRY_SECONDS
            self._repairer.walk_soon()
            return
        self._jobs.book.removals.pop(disk.id.hex(), None)
        self._hindrance.pop(disk.id, None)
        self._end(record, "finished", _DONE)
        _log.info("disk %s: %s", record.path, _DONE)

    def _conclude_interrupted(self) -> None:
        """Records of disks that left the pool just before an earlier owner ended."""
        for disk, record in list(self._jobs.book.removals.items()):
            if self._disks.find(DiskId(bytes.fromhex(disk))) is None:
                del self._jobs.book.removals[disk]
                self._end(record, "finished", _DONE)

    def _record_of(self, disk: PoolDisk) -> RemovalRecord:
        """What is remembered; made anew if the state directory was lost meanwhile."""
        if disk.id.hex() not in self._jobs.book.removals:
            self.note_begin(disk, "remove")
        return self._jobs.book.removals[disk.id.hex()]

    def _job(self, disk: PoolDisk) -> JobStatus:
        record = self._jobs.book.removals.get(disk.id.hex())
        if record is None:
            record = RemovalRecord("remove", str(disk.directory), self._jobs.now_ns(), _used(disk))
        progress = self._repairer.progress()
        left = progress.leaving_bytes.get(disk.id, 0) if not disk.readable else _used(disk)
        total = max(record.total_bytes, left)
        waiting = 0 < progress.stripes_left <= progress.waiting
        rate = progress.bytes_per_second
        if waiting:
            detail = "its shards wait for another disk with room for them"
        elif disk.id in self._hindrance:
            detail = f"almost done: {self._hindrance[disk.id]}"
        else:
            detail = "moving its shards to the other disks"
        return JobStatus(
            kind=record.kind,
            state="waiting" if waiting else "running",
            detail=detail,
            disk=record.path,
            done_bytes=total - left,
            total_bytes=total,
            bytes_per_second=None if waiting else rate,
            seconds_left=left / rate if rate and not waiting else None,
            started_ns=record.started_ns,
        )

    def _end(self, record: RemovalRecord, state: JobState, result: str) -> None:
        self._jobs.finish(self._ended(record, state, result))

    def _ended(self, record: RemovalRecord, state: JobState, result: str) -> JobStatus:
        return JobStatus(
            kind=record.kind,
            state=state,
            detail="",
            disk=record.path,
            done_bytes=record.total_bytes if state == "finished" else 0,
            total_bytes=record.total_bytes,
            started_ns=record.started_ns,
            ended_ns=self._jobs.now_ns(),
            result=result,
        )


def _used(disk: PoolDisk) -> int:
    return disk.store.space().used_bytes if disk.store is not None and disk.readable else 0

"""Repair in the life of a pool: what sets it off, and what people see of it.

The repairer looks at everything at the mount, after each change of a disk and after degraded writes,
and at single shards when a reader has met a bad one. It is never switched off: what lacks redundancy
is mended as soon as a disk has room for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from dwfs.node.redundancy import Changes
from dwfs.node.services.damage_inbox import DamageInbox
from dwfs.node.services.jobs import JobStore
from dwfs.node.status import JobStatus
from dwfs.stripe import Repairer, RepairProgress
from dwfs.types import DiskId

_SETTLE_SECONDS: Final = 0.5  # changes of disks come in crowds
_LOOK_SECONDS: Final = 1.0
_TOGETHER_NS: Final = 600 * 10**9  # repairs that follow each other so soon are told as one


class RepairService:
    """`run` it; `job` tells how it goes.

    `removing` gives the disks that are being emptied to be removed: they have a job of their own.
    """

    def __init__(
        self,
        repairer: Repairer,
        changes: Changes,
        damage: DamageInbox,
        degraded_writes: Callable[[], int],
        removing: Callable[[], frozenset[DiskId]],
        jobs: JobStore,
    ) -> None:
        self.repairer = repairer
        self._changes = changes
        self._damage = damage
        self._degraded_writes = degraded_writes
        self._removing = removing
        self._jobs = jobs
        self._started_ns: int | None = None  # of the job at hand

    async def run(self) -> None:
        """Repair for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.repairer.run)
            nursery.start_soon(self._pass_on_damage)
            nursery.start_soon(self._follow_disks)
            nursery.start_soon(self._follow_writes)
            nursery.start_soon(self._keep_record)

    def job(self) -> JobStatus | None:
        """What is being repaired, or waits to be; None if nothing is."""
        progress = self.repairer.progress()
        if not progress.stripes_left or self._only_removals(progress):
            return None
        waiting = progress.waiting >= progress.stripes_left
        if waiting:
            what = "wait for a disk with room for them, or for one to come back"
            detail = f"{progress.stripes_left} stripes {what}"
        else:
            detail = f"giving {progress.stripes_left} stripes their full redundancy"
        return JobStatus(
            kind="repair",
            state="waiting" if waiting else "running",
            detail=detail,
            done_bytes=progress.bytes_done,
            total_bytes=progress.bytes_total,
            done_stripes=progress.stripes_done,
            total_stripes=progress.stripes_total,
            bytes_per_second=None if waiting else progress.bytes_per_second,
            seconds_left=None if waiting else progress.seconds_left,
            started_ns=self._started_ns or self._jobs.now_ns(),
        )

    def _only_removals(self, progress: RepairProgress) -> bool:
        leaving = {disk for disk, size in progress.leaving_bytes.items() if size}
        return not progress.degraded and bool(leaving) and leaving <= self._removing()

    async def _pass_on_damage(self) -> None:
        while True:
            for damage in await self._damage.take():
                self.repairer.report(damage)

    async def _follow_disks(self) -> None:
        while True:
            generation = self._changes.generation
            self.repairer.walk_soon()
            await trio.sleep(_SETTLE_SECONDS)
            await self._changes.after(generation)

    async def _follow_writes(self) -> None:
        """Stripes that were written with fewer shards than they should have: found by a walk."""
        seen = self._degraded_writes()
        while True:
            await trio.sleep(_LOOK_SECONDS)
            written = self._degraded_writes()
            if written != seen and not self.repairer.progress().walking:
                seen = written
                self.repairer.walk_soon()

    async def _keep_record(self) -> None:
        """Remember when a repair began, and note it when it has ended.

        One that is over between two looks is known by what the repairer has counted.
        """
        told = self.repairer.mended_stripes
        while True:
            await trio.sleep(_LOOK_SECONDS)
            progress = self.repairer.progress()
            if self.job() is not None:
                self._started_ns = self._started_ns or self._jobs.now_ns()
            elif not progress.walking and not progress.stripes_left:
                mended = self.repairer.mended_stripes - told
                told += mended
                # What only left a disk that is being emptied is told by that job.
                if mended and (self._started_ns is not None or not self._removing()):
                    self._note_end(mended, progress)
                self._started_ns = None

    def _note_end(self, mended: int, progress: RepairProgress) -> None:
        now_ns = self._jobs.now_ns()
        started_ns, written = self._started_ns or now_ns, progress.bytes_done
        finished = self._jobs.book.finished
        if finished and _continues(finished[0], now_ns):
            # Single shards that readers come across would crowd out everything else.
            previous = finished.pop(0)
            mended += previous.done_stripes
            written += previous.done_bytes
            started_ns = previous.started_ns
        lost = len(progress.unreadable)
        stripes = "1 stripe has its" if mended == 1 else f"{mended} stripes have their"
        result = f"{stripes} full redundancy again"
        self._jobs.finish(
            JobStatus(
                kind="repair",
                state="finished",
                detail="",
                done_bytes=written,
                total_bytes=written,
                done_stripes=mended,
                total_stripes=mended,
                started_ns=started_ns,
                ended_ns=now_ns,
                result=f"{result}; {lost} can't be repaired" if lost else result,
            )
        )


def _continues(previous: JobStatus, now_ns: int) -> bool:
    ended_ns = previous.ended_ns or 0
    return previous.kind == "repair" and now_ns - ended_ns < _TOGETHER_NS

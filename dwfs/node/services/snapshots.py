"""Snapshots in the life of a pool: taken when asked for and by the calendar, given up, their space returned.

Before a snapshot is taken, what the kernel still holds of the mount is brought in, so that the snapshot has
what a user had written when he asked for it. That has a deadline: a writer who waits for space must not
keep others from taking the snapshot that they need before they make room.

A destroyed snapshot is gone at once; what only it kept is given back in small pieces. First the bytes are
settled, which takes microseconds a stripe and lets the cleaner go on; the records of old versions follow
at the background's pace.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EBUSY, ENOENT, ENOSPC
from typing import Final, NamedTuple

import trio

from dwfs.config import SnapshotSchedule
from dwfs.errors import PoolBusyError, PosixError
from dwfs.node.retention import due_snapshot, surplus_snapshots
from dwfs.node.work import WorkBoard
from dwfs.ports import Clock
from dwfs.stripe import Pacer
from dwfs.volume import Volume
from dwfs.volume.records import Snapshot

_log = logging.getLogger(__name__)

WRITE_BACK_SECONDS: Final = 60.0  # 256 MiB of dirty pages at 5 MB/s; commands wait for 120 s
_FIRST_LOOK_SECONDS: Final = 5.0  # until the mount answers, and whoever opens the pool can say no
_ROLLBACK_SECONDS: Final = 1.0  # between attempts to reap while the volume is rolled back
_LOOK_SECONDS: Final = 20.0  # between two looks at the calendar

# Brings in what the kernel holds; False: it can't be told whether all of it has come.
WriteBack = Callable[[], Awaitable[bool]]


async def nothing_to_write_back() -> bool:
    """The `WriteBack` of a pool that no kernel has mounted."""
    return True


class TakenSnapshot(NamedTuple):
    """A snapshot that was taken just now."""

    snapshot: Snapshot
    complete: bool  # it has all that was written before; else what had come in by then


class SnapshotService:
    """Take and destroy when asked to; `run_schedule` and `run_reaper` for ever."""

    def __init__(
        self,
        volume: Volume,
        clock: Clock,
        schedule: SnapshotSchedule,
        write_back: WriteBack,
        pacer: Pacer,
        work: WorkBoard,
    ) -> None:
        self._volume = volume
        self._clock = clock
        self._schedule = schedule
        self._write_back = write_back
        self._pacer = pacer
        self._work = work
        self._turn = trio.Lock()
        self._destroyed = trio.Event()
        self._holders: Counter[str] = Counter()  # of snapshots that must not be destroyed
        self._refused = ""  # what kept the schedule's last snapshot from being taken

    # --- what people ask -----------------------------------------------------------------------

    async def take(self, name: str, *, automatic: bool = False) -> TakenSnapshot:
        """Take a snapshot; it is durable on return.

        Raises PosixError: EEXIST, EINVAL (the name), ENOSPC (too many), or what writing raises.
        """
        async with self._turn:
            complete = await self._bring_in()
            snapshot = await self._volume.take_snapshot(name, self._clock.wall_ns(), automatic)
        await self._volume.barrier()
        return TakenSnapshot(snapshot, complete)

    async def destroy(self, names: Sequence[str]) -> None:
        """Destroy snapshots, durably on return.

        Raises PosixError ENOENT, PoolBusyError if one is held; with none destroyed.
        """
        for name in names:
            self._volume.snapshot(name)
            if self._holders[name]:
                raise PoolBusyError(
                    f"the snapshot @{name} is being sent: wait until that has ended"
                )
        for name in names:
            try:
                await self._volume.destroy_snapshot(name)
            except PosixError as error:
                if error.errno != ENOENT:  # the schedule or somebody else was faster
                    raise
        self._destroyed.set()
        await self._volume.barrier()

    @contextmanager
    def held(self, names: Sequence[str]) -> Iterator[None]:
        """Keep snapshots from being destroyed for the length of the block."""
        self._holders.update(names)
        try:
            yield
        finally:
            self._holders.subtract(names)

    # --- what is done by itself ----------------------------------------------------------------

    async def run_schedule(self) -> None:
        """Take and destroy what the schedule wants, for ever; returns if it wants nothing."""
        if self._schedule == SnapshotSchedule():
            return
        await trio.sleep(_FIRST_LOOK_SECONDS)
        while True:
            await self.follow_schedule()
            await trio.sleep(_LOOK_SECONDS)

    async def follow_schedule(self) -> None:
        """Do what the schedule wants now."""
        name = due_snapshot(self._schedule, self._clock.wall_ns(), self._volume.snapshots())
        if name is not None:
            try:
                await self.take(name, automatic=True)
            except PosixError as error:
                self._complain(error)
                if error.errno != ENOSPC:
                    return
            else:
                self._refused = ""
                _log.info("took the scheduled snapshot %s", name)
        # After a failure for want of room, too: these are what the schedule can do about it.
        surplus = surplus_snapshots(self._schedule, self._volume.snapshots())
        surplus = [name for name in surplus if not self._holders[name]]  # another time
        if surplus:
            await self.destroy(surplus)
            _log.info(
                "destroyed scheduled snapshots that are no longer kept: %s", ", ".join(surplus)
            )

    async def run_reaper(self) -> None:
        """Give back what destroyed snapshots kept, for ever."""
        while True:
            if not self._volume.reaping:
                self._destroyed = trio.Event()
                await self._destroyed.wait()
                continue
            with self._work.doing("reap", "giving back what destroyed snapshots kept"):
                while await self._reap_some():
                    pass

    async def _reap_some(self) -> bool:
        started = self._clock.now()
        try:
            more = await self._volume.reap()
        except PosixError as error:
            if error.errno != EBUSY:
                raise
            await trio.sleep(_ROLLBACK_SECONDS)
            return True
        # While bytes are being settled the cleaner waits, and perhaps people who need the space.
        if self._volume.settling:
            await trio.lowlevel.checkpoint()
        else:
            await self._pacer.rest(self._clock.now() - started)
        return more

    async def _bring_in(self) -> bool:
        """Whether everything that the kernel held has come in."""
        complete = False
        with trio.move_on_after(WRITE_BACK_SECONDS):
            try:
                complete = await self._write_back()
            except OSError as error:
                _log.warning("what the kernel holds could not be brought in: %s", error)
        return complete

    def _complain(self, error: PosixError) -> None:
        if str(error) != self._refused:
            self._refused = str(error)
            _log.warning("the scheduled snapshot can't be taken: %s; trying again", error)

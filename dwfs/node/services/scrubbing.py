"""Scrubs in the life of a pool: when they run, how far they are, what they found.

A scrub reads all disks at once, each in its own order. It begins when it is due (`[scrub]` in the
configuration) or when somebody asks; one at a time, because a second would only read the same. How far
it is on each disk is in the job book: a restart costs some seconds of reading, and a scrub that was
stopped by hand goes on where it was when it is started again.

A disk that is not there, or that is failing, is left out: reading a dying disk from end to end is
the surest way to finish it, and its shards are being copied anyway.

Names of damaged files are told to administrators and kept in memory only: neither the book nor the
log may show them to whoever gets hold of the system disk. After a restart they are found again from
the stripes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal, NamedTuple, Protocol

import msgspec
import trio

from dwfs.errors import PoolBusyError, UsageError
from dwfs.node.disks.listing import PoolDisk, PoolDisks
from dwfs.node.services.jobs import DiskScrubRecord, JobStore, ScrubRecord
from dwfs.node.status import DiskScrubStatus, DiskState, JobState, JobStatus, ScrubStatus
from dwfs.stripe import ScrubState
from dwfs.types import DiskId, StripeId

_log = logging.getLogger(__name__)

_SCRUBBED: Final[frozenset[DiskState]] = frozenset({"online", "suspect", "removing"})
_SAVE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 30.0  # between two looks at the calendar
_DAY_NS: Final = 86_400 * 10**9
_FILES_NAMED_MAX: Final = 1_000  # more help nobody


class DiskScrubber(Protocol):
    """The scrub of one disk; `dwfs.stripe.DiskScrub`."""

    @property
    def state(self) -> ScrubState:
        """How far it is, and what it found."""

    async def run(self) -> ScrubState:
        """Go on to the end; cancellation stops it."""


class Pace(NamedTuple):
    """How fast a scrub went since it was started or resumed here."""

    since_seconds: float
    before_bytes: int


class ScrubService:
    """`run` it; `start` and `stop` when asked to, `status` any time.

    `make` makes the scrub of one disk from the state that it stopped in; `name_files` gives the paths
    of the files that need stripes that can't be repaired.
    """

    def __init__(
        self,
        disks: PoolDisks,
        jobs: JobStore,
        make: Callable[[DiskId, ScrubState | None], DiskScrubber],
        name_files: Callable[[Iterable[StripeId]], Awaitable[list[str]]],
        every_days: float,
    ) -> None:
        self._disks = disks
        self._jobs = jobs
        self._make = make
        self._name_files = name_files
        self._every_days = every_days
        self._wanted = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._running: dict[str, DiskScrubber] = {}
        self._pace: Pace | None = None
        self._files: list[str] = []  # damaged, as of the last scrub

    # --- what people ask -----------------------------------------------------------------------

    def start(self) -> None:
        """Begin a scrub, or go on with one that was stopped.

        Raises PoolBusyError with how far it is if one runs already, UsageError if no disk can be read.
        """
        record = self._jobs.book.scrub
        if record is not None and record.wanted:
            raise PoolBusyError(
                f"a scrub is under way, {self._how_far()}; wait for it, or stop it first"
            )
        if record is None:
            record = self._begin()
        record.wanted = True
        self._jobs.changed()
        self._wanted.set()

    def stop(self) -> None:
        """Stop the scrub where it is. Raises UsageError if none runs."""
        record = self._jobs.book.scrub
        if record is None or not record.wanted:
            raise UsageError("no scrub is under way")
        record.wanted = False
        self._jobs.changed()
        if self._scope is not None:
            self._scope.cancel()

    def status(self) -> ScrubStatus:
        """The scrub at hand, or the last one."""
        book = self._jobs.book
        if book.scrub is not None:
            return self._status_of(book.scrub, "running" if book.scrub.wanted else "stopped")
        last = book.last_scrub or ScrubStatus("never")
        return msgspec.structs.replace(
            last,
            damaged_files=self._files,
            every_days=self._every_days or None,
            due_ns=self._due_ns(),
        )

    def job(self) -> JobStatus | None:
        """The scrub at hand as a job."""
        record = self._jobs.book.scrub
        if record is None:
            return None
        return _as_job(self.status(), "running" if record.wanted else "stopped")

    def follow(self) -> Callable[[], JobStatus]:
        """A look at the scrub that runs now, also when it has ended."""
        record = self._jobs.book.scrub
        started_ns = 0 if record is None else record.started_ns

        def look() -> JobStatus:
            now = self._jobs.book.scrub
            if now is not None and now.started_ns == started_ns:
                return _as_job(self.status(), "running" if now.wanted else "stopped")
            return self._jobs.ended("scrub", "", started_ns) or _as_job(self.status(), "finished")

        return look

    def _how_far(self) -> str:
        status = self.status()
        if not status.total_bytes:
            return "just begun"
        share = min(100, 100 * status.done_bytes // status.total_bytes)
        left = status.seconds_left
        minutes = 0 if left is None else max(1, round(left / 60))
        ready = "" if left is None else f", ready in about {minutes} minute{'s' * (minutes > 1)}"
        return f"{share} % done{ready}"

    def _due_ns(self) -> int | None:
        if not self._every_days:
            return None
        last = self._jobs.book.last_scrub
        before = self._jobs.book.first_ns if last is None else (last.ended_ns or 0)
        return before + round(self._every_days * _DAY_NS)

    # --- what is done --------------------------------------------------------------------------

    async def run(self) -> None:
        """Scrub when asked to and when due, for ever."""
        if self._jobs.book.lost_stripes:
            await self._name(map(StripeId, self._jobs.book.lost_stripes))
        while True:
            record = self._jobs.book.scrub
            if record is not None and record.wanted:
                await self._scrub(record)
                continue
            due_ns = self._due_ns()
            if record is None and due_ns is not None and self._jobs.now_ns() >= due_ns:
                _log.info("a scrub is due and begins")
                self.start()
                continue
            self._wanted = trio.Event()
            with trio.move_on_after(_LOOK_SECONDS):
                await self._wanted.wait()

    def _begin(self) -> ScrubRecord:
        disks = {
            disk.id.hex(): DiskScrubRecord(
                path=str(disk.directory),
                state=ScrubState(),
                total_bytes=disk.store.space().used_bytes,
            )
            for disk in self._disks.all()
            if disk.store is not None and _worth_scrubbing(disk)
        }
        if not disks:
            raise UsageError("no disk of the pool can be scrubbed now")
        record = ScrubRecord(self._jobs.now_ns(), disks=disks)
        self._jobs.book.scrub = record
        return record

    async def _scrub(self, record: ScrubRecord) -> None:
        done = sum(disk.state.size_bytes for disk in record.disks.values())
        self._pace = Pace(trio.current_time(), done)
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._save_now_and_then)
                    async with trio.open_nursery() as disks:
                        for disk, entry in record.disks.items():
                            if entry.outcome not in ("done", "skipped"):
                                disks.start_soon(self._scrub_disk, disk, entry)
                    nursery.cancel_scope.cancel()
                await self._conclude(record)
        finally:
            self._scope = None
            self._pace = None
            self._jobs.changed()

    async def _scrub_disk(self, disk: str, entry: DiskScrubRecord) -> None:
        member = self._disks.find(DiskId(bytes.fromhex(disk)))
        if member is None or not _worth_scrubbing(member):
            entry.outcome = "skipped"
            return
        entry.outcome = "running"
        scrub = self._make(member.id, entry.state)
        self._running[disk] = scrub
        try:
            entry.state = await scrub.run()
            entry.outcome = "skipped" if entry.state.error else "done"
        finally:
            entry.state = scrub.state
            del self._running[disk]

    async def _save_now_and_then(self) -> None:
        while True:
            await trio.sleep(_SAVE_SECONDS)
            self._take_states()
            self._jobs.changed()

    def _take_states(self) -> None:
        record = self._jobs.book.scrub
        if record is not None:
            for disk, scrub in self._running.items():
                record.disks[disk].state = scrub.state

    async def _conclude(self, record: ScrubRecord) -> None:
        lost = {
            StripeId(stripe) for disk in record.disks.values() for stripe in disk.state.unrepairable
        }
        await self._name(sorted(lost))
        # No await from here on: a scrub is either under way or concluded.
        result = msgspec.structs.replace(
            self._status_of(record, "idle"),
            ended_ns=self._jobs.now_ns(),
            unrepairable=len(lost),
            bytes_per_second=None,
            seconds_left=None,
        )
        book = self._jobs.book
        book.scrub, book.last_scrub, book.lost_stripes = None, result, sorted(lost)
        self._jobs.finish(_as_job(result, "finished"))
        faults = sum(result.faults.values())
        if lost:
            _log.error(
                "scrub: %d stripes can't be repaired; `dwfs scrub --status` names the files",
                len(lost),
            )
        elif faults:
            _log.warning("scrub: %d faults found, %d shards repaired", faults, result.repaired)

    async def _name(self, lost: Iterable[StripeId]) -> None:
        self._files = (await self._name_files(lost))[:_FILES_NAMED_MAX]

    def _status_of(
        self, record: ScrubRecord, state: Literal["idle", "running", "stopped"]
    ) -> ScrubStatus:
        self._take_states()
        disks = list(record.disks.values())
        states = [disk.state for disk in disks]
        faults: Counter[str] = Counter()
        for one in states:
            faults.update(one.faults)
        done = sum(one.size_bytes for one in states)
        # What a disk had when the scrub began is only roughly what is read from it.
        ended = sum(disk.state.size_bytes for disk in disks if disk.outcome in ("done", "skipped"))
        left = [disk for disk in disks if disk.outcome not in ("done", "skipped")]
        total = ended + sum(max(disk.total_bytes, disk.state.size_bytes) for disk in left)
        rate = self._rate(done)
        return ScrubStatus(
            state=state,
            started_ns=record.started_ns,
            done_bytes=done,
            total_bytes=total,
            bytes_per_second=rate,
            seconds_left=(total - done) / rate if rate else None,
            faults=dict(faults),
            repaired=sum(one.repaired for one in states),
            unrepairable=len({stripe for one in states for stripe in one.unrepairable}),
            unrepaired=sum(one.failed for one in states),
            every_days=self._every_days or None,
            disks=[
                DiskScrubStatus(disk.path, disk.outcome, disk.state.size_bytes, disk.total_bytes)
                for disk in disks
            ],
        )

    def _rate(self, done_bytes: int) -> float | None:
        if self._pace is None:
            return None
        seconds = trio.current_time() - self._pace.since_seconds
        return (done_bytes - self._pace.before_bytes) / seconds if seconds > 0 else None


def _worth_scrubbing(disk: PoolDisk) -> bool:
    return disk.state in _SCRUBBED and disk.readable


def _as_job(status: ScrubStatus, state: JobState) -> JobStatus:
    faults = sum(status.faults.values())
    found = f"{faults} faults, {status.repaired} shards repaired" if faults else "no fault"
    if status.unrepairable:
        found += f", {status.unrepairable} stripes can't be repaired"
    running = state == "running"
    return JobStatus(
        kind="scrub",
        state=state,
        detail=f"reading all shards ({found} so far)" if running else "",
        done_bytes=status.done_bytes,
        total_bytes=status.total_bytes,
        bytes_per_second=status.bytes_per_second if running else None,
        seconds_left=status.seconds_left if running else None,
        started_ns=status.started_ns or 0,
        ended_ns=status.ended_ns,
        result=found if state == "finished" else "",
    )

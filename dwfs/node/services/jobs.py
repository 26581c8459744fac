"""What long work remembers across restarts, and how people follow it.

The book is one small JSON file in the state directory: how far a scrub is on each disk, whether a
balance was asked for, what was being removed, what ended lately and how. It is written whole, to a
new file that replaces the old one, so it is never torn. All of it is comfort: a book that is
lost or damaged costs a scrub from the start and nothing else, because what has to be repaired
is found on the disks, and which disk is to be removed is in the pool's header.

The book is readable by whoever has the system disk, so it holds nothing that the pool conceals: ids of
stripes and disks, counts and times, but no names of files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from dwfs.node.status import JobKind, JobState, JobStatus, ScrubStatus
from dwfs.ports import Clock
from dwfs.stripe import BalanceState, ScrubState
from dwfs.types import PoolId

_log = logging.getLogger(__name__)

BOOK_FORMAT: Final = 1
FINISHED_MAX: Final = 16  # jobs that ended, for status
_SAVE_SECONDS: Final = 5.0  # of progress that a crash may cost
_LOOK_SECONDS: Final = 0.5  # between two looks of somebody who waits
_TELL_SECONDS: Final = 2.0  # the longest silence towards somebody who waits
ENDED: Final[frozenset[JobState]] = frozenset({"finished", "failed", "stopped"})

Progress = Callable[[Mapping[str, object]], Awaitable[None]]


class DiskScrubRecord(msgspec.Struct):
    """How far a scrub is on one disk."""

    path: str
    state: ScrubState
    total_bytes: int = 0  # of shards when the scrub began; 0: not known
    outcome: str = "waiting"  # "waiting", "running", "done", "skipped"


class ScrubRecord(msgspec.Struct):
    """A scrub that has begun and not ended."""

    started_ns: int
    wanted: bool = True  # False: stopped by hand; it goes on when it is started again
    disks: dict[str, DiskScrubRecord] = {}  # by the disk's id in hex


class RemovalRecord(msgspec.Struct):
    """A disk that is being emptied: what there was to do when it began."""

    kind: JobKind
    path: str
    started_ns: int
    total_bytes: int


class JobBook(msgspec.Struct):
    """All that is remembered."""

    format: int
    pool: str  # hex; a book left by another pool of the same name is not ours
    scrub: ScrubRecord | None = None
    last_scrub: ScrubStatus | None = None  # without names of files
    lost_stripes: list[bytes] = []  # that it could not repair
    balance_wanted: bool = False
    balance: BalanceState | None = None  # of a balance that was stopped or interrupted
    balance_started_ns: int = 0
    first_ns: int = 0  # when the book was begun: a pool's first scrub is due from then
    removals: dict[str, RemovalRecord] = {}  # by the disk's id in hex
    finished: list[JobStatus] = []  # newest first


_book_decoder = msgspec.json.Decoder(JobBook)


class Worker(Protocol):
    """Runs blocking work in a thread; `dwfs.disk.DiskExecutor` does."""

    async def run(self, function: Callable[[Path, bytes], None], path: Path, raw: bytes, /) -> None:
        """Run it and wait."""


class JobStore:
    """Keeps the book. `changed` after each change that matters; `run` writes it out."""

    def __init__(self, path: Path, pool: PoolId, clock: Clock, worker: Worker) -> None:
        """Reads the book; a small file."""
        self._path = path
        self._clock = clock
        self._worker = worker
        self._changed = trio.Event()
        self._saving = trio.Lock()
        self.book = read_book(path, pool)
        if not self.book.first_ns:
            self.book.first_ns = clock.wall_ns()
            self.changed()

    def now_ns(self) -> int:
        """Wall time, for records that people read."""
        return self._clock.wall_ns()

    def changed(self) -> None:
        """The book differs from what is on disk; it is written soon."""
        self._changed.set()

    def finish(self, job: JobStatus) -> None:
        """Note a job that ended."""
        self.book.finished.insert(0, job)
        del self.book.finished[FINISHED_MAX:]
        self.changed()

    def ended(self, kind: JobKind, disk: str, started_ns: int) -> JobStatus | None:
        """The job that began then, if it has ended."""
        for job in self.book.finished:
            if (job.kind, job.disk, job.started_ns) == (kind, disk, started_ns):
                return job
        return None

    async def run(self) -> None:
        """Write the book some seconds after each change."""
        while True:
            await self._changed.wait()
            await self.save()
            await trio.sleep(_SAVE_SECONDS)

    async def save(self) -> None:
        """Write the book now, durably. Raises OSError."""
        async with self._saving:
            self._changed = trio.Event()
            raw = msgspec.json.encode(self.book)
            try:
                await self._worker.run(write_atomically, self._path, raw)
            except BaseException:  # whatever it was: it is still to be written
                self._changed.set()
                raise


def read_book(path: Path, pool: PoolId) -> JobBook:
    """The book as it was left, or an empty one."""
    empty = JobBook(BOOK_FORMAT, pool.hex())
    try:
        book = _book_decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return empty
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("%s can't be read (%s): a scrub under way begins anew", path, error)
        return empty
    return book if (book.format, book.pool) == (BOOK_FORMAT, pool.hex()) else empty


def write_atomically(path: Path, raw: bytes) -> None:
    """Replace a file by one with this content, durably. Blocking."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def follow(look: Callable[[], JobStatus], progress: Progress) -> JobStatus:
    """Tell how a job goes until it ends; gives how it ended.

    Only looks: whoever gives up waiting changes nothing.
    """
    told: Mapping[str, object] = {}
    told_at = -_TELL_SECONDS
    while (job := look()).state not in ENDED:
        event = describe(job)
        now = trio.current_time()
        if event != told or now - told_at >= _TELL_SECONDS:
            told, told_at = event, now
            await progress(event)
        await trio.sleep(_LOOK_SECONDS)
    await progress(describe(job))
    return job


def describe(job: JobStatus) -> dict[str, object]:
    """A job as an event for those who wait."""
    return {
        "what": job.detail or job.kind,
        "kind": job.kind,
        "state": job.state,
        "done": job.done_bytes,
        "total": job.total_bytes,
        "unit": "bytes",
        "bytes_per_second": job.bytes_per_second,
        "seconds_left": job.seconds_left,
    }

"""The log's worker threads, and how long they may stand still.

A *lane* is one thread and the watch over its present job. A job that makes no step for the deadline
is given up: its caller gets `HungError`, which names the disk. Deadlines count steps, not jobs, as
copying a file may well take minutes on a slow disk that works.

- `writer` writes small records to all fast disks in turn, `filler` the zeros ahead of them, and
  `maintainer` reads and mends copies. Their jobs touch several disks, so after a hang they are
  replaced at once: the other disks go on.
- Each disk has a lane of its own for what concerns it alone (parallel writes, beginning and finishing
  a copy) and another for what may wait (looking around, removals). They stay stalled until the thread
  returns: calls fail at once, and what one disk can tie up is bounded. When whoever watches its health
  has taken the disk out and then back, a stalled lane is replaced, a few times at most.

Handles that a hung thread may still use are closed by a call posted to the same thread.

`expire` counts time by its own calls and no more than a second for each: a process that was stopped
or starved for a minute must not take that for a minute of silence of its disks.
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Awaitable, Callable, Set
from typing import Final, TypeVar, TypeVarTuple

import outcome
import trio

from dwfs.log.ports import Executor, ExecutorFactory
from dwfs.log.watching import GivenUpError, Watch
from dwfs.types import DiskId

ResultT = TypeVar("ResultT")
ArgumentTs = TypeVarTuple("ArgumentTs")

LOOK_SECONDS: Final = 0.25
_LOOK_SECONDS_MAX: Final = 1.0  # that one look counts, however long ago the last was
_CLOSE_SECONDS: Final = 1.0  # at the end, for the last words of a disk that does not work
_REPLACEMENTS_MAX: Final = 8  # threads that one disk may leave hanging


class HungError(Exception):
    """A job was given up. `disk`: where it hung; None if no disk was in use."""

    def __init__(self, disk: DiskId | None, cause: OSError) -> None:
        super().__init__(str(cause))
        self.disk = disk
        self.cause = cause


class Lane:
    """One worker thread; at most one `run` at a time, and any number of `post`s."""

    def __init__(self, executor: Executor, disk: DiskId | None = None) -> None:
        self._executor = executor
        self._disk = disk
        self._watch: Watch | None = None
        self._steps_seen = -1
        self._still_seconds = 0.0
        self.stalled = False  # a job that was given up has not come back yet

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for a job."""
        return self._watch is not None

    async def run(
        self, function: Callable[[Watch, *ArgumentTs], ResultT], *arguments: *ArgumentTs
    ) -> ResultT:
        """Call `function(watch, *arguments)` in the thread. Raises what it raises, or HungError."""
        assert self._watch is None, "a lane does one thing at a time"
        if self.stalled:
            raise HungError(self._disk, OSError(errno.ETIMEDOUT, "still hangs in an earlier call"))
        watch = self._watch = Watch(self._disk)
        self._steps_seen = -1
        try:
            return await self._executor.run(_guarded, watch, function, *arguments)
        except OSError as error:
            if watch.given_up:
                raise HungError(watch.disk, error) from error
            raise
        finally:
            self._watch = None

    def post(self, function: Callable[[*ArgumentTs], None], *arguments: *ArgumentTs) -> None:
        """Have the function called in the thread after all that is queued; it must not raise."""
        self._executor.post(function, *arguments)

    def look(self, seconds: float, deadline_seconds: float) -> None:
        """Time has passed: give the job up if it stood still for too long."""
        watch = self._watch
        if watch is None:
            return
        if watch.steps != self._steps_seen:
            self._steps_seen = watch.steps
            self._still_seconds = 0.0
            return
        self._still_seconds += seconds
        if self._still_seconds >= deadline_seconds and watch.give_up():
            self.stalled = True
            self._executor.expire(math.inf, 0.0)
            self._executor.post(self._returned)

    async def run_watched(
        self,
        deadline_seconds: float,
        function: Callable[[Watch, *ArgumentTs], ResultT],
        *arguments: *ArgumentTs,
    ) -> ResultT:
        """As `run`, for a lane that nobody else looks at."""

        async def look() -> None:
            before = trio.current_time()
            while True:
                await trio.sleep(LOOK_SECONDS)
                before, passed = trio.current_time(), trio.current_time() - before
                self.look(min(passed, _LOOK_SECONDS_MAX), deadline_seconds)

        async def call() -> ResultT:
            return await self.run(function, *arguments)

        return await _beside(look, call)

    async def close(self, deadline_seconds: float | None = None) -> None:
        """Let the queue drain and join the thread, or abandon it if it hangs.

        With a deadline for a lane that nobody else looks at.
        """
        with contextlib.suppress(HungError, OSError):
            if not self.stalled:
                if deadline_seconds is None:
                    await self.run(_nothing)
                else:
                    await self.run_watched(deadline_seconds, _nothing)
                self._executor.close()
                return
        self.abandon()

    def abandon(self) -> None:
        """Wait for nothing. What was posted is still done when the thread comes back."""
        self._executor.abandon()

    def _returned(self) -> None:
        """In the thread: it has come back from the job that was given up."""
        self.stalled = False


class Lanes:
    """All lanes of one log. Belongs to the loop."""

    def __init__(self, make_executor: ExecutorFactory, deadline_seconds: float) -> None:
        self._make_executor = make_executor
        self._deadline_seconds = deadline_seconds
        self.writer = Lane(make_executor("log"))
        self.filler = Lane(make_executor("log-zeros"))
        self.maintainer = Lane(make_executor("log-maintenance"))
        self._disks: dict[DiskId, Lane] = {}
        self._backgrounds: dict[DiskId, Lane] = {}
        self._replaced: dict[DiskId, int] = {}
        self._taken_out: set[DiskId] = set()
        self._looked_at: float | None = None
        self._watchers = 0

    def of(self, disk: DiskId) -> Lane:
        """The disk's lane for what somebody waits for."""
        return self._lane(self._disks, disk, f"log-{disk.hex()[:8]}")

    def background(self, disk: DiskId) -> Lane:
        """The disk's lane for what may wait."""
        return self._lane(self._backgrounds, disk, f"log-later-{disk.hex()[:8]}")

    def note_listed(self, listed: Set[DiskId]) -> None:
        """Those disks are said to work. One that is not, and then is again, gets new lanes."""
        for lanes in (self._disks, self._backgrounds):
            self._taken_out.update(
                disk for disk, lane in lanes.items() if lane.stalled and disk not in listed
            )
        for disk in self._taken_out & listed:
            self._taken_out.discard(disk)
            self._renew(disk)

    def _renew(self, disk: DiskId) -> None:
        for lanes in (self._disks, self._backgrounds):
            lane = lanes.get(disk)
            count = self._replaced.get(disk, 0)
            if lane is not None and lane.stalled and count < _REPLACEMENTS_MAX:
                self._replaced[disk] = count + 1
                lane.abandon()
                del lanes[disk]

    def replace_writer(self) -> None:
        """The writer hangs in one of its disks; the others need another."""
        self.writer.abandon()
        self.writer = Lane(self._make_executor("log"))

    def replace_filler(self) -> None:
        """As `replace_writer`; nobody waits for it, so it's replaced when a disk of its hangs."""
        self.filler.abandon()
        self.filler = Lane(self._make_executor("log-zeros"))

    def replace_maintainer(self) -> None:
        """As `replace_writer`."""
        self.maintainer.abandon()
        self.maintainer = Lane(self._make_executor("log-maintenance"))

    def expire(self, now: float) -> None:
        """Look at every lane. `now`: monotonic seconds; call it every `LOOK_SECONDS` or so."""
        last, self._looked_at = self._looked_at, now
        seconds = 0.0 if last is None else min(max(now - last, 0.0), _LOOK_SECONDS_MAX)
        for lane in self._all():
            lane.look(seconds, self._deadline_seconds)

    @property
    def is_watched(self) -> bool:
        """Whether a `watch` is there that outlasts whatever is begun now."""
        return self._watchers > 0

    async def watch(self) -> None:
        """Call `expire` for ever.

        When it is cancelled it stays until no lane is busy: those who wait for one can't be
        cancelled, and would wait for ever if their disk hung.
        """
        self._watchers += 1
        try:
            await self._look()
        finally:
            self._watchers -= 1
            with trio.CancelScope(shield=True):
                while any(lane.is_busy for lane in self._all()):
                    self.expire(trio.current_time())
                    await trio.sleep(LOOK_SECONDS)

    async def watched(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Make a call, and look at the lanes meanwhile."""
        return await _beside(self._look, call)

    async def _look(self) -> None:
        while True:
            self.expire(trio.current_time())
            await trio.sleep(LOOK_SECONDS)

    async def close(self, listed: Set[DiskId]) -> None:
        """End all threads but those that hang; somebody must `watch` meanwhile.

        Takes no longer than the deadline; for disks that aren't said to work, a second.
        """
        async with trio.open_nursery() as nursery:
            for lane in (self.writer, self.filler, self.maintainer):
                nursery.start_soon(lane.close)
            for lanes in (self._disks, self._backgrounds):
                for disk, lane in lanes.items():
                    patience = None if disk in listed else _CLOSE_SECONDS
                    nursery.start_soon(lane.close, patience)

    def _all(self) -> list[Lane]:
        return [
            self.writer,
            self.filler,
            self.maintainer,
            *self._disks.values(),
            *self._backgrounds.values(),
        ]

    def _lane(self, lanes: dict[DiskId, Lane], disk: DiskId, name: str) -> Lane:
        if disk not in lanes:
            lanes[disk] = Lane(self._make_executor(name), disk)
        return lanes[disk]


async def _beside(
    look: Callable[[], Awaitable[None]], call: Callable[[], Awaitable[ResultT]]
) -> ResultT:
    """Make a call while `look` runs, which never ends by itself.

    Shielded: the call waits for a disk and can't be cancelled then, so `look`, which bounds that wait,
    must not be cancelled before it.
    """
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = True
        nursery.start_soon(look)
        # Captured, lest the nursery wraps an exception that is meant for the caller.
        result: outcome.Outcome[ResultT] = await outcome.acapture(call)
        nursery.cancel_scope.cancel()
    return result.unwrap()


def _nothing(_watch: Watch) -> None:
    """What a closing lane is asked for: by then all that was posted before is done."""


def _guarded(
    watch: Watch,
    function: Callable[[Watch, *ArgumentTs], ResultT],
    *arguments: *ArgumentTs,
) -> ResultT:
    """In the thread: one job, from its begin to its end."""
    try:
        if watch.given_up:  # before it was begun
            raise GivenUpError
        return function(watch, *arguments)
    finally:
        watch.finish()

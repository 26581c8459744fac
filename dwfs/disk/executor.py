"""The worker threads of one disk: blocking calls in, results back on the trio loop.

A pool of threads per disk, not one shared pool, keeps a slow or hung disk from starving the others.
`trio.to_thread` costs about twice as much a call (it manages a thread cache, a capacity limiter, a
contextvars copy and a cancellation path); here a call is one queue put, one wake-up of a thread and
one `run_sync_soon`.

Why waiting is uncancellable: a worker's buffers belong to its caller. If the wait could be abandoned,
the caller would go on to reuse a buffer that `pwritev` is still reading. So the abort function answers
`Abort.FAILED`: trio leaves the task asleep, remembers the cancellation, and delivers it at the task's
next checkpoint; the job's outcome is never lost. What a caller can be cancelled in is the wait for a
place in the queue: nothing has begun then. A call that shares no memory with its caller (a read that
makes its own bytes) may say that it is `abandonable`; then a cancellation ends the wait at once.

A disk that hangs in the kernel hangs its workers; nothing in user space can undo an uninterruptible
read. Its callers are freed by `expire`, which somebody must call now and then: a call that takes longer
than the deadline is *given up*, its caller gets `OSError(ETIMEDOUT)`, and whatever the call still does
or answers is dropped (`discard` closes a handle that came too late). While a worker is still at a call
that was overdue the executor is *stalled* and refuses new calls at once: a circuit breaker, which
closes by itself when the disk answers. Memory that a given-up call was to write from must not be
reused; the caller knows that from the errno.

Safety against lost and double wake-ups: a job's caller is woken exactly once, on the loop thread, by
whoever finds `job.task` set and takes it: the delivery, `expire`, `abandon`, or a cancellation. Every
job that was queued is taken out by a worker, sooner or later, and handed to `run_sync_soon` exactly
once. The only fields that two threads touch are `task` (loop writes, worker reads to skip what nobody
waits for), `started` and the worker's slot (worker writes, loop reads): single stores, each read once.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, cast

import outcome
import trio

from dwfs import limits
from dwfs.disk.jobs import Errand, Job, Work

_log = logging.getLogger(__name__)

_GRACE_SECONDS: Final = 0.05  # for threads that are idle to end, where others hang

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


class Executor(Protocol):
    """Where a disk's blocking calls are made. `DiskExecutor` is the real one."""

    async def run(
        self,
        function: Callable[[*ArgumentsT], ResultT],
        *arguments: *ArgumentsT,
        discard: Callable[[ResultT], object] | None = None,
        afterwards: Callable[[], object] | None = None,
        abandonable: bool = False,
    ) -> ResultT:
        """Make the call and wait for its end.

        Raises what it raises, or OSError(ETIMEDOUT) if it was given up. A result that comes after
        that is handed to `discard`, in a worker. `afterwards` is called on the loop, exactly once,
        when the call has really ended or is known never to begin: only then may be closed what it
        used. Not cancellable once begun, unless `abandonable`.
        """

    def post(self, function: Callable[[*ArgumentsT], None], *arguments: *ArgumentsT) -> None:
        """Make the call some time; nobody waits. It must not raise."""

    def waiting(self) -> int:
        """Calls that are queued or running."""

    @property
    def stalled(self) -> bool:
        """Whether a call that is overdue is still under way: new ones fail at once."""

    def oldest_seconds(self, now: float) -> float:
        """How long the call that has been under way or queued longest takes by now; 0.0 if none."""

    def expire(self, now: float, deadline_seconds: float) -> int:
        """Give up what takes longer than the deadline; returns the number of callers set free."""

    def abandon(self) -> None:
        """Close without waiting: callers get OSError(ETIMEDOUT), new ones OSError(ENODEV).

        What was posted, before or after, is still done if the disk lets go of the threads.
        """

    def close(self) -> bool:
        """Let queued calls finish and refuse new ones. False if the disk hung and was abandoned."""


class DiskExecutor:
    """A bounded, fair queue of blocking calls, served by `threads` threads: an `Executor`.

    Must be made on the trio loop whose tasks will use it. Not a context manager: its owner closes it
    when the disk's last user is gone. `now` is the clock that `expire` and `oldest_seconds` are told.
    """

    def __init__(
        self, name: str, threads: int = 2, now: Callable[[], float] = time.monotonic
    ) -> None:
        assert threads > 0
        self.name = name
        self._now = now
        self._token = trio.lowlevel.current_trio_token()
        self._places = trio.Semaphore(limits.DISK_QUEUE_MAX)
        # Any: jobs of every result type share the queue; None has a worker look whether to stop.
        self._queue: SimpleQueue[Job[Any] | Errand | None] = SimpleQueue()
        # Any: as above. Queued and not yet delivered, in the order of queueing.
        self._jobs: dict[Job[Any], None] = {}
        self._running: list[Work | None] = [None] * threads
        self._ended_at = now()  # when a call last came back
        self._ever_overdue = False  # saves every call the look into the slots
        self._ending = threading.Lock()  # between a thread's decision to end and `post`
        self._at_work = threads
        self._closed = False
        self._abandoned = False
        self._threads = [
            threading.Thread(
                target=self._work, args=(number,), name=f"dwfs-{name}-{number}", daemon=True
            )
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(
        self,
        function: Callable[[*ArgumentsT], ResultT],
        *arguments: *ArgumentsT,
        discard: Callable[[ResultT], object] | None = None,
        afterwards: Callable[[], object] | None = None,
        abandonable: bool = False,
    ) -> ResultT:
        """Call `function(*arguments)` in a worker; returns what it returns, raises what it raises.

        Cancellable only until the call is queued, or throughout if `abandonable`. Raises
        OSError(ETIMEDOUT) if the call is given up, or at once while the executor is stalled;
        `discard` is then called, in a worker, with a result that comes all the same, and
        `afterwards` on the loop when the call has ended (in any case; once). Raises OSError(ENODEV)
        after `abandon`, RuntimeError after `close`.
        """
        job: Job[ResultT] | None = None
        try:
            self._admit()
            await self._take_place()
            try:
                self._admit()  # it may have been closed or have stalled while we waited
                task = trio.lowlevel.current_task()
                job = Job(self._now(), task, lambda: function(*arguments), discard)
                self._jobs[job] = None
                self._queue.put(job)
                abort = job.let_go if abandonable else _refuse_abort
                return cast(ResultT, await trio.lowlevel.wait_task_rescheduled(abort))
            finally:
                self._places.release()
        finally:
            if afterwards is not None:
                if job is None or job.ended:
                    afterwards()
                else:
                    job.afterwards = afterwards

    def post(self, function: Callable[[*ArgumentsT], None], *arguments: *ArgumentsT) -> None:
        """Have `function(*arguments)` called in a worker; it must not raise.

        Takes no place in the queue: it's the caller who bounds how many there are. Ignored after
        `close`; after `abandon` it is done when the disk lets go of a thread, or never, or here and
        now if no thread is left.
        """
        errand = Errand(self._now(), lambda: function(*arguments))
        if not self._closed:
            self._queue.put(errand)
        elif self._abandoned:
            with self._ending:
                if self._at_work:
                    self._queue.put(errand)
                    return
            errand.execute()  # all threads came back, so the disk answers

    def waiting(self) -> int:
        """Calls that are queued or running, abandoned ones too: a measure of the disk's load."""
        return len(self._jobs)

    @property
    def stalled(self) -> bool:
        """Whether a call that is overdue is still under way."""
        return any(work is not None and work.overdue for work in self._running)

    def oldest_seconds(self, now: float) -> float:
        """Age of the oldest call that is queued or running; 0.0 if there is none."""
        oldest = now
        for work in self._running:
            if work is not None and work.started is not None:
                oldest = min(oldest, work.started)
        if self._jobs:
            oldest = min(oldest, next(iter(self._jobs)).queued)
        return max(0.0, now - oldest)

    def expire(self, now: float, deadline_seconds: float) -> int:
        """Give up every call that has been running for longer than the deadline.

        And those that have been queued for so long, unless the queue moves: a disk that is merely
        slow works it off, and its callers' patience is the queue's bound.
        """
        for work in self._running:
            if (
                work is not None
                and work.started is not None
                and now - work.started > deadline_seconds
                and not work.overdue
            ):
                work.overdue = self._ever_overdue = True
                _log.info("executor %s: a call takes more than %g s", self.name, deadline_seconds)
        moving = not self.stalled and now - self._ended_at <= deadline_seconds
        overdue = [
            job
            for job in self._jobs
            if job.task is not None
            and (
                job.overdue
                or (job.started is None and not moving and now - job.queued > deadline_seconds)
            )
        ]
        for job in overdue:
            self._give_up(job)
        return len(overdue)

    def abandon(self) -> None:
        """Close without waiting for the threads. May be called at any time, and again."""
        self._abandoned = True
        for job in [job for job in self._jobs if job.task is not None]:
            self._give_up(job)
        self._stop()

    def close(self) -> bool:
        """Refuse new calls, let queued ones finish, join the threads. Blocks; may be called again.

        Returns False if a thread hangs and was abandoned: at once if the executor is stalled or
        abandoned, else after `limits.DISK_CLOSE_SECONDS`.
        """
        self._stop()
        hopeless = self._abandoned or self.stalled
        deadline = time.monotonic() + (_GRACE_SECONDS if hopeless else limits.DISK_CLOSE_SECONDS)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            return True
        self.abandon()
        return False

    # --- inner -------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Raise unless a call may be made now."""
        if self._abandoned:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if self._closed:
            raise RuntimeError(f"executor {self.name} is closed")
        # Abandoned calls hold no place; without a bound a hung disk would collect them.
        if len(self._jobs) >= 2 * limits.DISK_QUEUE_MAX or (self._ever_overdue and self.stalled):
            raise _timed_out()

    async def _take_place(self) -> None:
        # The semaphore hands a freed place to its longest waiter, so acquire_nowait can't barge in.
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            await self._places.acquire()
            return
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:  # cancelled: the place goes to the next in line
            self._places.release()
            raise

    # Any: the job's result type is of no concern here, nor below.
    def _give_up(self, job: Job[Any]) -> None:
        task, job.task = job.task, None
        assert task is not None
        trio.lowlevel.reschedule(task, outcome.Error(_timed_out()))

    def _deliver(self, job: Job[Any]) -> None:
        """On the loop: the worker is done with the job."""
        del self._jobs[job]
        job.ended = True
        self._ended_at = self._now()
        task, job.task = job.task, None
        if task is not None:
            assert job.result is not None
            trio.lowlevel.reschedule(task, cast(outcome.Outcome[object], job.result))
        else:
            job.drop_result()  # given up between the worker's look and now
            if job.afterwards is not None:
                job.afterwards()

    def _stop(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)

    def _work(self, number: int) -> None:
        while True:
            work = self._queue.get()
            if work is None:  # the one stop mark: it goes behind what is still to be done
                with self._ending:
                    last = self._queue.empty()
                    self._at_work -= last
                self._queue.put(None)
                if last:
                    return
                continue
            work.started = self._now()
            self._running[number] = work
            work.execute()
            if isinstance(work, Job) and work.task is None:
                work.drop_result()
            self._running[number] = None
            if isinstance(work, Job):
                try:
                    self._token.run_sync_soon(self._deliver, work)
                except trio.RunFinishedError:
                    return  # the loop was torn down around us; nobody is left to be told
            del work  # or its buffers would live on until the next call


def _timed_out() -> OSError:
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _refuse_abort(_raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED

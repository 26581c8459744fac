"""The worker threads of one disk: blocking calls in, results back on the trio loop.

A pool of threads per disk, not one shared pool, keeps a slow or hung disk from starving the others.
`trio.to_thread` costs about twice as much a call (it manages a thread cache, a capacity limiter, a
contextvars copy and a cancellation path); here a call is one queue put, one wake-up of a thread and
one `run_sync_soon`.

Why waiting is uncancellable: a worker's buffers belong to its caller. If the wait could be abandoned,
the caller would go on to reuse a buffer that `pwritev` is still reading. So the abort function always
answers `Abort.FAILED`: trio leaves the task asleep, remembers the cancellation, and delivers it at the
task's next checkpoint; the job's outcome is never lost. That is safe against missed wake-ups because
every job that was queued is run by a worker (`close` lets the queue drain before the stop marks, which
are queued behind it) and every run job is handed to `run_sync_soon` exactly once, even if its function
raised. What a caller can be cancelled in is the wait for a place in the queue: nothing has begun then.

A disk that hangs in the kernel hangs its workers and their callers; nothing in user space can undo an
uninterruptible read. Its threads are daemons and `close` gives up after a bounded time, so that the
process can still end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import outcome
import trio

from dwfs import limits

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


class _Job(Generic[ResultT]):
    """One call on its way through a worker."""

    __slots__ = ("_call", "result", "task")

    def __init__(self, task: trio.lowlevel.Task, call: Callable[[], ResultT]) -> None:
        self.task = task
        self._call = call
        self.result: outcome.Outcome[ResultT] | None = None

    def execute(self) -> None:
        """In the worker: run the call and keep what came of it."""
        self.result = outcome.capture(self._call)

    def deliver(self) -> None:
        """On the loop: wake the caller."""
        trio.lowlevel.reschedule(self.task, cast(outcome.Outcome[object], self.result))


class _Errand:
    """A call whose outcome nobody waits for."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def execute(self) -> None:
        """In the worker."""
        try:
            self._call()
        # Nobody waits for it, so the log is the only one to tell; the worker must live on.
        except Exception:
            _log.exception("a background call failed")


class DiskExecutor:
    """A bounded, fair queue of blocking calls, served by `threads` threads.

    Must be made on the trio loop whose tasks will use it. Not a context manager: its owner closes it
    when the disk's last user is gone.
    """

    def __init__(self, name: str, threads: int = 2) -> None:
        assert threads > 0
        self.name = name
        self._token = trio.lowlevel.current_trio_token()
        self._places = trio.Semaphore(limits.DISK_QUEUE_MAX)
        # Any: jobs of every result type share the queue; None tells a worker to stop.
        self._queue: SimpleQueue[_Job[Any] | _Errand | None] = SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"dwfs-{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(
        self, function: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT
    ) -> ResultT:
        """Call `function(*arguments)` in a worker; returns what it returns, raises what it raises.

        Cancellable only until the call is queued. Raises RuntimeError after `close`.
        """
        if self._closed:
            raise RuntimeError(f"executor {self.name} is closed")
        await self._take_place()
        try:
            if self._closed:  # closed while we waited for a place
                raise RuntimeError(f"executor {self.name} is closed")
            task = trio.lowlevel.current_task()
            self._queue.put(_Job(task, lambda: function(*arguments)))
            return cast(ResultT, await trio.lowlevel.wait_task_rescheduled(_refuse_abort))
        finally:
            self._places.release()

    def post(self, function: Callable[[*ArgumentsT], None], *arguments: *ArgumentsT) -> None:
        """Have `function(*arguments)` called in a worker; it must not raise.

        Takes no place in the queue: it's the caller who bounds how many there are. Ignored after
        `close`.
        """
        if not self._closed:
            self._queue.put(_Errand(lambda: function(*arguments)))

    def waiting(self) -> int:
        """Calls that are queued or running: a measure of the disk's load."""
        return limits.DISK_QUEUE_MAX - self._places.value

    def close(self) -> bool:
        """Refuse new calls, let queued ones finish, join the threads. Blocks; may be called again.

        Returns False if a thread hung for `limits.DISK_CLOSE_SECONDS` and was abandoned.
        """
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        deadline = time.monotonic() + limits.DISK_CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    async def _take_place(self) -> None:
        # The semaphore hands a freed place to its longest waiter, so acquire_nowait can't barge in.
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            await self._places.acquire()
            return
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self._places.release()
            raise

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            job.execute()
            if isinstance(job, _Errand):
                del job
                continue
            try:
                self._token.run_sync_soon(job.deliver)
            except trio.RunFinishedError:
                return  # the loop was torn down around us; nobody is left to be told
            del job  # or its buffers would live on until the next call


def _refuse_abort(_raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED

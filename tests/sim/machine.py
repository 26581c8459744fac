"""A simulated machine: time, chance, threads and disks for a pool, all decided by one seed.

It is a `dwfs.node.system.Platform`. Time is trio's, to be run with an auto-jumping `MockClock`, so a
simulated hour takes as long as what happens in it. Calls to a disk are made on the loop, one at an
instant, after a delay that chance decides; while some disk hangs they are made in threads that hand
the turn to each other, so that a call can stand still in its middle and end late, as a real one does.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, cast

import outcome
import trio

from dwfs.disk.medium import Medium
from tests.sim.medium import SimulatedDisk, SimulatedMedium

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")

_START_NS = 1_700_000_000_000_000_000
_log = logging.getLogger(__name__)


class SimulatedClock:
    """Implements `ports.Clock`: what trio's clock says; in a thread, what it said when it got its turn."""

    def __init__(self) -> None:
        self._latest = 0.0

    def now(self) -> float:
        """Seconds of the simulation."""
        if threading.current_thread() is threading.main_thread():
            self._latest = trio.current_time()
        return self._latest

    def wall_ns(self) -> int:
        """The same, since an epoch."""
        return _START_NS + int(self.now() * 1e9)


class SeededRandomness:
    """Implements `ports.Randomness`, and stands in for `os.urandom`."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def bytes(self, count: int) -> bytes:
        """`count` bytes that the seed decides."""
        return self._source.randbytes(count)


class _Call:
    """One call on its way. It ends once; its caller may have gone by then."""

    # Any: calls of every kind share a line, and only their callers care what they return.
    def __init__(self, function: Callable[[], Any], *, posted: bool) -> None:
        self.function = function
        self.posted = posted
        self.queued = trio.current_time()
        self.over = trio.Event()  # it has ended, or it was given up
        self.given_up = False
        self.ended = False
        self.result: outcome.Outcome[Any] | None = None
        self.discard: Callable[[Any], object] | None = None
        self.afterwards: Callable[[], object] | None = None

    def perform(self) -> outcome.Outcome[Any]:
        """Make the call, unless nobody waits for it any more."""
        if self.given_up:
            return outcome.Error(_timed_out())
        result: outcome.Outcome[Any] = outcome.capture(self.function)
        return result


class SimulatedExecutor:
    """A `dwfs.disk.Executor` without threads of its own: `threads` calls are under way at a time."""

    def __init__(self, machine: Machine, name: str, threads: int) -> None:
        self.name = name
        self._machine = machine
        self._threads = threads
        self._line: deque[_Call] = deque()
        self._under_way: list[_Call] = []
        self._closed = False
        self._abandoned = False

    async def run(
        self,
        function: Callable[[*ArgumentsT], ResultT],
        *arguments: *ArgumentsT,
        discard: Callable[[ResultT], object] | None = None,
        afterwards: Callable[[], object] | None = None,
        abandonable: bool = False,
    ) -> ResultT:
        """As `DiskExecutor.run`."""
        try:
            self._admit()
        except BaseException:  # whatever it was, the call is not going to be made
            if afterwards is not None:
                afterwards()
            raise
        call = _Call(functools.partial(function, *arguments), posted=False)
        call.discard = discard
        call.afterwards = afterwards
        self._queue(call)
        try:
            with trio.CancelScope(shield=not abandonable):
                await call.over.wait()
        except trio.Cancelled:
            call.given_up = True
            raise
        if call.given_up:
            raise _timed_out()
        assert call.result is not None
        return cast(ResultT, call.result.unwrap())

    def post(self, function: Callable[[*ArgumentsT], None], *arguments: *ArgumentsT) -> None:
        """As `DiskExecutor.post`."""
        if not self._closed or self._abandoned:
            self._queue(_Call(functools.partial(function, *arguments), posted=True))

    def waiting(self) -> int:
        """Calls that are queued or under way."""
        return len(self._line) + len(self._under_way)

    @property
    def stalled(self) -> bool:
        """Whether a call that was given up is still under way."""
        return any(call.given_up for call in self._hanging())

    def oldest_seconds(self, now: float) -> float:
        """As `DiskExecutor.oldest_seconds`."""
        return max((now - call.queued for call in self._calls()), default=0.0)

    def expire(self, now: float, deadline_seconds: float) -> int:
        """As `DiskExecutor.expire`."""
        overdue = [
            call
            for call in self._calls()
            if not (call.given_up or call.posted) and now - call.queued > deadline_seconds
        ]
        for call in overdue:
            self._give_up(call)
        return len(overdue)

    def abandon(self) -> None:
        """As `DiskExecutor.abandon`."""
        self._abandoned = self._closed = True
        for call in self._calls():
            if not (call.given_up or call.posted):
                self._give_up(call)

    def close(self) -> bool:
        """As `DiskExecutor.close`; what is queued is done at once."""
        self._closed = True
        if self._hanging():
            self.abandon()
            return False
        while self._line or self._under_way:
            call = self._under_way.pop(0) if self._under_way else self._line.popleft()
            self._finish(call, call.perform())
        return True

    # --- inner -------------------------------------------------------------------------------

    def _calls(self) -> list[_Call]:
        return [*self._under_way, *self._line]

    def _hanging(self) -> list[_Call]:
        return [call for call in self._under_way if self._machine.is_parked(call)]

    def _admit(self) -> None:
        if self._abandoned:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if self._closed:
            raise RuntimeError(f"executor {self.name} is closed")
        if self.stalled:
            raise _timed_out()

    def _queue(self, call: _Call) -> None:
        self._line.append(call)
        self._advance()

    def _advance(self) -> None:
        """Let those begin whose turn it is."""
        while self._line and len(self._under_way) < self._threads:
            call = self._line.popleft()
            self._under_way.append(call)
            trio.lowlevel.spawn_system_task(self._work, call, name=self.name)

    async def _work(self, call: _Call) -> None:
        """A system task: the worker that makes one call."""
        await self._machine.delay()
        if not call.ended:  # or `close` has made it
            self._machine.make(call, functools.partial(self._returned, call))

    def _returned(self, call: _Call, result: outcome.Outcome[Any]) -> None:
        """On the loop, when the call has really ended."""
        self._under_way.remove(call)
        self._finish(call, result)
        self._advance()

    def _finish(self, call: _Call, result: outcome.Outcome[Any]) -> None:
        call.ended = True
        call.result = result
        if call.posted and isinstance(result, outcome.Error):
            self._machine.background_failed(self.name, result.error)
        if call.given_up and call.discard is not None and isinstance(result, outcome.Value):
            call.discard(result.value)
        call.over.set()
        if call.afterwards is not None:
            call.afterwards()

    def _give_up(self, call: _Call) -> None:
        call.given_up = True
        call.over.set()
        if call in self._line:  # it never begins
            self._line.remove(call)
            call.ended = True
            if call.afterwards is not None:
                call.afterwards()


class _Thread:
    """A thread that makes one call and stands still in it whenever it meets a disk that hangs.

    It and the loop run in turn, never at once: the outcome is as decided by the seed as without it.
    """

    def __init__(self, call: _Call) -> None:
        self.result: outcome.Outcome[Any] | None = None
        self._call = call
        self._go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, name="simulated", daemon=True)

    def begin(self) -> None:
        """Run until the call ends or hangs. On the loop."""
        self.thread.start()
        self._stands.acquire()

    def resume(self) -> None:
        """Go on until the call ends or hangs again. On the loop."""
        self._go.release()
        self._stands.acquire()

    def park(self) -> None:
        """Give the turn to the loop and wait for it. In the thread."""
        self._stands.release()
        self._go.acquire()

    def _run(self) -> None:
        self.result = self._call.perform()
        self._stands.release()


class Machine:
    """What a pool runs on. Implements `dwfs.node.system.Platform`."""

    def __init__(self, seed: int, medium: SimulatedMedium) -> None:
        self.random = random.Random(f"machine {seed}")
        self.clock = SimulatedClock()
        self.randomness = SeededRandomness(random.Random(f"bytes {seed}"))
        self.simulated = medium
        self.medium: Medium = medium
        self.slowness_seconds = 0.002  # of an average call that takes time at all
        self.violations: list[str] = []
        self._parked: dict[_Call, tuple[_Thread, Callable[[outcome.Outcome[Any]], None]]] = {}
        self._for_loop: list[Callable[[], object]] = []
        medium.on_hung = self._meet_hung_disk

    def make_executor(self, name: str, threads: int = 2) -> SimulatedExecutor:
        """Workers without threads."""
        return SimulatedExecutor(self, name, threads)

    async def run_blocking(
        self, function: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT
    ) -> ResultT:
        """At once, on the loop."""
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    async def delay(self) -> None:
        """What passes before a worker takes up a call."""
        chance = self.random.random()
        if chance < 0.8:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self.random.expovariate(1 / self.slowness_seconds))

    # --- calls -------------------------------------------------------------------------------

    def make(self, call: _Call, returned: Callable[[outcome.Outcome[Any]], None]) -> None:
        """Make the call; `returned` is called on the loop when it has ended, now or later."""
        if not any(disk.hung for disk in self.simulated.disks.values()):
            returned(call.perform())
            return
        self.clock.now()  # for the thread
        thread = _Thread(call)
        self._parked[call] = (thread, returned)
        thread.begin()
        self._look_after(call)

    def is_parked(self, call: _Call) -> bool:
        """Whether the call stands still in its middle."""
        return call in self._parked

    def release(self, disk: SimulatedDisk) -> None:
        """The disk answers again; what hung in it goes on."""
        disk.hung = False
        self.clock.now()  # for the threads
        for call, (thread, _) in list(self._parked.items()):
            thread.resume()
            self._look_after(call)

    def call_on_loop(self, function: Callable[[], object]) -> None:
        """Call it now, or if this is a thread that makes a call, as soon as it gives up its turn."""
        if threading.current_thread() is threading.main_thread():
            function()
        else:
            self._for_loop.append(function)

    def background_failed(self, name: str, error: BaseException) -> None:
        """A posted call raised, which it must not."""
        if not self.simulated.off:
            _log.error("a call posted to %s failed", name, exc_info=error)

    def _look_after(self, call: _Call) -> None:
        while self._for_loop:
            self._for_loop.pop()()
        thread, returned = self._parked[call]
        if thread.result is not None:
            thread.thread.join()
            del self._parked[call]
            returned(thread.result)

    def _meet_hung_disk(self, disk: SimulatedDisk) -> None:
        for thread, _ in self._parked.values():
            if thread.thread is threading.current_thread():
                while disk.hung:
                    thread.park()
                return
        self.violations.append(f"the loop itself waits for the disk {disk.name}, which hangs")
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), disk.name)


def _timed_out() -> OSError:
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

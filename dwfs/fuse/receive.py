"""A cheaper way for pyfuse3's workers to wait for the next request.

pyfuse3 runs a pool of worker tasks. For every request a worker takes a `trio.Lock`, waits with
`trio.lowlevel.wait_readable`, releases the lock, reads one request and handles it. Both awaits go
through trio's scheduler even if nothing is contended and the next request is already there, and
that costs as much as a whole metadata operation of ours.

pyfuse3 looks its event loop up as the module global `pyfuse3.trio`; its own asyncio support works
by replacing that global. `quick_receive` does the same for the time of one session: it puts in a
stand-in that is trio in everything but two names.

* `Lock` is `ReadTurn`: free → taken without a checkpoint. A worker that releases it wakes one
  parked worker, but that one runs only when the releasing worker really suspends (there is one
  thread). If by then the releaser has taken the turn again, the woken worker parks again.
* `lowlevel.wait_readable` is `Readiness.wait`: it first asks the descriptor itself (`poll`, no
  timeout) and goes to trio only if no request is there.

Safety:

* *Mutual exclusion.* The turn is a flag that is tested and set without an await between.
* *No lost wake-up.* Whenever the turn is free while workers are parked, one of them has been woken
  and not yet run: release wakes one unless one is already on its way, and a woken worker that finds
  the turn taken parks again and leaves it to the holder's release. So while a handler is suspended
  (in an fsync, say) somebody else always reads.
* *Fairness.* After `BURST_REQUESTS` immediate answers, or `BURST_SECONDS`, a worker passes through
  trio's scheduler, so that every other runnable task, timer and socket gets its turn.
* *Cancellation.* That pass and every real wait are trio checkpoints; a cancelled session ends after
  one burst at the latest. A worker cancelled while parked never holds the turn.
* *Shutdown.* pyfuse3 tests its exit flag with the turn held, immediately before it waits;
  `pyfuse3.terminate` wakes whoever is in trio's `wait_readable`. An unmounted or aborted session
  makes the descriptor report an error, which counts as readable, as it does for trio.
* *Blocking.* `poll` promises a request that may be gone by the read, if its caller was killed in
  between; the read then blocks until the next request. trio's wait has the same gap, only wider.

Should pyfuse3 change its internals, the stand-in is simply not consulted, or (`trio` gone from the
module) not installed, and the session works as plain pyfuse3 does.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Awaitable, Callable, Iterator
from types import ModuleType, TracebackType
from typing import Any, Final

import pyfuse3
import trio

BURST_REQUESTS: Final = 32  # requests in a row before other tasks get a turn: ≈ 1 ms of small ones
BURST_SECONDS: Final = 0.002  # the same bound for large ones
# Looking again for so long before going to sleep catches a caller that sends its next request as
# soon as it has the answer to the last: both sleeping and being woken cost more than that. Nobody
# looks again while a request waits for a disk: its answer would have to wait, too.
SPIN_SECONDS: Final = 80e-6


class ReadTurn:
    """The right to read the next request. Replaces `trio.Lock` in pyfuse3; used by `async with`."""

    def __init__(self) -> None:
        self._held = False
        self._waking = False  # a parked worker was woken and has not run yet
        self._parked = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._parked.park()
            self._waking = False
        self._held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held = False
        if not self._waking and self._parked:
            self._waking = True
            self._parked.unpark()


class Readiness:
    """`wait_readable` that looks before it sleeps, for one descriptor."""

    def __init__(
        self, spin_seconds: float = SPIN_SECONDS, waiting: Callable[[], bool] = lambda: False
    ) -> None:
        self._spin_seconds = spin_seconds
        self._waiting = waiting  # whether a request is under way that is to be woken by the loop
        self._descriptor = -1
        self._poll = select.poll()
        self._burst = 0
        self._burst_ends = 0.0

    async def wait(self, descriptor: int) -> None:
        """Return when `descriptor` can be read. Raises trio.ClosedResourceError as trio's does."""
        if descriptor != self._descriptor:
            self._watch(descriptor)
        poll = self._poll.poll
        now = time.perf_counter()
        if self._burst >= BURST_REQUESTS or now >= self._burst_ends:
            if self._burst:
                await trio.lowlevel.checkpoint()
                now = time.perf_counter()
            self._burst = 0
            self._burst_ends = now + BURST_SECONDS
        give_up = now if self._waiting() else now + self._spin_seconds
        while True:
            if poll(0):
                self._burst += 1
                return
            if time.perf_counter() >= give_up:
                break
        self._burst = 0
        await trio.lowlevel.wait_readable(descriptor)
        self._burst_ends = time.perf_counter() + BURST_SECONDS

    def _watch(self, descriptor: int) -> None:
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._descriptor = descriptor


class _StandIn:
    """A module in everything but the names given to it."""

    wait_readable: Callable[[int], Awaitable[None]]  # the one that changes in a stand-in's life

    def __init__(self, module: ModuleType, **replacements: object) -> None:
        self._module = module
        self.__dict__.update(replacements)

    def __getattr__(self, name: str) -> Any:  # a module's attribute may be anything
        return getattr(self._module, name)


class Reception:
    """How pyfuse3 waits while `quick_receive` is in force."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._before_second_wait: Callable[[], None] | None = None
        self.lowlevel = _StandIn(trio.lowlevel, wait_readable=readiness.wait)

    def before_second_wait(self, action: Callable[[], None]) -> None:
        """Return from the first wait at once, and call `action` at the beginning of the second.

        For a session whose first request is known to be there, and that has something to do once
        that one is answered (`dwfs.fuse.handshake`). Call it before the session starts.
        """
        self._before_second_wait = action
        self.lowlevel.wait_readable = self._first_wait

    async def _first_wait(self, descriptor: int) -> None:
        self.lowlevel.wait_readable = self._second_wait

    async def _second_wait(self, descriptor: int) -> None:
        self.lowlevel.wait_readable = self._readiness.wait
        assert self._before_second_wait is not None, "set together with the first wait"
        self._before_second_wait()
        await self._readiness.wait(descriptor)


@contextlib.contextmanager
def quick_receive(
    spin_seconds: float = SPIN_SECONDS, waiting: Callable[[], bool] = lambda: False
) -> Iterator[Reception | None]:
    """Let pyfuse3 wait as described above while the context is open; None where it can't be.

    `waiting` tells whether a request is under way and suspended.
    """
    if getattr(pyfuse3, "trio", None) is not trio:
        yield None
        return
    reception = Reception(Readiness(spin_seconds, waiting))
    # setattr, because pyfuse3's stubs do not show the global that pyfuse3.asyncio replaces as well.
    stand_in = _StandIn(trio, Lock=ReadTurn, lowlevel=reception.lowlevel)
    setattr(pyfuse3, "trio", stand_in)  # noqa: B010  # not in the stubs
    try:
        yield reception
    finally:
        setattr(pyfuse3, "trio", trio)  # noqa: B010  # as above

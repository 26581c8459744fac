"""Hedged reads: a disk that is late is overtaken by the others.

A disk that dies seldom says so. It retries, resets its link, spins up; meanwhile a reader hangs
that k other disks could serve at once. So each direct read is a *race*: when the disk has not
answered after its patience (a multiple of what it usually takes, `DiskListing.patience_seconds`), the
same bytes are also rebuilt from others. The first answer that is *authentic* wins, the loser is
abandoned. Neither being late nor losing a race is damage: nothing is reported here.

The usual read answers in time and must not pay for this. It is entered in a table and taken out
again; one task looks at the table every few milliseconds while there are reads, and starts what is
due. No timer is set and no task is started for a read in time.

Safety: `accept` puts plaintext into the reader's buffer. It runs on the loop without an await, never
after the race is over, and never again once it has accepted; so no loser can write over the winner's
bytes, or into a buffer that has been given back.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Final

import trio

LOOK_SECONDS: Final = 0.01  # how exactly patience is kept
LINGER_SECONDS: Final = 1.0  # after the last read; starting the look-out for each would cost more
# When everything is slow, the disks have too much to do, and more requests make it worse.
HEDGES_MAX: Final = 16

Fetch = Callable[[], Awaitable[bytes | None]]


class Answer(enum.Enum):
    """What came of a race."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # the disk's own answer was not accepted, nor did the others help
    NOTHING = "nothing"  # neither gave anything that was accepted


class _Race:
    """One direct read that is under way."""

    __slots__ = ("accept", "deadline", "finished", "others", "over", "runner", "scope", "won")

    def __init__(self, deadline: float, others: Fetch, accept: Callable[[bytes], bool]) -> None:
        self.deadline = deadline
        self.others = others
        self.accept = accept
        self.scope = trio.CancelScope()  # around the direct read
        self.runner: trio.CancelScope | None = None  # around the others' way, once it has started
        self.finished: trio.Event | None = None  # the others' way has come to an end
        self.won = False  # by the others
        self.over = False


class HedgedReads:
    """Runs races. `nursery` outlives it. Belongs to the loop thread."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._pending: dict[_Race, None] = {}  # whose hedge has not started
        self._watching = False
        self._under_way = 0
        self.started = 0  # hedges, for status
        self.won = 0  # by the others

    async def race(
        self,
        patience_seconds: float,
        direct: Awaitable[bytes | None],
        others: Fetch,
        accept: Callable[[bytes], bool],
    ) -> Answer:
        """Wait for `direct` and, when that takes too long, for `others` too."""
        race = _Race(trio.current_time() + patience_seconds, others, accept)
        self._pending[race] = None
        if not self._watching:
            self._watching = True
            self._nursery.start_soon(self._watch)
        answer = Answer.NOTHING
        try:
            with race.scope:
                raw = await direct
                if not race.won:
                    answer = judge(raw, accept)
                    if answer is not Answer.ACCEPTED and race.finished is not None:
                        await race.finished.wait()
        finally:
            race.over = True
            if race.runner is None:
                self._pending.pop(race, None)
            else:
                race.runner.cancel()
        return Answer.ACCEPTED if race.won else answer

    def may_hedge(self) -> bool:
        """Whether the disks can bear another request that is only made to be faster."""
        return self._under_way < HEDGES_MAX

    async def _watch(self) -> None:
        last_read = trio.current_time()
        try:
            while True:
                await trio.sleep(LOOK_SECONDS)
                now = trio.current_time()
                if self._pending:
                    last_read = now
                    self._start_due(now)
                elif now - last_read > LINGER_SECONDS:
                    break
        finally:
            self._watching = False

    def _start_due(self, now: float) -> None:
        due = [race for race in self._pending if race.deadline <= now]
        for race in due[: HEDGES_MAX - self._under_way]:
            del self._pending[race]
            race.finished = trio.Event()
            race.runner = trio.CancelScope()
            self._under_way += 1
            self.started += 1
            self._nursery.start_soon(self._ask_others, race, race.runner, race.finished)

    async def _ask_others(
        self, race: _Race, runner: trio.CancelScope, finished: trio.Event
    ) -> None:
        try:
            with runner:
                raw = await race.others()
                if raw is not None and not race.over and race.accept(raw):
                    race.won = True
                    self.won += 1
                    race.scope.cancel()
        finally:
            self._under_way -= 1
            finished.set()


def judge(raw: bytes | None, accept: Callable[[bytes], bool]) -> Answer:
    """What the disk's own bytes are worth."""
    if raw is None:
        return Answer.NOTHING
    return Answer.ACCEPTED if accept(raw) else Answer.REFUSED

"""One call on its way through a worker thread, and who waits for it: the executor's bookkeeping.

Which thread may touch what is told in `dwfs.disk.executor`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import outcome
import trio

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Work(ABC):
    """Something for a worker to do; `started` is when it began, by the executor's clock."""

    __slots__ = ("overdue", "queued", "started")

    def __init__(self, now: float) -> None:
        self.queued = now
        self.started: float | None = None
        self.overdue = False

    @abstractmethod
    def execute(self) -> None:
        """In the worker."""


class Job(Work, Generic[ResultT]):
    """One call on its way through a worker. `task` is who waits, or None: nobody any more."""

    __slots__ = ("_call", "afterwards", "discard", "ended", "result", "task")

    def __init__(
        self,
        now: float,
        task: trio.lowlevel.Task,
        call: Callable[[], ResultT],
        discard: Callable[[ResultT], object] | None,
    ) -> None:
        super().__init__(now)
        self.task: trio.lowlevel.Task | None = task
        self._call = call
        self.discard = discard
        self.ended = False  # the worker is done with it, and the loop knows
        self.afterwards: Callable[[], object] | None = None  # left behind by a caller that went
        self.result: outcome.Outcome[ResultT] | None = None

    def execute(self) -> None:
        """In the worker: make the call, unless nobody waits for it, and keep what came of it."""
        if self.task is not None:
            self.result = outcome.capture(self._call)

    def let_go(self, _raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
        """The caller was cancelled and takes nothing with it that the worker uses."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def drop_result(self) -> None:
        """Nobody has waited for it: let `discard` have it, once."""
        result, self.result = self.result, None
        if self.discard is None or not isinstance(result, outcome.Value):
            return
        try:
            self.discard(cast(ResultT, result.value))
        # As with errands: nobody waits, and the worker must live on.
        except Exception:
            _log.exception("a late result could not be discarded")


class Errand(Work):
    """A call whose outcome nobody waits for."""

    __slots__ = ("_call",)

    def __init__(self, now: float, call: Callable[[], None]) -> None:
        super().__init__(now)
        self._call = call

    def execute(self) -> None:
        """In the worker."""
        try:
            self._call()
        # Nobody waits for it, so the log is the only one to tell; the worker must live on.
        except Exception:
            _log.exception("a background call failed")

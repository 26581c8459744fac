"""The way from a store on the loop to its disk: every call passes here.

Four things are done once, here, and so for every operation:

- an `OSError` becomes the `MediumError` that the engine acts on;
- a store that was *retired* touches neither its index nor its disk any more: calls are refused, and one
  that was under way ends with MediumError before its caller gets to look at the index again;
- a segment file that a call uses is held open until the call has *ended*, not until its caller has lost
  patience: a thread that hangs in `pwrite` must never wake up to find its descriptor naming another file;
- it is measured how long reads and syncs take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

from dwfs.disk.executor import Executor
from dwfs.disk.faults import medium_error
from dwfs.disk.latency import Latency
from dwfs.disk.medium import POSIX_MEDIUM, Medium
from dwfs.errors import MediumError
from dwfs.types import DiskId

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")

RETIRED: Final = "retired"  # the `operation` of a retired store's errors


class Fence:
    """Tells a worker in the middle of many steps that its store was retired: leave the rest.

    Set on the loop, read in workers: a single store.
    """

    __slots__ = ("down",)

    def __init__(self) -> None:
        self.down = False


class DiskAccess:
    """One store's executor and medium. Loop thread only."""

    def __init__(
        self,
        disk: DiskId,
        executor: Executor,
        medium: Medium = POSIX_MEDIUM,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.disk = disk
        self.executor = executor
        self.medium = medium
        self.now = now
        self.fence = Fence()
        self.reads = Latency()
        self.syncs = Latency()

    @property
    def retired(self) -> bool:
        """Whether the store may do nothing any more."""
        return self.fence.down

    def check(self) -> None:
        """Raise MediumError if the store was retired. Call it after every wait that isn't a `run`."""
        if self.fence.down:
            raise MediumError(self.disk, RETIRED, "the disk went away meanwhile")

    async def run(
        self,
        operation: str,
        function: Callable[[*ArgumentsT], ResultT],
        *arguments: *ArgumentsT,
        discard: Callable[[ResultT], object] | None = None,
        afterwards: Callable[[], object] | None = None,
    ) -> ResultT:
        """Call in a worker. Raises MediumError kinds; DiskTimeoutError if it was given up.

        `afterwards` is called once, in any case, when the call has ended or will never be made.
        """
        try:
            return await self.run_raw(function, *arguments, discard=discard, afterwards=afterwards)
        except OSError as error:
            raise medium_error(self.disk, operation, error) from error

    async def run_raw(
        self,
        function: Callable[[*ArgumentsT], ResultT],
        *arguments: *ArgumentsT,
        discard: Callable[[ResultT], object] | None = None,
        afterwards: Callable[[], object] | None = None,
        abandonable: bool = False,
    ) -> ResultT:
        """As `run`, with OSErrors as they come. MediumError if the store is or was retired."""
        if self.fence.down and afterwards is not None:
            afterwards()
        self.check()
        try:
            result = await self.executor.run(
                function,
                *arguments,
                discard=discard,
                afterwards=afterwards,
                abandonable=abandonable,
            )
        except OSError:
            self.check()
            raise
        if self.fence.down and discard is not None:
            discard(result)
        self.check()
        return result


class Stopwatch:
    """Measures one operation for a `Latency`, also one that fails or is abandoned: `with`."""

    __slots__ = ("_began", "_latency", "_now")

    def __init__(self, latency: Latency, now: Callable[[], float]) -> None:
        self._latency = latency
        self._now = now
        self._began = now()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._latency.learn(self._now() - self._began)

"""Carrying out an administrative request: by the pool's owner, or here if nobody has it open.

Both ways lead to the same handlers (`dwfs.node.administration`), so a command does the same whether
the pool is mounted or not. Without an owner this process becomes it for as long as the request
takes; work that would go on in the background of a mount is then done to its end.

Ctrl-C while waiting for an owner stops the waiting and nothing else. Where the work is done here, it
is stopped in order; it is part of the pool's state and goes on when the pool is next opened.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Final, TypeVar

import msgspec
import trio

from dwfs.cli.background import log_to_file
from dwfs.cli.failure import EXIT_INTERRUPTED
from dwfs.cli.output import ProgressLine
from dwfs.cli.owner import ask_owner, is_open
from dwfs.cli.unlocking import find_credential
from dwfs.config import Directories, PoolConfig, load_config
from dwfs.errors import DwfsError
from dwfs.node.client import NotListeningError, OnData
from dwfs.node.control import Progress
from dwfs.node.credential import Credential

ResultT = TypeVar("ResultT")

_SILENCE_SECONDS: Final = 120.0  # whoever waits is told of progress far more often
_OPENING_SECONDS: Final = 30.0  # an owner that recovers does not listen yet
_RETRY_SECONDS: Final = 0.25

# How a request is carried out without an owner: (request, values, credential, progress) → result.
Here = Callable[
    [str, Mapping[str, object], Credential, Progress], Coroutine[object, object, object]
]


class StoppedWaitingError(DwfsError):
    """Somebody pressed Ctrl-C while work was under way that outlives the command."""

    exit_code = EXIT_INTERRUPTED


class Desk:
    """One command's view of one pool."""

    def __init__(self, arguments: argparse.Namespace, label: str) -> None:
        self._arguments = arguments
        self.directories = Directories.from_environment(os.environ)
        self.config: PoolConfig = load_config(self.directories, arguments.pool)
        self.line = ProgressLine(label, quiet=bool(getattr(arguments, "json", False)))

    @property
    def open_elsewhere(self) -> bool:
        """Whether a process owns the pool."""
        return is_open(self.directories, self.config.name)

    def carry_out(
        self,
        request: str,
        values: Mapping[str, object],
        kind: type[ResultT],
        *,
        outlives: bool,
        silence_seconds: float = _SILENCE_SECONDS,
        here: Here | None = None,
        on_data: OnData | None = None,
    ) -> ResultT:
        """Have the request done; `outlives`: what it starts goes on when we stop waiting for it.

        An owner that says nothing for `silence_seconds` is taken for stuck. `here` takes the place
        of opening the pool and calling the request's handler, if there is no owner.

        Raises what the request raises, StoppedWaitingError, ControlError.
        """
        try:
            raw = self._ask(request, values, silence_seconds, on_data, outlives=outlives)
            if raw is None:
                raw = self._do_here(request, values, here or self._open_and_ask, outlives=outlives)
        finally:
            self.line.close()
        return msgspec.json.decode(raw, type=kind)

    def _ask(
        self,
        request: str,
        values: Mapping[str, object],
        silence_seconds: float,
        on_data: OnData | None,
        *,
        outlives: bool,
    ) -> bytes | None:
        """The owner's answer, or None if there is no owner."""
        name = self.config.name
        deadline = time.monotonic() + _OPENING_SECONDS
        while self.open_elsewhere:
            try:
                return ask_owner(
                    self.directories,
                    name,
                    request,
                    values,
                    timeout_seconds=silence_seconds,
                    on_progress=self.line.show,
                    on_data=on_data,
                )
            except NotListeningError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            except KeyboardInterrupt:
                if not outlives:
                    raise
                raise StoppedWaitingError(
                    f"stopped waiting; pool {name} goes on with it: 'dwfs status {name}' tells how "
                    "far it is"
                ) from None
        return None

    def _do_here(
        self, request: str, values: Mapping[str, object], here: Here, *, outlives: bool
    ) -> bytes:
        # Only now: commands that ask an owner start without native libraries.
        from dwfs.crypto import harden_process

        credential = find_credential(self._arguments, self.config)
        harden_process()
        log_to_file(self.directories.log_file(self.config.name))

        async def progress(event: Mapping[str, object]) -> None:
            self.line.show(event)

        async def work() -> bytes:
            return msgspec.json.encode(await here(request, values, credential, progress))

        answer = trio.run(until_interrupted, work)
        if answer is not None:
            return answer
        if not outlives:
            raise KeyboardInterrupt
        name = self.config.name
        raise StoppedWaitingError(
            f"stopped, as nobody else has pool {name} open; what had begun goes on when the pool is "
            f"mounted: see 'dwfs status {name}'"
        )

    async def _open_and_ask(
        self,
        request: str,
        values: Mapping[str, object],
        credential: Credential,
        progress: Progress,
    ) -> object:
        from dwfs.node.administration import Administration
        from dwfs.node.assembly import OpenOptions
        from dwfs.node.pool import open_pool

        options = OpenOptions(report=self.report_opening)
        async with open_pool(self.directories, self.config, credential, options) as pool:
            handler = Administration(pool).handlers()[request]
            return await handler(dict(values), progress)

    def report_opening(self, what: str, done: int, total: int) -> None:
        """Show how far a long recovery is."""
        self.line.update(done, total or None, what=what)


async def until_interrupted(work: Callable[[], Awaitable[ResultT]]) -> ResultT | None:
    """What `work` gives, or None if SIGINT or SIGTERM came first and it was cancelled."""
    result: ResultT | None = None
    failure: Exception | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop_on_signal)
            try:
                result = await work()
            # Kept for after the nursery, which would wrap it in a group; raised below.
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result

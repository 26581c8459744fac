"""The last line of defence: no exception of any kind leaves a request handler as it is.

pyfuse3 answers a request with the errno of a `FUSEError`; anything else would end its main loop and
with it the mount. So every handler is wrapped, once, when the session is built: a `PosixError`
becomes its errno; what nobody foresaw becomes EIO, is counted, and is logged with its stack, but not
more often than an operator can read. `trio.Cancelled` and the like are no `Exception`s and pass.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pyfuse3 import FUSEError

from dwfs.errors import PosixError

LOGGED_MAX: Final = 10  # stacks per period; a broken handler is called thousands of times a second
LOG_PERIOD_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)

# Handlers differ in their arguments and results; a wrapper passes both through unseen.
Handler = Callable[..., Awaitable[Any]]


class Gateway:
    """Wraps handlers and counts what they did not foresee."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.unforeseen_errors = 0
        self.under_way = 0  # requests that were begun and not answered
        self.requests = 0  # that were begun: background work looks whether anybody is there
        self._now = now
        self._period_ends = 0.0
        self._logged = 0
        self._suppressed = 0

    def guard(self, handler: Handler, name: str) -> Handler:
        """The handler, with its exceptions turned into errnos."""

        async def guarded(*arguments: object) -> Any:  # whatever the handler returns
            self.under_way += 1
            self.requests += 1
            try:
                return await handler(*arguments)
            except PosixError as error:
                raise FUSEError(error.errno) from None
            except FUSEError:
                raise
            except Exception as error:  # the gateway: whatever it is, the mount must live on
                self.report(name, error)
                raise FUSEError(errno.EIO) from error
            finally:
                self.under_way -= 1

        return guarded

    def guard_silent(self, handler: Handler, name: str) -> Handler:
        """As `guard`, for requests that have no answer: the exception ends here."""

        async def guarded(*arguments: object) -> None:
            try:
                await handler(*arguments)
            except Exception as error:  # the gateway, as above
                self.report(name, error)

        return guarded

    def report(self, name: str, error: Exception) -> None:
        """Count and log an exception that should not have come."""
        self.unforeseen_errors += 1
        now = self._now()
        if now >= self._period_ends:
            if self._suppressed:
                _log.error("%d more unforeseen errors were not logged", self._suppressed)
            self._period_ends = now + LOG_PERIOD_SECONDS
            self._logged = self._suppressed = 0
        if self._logged >= LOGGED_MAX:
            self._suppressed += 1
            return
        self._logged += 1
        _log.error("unforeseen error in request %s, answered EIO", name, exc_info=error)

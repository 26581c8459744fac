"""Emptying the trash of what has been there for long enough, as long as the pool is open."""

from __future__ import annotations

import errno
import logging
from typing import Final

import trio

from dwfs.errors import PosixError
from dwfs.ports import Clock
from dwfs.stripe import Pacer
from dwfs.vfs import Trash

_log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS: Final = 5.0  # whoever opens the pool for a moment only isn't kept
_LOOK_SECONDS: Final = 600.0  # days are the measure


class TrashService:
    """`run` it."""

    def __init__(self, trash: Trash, clock: Clock, pacer: Pacer) -> None:
        self._trash = trash
        self._clock = clock
        self._pacer = pacer
        self._wanted = trio.Event()

    def look_soon(self) -> None:
        """The time that files are kept was changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Prune for ever."""
        seconds = _FIRST_LOOK_SECONDS
        while True:
            with trio.move_on_after(seconds):
                await self._wanted.wait()
            self._wanted = trio.Event()
            seconds = _LOOK_SECONDS
            try:
                files = await self.prune()
            except PosixError as error:
                if error.errno != errno.EBUSY:
                    raise
                continue  # a stream is being received: nothing else changes the volume meanwhile
            if files:
                _log.info("deleted %d files that were in the trash for long enough", files)

    async def prune(self) -> int:
        """Go through the trash once; how many files were deleted for good. Raises PosixError."""
        files = 0
        for place in self._trash.places():
            cookie: int | None = 0
            while cookie is not None:
                started = self._clock.now()
                step = await self._trash.prune(place, cookie)
                files, cookie = files + step.files, step.following
                await self._pacer.rest(self._clock.now() - started)
        return files

"""Who still needs an inode: the kernel's lookups, open files, and the orphans waiting for both.

An inode whose last name is gone lives on while a handle or a kernel lookup refers to it, and is
purged afterwards. Purging is batched, because a removed tree gives thousands of orphans in a row
and one command can release many.

A crash needs no care here: the volume's state lists its orphans, and the references of a session
end with the session, so whatever is an orphan when a session starts can be purged.

Memory: about 80 bytes an inode that the kernel has cached, for which the kernel itself spends more
than a kilobyte. It forgets under pressure, and the count here shrinks with it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Final

import trio

from dwfs.errors import PosixError
from dwfs.types import InodeNumber
from dwfs.volume.volume import Volume

PURGE_BATCH_INODES: Final = 256  # orphans a purge command releases
PURGE_DELAY_SECONDS: Final = 0.1  # how long the first orphan of a batch waits for company
FORGET_SECONDS: Final = 0.05  # for the kernel to let go of what was deleted

_log = logging.getLogger(__name__)


class References:
    """Counts of kernel lookups and open handles; finds out when an orphan can go.

    Invariant: an orphan of this session is either in `_orphans` (somebody refers to it) or in
    `_purgeable` (nobody does, and nobody can any more).
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._lookups: dict[InodeNumber, int] = {}
        self._opens: dict[InodeNumber, int] = {}
        self._orphans: set[InodeNumber] = set()
        self._purgeable: deque[InodeNumber] = deque(volume.orphans())
        self._purging = trio.Lock()
        self._some = trio.Event()
        self._many = trio.Event()
        if self._purgeable:
            self._some.set()
            self._many.set()

    def remember(self, number: InodeNumber) -> None:
        """The kernel was told of the inode once more."""
        lookups = self._lookups
        lookups[number] = lookups.get(number, 0) + 1

    def forget(self, number: InodeNumber, count: int) -> None:
        """The kernel gave back `count` lookups. Never raises."""
        left = self._lookups.get(number, 0) - count
        if left > 0:
            self._lookups[number] = left
            return
        self._lookups.pop(number, None)
        if number in self._orphans and number not in self._opens:
            self._release(number)

    def opened(self, number: InodeNumber) -> None:
        """A handle was opened."""
        opens = self._opens
        opens[number] = opens.get(number, 0) + 1

    def closed(self, number: InodeNumber) -> None:
        """A handle was closed."""
        left = self._opens[number] - 1
        if left:
            self._opens[number] = left
            return
        del self._opens[number]
        if number in self._orphans and number not in self._lookups:
            self._release(number)

    def orphaned(self, number: InodeNumber) -> None:
        """The last name is gone."""
        if number in self._lookups or number in self._opens:
            self._orphans.add(number)
        else:
            self._release(number)

    def is_open(self, number: InodeNumber) -> bool:
        """Whether a handle is open on the inode."""
        return number in self._opens

    def waiting(self) -> int:
        """Orphans that can be purged and have not been yet."""
        return len(self._purgeable)

    def drop_all(self) -> None:
        """The session has ended: nobody refers to anything any more."""
        self._lookups.clear()
        self._opens.clear()
        for number in list(self._orphans):
            self._release(number)

    async def run_purger(self) -> None:
        """Purge orphans in batches, for ever. The composition root runs this as a task."""
        while True:
            await self._some.wait()
            with trio.move_on_after(PURGE_DELAY_SECONDS):
                await self._many.wait()
            async with self._purging:
                await self._purge_batch()

    async def purge_all(self) -> None:
        """Purge what can be purged, now: before the volume is closed. Stops at a failure."""
        async with self._purging:  # what the purger is at just now is purged then, too
            while self._purgeable:
                if not await self._purge_batch():
                    return

    async def relieve(self) -> bool:
        """Purge now what waits for it, because it counts against a quota; False if nothing does.

        The kernel tells of a file's last close, and gives its lookups back, a little later than it
        sends the next request. Whoever deletes a file to make room for another shall not notice.
        """
        if not self._purgeable and not self._purging.locked():
            if not self._orphans:
                return False
            with trio.move_on_after(FORGET_SECONDS):
                await self._some.wait()
        await self.purge_all()
        return True

    async def _purge_batch(self) -> bool:
        """One command's worth. False if it failed; the orphans then wait for the next attempt."""
        batch = [
            self._purgeable.popleft() for _ in range(min(PURGE_BATCH_INODES, len(self._purgeable)))
        ]
        try:
            if batch:
                await self._volume.purge(batch)
        except PosixError as error:
            _log.warning("%d orphans could not be purged and wait: %s", len(batch), error)
            self._purgeable.extend(batch)
            return False
        except BaseException:  # whatever it was, cancellation included: they are still to be purged
            self._purgeable.extend(batch)
            raise
        finally:
            self._rearm(len(self._purgeable))
        return True

    def _release(self, number: InodeNumber) -> None:
        self._orphans.discard(number)
        self._purgeable.append(number)
        waiting = len(self._purgeable)
        if waiting == 1:
            self._some.set()
        if waiting == PURGE_BATCH_INODES:
            self._many.set()

    def _rearm(self, waiting: int) -> None:
        if not waiting:
            self._some = trio.Event()
        if waiting < PURGE_BATCH_INODES:
            self._many = trio.Event()


def forget_all(references: References, forgotten: Iterable[tuple[int, int]]) -> None:
    """Give back lookups as the kernel lists them: (inode, count) pairs."""
    for number, count in forgotten:
        references.forget(InodeNumber(number), count)

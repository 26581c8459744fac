"""Clones: a new file that has the bytes of another one, and at first takes no space of its own.

The kernel is the authority on size and times of regular files while it caches them, and does not learn
of what happens here. So whoever wants a clone makes the target as any file, gives it its size, and has
the kernel hand over what it still holds of the source (fsync does). Only then are the bytes shared.
Afterwards he has the kernel drop what somebody may have read of the target before (posix_fadvise): from
here that could wait for reads that only we can answer.

The target is named by directory and name, which the caller has just chosen at random. That is proof
that he speaks of this volume: of another one that is mounted elsewhere the numbers would fit as well.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from dwfs.errors import PosixError
from dwfs.limits import MIB
from dwfs.ports import Clock
from dwfs.types import InodeNumber
from dwfs.vfs.references import References
from dwfs.vfs.snapshots import FIRST_SNAPSHOT_INODE
from dwfs.vfs.trash import Trash
from dwfs.volume.commands import CloneRange
from dwfs.volume.records import Inode
from dwfs.volume.volume import Volume

STEP_BYTES: Final = 256 * MIB  # between two reports; of scattered files that is a second's work

Report: TypeAlias = Callable[[int, int], Awaitable[None]]  # bytes done, of how many


class Clones:
    """Makes them. Permissions are the caller's to check."""

    def __init__(self, volume: Volume, clock: Clock, references: References, trash: Trash) -> None:
        self._volume = volume
        self._clock = clock
        self._references = references
        self._trash = trash

    async def clone(
        self, source: InodeNumber, directory: InodeNumber, name: bytes, report: Report
    ) -> Inode:
        """Let the file `name`, all hole, have as many bytes of `source` as it is long. Returns it.

        A failure leaves it with a part of them. A source that is written meanwhile gives each of its
        parts as it is when its turn comes, as with any copy.

        Raises PosixError: EXDEV for a file of a snapshot, ENOENT, EISDIR, EINVAL for what is no
        regular file or if the source is shorter, EEXIST if the target has bytes, EDQUOT.
        """
        if source >= FIRST_SNAPSHOT_INODE:
            raise PosixError(errno.EXDEV, "a file of a snapshot can't be cloned")
        target = self._volume.lookup(directory, name)
        if target is None:
            raise PosixError(errno.ENOENT)
        for number in (source, target):
            _check_regular(self._volume.inode(number))
        if self._volume.inode(target).allocated_bytes:
            raise PosixError(errno.EEXIST, "the file that is to be made has bytes already")
        # No await so far. From here on both stay, even if their names and their users go.
        self._references.opened(source)
        self._references.opened(target)
        try:
            await self._share(source, target, report)
        finally:
            self._references.closed(source)
            self._references.closed(target)
            if self._trash.kernel is not None:
                self._trash.kernel.changed(target)  # it says how many blocks there are
        return self._volume.inode(target)

    async def _share(self, source: InodeNumber, target: InodeNumber, report: Report) -> None:
        length = self._volume.inode(target).size
        if length > self._volume.inode(source).size:
            raise PosixError(errno.EINVAL, "the file to be cloned is shorter")
        now = self._clock.wall_ns()
        # What is a hole in the source is one in the target already.
        offset = self._volume.next_data(source, 0)
        while offset is not None and offset < length:
            stop = min(offset + STEP_BYTES, length)
            await self._clone_range(
                CloneRange(source, offset, stop - offset, target, offset, now, None)
            )
            await report(stop, length)
            offset = self._volume.next_data(source, stop)

    async def _clone_range(self, command: CloneRange) -> None:
        try:
            await self._volume.clone_range(command)
        except PosixError as error:
            if error.errno != errno.EDQUOT or not await self._references.relieve():
                raise
            await self._volume.clone_range(command)


def _check_regular(inode: Inode) -> None:
    if not stat.S_ISREG(inode.mode):
        raise PosixError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL)

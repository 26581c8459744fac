"""`Volume`: the facade through which upper layers read and change a filesystem's state.

Reads are synchronous, cost microseconds and see every change proposed before. The records that they
return are the live ones: read them at once, never change them, do not keep them across an `await`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, overload

from dwfs.errors import PosixError
from dwfs.ports import DataStore
from dwfs.types import ROOT_INODE, BackReference, Extent, InodeNumber, LogSequence, StripeId
from dwfs.volume import check, filemap, xattrs
from dwfs.volume.commands import (
    NO_INODE,
    Command,
    Create,
    DropStripes,
    InodeCommand,
    OtherCommand,
    PunchHole,
    Purge,
    SetAttributes,
)
from dwfs.volume.records import DirectoryEntry, Inode, Usage
from dwfs.volume.replicator import EmbeddedReplicator
from dwfs.volume.state import VolumeState
from dwfs.volume.stripes import StripeTable

PURGE_BATCH: Final = 64  # orphans in one Purge command


class Volume:
    """One filesystem volume. Raises PosixError; EIO also for a damaged state."""

    def __init__(
        self, state: VolumeState, replicator: EmbeddedReplicator, data_store: DataStore
    ) -> None:
        self.catalog: StripeTable = state.stripes  # a ports.StripeCatalog, and more
        self._state = state
        self._replicator = replicator
        self._data_store = data_store
        self._next_inode = state.meta.next_inode
        self._undropped: list[StripeId] = []

    # --- reads ------------------------------------------------------------------------------

    def inode(self, number: InodeNumber) -> Inode:
        """The inode; orphans too. Raises PosixError ENOENT."""
        inode = self._state.inodes.get(number)
        if inode is None:
            raise PosixError(errno.ENOENT, f"inode {number}")
        return inode

    def lookup(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """The inode called `name` in directory `parent`, or None."""
        dentry = self._state.directories.find(parent, name)
        return None if dentry is None else dentry[2]

    def read_directory(
        self, parent: InodeNumber, after_cookie: int, limit: int
    ) -> list[DirectoryEntry]:
        """Up to `limit` entries after the cookie (0, 1, 2: from the start), in cookie order.

        Stable under change: an entry that stays is returned exactly once by a whole listing.
        """
        return self._state.directories.read(parent, after_cookie, limit)

    def get_xattr(self, number: InodeNumber, name: bytes) -> bytes | None:
        """An extended attribute's value, or None. Raises PosixError ENOENT."""
        return xattrs.get(self._state, self.inode(number), name)

    def list_xattrs(self, number: InodeNumber) -> list[bytes]:
        """Names of all extended attributes. Raises PosixError ENOENT."""
        return xattrs.names(self._state, self.inode(number))

    def extents(self, number: InodeNumber, offset: int, length: int) -> list[Extent]:
        """Extents within [offset, offset+length): clipped, sorted, holes absent.

        A caller that awaits the data must be ready for EIO from a stripe that was meanwhile
        overwritten or relocated and dropped: look up again, and report only what persists.
        """
        if length <= 0:
            return []
        return filemap.read(self._state, self.inode(number), offset, length)

    def next_data(self, number: InodeNumber, offset: int) -> int | None:
        """SEEK_DATA: the first mapped byte at or after `offset`, or None (ENXIO)."""
        return filemap.next_data(self._state, self.inode(number), offset)

    def next_hole(self, number: InodeNumber, offset: int) -> int:
        """SEEK_HOLE: the first unmapped byte at or after `offset`, at most the size."""
        return filemap.next_hole(self._state, self.inode(number), offset)

    def usage(self) -> Usage:
        """Totals of the volume."""
        meta = self._state.meta
        return Usage(meta.inode_count, meta.allocated_bytes)

    def orphans(self) -> list[InodeNumber]:
        """Inodes without a name that are not purged yet."""
        return list(self._state.orphans)

    def is_orphan(self, number: InodeNumber) -> bool:
        """Whether the inode has lost its last name."""
        return number in self._state.orphans

    def summary(self, stripe: StripeId) -> tuple[BackReference, ...]:
        """Which file ranges were written into a sealed stripe: for the cleaner."""
        return self.catalog.summary_of(stripe)

    def check(self) -> Iterator[str]:
        """Findings of a consistency check; none is expected. Blocks while it runs."""
        return check.check(self._state)

    # --- changes ----------------------------------------------------------------------------

    def allocate_inode(self) -> InodeNumber:
        """A number for `Create`; never given twice."""
        number = max(self._next_inode, self._state.meta.next_inode)
        self._next_inode = InodeNumber(number + 1)
        return number

    @overload
    def propose(self, command: InodeCommand) -> Awaitable[Inode]: ...

    @overload
    def propose(self, command: OtherCommand) -> Awaitable[Inode | None]: ...

    def propose(self, command: Command) -> Awaitable[Inode | None]:
        """Apply a command; visible at once, durable after the next barrier.

        Gives the inode concerned: made, linked, unlinked (nlink 0: now an orphan), changed. `Rename`
        gives the inode that lost its name, or None; the other `OtherCommand`s give None.
        """
        return self._replicator.propose(command)

    async def create_root(self, mode: int, uid: int, gid: int, time_ns: int) -> Inode:
        """First command of a new volume: the root directory, with permission bits `mode`."""
        mode = stat.S_IFDIR | mode & 0o7777
        return await self.propose(
            Create(NO_INODE, b"", ROOT_INODE, mode, uid, gid, 0, b"", (), time_ns)
        )

    async def truncate(self, command: SetAttributes) -> Inode:
        """Propose a `SetAttributes` with a size, after lowering it stepwise if the file is huge.

        A crash in between leaves the file with one of the sizes passed through.
        """
        assert command.size is not None, "a truncation has a size"
        target = max(command.size, 0)
        while True:
            inode = self.inode(command.inode)
            floor = filemap.truncation_floor(inode)
            if not target < floor < inode.size:
                return await self.propose(command)
            time_ns = command.ctime_ns
            step = SetAttributes(command.inode, None, None, None, floor, None, time_ns, time_ns)
            await self.propose(step)

    async def punch_hole(self, command: PunchHole) -> Inode:
        """Propose a `PunchHole`, in several pieces if it concerns very much."""
        offset, end = command.offset, command.offset + command.length
        while True:
            inode = self.inode(command.inode)
            stop = filemap.punch_ceiling(inode, offset, min(end, max(inode.size, offset + 1)))
            result = await self.propose(
                PunchHole(command.inode, offset, stop - offset, command.time_ns)
            )
            if stop >= min(end, result.size):
                return result
            offset = stop

    async def purge(self, inodes: Sequence[InodeNumber]) -> None:
        """Release orphans, in as many commands as it takes; others are ignored."""
        for start in range(0, len(inodes), PURGE_BATCH):
            batch = inodes[start : start + PURGE_BATCH]
            while batch := [number for number in batch if number in self._state.orphans]:
                await self.propose(Purge(tuple(batch)))

    async def drop_dead_stripes(self, limit: int = 256) -> int:
        """Delete the shards of dead stripes, once nothing durable refers to them; how many."""
        stripes = self.catalog.dead_stripes(limit)
        if stripes:
            await self.propose(DropStripes(tuple(stripes)))
            self._undropped += stripes
        # Taken before the barrier: what another call proposes meanwhile is not durable after it.
        doomed, self._undropped = self._undropped, []
        if not doomed:
            return 0
        try:
            await self.barrier()
        except BaseException:  # whatever it was, the shards are still there
            self._undropped += doomed
            raise
        await self._data_store.drop(doomed)
        return len(doomed)

    # --- durability -------------------------------------------------------------------------

    async def barrier(self) -> None:
        """Everything proposed before the call is durable. Raises PosixError EIO or ENOSPC."""
        await self._replicator.barrier()

    async def destage(self) -> None:
        """As `barrier`, and no data lives in the log alone any more."""
        await self._replicator.destage()

    async def commit(self, companion: Callable[[], None] | None = None) -> None:
        """Commit the state database; see `EmbeddedReplicator.commit_state`."""
        await self._replicator.commit_state(companion)

    @property
    def committed(self) -> LogSequence:
        """The last command in the committed state: what a snapshot taken now contains."""
        return self._state.meta.applied

    @property
    def replay_from(self) -> LogSequence:
        """The first log record that recovery of the committed state needs."""
        return min(self._state.meta.replay_from, LogSequence(self._state.meta.applied + 1))

    @property
    def frozen(self) -> str:
        """Why the volume takes no changes (state damaged, disk full); empty while it does."""
        return self._replicator.frozen

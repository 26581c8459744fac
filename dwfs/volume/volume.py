"""`Volume`: the facade through which upper layers read and change a filesystem's state.

Reads are synchronous, cost microseconds and see every change proposed before. The records that they
return are the live ones: read them at once, never change them, do not keep them across an `await`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeAlias, overload

from dwfs.errors import PosixError
from dwfs.ports import DataStore
from dwfs.types import (
    INODE_NUMBER_BITS,
    ROOT_INODE,
    BackReference,
    Extent,
    InodeNumber,
    LogSequence,
    StripeId,
)
from dwfs.volume import (
    check,
    filemap,
    quota,
    reaping,
    receiving,
    rollback,
    stepwise,
    xattrs,
)
from dwfs.volume.changes import Changes, has_changed
from dwfs.volume.commands import (
    NO_INODE,
    CloneRange,
    Command,
    Create,
    DestroySnapshot,
    DropStripes,
    InodeCommand,
    OtherCommand,
    PunchHole,
    Purge,
    ReapSnapshots,
    Rollback,
    RollbackStep,
    SetAttributes,
    SetProperties,
    TakeSnapshot,
)
from dwfs.volume.properties import Properties
from dwfs.volume.records import DirectoryEntry, DirectoryPage, Inode, Snapshot, Usage
from dwfs.volume.relocation import MappedRange
from dwfs.volume.replicator import EmbeddedReplicator
from dwfs.volume.snapshots import is_name
from dwfs.volume.state import VolumeState
from dwfs.volume.stripes import StripeTable
from dwfs.volume.transfer import Origin, ReceiveState
from dwfs.volume.view import SnapshotView

PURGE_BATCH: Final = 64  # orphans in one Purge command
REAP_BATCH: Final = 512  # records in one ReapSnapshots command: some 5 ms
ROLLBACK_BATCH: Final = 1024  # records that one RollbackStep goes through

Progress: TypeAlias = Callable[[int, int | None], Awaitable[None]]  # (done, total if known)


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
        return stepwise.inode_of(self._state, number)

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

    def directory_page(self, parent: InodeNumber, after_cookie: int, limit: int) -> DirectoryPage:
        """As `read_directory`, in bounded time: there may be fewer entries though more follow.

        Snapshots keep deleted names in their places, and whoever lists has to pass them.
        """
        return self._state.directories.page(parent, after_cookie, limit)

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

    @property
    def properties(self) -> Properties:
        """What the administrator has set."""
        return self._state.properties

    def surely_fits(self, length: int) -> bool:
        """Whether the quota lets any write of so many bytes pass; without a look at the file."""
        room = quota.room_of(self._state)
        return room is None or length <= room

    def next_fitting(self, number: InodeNumber, offset: int, length: int) -> tuple[int, int] | None:
        """(offset, length) of the first part of a write that the quota lets pass, or None."""
        return quota.next_fitting(self._state, self.inode(number), offset, length)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        return sorted(self._state.snapshots.by_name.values(), key=lambda one: one.epoch)

    def snapshot(self, name: str) -> Snapshot:
        """The snapshot called so. Raises PosixError ENOENT."""
        snapshot = self._state.snapshots.by_name.get(name)
        if snapshot is None:
            raise PosixError(errno.ENOENT, f"snapshot {name}")
        return snapshot

    def view(self, snapshot: Snapshot) -> SnapshotView:
        """The volume as that snapshot keeps it. Raises PosixError ENOENT."""
        if not self._state.snapshots.has(snapshot.epoch):
            raise PosixError(errno.ENOENT, f"snapshot {snapshot.name}")
        return SnapshotView(self._state, snapshot)

    def unique_bytes(self, name: str) -> int:
        """Bytes that would be given back if only this snapshot were destroyed.

        Costs a few microseconds. Raises PosixError ENOENT.
        """
        return reaping.unique_bytes(self._state, self.snapshot(name))

    @property
    def kept_bytes(self) -> int:
        """Bytes that snapshots map and the current state does not; not yet settled ones too."""
        return self._state.meta.kept_bytes

    @property
    def settling(self) -> int:
        """Destroyed snapshots whose bytes are not given back yet: `reap` does that first."""
        return len(self._state.meta.reaping)

    @property
    def reaping(self) -> int:
        """Destroyed snapshots of which anything is left; `settling` is a part of them."""
        return len(self._state.meta.reaping) + len(self._state.meta.sweeping)

    @property
    def rolling_back(self) -> bool:
        """Whether a rollback is to be finished before anything else can be done."""
        return bool(self._state.meta.rolling_back)

    def orphans(self) -> list[InodeNumber]:
        """Inodes without a name that are not purged yet."""
        return list(self._state.orphans)

    def is_orphan(self, number: InodeNumber) -> bool:
        """Whether the inode has lost its last name."""
        return number in self._state.orphans

    def summary(self, stripe: StripeId) -> tuple[BackReference, ...]:
        """Which file ranges were written into a sealed stripe, or cloned from there.

        Empty if it is not known who wrote: then what was cloned is not all.
        """
        return self.catalog.summary_of(stripe) if self.catalog.writers_of(stripe) else ()

    async def mapped_ranges(self, stripe: StripeId) -> list[MappedRange]:
        """What of a sealed stripe the current state and the snapshots map; with pauses."""
        return await stepwise.mapped_ranges(self._state, stripe)

    def check(self) -> Iterator[str]:
        """Findings of a consistency check; none is expected. Blocks while it runs."""
        return check.check(self._state)

    # --- changes ----------------------------------------------------------------------------

    def allocate_inode(self) -> InodeNumber:
        """A number for `Create`; never given twice."""
        number = max(self._next_inode, self._state.meta.next_inode)
        assert number >> INODE_NUMBER_BITS == 0, "upper bits tell snapshots apart"
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
        return await stepwise.truncate(self._state, self.propose, command)

    async def punch_hole(self, command: PunchHole) -> Inode:
        """Propose a `PunchHole`, in several pieces if it concerns very much."""
        return await stepwise.punch_hole(self._state, self.propose, command)

    async def clone_range(self, command: CloneRange) -> Inode:
        """Propose a `CloneRange` of any length, in pieces; a crash leaves the first of them done."""
        return await stepwise.clone_range(self._state, self.propose, command)

    async def set_properties(self, properties: Properties) -> None:
        """Replace the properties. Raises PosixError EINVAL, which names the wrong one."""
        await self.propose(SetProperties(properties))

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

    # --- snapshots --------------------------------------------------------------------------

    async def take_snapshot(self, name: str, time_ns: int, automatic: bool = False) -> Snapshot:
        """Keep the state as it is now. Raises PosixError EEXIST, EINVAL (name), ENOSPC."""
        if not is_name(name):
            raise PosixError(errno.EINVAL, "not a name for a snapshot")
        await self.propose(TakeSnapshot(name, time_ns, automatic))
        return self.snapshot(name)

    async def destroy_snapshot(self, name: str) -> None:
        """Forget a snapshot; `reap` gives back what it kept. Raises PosixError ENOENT."""
        self.snapshot(name)
        await self.propose(DestroySnapshot(name))

    async def reap(self, limit: int = REAP_BATCH) -> bool:
        """Settle up to `limit` records of destroyed snapshots; whether more is left."""
        if self.reaping:
            await self.propose(ReapSnapshots(limit))
        return self.reaping > 0

    async def rollback(self, name: str, progress: Progress, batch: int = ROLLBACK_BATCH) -> None:
        """Make the newest snapshot the current state; durable when it returns.

        For a volume that nobody uses. After a crash in between, `finish_rollback` goes on. Raises
        PosixError ENOENT, and EBUSY if there are newer snapshots.
        """
        if self.snapshot(name) != self.snapshots()[-1]:
            raise PosixError(errno.EBUSY, "there are newer snapshots")
        while self.settling:
            await self.reap()
            await progress(0, None)
        await self.propose(Rollback(name))
        await self.finish_rollback(progress, batch)

    async def finish_rollback(self, progress: Progress, batch: int = ROLLBACK_BATCH) -> None:
        """Do what is left of a rollback, which `rolling_back` tells; durable when it returns.

        `progress` is awaited after each step. Who commits the state may do so in there: a large
        volume's rollback changes much.
        """
        done, total = 0, self._state.store.count()
        while self.rolling_back:
            until, count = rollback.next_stop(self._state, batch)
            await self.propose(RollbackStep(until))
            done += count
            await progress(min(done, total), total)
        await self.barrier()

    # --- sent and received ------------------------------------------------------------------

    def changes(self, base: Snapshot | None, target: Snapshot) -> Changes:
        """What is different in a snapshot from an earlier one; None: from nothing."""
        return Changes(self._state, base, target)

    @property
    def receive_state(self) -> ReceiveState:
        """What is known of streams that were received here."""
        return self._state.receive

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but the root directory, and no snapshot."""
        return receiving.is_empty(self._state)

    def find_received(self, origin: Origin) -> Snapshot | None:
        """The snapshot here that is a copy of that one, if there is one."""
        epoch = receiving.find_received(self._state, origin)
        return None if epoch is None else self._state.snapshots.at(epoch)

    def has_changed(self, since: Snapshot, start: bytes, limit: int) -> tuple[bool, bytes]:
        """Whether one of the next `limit` records is newer than a snapshot; where to go on, or b""."""
        return has_changed(self._state, since.epoch, start, limit)

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

"""What an open pool does by itself: durability in time, commits, snapshots, healing, reclaim.

Each activity is one endless task. A failure that it foresees (a disk that fails, no space) is
logged once and tried again; one that nobody foresaw is logged with its stack, counted, and the task
goes on after a pause, because a filesystem that stays up with one activity limping serves its users
better than one that is gone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from dwfs.errors import DwfsError, MediumError, PosixError
from dwfs.limits import LOG_SNAPSHOT_AFTER, MIB, STATE_COMMIT_SECONDS
from dwfs.log import MirroredLog, SnapshotHeader, SnapshotKeeper, SnapshotStoppedError
from dwfs.node.causes import sole_cause
from dwfs.node.foundation import Foundation
from dwfs.node.log_stream import LogStream
from dwfs.node.work import WorkBoard
from dwfs.ports import ShardStore
from dwfs.stripe import StripeStore, sweep_disk, sweep_keys
from dwfs.types import LogSequence, ShardKey
from dwfs.volume import Volume

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0
_LOOK_AGAIN_SECONDS: Final = 5.0  # a stripe is sealed within the promised time of durability
_HEAL_RETRY_SECONDS: Final = 30.0
_SNAPSHOT_LOOK_SECONDS: Final = 2.0
_SNAPSHOT_AFTER_MIN: Final = 4 * MIB  # of log, on the smallest disks
# Of the promised time, how long a barrier may take.
_BARRIER_SHARE: Final = 0.2


class Supervisor:
    """Runs endless activities and keeps them going."""

    def __init__(self) -> None:
        self.unforeseen_errors = 0
        self._complained: set[str] = set()

    async def keep(self, name: str, activity: Callable[[], Awaitable[None]]) -> None:
        """Run `activity` again and again; returns only when it does, or by cancellation."""
        while True:
            try:
                await activity()
                return
            # A defect in one activity must not end the mount: log with the stack, count, go on.
            except Exception as error:
                cause = sole_cause(error)
                if isinstance(cause, DwfsError | PosixError | MediumError | OSError):
                    self._complain(name, cause)
                else:
                    self.count_unforeseen()
                    _log.exception("unforeseen error in background activity %r", name)
            await trio.sleep(_RETRY_SECONDS)

    def count_unforeseen(self) -> None:
        """Something happened that no code expected; it is in the log."""
        self.unforeseen_errors += 1

    def _complain(self, name: str, error: Exception) -> None:
        text = f"{name}: {error}"
        if text not in self._complained:
            if len(self._complained) > 100:
                self._complained.clear()
            self._complained.add(text)
            _log.warning("%s; trying again", text)


async def keep_durable(volume: Volume, within_seconds: float) -> None:
    """Make everything durable within the promised time, whether anybody asked or not."""
    while True:
        await trio.sleep(within_seconds * (1 - _BARRIER_SHARE))
        await volume.barrier()


class Committer:
    """Commits volume state and shard index together, when something was logged since."""

    def __init__(self, foundation: Foundation, volume: Volume, stream: LogStream) -> None:
        self._foundation = foundation
        self._volume = volume
        self._stream = stream
        self._committed_records = -1
        self.commits = 0

    async def run(self) -> None:
        """Commit every few seconds."""
        while True:
            await trio.sleep(STATE_COMMIT_SECONDS)
            if self._stream.appended_records != self._committed_records:
                await self.commit()

    async def commit(self) -> None:
        """Commit now. Raises PosixError or DwfsError."""
        index = self._foundation.index
        assert index is not None
        records = self._stream.appended_records
        await self._volume.commit(index.commit)
        self._committed_records = records
        self.commits += 1


class Snapshotter:
    """Bounds the log: when enough of it has gathered, the state is written to the disks instead."""

    def __init__(
        self,
        foundation: Foundation,
        volume: Volume,
        log: MirroredLog,
        snapshots: SnapshotKeeper,
        committer: Committer,
        work: WorkBoard,
        last_size_bytes: int,
    ) -> None:
        self._foundation = foundation
        self._volume = volume
        self._log = log
        self._snapshots = snapshots
        self._committer = committer
        self._work = work
        self._last_size_bytes = last_size_bytes
        self._stopping = False

    async def run(self) -> None:
        """Take a snapshot whenever one is due."""
        while True:
            await trio.sleep(_SNAPSHOT_LOOK_SECONDS)
            if self._log.size_bytes >= self._due_bytes():
                await self.take()

    def _due_bytes(self) -> int:
        """Log that may gather: in proportion to the state, but never the room kept for deletes."""
        wanted = max(LOG_SNAPSHOT_AFTER, self._last_size_bytes // 2)
        reserves = [store.space().reserve_bytes for store in self._foundation.disks.writable()]
        return min(wanted, max(_SNAPSHOT_AFTER_MIN, min(reserves, default=0) // 4))

    def stop(self) -> None:
        """Break off a snapshot that is being written: the pool is closing."""
        self._stopping = True

    async def take(self) -> None:
        """Write a snapshot of the committed state, then remove what it makes useless."""
        await self._committer.commit()
        header = self._foundation.header
        platform = self._foundation.platform
        store = self._foundation.state_store
        assert store is not None
        # No await between the commit's end and reading what it committed, but for the worker's
        # own read transaction: it may see a later commit, never an earlier one, and replaying
        # commands that a snapshot already has is harmless, because its own meta record counts.
        sequence, replay_from = self._volume.committed, self._volume.replay_from
        snapshot = SnapshotHeader(
            pool=header.pool,
            volume=header.root_volume,
            sequence=sequence,
            replay_from=replay_from,
            created_ns=platform.clock.wall_ns(),
            snapshot_id=platform.randomness.bytes(16),
        )
        with self._work.doing("snapshot", "writing a snapshot of the file system's state"):
            try:
                result = await self._snapshots.write(
                    snapshot, store.pairs, should_stop=lambda: self._stopping
                )
            except SnapshotStoppedError:
                return
        self._last_size_bytes = result.size_bytes
        wanted = header.geometry.parity + 1
        if len(result.disks) < min(wanted, len(self._foundation.log_disks())):
            return  # not yet as safe as the log that it would replace
        await self._log.close_current()
        await self._log.trim(header.root_volume, _before(replay_from, sequence))
        await self._snapshots.remove_older(sequence)


class CopyHealer:
    """Gives log and snapshots their full number of copies after each change of a disk."""

    def __init__(
        self, foundation: Foundation, log: MirroredLog, snapshots: SnapshotKeeper, work: WorkBoard
    ) -> None:
        self._foundation = foundation
        self._log = log
        self._snapshots = snapshots
        self._work = work
        self._healing = trio.Lock()

    async def run(self) -> None:
        """Heal after each change, and again after a while if copies are still lacking."""
        changes = self._foundation.changes
        while True:
            generation = changes.generation
            whole = await self.heal()
            with trio.move_on_after(float("inf") if whole else _HEAL_RETRY_SECONDS):
                await changes.after(generation)

    async def heal(self) -> bool:
        """Heal now; tells whether everything has its copies that the disks allow.

        Raises PosixError, DwfsError.
        """
        async with self._healing:
            with self._work.doing("heal-log", "looking after the copies of log and snapshots"):
                files = await self._log.heal()
                snapshots = await self._snapshots.heal()
        for note in (*files.notes, *snapshots.notes):
            _log.info("%s", note)
        if files.files_mended:
            _log.info("mended %d log files", files.files_mended)
        status = self._log.status()
        return (
            status.copies >= status.copies_wanted and not files.files_short and not snapshots.short
        )


class OrphanSweep:
    """Deletes shards that no stripe owns: of every disk after the mount, later of each that returned."""

    def __init__(
        self, foundation: Foundation, volume: Volume, stripes: StripeStore, work: WorkBoard
    ) -> None:
        self._foundation = foundation
        self._volume = volume
        self._stripes = stripes
        self._work = work
        self._idle = trio.Event()
        # Shards whose stripes were in memory, by where they lie: to be judged once those are sealed.
        self._put_off: dict[ShardStore, list[ShardKey]] = {}
        self._due: list[ShardStore] = []  # survives a failure in the middle

    async def run(self) -> None:
        """Sweep for ever."""
        changes = self._foundation.changes
        while True:
            generation = changes.generation
            self._due += self._foundation.disks.unswept()
            await self._sweep()
            await self._look_again()
            if changes.generation == generation:
                self._idle.set()
            with trio.move_on_after(_LOOK_AGAIN_SECONDS if self._put_off else math.inf):
                await changes.after(generation)
            if self._idle.is_set() and changes.generation != generation:
                self._idle = trio.Event()

    async def wait_idle(self) -> None:
        """Wait until every disk that is there was swept since it was opened."""
        await self._idle.wait()

    async def _sweep(self) -> None:
        deleted = 0
        with self._work.doing("sweep", "looking for shards that nothing refers to"):
            while self._due:
                deleted += await self.sweep(self._due[0])
                del self._due[0]
        if deleted:
            _log.info("deleted %d shards that nothing referred to", deleted)

    async def sweep(self, store: ShardStore) -> int:
        """Sweep one disk; tells how many shards were deleted."""
        put_off: list[ShardKey] = []
        owner_of, in_memory = self._volume.catalog.seal_of, self._stripes.is_in_memory
        deleted = await sweep_disk(store, owner_of, in_memory, put_off=put_off)
        if put_off:
            self._put_off[store] = put_off
        return deleted

    async def _look_again(self) -> None:
        """Judge what could not be judged before; what still can't be stays put off."""
        deleted = 0
        in_memory = self._stripes.is_in_memory
        for store, keys in list(self._put_off.items()):
            left = [
                key for key in keys if in_memory(key.stripe)
            ]  # no await until the others' verdict
            try:
                deleted += await sweep_keys(store, keys, self._volume.catalog.seal_of, in_memory)
            except MediumError:
                left = []  # it is swept again when it is back
            if left:
                self._put_off[store] = left
            else:
                self._put_off.pop(store, None)
        if deleted:
            _log.info("deleted %d shards of stripes that were written anew elsewhere", deleted)


def _before(replay_from: LogSequence, sequence: LogSequence) -> LogSequence:
    return LogSequence(min(sequence, replay_from - 1))

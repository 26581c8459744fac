"""What an open pool does by itself: durability in time, commits, snapshots, healing, reclaim.

Each activity is one endless task. A failure that it foresees (a disk that fails, no space) is
logged once and tried again; one that nobody foresaw is logged with its stack, counted, and the task
goes on after a pause, because a filesystem that stays up with one activity limping serves its users
better than one that is gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from dwfs.errors import DwfsError, MediumError, PosixError
from dwfs.limits import LOG_SNAPSHOT_AFTER, STATE_COMMIT_SECONDS
from dwfs.log import (
    MirroredLog,
    PosixMedium,
    SnapshotHeader,
    SnapshotResult,
    SnapshotStoppedError,
    remove_older,
    write_snapshot,
)
from dwfs.node.foundation import Foundation
from dwfs.node.log_stream import LogStream
from dwfs.node.work import WorkBoard
from dwfs.stripe import StripeStore, sweep_disk
from dwfs.types import LogSequence
from dwfs.volume import Volume

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0
_HEAL_RETRY_SECONDS: Final = 30.0
_SNAPSHOT_LOOK_SECONDS: Final = 2.0
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
            except (DwfsError, PosixError, MediumError, OSError) as error:
                self._complain(name, error)
            # A defect in one activity must not end the mount: log with the stack, count, go on.
            except Exception:
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
        committer: Committer,
        work: WorkBoard,
        last_size_bytes: int,
    ) -> None:
        self._foundation = foundation
        self._volume = volume
        self._log = log
        self._committer = committer
        self._work = work
        self._last_size_bytes = last_size_bytes
        self._medium = PosixMedium()
        self._stopping = False

    async def run(self) -> None:
        """Take a snapshot whenever one is due."""
        while True:
            await trio.sleep(_SNAPSHOT_LOOK_SECONDS)
            due = max(LOG_SNAPSHOT_AFTER, self._last_size_bytes // 2)
            if self._log.size_bytes >= due:
                await self.take()

    def stop(self) -> None:
        """Break off a snapshot that is being written: the pool is closing."""
        self._stopping = True

    async def take(self) -> None:
        """Write a snapshot of the committed state, then remove what it makes useless."""
        await self._committer.commit()
        header = self._foundation.header
        # No await between the commit's end and reading what it committed, but for the worker's
        # own read transaction: it may see a later commit, never an earlier one, and replaying
        # commands that a snapshot already has is harmless, because its own meta record counts.
        sequence, replay_from = self._volume.committed, self._volume.replay_from
        snapshot = SnapshotHeader(
            pool=header.pool,
            volume=header.root_volume,
            sequence=sequence,
            replay_from=replay_from,
            created_ns=time.time_ns(),
            snapshot_id=os.urandom(16),
        )
        with self._work.doing("snapshot", "writing a snapshot of the file system's state"):
            result = await self._foundation.housekeeper.run(self._write, snapshot)
        if result is None:
            return
        for disk, error in result.failures.items():
            self._foundation.disks.log_failed(disk, error)
        self._last_size_bytes = result.size_bytes
        wanted = header.geometry.parity + 1
        if len(result.disks) < min(wanted, len(self._foundation.log_disks())):
            return  # not yet as safe as the log that it would replace
        await self._log.close_current()
        await self._log.trim(header.root_volume, _before(replay_from, sequence))
        await self._foundation.housekeeper.run(
            remove_older,
            self._foundation.directories(),
            header.root_volume,
            sequence,
            self._medium,
        )

    def _write(self, header: SnapshotHeader) -> SnapshotResult | None:
        store = self._foundation.state_store
        assert store is not None
        try:
            return write_snapshot(
                header,
                store.pairs(),
                self._foundation.volume_keys.snapshots,
                self._foundation.log_disks(),
                self._foundation.header.geometry.parity + 1,
                medium=self._medium,
                should_stop=lambda: self._stopping,
            )
        except SnapshotStoppedError:
            return None


async def heal_log(foundation: Foundation, log: MirroredLog, work: WorkBoard) -> None:
    """After each change of a disk's state, give the log its full number of copies again."""
    while True:
        changed = foundation.take_disk_change()
        status = log.status()
        if status.copies < status.copies_wanted or status.files_short:
            with work.doing("heal-log", "giving the log its copies again"):
                report = await log.heal()
            if report.files_mended:
                _log.info("mended %d log files", report.files_mended)
            with trio.move_on_after(_HEAL_RETRY_SECONDS):
                await changed.wait()
        else:
            await changed.wait()


async def sweep_orphans(
    foundation: Foundation, volume: Volume, stripes: StripeStore, work: WorkBoard
) -> None:
    """Once after the mount: delete shards that no stripe owns."""
    deleted = 0
    with work.doing("sweep", "looking for shards that nothing refers to"):
        for store in list(foundation.disks):
            deleted += await sweep_disk(store, volume.catalog.seal_of, stripes.is_in_memory)
    if deleted:
        _log.info("deleted %d shards that nothing referred to", deleted)


def _before(replay_from: LogSequence, sequence: LogSequence) -> LogSequence:
    return LogSequence(min(sequence, replay_from - 1))

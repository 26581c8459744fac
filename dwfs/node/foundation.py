"""The lower half of an open pool: keys, disks with their shard stores, and the state directory.

Everything here is made in an order in which each step can be undone by closing what came before;
`Foundation.close` does that, also after a failure half-way.

Disks come and go while the pool is open. `open_store`, `take_down` and `shut` are the only places in which a
disk gets or loses its store and its threads:

- `open_store` signs in on the disk (`attendance`), which decides whether its index is trusted;
- `take_down` is for a disk that failed: nothing is waited for, its threads are left to themselves;
- `shut` is for one that leaves in order: synced, closed, and its index good for its return.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import msgspec
import trio

from dwfs.config import ConfiguredDisk, Directories, PoolConfig, save_config
from dwfs.crypto import RootKeys, VolumeKeys
from dwfs.disk import DiskIndex, Executor, PoolHeader, SegmentStore
from dwfs.errors import DwfsError, MediumError, NotEnoughDisksError
from dwfs.log import LogDisk
from dwfs.node import marker
from dwfs.node.credential import Credential
from dwfs.node.disks.attendance import AttendanceBook, sign_in
from dwfs.node.disks.changes import Changes
from dwfs.node.disks.deadlines import look_at_answers
from dwfs.node.disks.listing import PoolDisk, PoolDisks, make_disk
from dwfs.node.disks.membership import Membership
from dwfs.node.disks.room import measure_space
from dwfs.node.disks.states import DiskEvent
from dwfs.node.disks.survey import Look, PoolSurvey, judge, look_at
from dwfs.node.disks.timing import DiskTiming
from dwfs.node.index_environment import IndexEnvironment
from dwfs.node.keyslots import refresh_stale_headers, unlock
from dwfs.node.lock import make_private
from dwfs.node.system import SYSTEM_PLATFORM, Platform
from dwfs.types import DiskId, VolumeId
from dwfs.volume import StateStore

_log = logging.getLogger(__name__)

# Log files carry records of many volumes, so their headers are sealed with a key of the pool: that
# of a volume that can't exist.
_POOL_VOLUME = VolumeId(bytes(16))
_KEY_VERSION = 1

Progress = Callable[[str, int, int], None]
ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


class Foundation:
    """Made by `lay_foundation`; belongs to the loop thread."""

    def __init__(
        self,
        survey: PoolSurvey,
        keys: RootKeys,
        directories: Directories,
        config: PoolConfig,
        platform: Platform,
        timing: DiskTiming,
    ) -> None:
        self.keys = keys
        self.volume_keys: VolumeKeys = keys.volume(survey.header.root_volume, _KEY_VERSION)
        self.pool_keys: VolumeKeys = keys.volume(_POOL_VOLUME, _KEY_VERSION)
        self.places = directories
        self.config = config
        self.state_directory = directories.state_directory(config.name)
        self.platform = platform
        self.timing = timing
        self.disks = PoolDisks(
            [
                make_disk(
                    disk.id,
                    disk.directory,
                    disk.wish,
                    platform.clock,
                    present=disk.stored is not None,
                    label=disk.label,
                    problem=disk.problem,
                    rules=timing.rules,
                )
                for disk in survey.disks
            ],
            platform.clock,
            survey.header.geometry.parity,
            config.tunables.rebuild_after_seconds,
            self._doubt_index,
        )
        self.membership = Membership(survey.header, keys, self.disks, platform)
        for disk in self.disks.all():
            if disk.state not in ("missing", "offline"):
                disk.executor = self.make_disk_executor(disk.id)
        self.workers = platform.make_executor("coding", min(4, os.cpu_count() or 1))
        self.housekeeper = platform.make_executor("housekeeping", 1)
        self._config_lock = trio.Lock()
        self._guests: set[Executor] = set()  # threads for directories that are no disks of ours
        self.index: IndexEnvironment | None = None
        self.state_store: StateStore | None = None
        self._book: AttendanceBook | None = None

    @property
    def header(self) -> PoolHeader:
        """The pool's header as it is now."""
        return self.membership.header

    @property
    def changes(self) -> Changes:
        """Counts, and lets wait for, changes of the disks."""
        return self.disks.changes

    @property
    def lost_disks(self) -> list[PoolDisk]:
        """Members that give nothing now."""
        return [disk for disk in self.disks.all() if disk.state in ("missing", "offline")]

    @property
    def beyond_redundancy(self) -> bool:
        """Whether more disks are gone than the code can replace."""
        return len(self.lost_disks) > self.header.geometry.parity

    def directories(self) -> dict[DiskId, Path]:
        """Where the disks are that can be read."""
        lost = {disk.id for disk in self.lost_disks}
        return {disk.id: disk.directory for disk in self.disks.all() if disk.id not in lost}

    def log_disks(self) -> list[LogDisk]:
        """Disks that take copies of the log now."""
        return self.disks.log_disks()

    def readable_log_disks(self) -> list[LogDisk]:
        """Disks whose copies of the log may still be read."""
        return self.disks.readable_log_disks()

    # --- databases ---------------------------------------------------------------------------

    def open_databases(self) -> tuple[IndexEnvironment, StateStore]:
        """Open (or make) the state directory's databases, both or none. Raises StateError."""
        index = IndexEnvironment(self.state_directory / "index.mdb")
        try:
            store = StateStore(
                self.state_directory / f"state-{self.header.root_volume.hex()}.mdb",
                self.volume_keys.values,
                self.volume_keys.names,
            )
        except BaseException:  # whatever it was: nobody else closes it
            index.close()
            raise
        self.index, self.state_store = index, store
        self._book = AttendanceBook(index)
        return index, store

    @property
    def book(self) -> AttendanceBook:
        """What the state directory remembers of the disks' attendance."""
        assert self._book is not None, "open_databases comes first"
        return self._book

    # --- stores ------------------------------------------------------------------------------

    async def open_stores(self, *, trusted: bool, progress: Progress) -> None:
        """Open the shard store of every disk that is there; one that fails becomes missing.

        `trusted`: the state directory is believed as a whole; each disk's attendance is asked, too.
        """

        # The executor is taken now: the disk may be taken down before its task begins.
        async def open_one(disk: PoolDisk, executor: Executor) -> None:
            try:
                disk.store = await self.open_store(
                    disk.id, disk.directory, executor, trusted=trusted, progress=progress
                )
            except (MediumError, OSError) as error:
                self.disks.note(disk.id, DiskEvent.UNUSABLE, str(error))
                self.take_down(disk)
            else:
                self.disks.opened(disk)

        async with trio.open_nursery() as nursery:
            for disk in self.disks.all():
                if disk.executor is not None:
                    nursery.start_soon(open_one, disk, disk.executor)
        await measure_space(self.disks, self.platform.medium)

    async def keep_deadlines(self) -> None:
        """Give up what takes a disk too long, for ever. Runs while anything uses the disks."""
        while True:
            await trio.sleep(self.timing.expire_seconds)
            now = self.platform.clock.now()
            look_at_answers(self.disks, now, self.timing)
            for disk in self.disks.all():
                if disk.state == "missing" and not disk.returning.locked():
                    self.take_down(disk)
            for executor in list(self._guests):
                executor.expire(now, self.timing.deadline_seconds)

    async def open_store(
        self,
        disk: DiskId,
        directory: Path,
        executor: Executor,
        *,
        trusted: bool = True,
        progress: Progress | None = None,
        first_number: int = 1,
    ) -> SegmentStore:
        """Sign in on a disk and open its store. Raises MediumError, OSError.

        New segments are numbered from `first_number` on at least: a store that hangs may still make
        those before.
        """
        index = self.index
        assert index is not None, "open_databases comes first"
        platform = self.platform
        signed = await executor.run(
            sign_in, directory, self.header.pool, disk, platform.medium, platform.randomness
        )
        if signed.problem:
            _log.warning("can't sign in on disk %s: %s", directory, signed.problem)
        unchanged = self.book.is_unchanged(disk, signed.found)
        store = await SegmentStore.open(
            directory,
            disk,
            DiskIndex(index.environment, index, disk),
            executor,
            trusted=trusted and unchanged,
            progress=None if progress is None else partial(progress, str(directory)),
            medium=platform.medium,
            now=platform.clock.now,
            first_number=first_number,
        )
        if signed.written is None:
            self.book.forget(disk)
        else:
            self.book.remember(signed.written)
        return store

    def make_disk_executor(self, disk: DiskId) -> Executor:
        """Threads for one disk."""
        return self.platform.make_executor(f"disk-{disk.hex()[:8]}")

    def take_down(self, disk: PoolDisk) -> None:
        """Leave a disk that failed to itself. Never awaits; does nothing if that is done already."""
        store, disk.store = disk.store, None
        executor, disk.executor = disk.executor, None
        if store is not None:
            disk.first_segment = store.next_number
            store.retire()
            self.book.forget(disk.id)
        if executor is not None:
            executor.abandon()

    async def shut(self, disk: PoolDisk) -> None:
        """Let a disk go in order: what it holds is synced, and its index stays good.

        Its state must have changed before, so that nobody begins anything new on it.
        """
        store, executor = disk.store, disk.executor
        if store is None or executor is None:
            self.take_down(disk)
            return
        with trio.CancelScope(shield=True):
            await store.close()
            await self._sign_out(disk)
            if executor.stalled or disk.store is not store:
                self.take_down(disk)
                return
            store.retire()
            disk.store = disk.executor = None
            executor.abandon()  # nothing is under way: its threads end by themselves

    def _doubt_index(self, disk: DiskId) -> None:
        """What the disk failed to write may be in its index: it is made anew at the next opening."""
        if self._book is not None:
            self._book.forget(disk)

    def forget_index(self, disk: DiskId) -> None:
        """The disk left the pool: its index is of no use any more."""
        index = self.index
        assert index is not None, "open_databases comes first"
        DiskIndex(index.environment, index, disk).clear()
        self.book.forget(disk)

    async def run_guarded(
        self, function: Callable[[*ArgumentsT], ResultT], *arguments: *ArgumentsT
    ) -> ResultT:
        """Call a function that blocks on a directory which is no disk of the pool, or none any more.

        In threads of its own, and given up after the deadline. Raises OSError then.
        """
        executor = self.platform.make_executor("guest", 1)
        self._guests.add(executor)
        try:
            return await executor.run(function, *arguments)
        finally:
            self._guests.discard(executor)
            executor.abandon()

    # --- configuration -----------------------------------------------------------------------

    async def write_config(self, joining: Mapping[DiskId, Path] | None = None) -> None:
        """Let the configuration say where the members are, and those who join. Raises OSError.

        A pool whose configuration is not there yet is only being made: its maker writes it.
        """
        async with self._config_lock:
            known = {disk.id: disk.directory for disk in self.disks.all()} | dict(joining or {})
            disks = tuple(ConfiguredDisk(disk, path) for disk, path in known.items())
            if disks == self.config.disks:
                return
            config = msgspec.structs.replace(self.config, disks=disks)
            if self.places.config_file(config.name).exists():
                await self.platform.run_blocking(save_config, self.places, config)
            self.config = config

    async def note_places(self) -> None:
        """As `write_config`, for when it can wait: a failure is only logged."""
        try:
            await self.write_config()
        except (OSError, DwfsError) as error:
            _log.warning("can't write where the disks are to the configuration: %s", error)

    # --- closing -----------------------------------------------------------------------------

    async def close_stores(self, *, sign_out: bool = False) -> None:
        """Close the shard stores; their last entries in the index are still to be committed.

        `sign_out`: that commit follows in any case, so the disks may be left with a fresh token.
        """

        async def close_one(disk: PoolDisk, store: SegmentStore) -> None:
            await store.close()
            if sign_out:
                await self._sign_out(disk)

        async with trio.open_nursery() as nursery:
            for disk in self.disks.all():
                store, disk.store = disk.store, None
                if store is not None:
                    nursery.start_soon(close_one, disk, store)

    async def _sign_out(self, disk: PoolDisk) -> None:
        """Leave a fresh token: a copy that was made while the disk was in use has another."""
        if disk.executor is None:
            return
        platform = self.platform
        try:
            signed = await disk.executor.run(
                sign_in,
                disk.directory,
                self.header.pool,
                disk.id,
                platform.medium,
                platform.randomness,
            )
        except OSError:
            return  # it is believed by its old token, or not at all
        if signed.written is not None and self.book.is_unchanged(disk.id, signed.found):
            self.book.remember(signed.written)

    async def close(self) -> None:
        """Close stores, databases, threads, and wipe the keys. What was not committed is given up."""
        async with trio.open_nursery() as watch:
            watch.start_soon(self.keep_deadlines)
            await self.close_stores()
            watch.cancel_scope.cancel()
        if self.state_store is not None:
            self.state_store.close()
        if self.index is not None:
            self.index.close()
        for disk in self.disks.all():
            if disk.executor is not None:
                disk.executor.close()
        self.workers.close()
        self.housekeeper.close()
        self.keys.wipe()


async def _survey(config: PoolConfig, platform: Platform, timing: DiskTiming) -> PoolSurvey:
    """Look at all disks at once; one that doesn't answer in time is missing."""
    looks: dict[Path, Look] = {}
    executors = {path: platform.make_executor("survey", 1) for path in config.places}

    async def look(path: Path, executor: Executor) -> None:
        try:
            looks[path] = await executor.run(look_at, path, platform.medium)
        except OSError as error:
            looks[path] = Look(path, None, DwfsError(f"{path}: {error.strerror or error}"))

    async def expire() -> None:
        while True:
            await trio.sleep(timing.expire_seconds)
            for executor in executors.values():
                executor.expire(platform.clock.now(), timing.deadline_seconds)

    async with trio.open_nursery() as watch:
        # Bounded by the deadline, so a cancellation can wait that long.
        watch.cancel_scope.shield = True
        watch.start_soon(expire)
        async with trio.open_nursery() as nursery:
            for path, executor in executors.items():
                nursery.start_soon(look, path, executor)
        watch.cancel_scope.cancel()
    for executor in executors.values():
        executor.abandon()
    return judge(config, [looks[path] for path in config.places], platform.medium)


async def lay_foundation(
    directories: Directories,
    config: PoolConfig,
    credential: Credential,
    platform: Platform = SYSTEM_PLATFORM,
    timing: DiskTiming | None = None,
) -> Foundation:
    """Survey the disks and unlock the pool. The caller holds the pool's lock.

    Raises FormatError, WrongKeyError, NotEnoughDisksError; nothing has changed then.
    """
    timing = timing or DiskTiming()
    survey = await _survey(config, platform, timing)
    state_directory = directories.state_directory(config.name)
    refuse_hopeless(survey, state_directory)
    keys = await platform.run_blocking(unlock, survey, credential)
    try:
        make_private(state_directory)
        await platform.run_blocking(refresh_stale_headers, survey, keys, platform.medium)
        foundation = Foundation(survey, keys, directories, config, platform, timing)
    except BaseException:  # whatever it was: nobody else wipes the keys
        keys.wipe()
        raise
    try:
        await foundation.note_places()
    except BaseException:  # whatever it was: the caller gets no foundation, so it closes none
        with trio.CancelScope(shield=True):
            await foundation.close()
        raise
    return foundation


def refuse_hopeless(survey: PoolSurvey, state_directory: Path) -> None:
    """Raise NotEnoughDisksError if too many disks are gone to know what the pool holds.

    With more than `parity` disks gone even the log may be incomplete. Then only a state that was
    closed in order can be trusted to be the pool's last word.
    """
    header = survey.header
    parity = header.geometry.parity
    gone = [disk for disk in survey.disks if disk.stored is None or disk.wish == "offline"]
    if len(gone) <= parity or marker.is_clean(state_directory, header.pool, header.state_id):
        return
    names = "; ".join(f"{disk.directory}: {disk.problem or 'offline'}" for disk in gone)
    raise NotEnoughDisksError(
        f"{len(gone)} of {len(survey.disks)} disks are missing and only {parity} may be "
        f"({names}); attach them and mount again"
    )

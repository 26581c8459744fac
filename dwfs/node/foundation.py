"""The lower half of an open pool: keys, disks with their shard stores, and the state directory.

Everything here is made in an order in which each step can be undone by closing what came before;
`Foundation.close` does that, also after a failure half-way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import trio

from dwfs.config import Directories, PoolConfig
from dwfs.crypto import RootKeys, VolumeKeys
from dwfs.disk import DiskExecutor, DiskIndex, PoolHeader, SegmentStore
from dwfs.errors import MediumError, NotEnoughDisksError
from dwfs.log import LogDisk
from dwfs.node import marker
from dwfs.node.credential import Credential
from dwfs.node.disk_watch import measure_space
from dwfs.node.disks import PoolDisk, PoolDisks
from dwfs.node.index_environment import IndexEnvironment
from dwfs.node.keyslots import refresh_stale_headers, unlock
from dwfs.node.lock import make_private
from dwfs.node.survey import PoolSurvey, survey_disks
from dwfs.types import DiskId, VolumeId
from dwfs.volume import StateStore

_log = logging.getLogger(__name__)

# Log files carry records of many volumes, so their headers are sealed with a key of the pool: that
# of a volume that can't exist.
_POOL_VOLUME = VolumeId(bytes(16))
_KEY_VERSION = 1


class Foundation:
    """Made by `lay_foundation`; belongs to the loop thread."""

    def __init__(self, survey: PoolSurvey, keys: RootKeys, state_directory: Path) -> None:
        self.header: PoolHeader = survey.header
        self.keys = keys
        self.volume_keys: VolumeKeys = keys.volume(survey.header.root_volume, _KEY_VERSION)
        self.pool_keys: VolumeKeys = keys.volume(_POOL_VOLUME, _KEY_VERSION)
        self.state_directory = state_directory
        self.disks_changed = trio.Event()
        self.disks = PoolDisks(
            [PoolDisk(disk.id, disk.directory, disk.problem) for disk in survey.disks],
            self._note_change,
        )
        self.workers = DiskExecutor("coding", threads=min(4, os.cpu_count() or 1))
        self.housekeeper = DiskExecutor("housekeeping", threads=1)
        self.index: IndexEnvironment | None = None
        self.state_store: StateStore | None = None

    @property
    def lost_disks(self) -> list[PoolDisk]:
        """Members that are not there."""
        return [disk for disk in self.disks.all() if disk.state == "missing"]

    @property
    def beyond_redundancy(self) -> bool:
        """Whether more disks are gone than the code can replace."""
        return len(self.lost_disks) > self.header.geometry.parity

    def directories(self) -> dict[DiskId, Path]:
        """Where the disks are that can be read."""
        return {disk.id: disk.directory for disk in self.disks.all() if disk.state != "missing"}

    def log_disks(self) -> list[LogDisk]:
        """Disks that may hold the log now."""
        return self.disks.log_disks()

    def open_databases(self) -> tuple[IndexEnvironment, StateStore]:
        """Open (or make) the state directory's databases."""
        self.index = IndexEnvironment(self.state_directory / "index.mdb")
        self.state_store = StateStore(
            self.state_directory / f"state-{self.header.root_volume.hex()}.mdb",
            self.volume_keys.values,
            self.volume_keys.names,
        )
        return self.index, self.state_store

    async def open_stores(
        self, *, trusted: bool, progress: Callable[[str, int, int], None]
    ) -> None:
        """Open the shard store of every disk that is there; one that fails becomes missing."""
        index = self.index
        assert index is not None, "open_databases comes first"
        async with trio.open_nursery() as nursery:
            for disk in self.disks.all():
                if disk.state != "missing":
                    nursery.start_soon(self._open_store, disk, index, trusted, progress)
        await measure_space(self.disks, self.housekeeper)

    async def _open_store(
        self,
        disk: PoolDisk,
        index: IndexEnvironment,
        trusted: bool,
        progress: Callable[[str, int, int], None],
    ) -> None:
        disk.executor = DiskExecutor(f"disk-{disk.id.hex()[:8]}")
        try:
            disk.store = await SegmentStore.open(
                disk.directory,
                disk.id,
                DiskIndex(index.environment, index, disk.id),
                disk.executor,
                trusted=trusted,
                progress=lambda done, total: progress(str(disk.directory), done, total),
            )
        except (MediumError, OSError) as error:
            disk.errors += 1
            self.disks.change_state(disk, "missing", str(error))

    def _note_change(self, disk: PoolDisk) -> None:
        self.disks_changed.set()

    def take_disk_change(self) -> trio.Event:
        """A fresh event for the next change of a disk's state."""
        self.disks_changed = trio.Event()
        return self.disks_changed

    async def close_stores(self) -> None:
        """Close the shard stores; their last entries in the index are still to be committed."""
        for disk in self.disks.all():
            store, disk.store = disk.store, None
            if store is not None:
                await store.close()

    async def close(self) -> None:
        """Close stores, databases, threads, and wipe the keys. What was not committed is given up."""
        await self.close_stores()
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


async def lay_foundation(
    directories: Directories, config: PoolConfig, credential: Credential
) -> Foundation:
    """Survey the disks and unlock the pool. The caller holds the pool's lock.

    Raises FormatError, WrongKeyError, NotEnoughDisksError; nothing has changed then.
    """
    survey = await trio.to_thread.run_sync(survey_disks, config)
    refuse_hopeless(survey, directories.state_directory(config.name))
    keys = await trio.to_thread.run_sync(unlock, survey, credential)
    try:
        state_directory = directories.state_directory(config.name)
        make_private(state_directory)
        await trio.to_thread.run_sync(refresh_stale_headers, survey, keys)
        return Foundation(survey, keys, state_directory)
    except BaseException:
        keys.wipe()
        raise


def refuse_hopeless(survey: PoolSurvey, state_directory: Path) -> None:
    """Raise NotEnoughDisksError if too many disks are gone to know what the pool holds.

    With more than `parity` disks gone even the log may be incomplete. Then only a state that was
    closed in order can be trusted to be the pool's last word.
    """
    parity = survey.header.geometry.parity
    if len(survey.missing) <= parity or marker.is_clean(state_directory, survey.header.pool):
        return
    names = "; ".join(f"{disk.directory}: {disk.problem}" for disk in survey.missing)
    raise NotEnoughDisksError(
        f"{len(survey.missing)} of {len(survey.disks)} disks are missing and only {parity} may be "
        f"({names}); attach them and mount again"
    )

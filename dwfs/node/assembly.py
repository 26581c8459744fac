"""Putting an open pool together: from recovered databases to a filesystem that answers.

The order is forced by who needs whom: the stripe store needs the volume's stripe catalog, replaying the
log needs the stripe store (for data that is not in a stripe yet), the log can only be opened for
writing when it was replayed to its end, and the volume can take commands only when there is a log.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import trio

from dwfs.config import PoolConfig
from dwfs.crypto import StripeCipher
from dwfs.disk import DiskExecutor
from dwfs.erasure import make_coder
from dwfs.log import Executor, LogSettings, MirroredLog, PosixMedium
from dwfs.node.background import Committer, Snapshotter, Supervisor
from dwfs.node.foundation import Foundation
from dwfs.node.log_stream import LogStream
from dwfs.node.reclaim_target import VolumeReclaimTarget
from dwfs.node.recovery import (
    Report,
    StateRecovery,
    mark_recovered,
    next_command,
    recover_databases,
    replay_log,
)
from dwfs.node.redundancy import RedundancyCount
from dwfs.node.system import SystemClock, SystemRandomness
from dwfs.node.work import WorkBoard
from dwfs.ports import ErasureCoder
from dwfs.stripe import Cleaner, ReclaimSignal, StripeStore
from dwfs.types import Geometry, StripeId
from dwfs.vfs import Filesystem, FilesystemOptions, Space
from dwfs.volume import EmbeddedReplicator, Volume

_ROOT_MODE = 0o755
_KEY_VERSION = 1


class OpenOptions(msgspec.Struct, frozen=True):
    """How a pool is opened. The defaults suit an administrative command."""

    mountpoint: str | None = None  # for status
    filesystem: FilesystemOptions = FilesystemOptions()
    durable_seconds: float | None = None  # None: as configured
    first_opening: bool = False  # the pool was made a moment ago
    unforeseen_errors: Callable[[], int] = lambda: 0  # those of the layers above, for status
    report: Report = lambda _what, _done, _total: None  # progress of a long recovery


class Pool:
    """An open pool and its parts. Made by `open_pool`."""

    def __init__(
        self,
        config: PoolConfig,
        options: OpenOptions,
        foundation: Foundation,
        log: MirroredLog | None,
        stripes: StripeStore,
        volume: Volume,
        committer: Committer,
        reclaim: ReclaimSignal,
        snapshot_size_bytes: int,
    ) -> None:
        clock = SystemClock()
        self.name = config.name
        self.config = config
        self.options = options
        self.foundation = foundation
        self.log = log
        self.stripes = stripes
        self.volume = volume
        self.committer = committer
        self.work = WorkBoard()
        self.supervisor = Supervisor()
        self.stop_requested = trio.Event()  # somebody asked over the control socket
        self.filesystem = Filesystem(
            volume,
            stripes,
            clock,
            lambda: Space(stripes.capacity_bytes(), stripes.free_bytes()),
            options.filesystem,
        )
        self.cleaner = Cleaner(VolumeReclaimTarget(volume), stripes, reclaim, clock)
        self.redundancy = RedundancyCount(volume, stripes)
        self.snapshotter: Snapshotter | None = None
        if log is not None:
            self.snapshotter = Snapshotter(
                foundation, volume, log, committer, self.work, snapshot_size_bytes
            )

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written, because too many disks are gone."""
        return self.log is None


async def assemble(
    foundation: Foundation, config: PoolConfig, options: OpenOptions, nursery: trio.Nursery
) -> Pool:
    """Recover and compose. `nursery` runs the stripe store's tasks and outlives the pool.

    Raises DamageError, FormatError, NotEnoughDisksError, PosixError.
    """
    recovery = await recover_databases(
        foundation, first_opening=options.first_opening, report=options.report
    )
    reclaim = ReclaimSignal()
    stripes = _make_stripe_store(foundation, recovery, reclaim, nursery)
    result = replay_log(foundation, recovery, stripes, options.report)
    volume_id = foundation.header.root_volume
    log = None
    if not foundation.beyond_redundancy:
        log = await MirroredLog.open(
            _log_settings(foundation),
            recovery.inventory,
            {volume_id: (foundation.volume_keys.log, next_command(result))},
        )
    try:
        stream = LogStream(log)
        replicator = EmbeddedReplicator(recovery.state, stream, stripes, volume_id)
        replicator.resume(result.inlined)
        volume = Volume(recovery.state, replicator, stripes)
        committer = Committer(foundation, volume, stream)
        if recovery.is_new:
            await volume.create_root(
                _ROOT_MODE, os.geteuid(), os.getegid(), SystemClock().wall_ns()
            )
        if log is not None:
            await committer.commit()
            await trio.to_thread.run_sync(mark_recovered, foundation)
    except BaseException:
        if log is not None:
            await log.close()
        raise
    return Pool(
        config,
        options,
        foundation,
        log,
        stripes,
        volume,
        committer,
        reclaim,
        recovery.snapshot_size_bytes,
    )


def _make_stripe_store(
    foundation: Foundation, recovery: StateRecovery, reclaim: ReclaimSignal, nursery: trio.Nursery
) -> StripeStore:
    header = foundation.header
    coders: dict[Geometry, ErasureCoder] = {}

    def coder_of(geometry: Geometry) -> ErasureCoder:
        if geometry not in coders:
            coders[geometry] = make_coder(geometry)
        return coders[geometry]

    def cipher_of(stripe: StripeId, salt: bytes, key_version: int) -> StripeCipher:
        assert key_version == _KEY_VERSION, "the state authenticates the version that we gave"
        return foundation.volume_keys.stripe_cipher(stripe, salt)

    return StripeStore(
        pool=header.pool,
        volume=header.root_volume,
        geometry=header.geometry,
        key_version=_KEY_VERSION,
        disks=foundation.disks,
        catalog=recovery.state.stripes,
        coder_of=coder_of,
        cipher_of=cipher_of,
        randomness=SystemRandomness(),
        threads=foundation.workers,
        nursery=nursery,
        reclaim=reclaim,
    )


def _log_settings(foundation: Foundation) -> LogSettings:
    def make_executor(name: str) -> Executor:
        return DiskExecutor(name, threads=1)

    return LogSettings(
        pool=foundation.header.pool,
        copies=foundation.header.geometry.parity + 1,
        header_cipher=foundation.pool_keys.log,
        disks=foundation.log_disks,
        make_executor=make_executor,
        on_disk_failed=foundation.disks.log_failed,
        random_bytes=os.urandom,
        medium=PosixMedium(),
    )

"""Putting an open pool together: from recovered databases to a filesystem that answers.

The order is forced by who needs whom: the stripe store needs the volume's stripe catalog, replaying the
log needs the stripe store (for data that is not in a stripe yet), the log can only be opened for
writing when it was replayed to its end, and the volume can take commands only when there is a log.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import trio

from dwfs.config import PoolConfig, SnapshotSchedule
from dwfs.crypto import StripeCipher
from dwfs.disk import Executor
from dwfs.erasure import make_coder
from dwfs.errors import NotEnoughDisksError
from dwfs.log import LogSettings, MirroredLog, SnapshotKeeper
from dwfs.node.background import Committer, CopyHealer, OrphanSweep, Snapshotter, Supervisor
from dwfs.node.disks.life_cycle import LifeCycle
from dwfs.node.disks.timing import DiskTiming
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
from dwfs.node.services.damage_inbox import DamageInbox
from dwfs.node.services.pool_services import PoolServices, StripeTools
from dwfs.node.services.snapshots import WriteBack, nothing_to_write_back
from dwfs.node.services.trash import TrashService
from dwfs.node.system import SYSTEM_PLATFORM, Platform
from dwfs.node.work import WorkBoard
from dwfs.ports import ErasureCoder
from dwfs.send import unfinished_receive
from dwfs.stripe import Cleaner, Pacer, ReclaimSignal, StripeStore
from dwfs.types import DiskId, Geometry, StripeId
from dwfs.vfs import Filesystem, FilesystemOptions, Space
from dwfs.volume import EmbeddedReplicator, Volume

_ROOT_MODE = 0o755
_KEY_VERSION = 1
_TRASH_DUTY = 0.25  # of the time while people use the pool


class OpenOptions(msgspec.Struct, frozen=True):
    """How a pool is opened. The defaults suit an administrative command."""

    mountpoint: str | None = None  # for status
    filesystem: FilesystemOptions = FilesystemOptions()
    durable_seconds: float | None = None  # None: as configured
    first_opening: bool = False  # the pool was made a moment ago
    unforeseen_errors: Callable[[], int] = lambda: 0  # those of the layers above, for status
    timing: DiskTiming = DiskTiming()  # how patient the pool is with its disks
    platform: Platform = SYSTEM_PLATFORM
    activity: Callable[[], int] = lambda: 0  # counts people's requests: background work yields
    report: Report = lambda _what, _done, _total: None  # progress of a long recovery
    # Brings in what the layers above still hold, for a snapshot to have it.
    write_back: WriteBack = nothing_to_write_back


class StripeEngine(NamedTuple):
    """The stripe store and what others share with it."""

    store: StripeStore
    tools: StripeTools
    damage: DamageInbox
    reclaim: ReclaimSignal


class Pool:
    """An open pool and its parts. Made by `open_pool`."""

    def __init__(
        self,
        config: PoolConfig,
        options: OpenOptions,
        foundation: Foundation,
        log: MirroredLog | None,
        snapshots: SnapshotKeeper | None,
        engine: StripeEngine,
        volume: Volume,
        committer: Committer,
        snapshot_size_bytes: int,
    ) -> None:
        stripes = engine.store
        clock = foundation.platform.clock
        self.name = config.name
        self.config = config
        self.options = options
        self.foundation = foundation
        self.log = log
        self.snapshots = snapshots
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
        self.trash = TrashService(
            self.filesystem.trash, clock, Pacer(clock, options.activity, duty_busy=_TRASH_DUTY)
        )
        stripes.set_compression(volume.properties.compression)
        self.cleaner = Cleaner(VolumeReclaimTarget(volume), stripes, engine.reclaim, clock)
        self.life_cycle = LifeCycle(foundation, volume, stripes, log, snapshots, options.mountpoint)
        self.sweep = OrphanSweep(foundation, volume, stripes, self.work)
        self.redundancy = RedundancyCount(
            volume.catalog,
            foundation.disks,
            foundation.changes,
            self._doubted_disks,
            lambda: stripes.counters().degraded,
            self._reported_shards,
        )
        self.snapshotter: Snapshotter | None = None
        self.copies: CopyHealer | None = None
        self.services: PoolServices | None = None  # None: read-only
        if log is not None and snapshots is not None:
            self.snapshotter = Snapshotter(
                foundation, volume, log, snapshots, committer, self.work, snapshot_size_bytes
            )
            self.copies = CopyHealer(foundation, log, snapshots, self.work)
            self.services = self._make_services(engine, self.copies)

    def _make_services(self, engine: StripeEngine, copies: CopyHealer) -> PoolServices:
        config, options = self.config, self.options
        # Who opens a pool only for a command wants no snapshot of it.
        mounted = options.mountpoint is not None
        return PoolServices(
            foundation=self.foundation,
            volume=self.volume,
            stripes=engine.store,
            life_cycle=self.life_cycle,
            damage=engine.damage,
            tools=engine.tools,
            schedule=config.scrub,
            activity=options.activity,
            heal=copies.heal,
            snapshot_schedule=config.snapshots if mounted else SnapshotSchedule(),
            write_back=options.write_back,
            work=self.work,
        )

    def _doubted_disks(self) -> frozenset[DiskId]:
        """Disks that are read but may fail any moment."""
        return frozenset(
            disk.id for disk in self.foundation.disks.all() if disk.state in ("failing", "suspect")
        )

    def _reported_shards(self) -> dict[StripeId, frozenset[int]]:
        return {} if self.services is None else self.services.repairer.bad_shards()

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
    nursery.start_soon(foundation.keep_deadlines)
    recovery = await recover_databases(
        foundation, first_opening=options.first_opening, report=options.report
    )
    engine = _make_stripe_engine(foundation, recovery, nursery)
    stripes = engine.store
    result = replay_log(foundation, recovery, stripes, options.report)
    volume_id = foundation.header.root_volume
    log, snapshots = None, None
    if not foundation.beyond_redundancy:
        settings = _log_settings(foundation)
        log = await MirroredLog.open(
            settings,
            recovery.inventory,
            {volume_id: (foundation.volume_keys.log, next_command(result))},
        )
        snapshots = SnapshotKeeper(settings, volume_id, foundation.volume_keys.snapshots)
        # Longer than all that writes to the log: closing must not wait for a disk that hangs either.
        nursery.start_soon(log.watch)
    try:
        stream = LogStream(log)
        replicator = EmbeddedReplicator(recovery.state, stream, stripes, volume_id)
        replicator.resume(result.inlined)
        volume = Volume(recovery.state, replicator, stripes)
        committer = Committer(foundation, volume, stream)
        if recovery.is_new:
            await volume.create_root(
                _ROOT_MODE, os.geteuid(), os.getegid(), foundation.platform.clock.wall_ns()
            )
        await _finish_rollback(volume, options.report, writable=log is not None)
        if options.mountpoint is not None:
            unfinished = unfinished_receive(volume, config.name)
            if unfinished is not None:
                raise unfinished
        if log is not None:
            await committer.commit()
            await foundation.platform.run_blocking(mark_recovered, foundation)
    except BaseException:  # whatever it was: there is no pool yet whose owner would close them
        if log is not None and snapshots is not None:
            await log.close()
            await snapshots.close()
        raise
    return Pool(
        config,
        options,
        foundation,
        log,
        snapshots,
        engine,
        volume,
        committer,
        recovery.snapshot_size_bytes,
    )


async def _finish_rollback(volume: Volume, report: Report, *, writable: bool) -> None:
    """End a rollback that was interrupted: until then the volume is neither the one nor the other."""
    if not volume.rolling_back:
        return
    if not writable:
        raise NotEnoughDisksError(
            "too many disks are gone to end the rollback that this pool was in the middle of, and "
            "until then it can't be read: attach them and try again"
        )

    async def tell(done: int, total: int | None) -> None:
        report("ending a rollback", done, total or 0)
        await trio.lowlevel.checkpoint()

    await volume.finish_rollback(tell)


def _make_stripe_engine(
    foundation: Foundation, recovery: StateRecovery, nursery: trio.Nursery
) -> StripeEngine:
    header = foundation.header
    coders: dict[Geometry, ErasureCoder] = {}

    def coder_of(geometry: Geometry) -> ErasureCoder:
        if geometry not in coders:
            coders[geometry] = make_coder(geometry)
        return coders[geometry]

    def cipher_of(stripe: StripeId, salt: bytes, key_version: int) -> StripeCipher:
        assert key_version == _KEY_VERSION, "the state authenticates the version that we gave"
        return foundation.volume_keys.stripe_cipher(stripe, salt)

    damage, reclaim = DamageInbox(), ReclaimSignal()
    store = StripeStore(
        pool=header.pool,
        volume=header.root_volume,
        geometry=header.geometry,
        key_version=_KEY_VERSION,
        disks=foundation.disks,
        catalog=recovery.state.stripes,
        coder_of=coder_of,
        cipher_of=cipher_of,
        randomness=foundation.platform.randomness,
        threads=foundation.workers,
        nursery=nursery,
        on_damage=damage.put,
        reclaim=reclaim,
    )
    return StripeEngine(store, StripeTools(coder_of, cipher_of), damage, reclaim)


def _log_settings(foundation: Foundation) -> LogSettings:
    platform = foundation.platform

    def make_executor(name: str) -> Executor:
        return platform.make_executor(name, 1)

    return LogSettings(
        pool=foundation.header.pool,
        copies=foundation.header.geometry.parity + 1,
        header_cipher=foundation.pool_keys.log,
        disks=foundation.log_disks,
        make_executor=make_executor,
        on_disk_failed=foundation.disks.log_failed,
        random_bytes=platform.randomness.bytes,
        deadline_seconds=foundation.timing.deadline_seconds,
        medium=platform.medium,
        readable=foundation.readable_log_disks,
        stopwatch=platform.clock.now,
    )

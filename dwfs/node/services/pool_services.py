"""Puts the long work of one pool together: who uses which mover, which pace, which record."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, NamedTuple

from dwfs.config import ScrubSchedule, SnapshotSchedule
from dwfs.limits import MIB
from dwfs.node.checking.paths import paths_of_files
from dwfs.node.disks.life_cycle import LifeCycle
from dwfs.node.foundation import Foundation
from dwfs.node.reclaim_target import VolumeReclaimTarget
from dwfs.node.services.balancing import BalanceService
from dwfs.node.services.damage_inbox import DamageInbox
from dwfs.node.services.jobs import JobStore
from dwfs.node.services.move_target import VolumeMoveTarget
from dwfs.node.services.removing import RemovalService
from dwfs.node.services.repairing import RepairService
from dwfs.node.services.rescue import Rescuer
from dwfs.node.services.scrubbing import ScrubService
from dwfs.node.services.snapshots import SnapshotService, WriteBack
from dwfs.node.status import JobStatus
from dwfs.node.work import WorkBoard
from dwfs.ports import ErasureCoder
from dwfs.stripe import (
    Balancer,
    BalanceState,
    CipherFactory,
    DiskScrub,
    Pacer,
    Repairer,
    ScrubState,
    ShardMover,
    StripeStore,
)
from dwfs.types import DiskId, Geometry, StripeId
from dwfs.volume import Volume

_log = logging.getLogger(__name__)

BOOK_NAME: Final = "jobs.json"
# Shares of the time that background work takes while people use the pool. What lacks redundancy is
# urgent; the others are not.
_REPAIR_DUTY: Final = 0.5
_BALANCE_DUTY: Final = 0.25
_SCRUB_DUTY: Final = 0.25
_REAP_DUTY: Final = 0.25

Activity = Callable[[], Awaitable[None]]


class StripeTools(NamedTuple):
    """What makes and opens stripes; the same for readers, writers and movers."""

    coder_of: Callable[[Geometry], ErasureCoder]
    cipher_of: CipherFactory


class PoolServices:
    """The services of a pool that can be written to. `activities` are to be run for ever."""

    def __init__(
        self,
        *,
        foundation: Foundation,
        volume: Volume,
        stripes: StripeStore,
        life_cycle: LifeCycle,
        damage: DamageInbox,
        tools: StripeTools,
        schedule: ScrubSchedule,
        activity: Callable[[], int],
        heal: Callable[[], Awaitable[object]],
        snapshot_schedule: SnapshotSchedule,
        write_back: WriteBack,
        work: WorkBoard,
    ) -> None:
        """`activity` counts what people do; `heal` gives log and state snapshots their copies again."""
        self._foundation = foundation
        self._volume = volume
        self._stripes = stripes
        self._activity = activity
        self._clock = foundation.platform.clock
        self._mover = self._make_mover(life_cycle, tools)
        self.jobs = JobStore(
            foundation.state_directory / BOOK_NAME,
            foundation.header.pool,
            self._clock,
            foundation.housekeeper,
        )
        self.repairer = Repairer(
            mover=self._mover,
            catalog=volume.catalog,
            pacer=self._pacer(_REPAIR_DUTY),
            clock=self._clock,
        )
        self.removal = RemovalService(foundation.disks, life_cycle, self.repairer, heal, self.jobs)
        self.repair = RepairService(
            self.repairer,
            foundation.changes,
            damage,
            lambda: stripes.counters().degraded,
            self.removal.leaving,
            self.jobs,
        )
        self._scrub_rate = None if schedule.rate_mib is None else schedule.rate_mib * MIB
        self.scrub = ScrubService(
            foundation.disks,
            self.jobs,
            self.make_scrub,
            self._rescue_and_name,
            schedule.every_days,
        )
        self.balance = BalanceService(self.jobs, self._make_balancer, self.repairer.quiet)
        self.snapshots = SnapshotService(
            volume, self._clock, snapshot_schedule, write_back, self._pacer(_REAP_DUTY), work
        )

    def activities(self) -> Iterator[tuple[str, Activity]]:
        """What is to be kept running, by name."""
        yield "repair", self.repair.run
        yield "removal", self.removal.run
        yield "scrub", self.scrub.run
        yield "balance", self.balance.run
        yield "job book", self.jobs.run
        yield "snapshot schedule", self.snapshots.run_schedule
        yield "snapshot reaper", self.snapshots.run_reaper

    def statuses(self) -> list[JobStatus]:
        """All that is under way, waits or was stopped; the most urgent first."""
        found = [self.repair.job(), *self.removal.jobs(), self.scrub.job(), self.balance.job()]
        return [job for job in found if job is not None]

    async def _rescue_and_name(self, lost: Iterable[StripeId]) -> list[str]:
        """Copy out what can be had of stripes beyond repair; gives the files that lost something."""
        rescuer = Rescuer(self._volume, self._stripes, VolumeReclaimTarget(self._volume))
        damaged = await rescuer.sift(await rescuer.live_ranges(list(lost)), copy=True)
        if rescuer.rescued_bytes:
            _log.info("%d bytes were copied out of damaged stripes", rescuer.rescued_bytes)
        return await paths_of_files(self._volume, damaged)

    def make_scrub(self, disk: DiskId, state: ScrubState | None) -> DiskScrub:
        """The scrub of one disk, at the scrub's pace."""
        return DiskScrub(
            disk=disk,
            disks=self._foundation.disks,
            catalog=self._volume.catalog,
            in_memory=self._stripes.is_in_memory,
            repairer=self.repairer,
            pacer=self._pacer(_SCRUB_DUTY, self._scrub_rate),
            clock=self._clock,
            state=state,
        )

    def _make_balancer(self, state: BalanceState | None) -> Balancer:
        return Balancer(
            mover=self._mover,
            catalog=self._volume.catalog,
            disks=self._foundation.disks,
            space=self._stripes.space,
            pacer=self._pacer(_BALANCE_DUTY),
            clock=self._clock,
            geometry=self._foundation.header.geometry,
            state=state,
        )

    def _make_mover(self, life_cycle: LifeCycle, tools: StripeTools) -> ShardMover:
        foundation = self._foundation
        return ShardMover(
            pool=foundation.header.pool,
            volume=foundation.header.root_volume,
            disks=foundation.disks,
            catalog=self._volume.catalog,
            stripes=self._stripes,
            space=self._stripes.space,
            target=VolumeMoveTarget(self._volume),
            coder_of=tools.coder_of,
            cipher_of=tools.cipher_of,
            threads=foundation.workers,
            successor_of=life_cycle.successor_of,
        )

    def _pacer(self, duty: float, bytes_per_second: float | None = None) -> Pacer:
        return Pacer(self._clock, self._activity, duty_busy=duty, bytes_per_second=bytes_per_second)

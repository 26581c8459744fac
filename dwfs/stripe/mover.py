"""The one way in which a shard changes its place: repair, evacuation and balancing all go it.

For each shard, in this order:

1. get its bytes: copied from where it is, or rebuilt from others, checked (`rebuild`);
2. `put` them on the target disk;
3. `sync` that disk;
4. `read_back` from the medium and compare;
5. tell the state (`MoveTarget.place`: one MoveShards command, then the barrier);
6. `forget` what readers know of the stripe;
7. delete the shard at the source, if that can be reached.

Why nothing is lost. Up to 5 the seal names the source, which nobody has touched; from the barrier
on it names the target, which holds a shard that was read back. Between the command and the barrier
the state names the target and a crash may bring back either: so neither copy is deleted until the
barrier has succeeded. If it fails the stripe stays claimed, its two copies stay, and `settle`
tries the barrier again before anything else is done.

Why nothing comes back or is left over. While a stripe is claimed (`begin_move`) the sweep leaves it
alone, no other mover gets it, and if it dies its shards are deleted only when it is let go. A crash
before 5 leaves an orphan on the target, one after 5 leaves it on the source; the sweep after the
next mount deletes either. Without a crash the mover clears up itself, cancelled or not.

A damaged shard on a healthy disk needs no new place: it is put again on the same disk (2 to 4), and
the put replaces it.

Stripes are taken in batches, so that one sync a disk and one barrier serve many of them. Memory is
bounded: a few stripes are rebuilt at a time, and what was put is remembered by its checksum only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import trio

from dwfs.errors import DiskFullError, MediumError, PosixError
from dwfs.ports import DiskListing, DiskRole, ErasureCoder, ShardStore, StripeCatalog
from dwfs.stripe.disposal import delete_shards
from dwfs.stripe.homes import HomeFinder, nobody
from dwfs.stripe.moving import (
    Job,
    MendReport,
    MendRequest,
    MoveTarget,
    MovingStripes,
    Outcome,
    Put,
)
from dwfs.stripe.parallel import in_parallel
from dwfs.stripe.rebuild import ShardSource
from dwfs.stripe.redundancy import ShardState, StripeHealth, assess
from dwfs.stripe.sealing import CipherFactory, ThreadRunner
from dwfs.stripe.shard_header import encode_header
from dwfs.stripe.space import SpaceAccount
from dwfs.stripe.verification import PutVerifier
from dwfs.types import (
    DiskId,
    Geometry,
    PoolId,
    ShardKey,
    ShardMove,
    StripeId,
    StripeSeal,
    VolumeId,
)

STRIPES_AT_ONCE: Final = 4  # being rebuilt: each holds up to k + m shards, some 8 MiB
TIDY_SECONDS: Final = 2.0  # for clearing up after a cancellation; what is left the sweep finds


class ShardMover:
    """Moves and mends shards; one per pool and volume key. Batches may run at the same time.

    `successor_of(disk)` names the disk that a leaving or lost one is being replaced by: its shards
    go there first, so that a replacement ends as an exact one.
    """

    def __init__(
        self,
        *,
        pool: PoolId,
        volume: VolumeId,
        disks: DiskListing,
        catalog: StripeCatalog,
        stripes: MovingStripes,
        space: SpaceAccount,
        target: MoveTarget,
        coder_of: Callable[[Geometry], ErasureCoder],
        cipher_of: CipherFactory,
        threads: ThreadRunner,
        successor_of: Callable[[DiskId], DiskId | None] = nobody,
    ) -> None:
        self._pool = pool
        self._volume = volume
        self._disks = disks
        self._catalog = catalog
        self._stripes = stripes
        self._space = space
        self._target = target
        self._homes = HomeFinder(disks, space, successor_of)
        self._source = ShardSource(
            disks=disks,
            coder_of=coder_of,
            cipher_of=cipher_of,
            threads=threads,
            read=stripes.read_stored,
        )
        self._slots = trio.Semaphore(STRIPES_AT_ONCE)
        self._verifier = PutVerifier(disks)
        self._settling = trio.Lock()
        self._unsettled: list[Job] = []  # claimed: applied to the state, perhaps not durable

    @property
    def unsettled(self) -> int:
        """Stripes that wait for a barrier (see `settle`)."""
        return len(self._unsettled)

    def look_at(self, seal: StripeSeal, bad: Collection[int] = ()) -> StripeHealth:
        """The stripe's health by the disks' present roles and indexes. No I/O."""
        return assess(seal, self._role, self._has, bad)

    async def mend(self, requests: Sequence[MendRequest]) -> MendReport:
        """Give every shard that needs one a home (`assess`), as far as disks and space allow."""
        report = MendReport()
        jobs = []
        try:
            for request in requests:
                job = self._claim(request.stripe, report)
                if job is not None:
                    jobs.append(job)
                    job.suspected = request.bad
            await self._run(jobs, report)
        finally:
            await self._let_go(jobs)
        return report

    async def relocate(self, moves: Sequence[ShardMove]) -> MendReport:
        """Move sound shards to the disks given; one move a stripe, from where its seal says.

        A target that has no room, is not writable or has a shard of the stripe: NO_TARGET.
        """
        report = MendReport()
        jobs = []
        try:
            for move in moves:
                job = self._claim(move.stripe, report)
                if job is None:
                    continue
                jobs.append(job)
                job.fixed = {move.number: move.target}
                job.failed = job.seal.placement[move.number] != move.source
            await self._run(jobs, report)
        finally:
            await self._let_go(jobs)
        return report

    async def settle(self) -> None:
        """Finish moves whose barrier had failed. Raises PosixError if it fails again."""
        async with self._settling:
            waiting = list(self._unsettled)
            if not waiting:
                return
            await self._target.place(())
            for job in waiting:
                self._unsettled.remove(job)
            await self._let_go(waiting)

    # --- the batch ---------------------------------------------------------------------------

    def _claim(self, stripe: StripeId, report: MendReport) -> Job | None:
        seal = self._catalog.seal_of(stripe)
        if seal is None:
            report.outcomes[stripe] = Outcome.GONE
        elif not self._stripes.begin_move(stripe):
            report.outcomes[stripe] = Outcome.BUSY
        else:
            return Job(seal)
        return None

    async def _run(self, jobs: Sequence[Job], report: MendReport) -> None:
        try:
            await self.settle()
        except PosixError:
            # The log takes nothing now, so no move can be told to the state.
            report.outcomes.update({job.stripe: Outcome.FAILED for job in jobs})
            return
        await in_parallel(self._supply(job, report) for job in jobs if not job.failed)
        doubtful = await self._verifier.verify(jobs)
        await self._delete((job, put) for job, put in doubtful if not put.in_place)
        for job in jobs:
            report.written_bytes += sum(put.length for put in job.puts)
        await self._place(jobs)
        settled = [job for job in jobs if job not in self._unsettled]
        for job in settled:
            report.moved += sum(not put.in_place for put in job.puts)
            report.repaired += sum(put.in_place for put in job.puts)
            report.left += [(put.source, put.length) for put in job.puts if not put.in_place]
            report.handled[job.stripe] = frozenset(put.number for put in job.puts)
        await self._conclude(settled)
        for job in settled:
            job.puts.clear()
        report.outcomes.update({job.stripe: job.outcome() for job in jobs})

    async def _supply(self, job: Job, report: MendReport) -> None:
        """Steps 1 and 2: get the shards' bytes and put them."""
        async with self._slots:
            wanted = self._wanted(job)
            if not wanted:
                return
            found = await self._source.obtain(job.seal, wanted, job.suspected)
            report.read_bytes += found.read_bytes
            report.bad[job.stripe] = job.suspected.union(found.bad)
            # What was found bad on the way is mended in the same go.
            needy = [*wanted, *sorted(found.bad.keys() - set(wanted))]
            if any(number not in found.payloads for number in needy):
                self._note_unreadable(job, found.known)
            waiting = [number for number in needy if number in found.payloads]
            while waiting:
                chosen = self._homes.choose(job, waiting, found.layout.shard_length)
                if not chosen:
                    job.no_target = True
                    return
                await in_parallel(
                    self._put(job, number, store, found.payloads[number])
                    for number, store in chosen.items()
                )
                put = {put.number for put in job.puts}
                waiting = [number for number in waiting if number not in put]

    def _note_unreadable(self, job: Job, known: int) -> None:
        """Too few shards could be had: is that so for good, or until disks are back?"""
        states = self.look_at(job.seal, job.suspected).shards
        back = known + states.count(ShardState.AWAY)
        if back >= job.seal.geometry.data:
            job.failed = True
        else:
            job.unreadable = True

    def _wanted(self, job: Job) -> list[int]:
        """The shards to write; bad places of disks that can be written are among them."""
        if job.fixed:
            return list(job.fixed)
        health = self.look_at(job.seal, job.suspected)
        return list(health.needs)

    async def _put(self, job: Job, number: int, store: ShardStore, payload: bytes) -> None:
        header = encode_header(self._pool, self._volume, job.seal, number)
        put = Put(number, job.seal.placement[number], store, header, payload)
        try:
            await store.put(job.key(put), header, memoryview(payload))
        except MediumError as error:
            job.avoid.add(store.disk)
            if not isinstance(error, DiskFullError):
                self._disks.failed(error, store.disk)
        else:
            job.puts.append(put)
            self._space.note_put(store.disk, put.length)

    # --- telling the state -------------------------------------------------------------------

    async def _place(self, jobs: Sequence[Job]) -> None:
        """Step 5. Jobs whose moves may be applied but not durable end up in `_unsettled`."""
        # no await from here to the proposal: what the catalog says now is what the moves rest on
        moving = [job for job in jobs if self._is_as_claimed(job)]
        moves = [
            ShardMove(job.stripe, put.number, put.source, put.store.disk)
            for job in moving
            for put in job.puts
            if not put.in_place
        ]
        if moves:
            try:
                await self._target.place(moves)
            except PosixError:
                self._keep_applied(moving)
            except BaseException:  # cancelled, or a defect: the moves may stand all the same
                self._keep_applied(moving)
                raise
        stale = [
            (job, put)
            for job in jobs
            if job not in self._unsettled
            for put in job.puts
            if not put.in_place and self._is_stale(job, put, told=job in moving)
        ]
        for job, put in stale:
            job.failed = True
            job.puts.remove(put)
        await self._delete(stale)

    def _is_stale(self, job: Job, put: Put, *, told: bool) -> bool:
        """Whether no state, now or after a crash, can name the put's disk for its shard.

        A move is applied only where the seal names its source. If the stripe died after the state
        was told of the move, a crash may bring it back in its new place.
        """
        named = self._named(job, put)
        return not told if named is None else not named

    def _is_as_claimed(self, job: Job) -> bool:
        seal = self._catalog.seal_of(job.stripe)
        job.gone = seal is None
        if seal is None or seal.placement != job.seal.placement:
            job.failed = True
            return False
        return True

    def _keep_applied(self, jobs: Iterable[Job]) -> None:
        """The barrier failed or was not waited for: which of the moves stand in the state?

        A stripe that is gone by now may come back in a crash, with either place.
        """
        for job in jobs:
            moved = [put for put in job.puts if not put.in_place]
            job.failed = job.failed or bool(moved)
            if any(self._named(job, put) is not False for put in moved):
                self._stripes.forget(job.stripe)
                self._unsettled.append(job)

    def _named(self, job: Job, put: Put) -> bool | None:
        """Whether the seal names the put's disk; None if the stripe is gone."""
        seal = self._catalog.seal_of(job.stripe)
        return None if seal is None else seal.placement[put.number] == put.store.disk

    # --- clearing up -------------------------------------------------------------------------

    async def _conclude(self, jobs: Sequence[Job]) -> None:
        """Steps 6 and 7, for durable moves. A stripe that is gone is deleted by whoever drops it."""
        doomed: dict[DiskId, list[ShardKey]] = {}
        for job in jobs:
            if job.puts:
                self._stripes.forget(job.stripe)
            for put in job.puts:
                if put.source and not put.in_place and self._named(job, put):
                    doomed.setdefault(put.source, []).append(job.key(put))
        await in_parallel(self._delete_keys(disk, keys) for disk, keys in doomed.items())

    async def _delete(self, puts: Iterable[tuple[Job, Put]]) -> None:
        """Take back puts that no durable state can name."""
        doomed: dict[DiskId, list[ShardKey]] = {}
        for job, put in puts:
            doomed.setdefault(put.store.disk, []).append(job.key(put))
        await in_parallel(self._delete_keys(disk, keys) for disk, keys in doomed.items())

    async def _delete_keys(self, disk: DiskId, keys: Sequence[ShardKey]) -> None:
        store = self._disks.get(disk)
        if store is not None:
            await delete_shards(store, keys, self._disks, self._space)

    async def _let_go(self, jobs: Sequence[Job]) -> None:
        """Whatever happened: no claim is left, but those that wait for a barrier."""
        ended = [job for job in jobs if job not in self._unsettled]
        # Puts are left in a job only by a failure or a cancellation. What the state does not name
        # was never told to it, or not applied; what it names is durable, or the job were unsettled.
        placed = [job for job in ended if any(self._named(job, put) for put in job.puts)]
        stray = [
            (job, put)
            for job in ended
            for put in job.puts
            if not put.in_place and self._named(job, put) is False
        ]
        try:
            if placed or stray:
                with trio.move_on_after(TIDY_SECONDS) as scope:
                    scope.shield = True
                    await self._conclude(placed)
                    await self._delete(stray)
        finally:
            for job in ended:
                self._stripes.end_move(job.stripe)

    def _role(self, disk: DiskId) -> DiskRole:
        role = self._disks.role(disk)
        if role in (DiskRole.KEEP, DiskRole.LEAVE) and self._disks.get(disk) is None:
            return DiskRole.AWAY  # on its way out or in: nothing can be said of its shards
        return role

    def _has(self, disk: DiskId, key: ShardKey) -> bool:
        store = self._disks.get(disk)
        return store is not None and store.has(key)

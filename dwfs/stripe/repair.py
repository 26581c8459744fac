"""Keeping every stripe at its full redundancy: finding what lacks, and having it mended.

Two sources feed the queue (`repair_queue`). *Reports* come from readers and scrubs that met a bad
shard. *Walks* go over the whole catalog and judge each stripe by the disks' roles and indexes
(`redundancy`), which takes no I/O: they find what was written degraded, what lay on a disk that is
gone or is leaving, and what an index has lost. A walk is asked for whenever the answer may have
changed: after the mount, when a disk changes its role, after degraded writes. So a disk that comes
back costs as much as what changed while it was away, and a restart in the middle of anything costs
one walk: there is no other state than the catalog and the disks.

Two lanes mend, batch by batch: while one waits for syncs and barriers the other reads. While the
foreground is busy only one does, and it rests in between (`pacing`).

A stripe that is beyond mending is remembered and named; it is tried again when a disk changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import trio

from dwfs.errors import PosixError
from dwfs.limits import MEND_BATCH
from dwfs.ports import Clock, StripeCatalog
from dwfs.stripe.layout import layout_of
from dwfs.stripe.mover import ShardMover
from dwfs.stripe.moving import MendReport, MendRequest, Outcome
from dwfs.stripe.opened import Damage
from dwfs.stripe.pacing import Pacer, RateMeter
from dwfs.stripe.redundancy import ShardState, StripeHealth
from dwfs.stripe.repair_queue import RETRY_SECONDS_MAX, QueuedStripe, RepairQueue
from dwfs.types import DiskId, StripeId, StripeSeal

WALK_PIECE: Final = 256  # seals judged without a pause: some milliseconds
WALK_PAUSE_SECONDS: Final = 0.002
MEND_BATCH_BUSY: Final = 4  # stripes mended together while the foreground is active
LANES: Final = 2
BUSY_RETRY_SECONDS: Final = 0.5  # for a stripe that somebody else has just now
SETTLE_RETRY_SECONDS: Final = 5.0
UNREADABLE_NAMED_MAX: Final = 4_096  # stripes beyond mending that are remembered by name

OutcomeObserver = Callable[[StripeId, Outcome], None]


class WalkTally(msgspec.Struct):
    """What a walk over the catalog has found."""

    stripes: int = 0
    degraded: int = 0  # stripes that lack redundancy
    short_by: int = 0  # the most shards that one stripe lacks
    needy_stripes: int = 0
    needy_bytes: int = 0  # to be written to mend them all
    unreadable: int = 0
    leaving_bytes: dict[DiskId, int] = msgspec.field(default_factory=dict)  # still on such disks
    leaving_shards: int = 0


class RepairProgress(msgspec.Struct, frozen=True):
    """For status. Bytes are those written."""

    walking: bool
    walked: float  # share of the catalog, 0.0 to 1.0; 1.0 when no walk is going on
    stripes_done: int
    stripes_left: int
    bytes_done: int
    bytes_left: int
    bytes_per_second: float
    seconds_left: float | None
    degraded: int  # stripes that lack redundancy
    short_by: int
    unreadable: tuple[StripeId, ...]
    waiting: int  # stripes that find no disk with room, or wait to be tried again
    leaving_bytes: dict[DiskId, int]
    leaving_shards: int

    @property
    def stripes_total(self) -> int:
        """Of the job at hand."""
        return self.stripes_done + self.stripes_left

    @property
    def bytes_total(self) -> int:
        """Of the job at hand."""
        return self.bytes_done + self.bytes_left


class Repairer:
    """Drives repair and evacuation. `run` is started by the composition root."""

    def __init__(
        self,
        *,
        mover: ShardMover,
        catalog: StripeCatalog,
        pacer: Pacer,
        clock: Clock,
        queue_max: int | None = None,
    ) -> None:
        self._mover = mover
        self._catalog = catalog
        self._pacer = pacer
        self._clock = clock
        self._queue = RepairQueue() if queue_max is None else RepairQueue(queue_max)
        self._in_hand: dict[StripeId, QueuedStripe] = {}
        self._observers: dict[StripeId, list[OutcomeObserver]] = {}
        # Stripes beyond mending, with the bad shards that no index tells of.
        self._unreadable: dict[StripeId, frozenset[int]] = {}
        self._tally = WalkTally()
        self._walk_wanted = True
        self._unconfirmed = False  # something was mended since the last walk began
        self._walked: float | None = None  # share walked; None: no walk is going on
        self._changed = trio.Event()
        self._meter = RateMeter(clock)
        self._stripes_done = 0
        self.mended_stripes = 0  # since the start
        self.moved_shards = 0
        self.repaired_shards = 0

    # --- what is told ------------------------------------------------------------------------

    def report(self, damage: Damage, then: OutcomeObserver | None = None) -> None:
        """A shard was found bad. `then` is called with the stripe and the first attempt's outcome.

        Reports of places that the seal doesn't name any more are out of date.
        """
        seal = self._catalog.seal_of(damage.stripe)
        if seal is None or not damage.shard < len(seal.placement):
            outcome = Outcome.GONE
        elif seal.placement[damage.shard] != damage.disk:
            outcome = Outcome.WHOLE
        elif damage.shard in self._unreadable.get(damage.stripe, ()):
            # Known, and trying again would read it again and meet it again.
            outcome = Outcome.UNREADABLE
        else:
            self._enqueue(seal, self._mover.look_at(seal, (damage.shard,)), (damage.shard,))
            if then is not None:
                self._observers.setdefault(damage.stripe, []).append(then)
            self._tell_evicted()
            self._notify()
            return
        if then is not None:
            then(damage.stripe, outcome)

    def walk_soon(self) -> None:
        """Something has changed: judge every stripe anew, and try again what had to wait."""
        self._walk_wanted = True
        self._queue.wake()
        for stripe, bad in list(self._unreadable.items()):
            seal = self._catalog.seal_of(stripe) if bad else None
            if seal is not None:
                self._enqueue(seal, self._mover.look_at(seal, bad), tuple(bad))
        self._notify()

    def progress(self) -> RepairProgress:
        """How far the work is."""
        hand_bytes = sum(entry.size_bytes for entry in self._in_hand.values())
        left = self._queue.left_bytes + hand_bytes
        return RepairProgress(
            walking=self._walk_wanted or self._walked is not None,
            walked=self._share_walked(),
            stripes_done=self._stripes_done,
            stripes_left=len(self._queue) + len(self._in_hand),
            bytes_done=self._meter.total_bytes,
            bytes_left=left,
            bytes_per_second=self._meter.bytes_per_second(),
            seconds_left=self._meter.seconds_left(left),
            degraded=self._tally.degraded,
            short_by=self._tally.short_by if self._tally.degraded else 0,
            unreadable=tuple(self._unreadable),
            waiting=self._queue.waiting,
            leaving_bytes=dict(self._tally.leaving_bytes),
            leaving_shards=self._tally.leaving_shards,
        )

    def bad_shards(self) -> dict[StripeId, frozenset[int]]:
        """Shards that were reported as bad and are not mended, by stripe."""
        bad = {stripe: numbers for stripe, numbers in self._unreadable.items() if numbers}
        sources = [self._queue.bad_shards().items()]
        sources.append({one.stripe: one.bad for one in self._in_hand.values()}.items())
        for items in sources:
            for stripe, numbers in items:
                bad[stripe] = bad.get(stripe, frozenset()) | numbers
        return bad

    def _share_walked(self) -> float:
        if self._walked is not None:
            return self._walked
        return 0.0 if self._walk_wanted else 1.0

    async def quiet(self) -> None:
        """Wait until nothing is left that could be done now. Others wait for disks or for time."""
        while self.is_active:
            await self._changed.wait()

    @property
    def is_active(self) -> bool:
        """Whether there is something that can be done now."""
        walk_due = self._walk_wanted or self._unconfirmed or self._queue.overflowed
        return walk_due or self._walked is not None or not self._is_through()

    def _is_through(self) -> bool:
        return not self._queue.ready and not self._in_hand

    # --- what is done ------------------------------------------------------------------------

    async def run(self) -> None:
        """Walk when asked to, and mend what is found, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._walk_for_ever)
            for lane in range(LANES):
                nursery.start_soon(self._mend_for_ever, lane)

    async def _walk_for_ever(self) -> None:
        while True:
            if self._walk_wanted:
                await self._walk()
            elif self._is_through() and (self._queue.overflowed or self._unconfirmed):
                # What found no room in the queue is found again; and that all is well now is
                # believed only when another look at everything has shown it.
                self._walk_wanted = True
            else:
                await self._changed.wait()

    async def _walk(self) -> None:
        self._walk_wanted = False
        self._queue.overflowed = False
        self._unconfirmed = False
        self._walked = 0.0
        tally = WalkTally()
        after: StripeId | None = None
        try:
            while seals := self._catalog.seals(after, WALK_PIECE):
                after = seals[-1].stripe
                for seal in seals:
                    self._judge(seal, tally)
                # Ids are random, so an id tells how much of the catalog lies before it.
                self._walked = int.from_bytes(after[:4], "big") / 2.0**32
                self._tell_evicted()
                self._notify()
                await trio.sleep(WALK_PAUSE_SECONDS)
            self._tally = tally
            for stripe in list(self._unreadable):
                if self._catalog.seal_of(stripe) is None:
                    del self._unreadable[stripe]
        except BaseException:  # whatever it was, the catalog was not seen to its end
            self._walk_wanted = True
            raise
        finally:
            self._walked = None
            self._notify()

    def _judge(self, seal: StripeSeal, tally: WalkTally) -> None:
        health = self._mover.look_at(seal)
        tally.stripes += 1
        lacking = health.lacking
        if lacking:
            tally.degraded += 1
            tally.short_by = max(tally.short_by, lacking)
        leaving = [n for n in health.needs if health.shards[n] is ShardState.LEAVING]
        if leaving:
            layout = layout_of(seal)
            for number in leaving:
                disk = seal.placement[number]
                size = layout.payload_length(number)
                tally.leaving_bytes[disk] = tally.leaving_bytes.get(disk, 0) + size
            tally.leaving_shards += len(leaving)
        if health.unreadable:
            tally.unreadable += 1
            self._note_unreadable(seal.stripe, frozenset())
        elif self._unreadable.get(seal.stripe) == frozenset():
            del self._unreadable[seal.stripe]  # its disks are back
        # A stripe that can't be read can't be mended, but what is left of it can leave a disk.
        if health.needs and (not health.unreadable or leaving):
            tally.needy_stripes += 1
            tally.needy_bytes += self._enqueue(seal, health, ())

    def _enqueue(self, seal: StripeSeal, health: StripeHealth, bad: tuple[int, ...]) -> int:
        if not len(self._queue) and not self._in_hand:
            self._meter.restart()  # a new job
            self._stripes_done = 0
        layout = layout_of(seal)
        size = sum(layout.payload_length(number) for number in health.needs)
        if seal.stripe not in self._in_hand or bad:
            self._queue.add(
                seal.stripe, health.spare, bad, size, lacking=bool(health.lacking and not bad)
            )
        return size

    async def _mend_for_ever(self, lane: int) -> None:
        while True:
            now = self._clock.now()
            if lane and self._pacer.busy():
                await trio.sleep(BUSY_RETRY_SECONDS)
                continue
            taken = self._take(now)
            if taken:
                await self._mend(taken)
                continue
            if lane == 0 and self._mover.unsettled:
                await self._settle()
                continue
            due = self._queue.next_due()
            with trio.move_on_after(float("inf") if due is None else max(0.0, due - now)):
                await self._changed.wait()

    def _take(self, now: float) -> list[QueuedStripe]:
        taken = []
        # Small pieces while somebody is there: nobody should wait behind sixteen stripes.
        limit = MEND_BATCH_BUSY if self._pacer.busy() else MEND_BATCH
        for entry in self._queue.take(limit, now):
            if entry.stripe in self._in_hand:  # reported again while the other lane mends it
                self._queue.postpone(entry, now, BUSY_RETRY_SECONDS)
            else:
                taken.append(entry)
        return taken

    async def _settle(self) -> None:
        try:
            await self._mover.settle()
        except PosixError:
            await trio.sleep(SETTLE_RETRY_SECONDS)  # the log takes nothing just now

    async def _mend(self, taken: list[QueuedStripe]) -> None:
        started = self._clock.now()
        self._in_hand.update({entry.stripe: entry for entry in taken})
        report: MendReport | None = None
        try:
            report = await self._mover.mend(
                [MendRequest(entry.stripe, entry.bad) for entry in taken]
            )
        finally:
            for entry in taken:
                del self._in_hand[entry.stripe]
                if report is None:
                    # Cancelled, or a defect: a pause keeps the latter from going round in circles.
                    self._queue.postpone(entry, self._clock.now())
                else:
                    self._conclude(entry, report)
            self._notify()
        self._note_progress(report)
        await self._pacer.rest(
            self._clock.now() - started, report.read_bytes + report.written_bytes
        )

    def _conclude(self, entry: QueuedStripe, report: MendReport) -> None:
        stripe, outcome = entry.stripe, report.outcomes[entry.stripe]
        handled = report.handled.get(stripe, frozenset())
        entry.bad -= handled
        self._queue.forgive(stripe, handled)
        if outcome is Outcome.BUSY:
            self._queue.postpone(entry, self._clock.now(), BUSY_RETRY_SECONDS)
            return  # not yet an attempt
        self._unreadable.pop(stripe, None)
        again = stripe in self._queue  # another shard was reported meanwhile
        if outcome in (Outcome.NO_TARGET, Outcome.FAILED):
            # What was found bad on the way, too: the disk's index may know the shard by now, from
            # a put that was not read back as it was written, and would call it sound.
            entry.bad |= report.bad.get(stripe, frozenset()) - handled
            self._queue.postpone(entry, self._clock.now())
        elif outcome is Outcome.UNREADABLE:
            bad = report.bad.get(stripe, frozenset()).union(entry.bad)
            self._note_unreadable(stripe, bad)
            self._queue.forgive(stripe, bad)
            again = stripe in self._queue
            if not again and stripe not in self._unreadable:
                # Too many to remember. In the queue it waits, too, and reports don't wake it; else
                # the reads of each attempt would report the damage that sets off the next.
                self._queue.postpone(entry, self._clock.now(), RETRY_SECONDS_MAX)
        else:
            self._stripes_done += 1
            self.mended_stripes += outcome is Outcome.WHOLE
            self._tally.degraded = max(0, self._tally.degraded - entry.lacking)
        if not again:
            self._tell(stripe, outcome)
        self._tell_evicted()

    def _tell(self, stripe: StripeId, outcome: Outcome) -> None:
        for observer in self._observers.pop(stripe, ()):
            observer(stripe, outcome)

    def _tell_evicted(self) -> None:
        """Nobody must wait for what was forgotten; the next scrub finds it again."""
        while self._queue.evicted:
            self._tell(self._queue.evicted.pop(), Outcome.FAILED)

    def _note_progress(self, report: MendReport) -> None:
        self.moved_shards += report.moved
        self.repaired_shards += report.repaired
        self._meter.add(report.written_bytes)
        self._unconfirmed = self._unconfirmed or bool(report.moved or report.repaired)
        leaving = self._tally.leaving_bytes
        for disk, size in report.left:
            if disk in leaving:
                leaving[disk] = max(0, leaving[disk] - size)
                self._tally.leaving_shards = max(0, self._tally.leaving_shards - 1)

    def _note_unreadable(self, stripe: StripeId, bad: frozenset[int]) -> None:
        if stripe in self._unreadable or len(self._unreadable) < UNREADABLE_NAMED_MAX:
            self._unreadable[stripe] = bad | self._unreadable.get(stripe, frozenset())

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

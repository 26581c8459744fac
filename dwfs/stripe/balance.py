"""Balancing: shards move from over-full to under-full disks until all are about equally full.

New stripes go where there is room, so that a pool balances itself in time. But time may be long:
after a disk was added to a full pool, every new stripe needs k + m disks with room, and there is
only one. Then shards that lie still must move.

What is the right share of a disk? In proportion to its capacity, but no disk can hold more than
one shard of each stripe: with 1, 1, 1 and 10 TB and three shards a stripe the large disk can't be
filled like the others. So a share is min(x · capacity, all shard bytes / shards a stripe), with x
such that the shares add up (water filling, as in `placement`).

A move helps if its source has more than its share, its target less, the target has no shard of the
stripe, and either of them is off by more than the tolerance. Each pass over the catalog makes such
moves as it meets them, against a running account; ids are random, so that no file or time is
favoured. It is over when a pass finds no move to make. Stripes that lack anything are left to
repair, which comes first. A move copies before it deletes: redundancy is never lowered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import trio

from dwfs.limits import MEND_BATCH
from dwfs.ports import Clock, DiskListing, StripeCatalog
from dwfs.stripe.layout import layout_of
from dwfs.stripe.mover import ShardMover
from dwfs.stripe.pacing import Pacer, RateMeter
from dwfs.stripe.space import SpaceAccount
from dwfs.types import DiskId, Geometry, ShardMove, StripeId, StripeSeal

TOLERANCE: Final = 0.02  # of a disk's capacity: what the draw of placement scatters anyway
PASSES_MAX: Final = 8  # each halves what is left at least; more would chase the foreground
PIECE: Final = 256  # seals looked at without a pause
PAUSE_SECONDS: Final = 0.002


class DiskFill(NamedTuple):
    """How full a disk is."""

    disk: DiskId
    used: int  # bytes of shards
    capacity: int  # bytes that shards could use, were there none


def fair_shares(fills: Sequence[DiskFill], shards: int) -> dict[DiskId, float]:
    """The bytes that each disk should hold of what they hold together; `shards` = k + m."""
    total = sum(fill.used for fill in fills)
    most = total / max(1, min(shards, len(fills)))  # one shard of every stripe
    capped: set[DiskId] = set()
    while True:
        rest = total - most * len(capped)
        capacity = sum(fill.capacity for fill in fills if fill.disk not in capped)
        level = rest / capacity if capacity else 0.0
        more = {f.disk for f in fills if f.disk not in capped and level * f.capacity > most}
        if not more:
            break
        capped |= more
    return {f.disk: most if f.disk in capped else level * f.capacity for f in fills}


class BalancePlan:
    """A running account of what each disk has above its share. Pure."""

    def __init__(self, fills: Sequence[DiskFill], shards: int, tolerance: float = TOLERANCE):
        shares = fair_shares(fills, shards)
        self._surplus = {fill.disk: fill.used - shares[fill.disk] for fill in fills}
        self._allowed = {fill.disk: tolerance * fill.capacity for fill in fills}

    @property
    def left_bytes(self) -> int:
        """Bytes above the shares on disks that are off, or that others that are off could take."""
        if self.is_balanced:
            return 0
        return int(sum(surplus for surplus in self._surplus.values() if surplus > 0))

    @property
    def is_balanced(self) -> bool:
        """Whether every disk is within its tolerance."""
        return not any(self._is_off(disk) for disk in self._surplus)

    def move_for(self, seal: StripeSeal) -> ShardMove | None:
        """The move of one of the stripe's shards that helps most, or None; it is not yet booked."""
        surplus = self._surplus
        layout = layout_of(seal)
        holders = set(seal.placement)
        targets = [d for d, s in surplus.items() if s < 0 and d not in holders]
        sources = [
            number
            for number, disk in enumerate(seal.placement)
            if surplus.get(disk, 0.0) > 0 and layout.payload_length(number)
        ]
        if not targets or not sources:
            return None
        target = min(targets, key=lambda disk: surplus[disk])
        number = max(sources, key=lambda n: surplus[seal.placement[n]])
        source = seal.placement[number]
        # Not past the middle: two disks must not pass one shard to and fro.
        if layout.payload_length(number) > (surplus[source] - surplus[target]) / 2:
            return None
        if not self._is_off(source) and not self._is_off(target):
            return None
        return ShardMove(seal.stripe, number, source, target)

    def book(self, move: ShardMove, length: int) -> None:
        """The move is being made."""
        self._surplus[move.source] -= length
        self._surplus[move.target] += length

    def _is_off(self, disk: DiskId) -> bool:
        return abs(self._surplus[disk]) > self._allowed[disk]


class BalanceState(msgspec.Struct):
    """How far balancing has come; the caller keeps it."""

    position: bytes = b""  # the stripe that was looked at last
    passes: int = 0
    moved_shards: int = 0
    moved_bytes: int = 0
    finished: bool = False


class BalanceProgress(msgspec.Struct, frozen=True):
    """For status."""

    bytes_done: int
    bytes_left: int
    bytes_per_second: float
    seconds_left: float | None


class Balancer:
    """One run of balancing. Cancelled, it stops after the step at hand; `state` says where."""

    def __init__(
        self,
        *,
        mover: ShardMover,
        catalog: StripeCatalog,
        disks: DiskListing,
        space: SpaceAccount,
        geometry: Geometry,
        pacer: Pacer,
        clock: Clock,
        state: BalanceState | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self._mover = mover
        self._catalog = catalog
        self._disks = disks
        self._space = space
        self._geometry = geometry
        self._pacer = pacer
        self._clock = clock
        self._tolerance = tolerance
        self._meter = RateMeter(clock)
        self.state = state or BalanceState()
        self._plan = self._new_plan()

    def progress(self) -> BalanceProgress:
        """How far the work is."""
        left = 0 if self.state.finished else self._plan.left_bytes
        return BalanceProgress(
            bytes_done=self.state.moved_bytes,
            bytes_left=left,
            bytes_per_second=self._meter.bytes_per_second(),
            seconds_left=self._meter.seconds_left(left),
        )

    async def run(self) -> BalanceState:
        """Balance until nothing is left to move."""
        state = self.state
        while not state.finished:
            self._plan = self._new_plan()
            before = state.moved_shards
            partial = bool(state.position)
            if not self._plan.is_balanced:
                await self._pass()
            state.position = b""
            state.passes += 1
            # A pass that went on in the middle says nothing of what lies before.
            idle = state.moved_shards == before and not partial
            state.finished = self._plan.is_balanced or idle or state.passes >= PASSES_MAX
        return state

    def _new_plan(self) -> BalancePlan:
        fills = []
        for store in self._disks.writable():
            space = store.space()
            capacity = space.used_bytes + space.available_bytes
            # The account knows what was moved since the disk last reported.
            used = max(0, capacity - self._space.free_of(store))
            fills.append(DiskFill(store.disk, used, capacity))
        return BalancePlan(fills, self._geometry.total, self._tolerance)

    async def _pass(self) -> None:
        state = self.state
        while seals := self._catalog.seals(StripeId(state.position) or None, PIECE):
            batch: list[ShardMove] = []
            for seal in seals:
                move = self._plan.move_for(seal)
                if move is None or self._mover.look_at(seal).needs:
                    continue
                self._plan.book(move, layout_of(seal).payload_length(move.number))
                batch.append(move)
                if len(batch) == MEND_BATCH:
                    await self._move(batch)
                    state.position = batch[-1].stripe
                    batch = []
            if batch:
                await self._move(batch)
            state.position = seals[-1].stripe
            if self._plan.is_balanced:
                return
            await trio.sleep(PAUSE_SECONDS)

    async def _move(self, batch: Sequence[ShardMove]) -> None:
        started = self._clock.now()
        report = await self._mover.relocate(batch)
        self.state.moved_shards += report.moved
        size = sum(size for _, size in report.left)
        self.state.moved_bytes += size
        self._meter.add(size)
        await self._pacer.rest(
            self._clock.now() - started, report.read_bytes + report.written_bytes
        )

"""Giving space back: dead stripes are deleted, sparse ones are emptied so that they die.

A stripe is *dead* when no extent of any file uses it, *sparse* when few of its bytes are used. The
live bytes of a sparse stripe are appended to the open stripe again and the file's extents are
pointed at the copy (`relocate`), only where they still point at the old place: a write that
came in between wins. Order makes it safe: a stripe's shards are deleted only after the command
that drops it is durable, and that command follows the relocations in the log.

How hard to try depends on how full the pool is. With much room only stripes that are nearly
empty are worth moving, at a tenth of the time; with little, any stripe that gives something back.
Between two pieces of work the cleaner sleeps, so that the foreground always has its share: it moves
at most 1 MiB and drops at most 32 stripes at a time. Dropping is work, too: holes are punched on all
disks, and many pass them on to the device as discards, which hold up reads.

A writer that finds no space waits for rounds of the hardest pace (`ReclaimSignal`), and goes on asking as
long as rounds give something back. So a full pool whose files are overwritten at random slows down
to the speed of cleaning, and says ENOSPC only when what is alive no longer fits. Copies may use half of
the disks' reserve, or a pool that is really full could never be cleaned; when that is used up, the
round ends with what it has and drops the stripes that it has emptied.

A stripe that can't be read, or whose summary doesn't tell who uses it, is left alone for a while, so
that it does not stand in the way of those behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EIO, ENOSPC
from typing import Final, NamedTuple, Protocol

import trio

from dwfs.errors import PosixError
from dwfs.limits import FUSE_WRITE_SIZE_MAX, STRIPE_SIZE_MAX
from dwfs.ports import Clock
from dwfs.stripe.space import ReclaimSignal
from dwfs.types import Fragment, StripeId

DROP_BATCH = 32  # stripes in one DropStripes command, and in one piece of work
CLEAN_BATCH = 8  # sparse stripes emptied in one round
PREFETCH_FROM: Final = STRIPE_SIZE_MAX // 4  # live bytes for which the stripe is read as a whole
HOPELESS_SECONDS: Final = 300.0  # until a stripe that could not be emptied is tried again
HOPELESS_MAX: Final = 4_096


class LiveRange(NamedTuple):
    """File bytes that still use a stripe."""

    inode: int
    offset: int  # bytes, in the file
    length: int  # bytes
    stripe_offset: int  # bytes


class ReclaimTarget(Protocol):
    """The volumes' state, as reclaim needs it; implemented by the composition root."""

    async def drop_dead(self, limit: int) -> int:
        """Give up to `limit` sealed stripes without a live byte an end, and say how many it were.

        Their shards are deleted when no replay of the log can refer to them any more.
        """

    async def settle(self) -> None:
        """Have every stripe sealed that has been written to."""

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        """Sealed stripes with at most that fraction of live bytes, worst first, none dead."""

    async def live_ranges(self, stripe: StripeId) -> list[LiveRange]:
        """What of the stripe's summary the extent maps still use, or used a moment ago."""

    async def relocate(
        self,
        inode: int,
        offset: int,
        length: int,
        stripe: StripeId,
        stripe_offset: int,
        fragments: Sequence[Fragment],
    ) -> None:
        """Propose Relocate: point file bytes that still map to the old place at `fragments`."""


class ReclaimStore(Protocol):
    """What the cleaner needs of `StripeStore`."""

    async def admit_for_reclaim(self, length: int) -> None:
        """As `DataStore.admit`, but may use the reserve: more is given back than taken."""

    def append_moved(
        self, source: StripeId, inode: int, offset: int, data: bytes | memoryview
    ) -> list[Fragment]:
        """As `DataStore.append`; the copy takes no more room than it did in `source`."""

    async def read(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """See DataStore."""

    def read_now(self, stripe: StripeId, offset: int, length: int) -> bytes | None:
        """See DataStore."""

    def prefetch(self, stripe: StripeId) -> None:
        """See DataStore."""

    def free_fraction(self) -> float:
        """Free share of the pool's capacity, 0.0 to 1.0."""


class Pace(NamedTuple):
    """How hard reclaim tries."""

    live_fraction: float  # stripes with at most this share of live bytes are worth emptying
    duty: float  # share of the time spent on work, 0 < duty ≤ 1
    interval_seconds: float  # between rounds when nobody asks


# Free share of the pool below which a pace holds; the first match counts.
PACES: tuple[tuple[float, Pace], ...] = (
    (0.05, Pace(live_fraction=0.85, duty=0.9, interval_seconds=0.5)),
    (0.10, Pace(live_fraction=0.75, duty=0.6, interval_seconds=1.0)),
    (0.25, Pace(live_fraction=0.50, duty=0.3, interval_seconds=2.0)),
    (2.00, Pace(live_fraction=0.25, duty=0.1, interval_seconds=5.0)),
)

# While somebody waits for space, everything that gives some back is worth it.
HURRY: Final = Pace(live_fraction=0.97, duty=1.0, interval_seconds=0.5)


def pace_for(free_fraction: float) -> Pace:
    """The pace for a pool with that share of its capacity free."""
    for bound, pace in PACES:
        if free_fraction < bound:
            return pace
    raise AssertionError("the last bound is above 1")


def split(live: LiveRange, size_max: int) -> list[LiveRange]:
    """The range in pieces of at most `size_max` bytes."""
    return [
        LiveRange(
            live.inode,
            live.offset + done,
            min(size_max, live.length - done),
            live.stripe_offset + done,
        )
        for done in range(0, live.length, size_max)
    ]


class Cleaner:
    """Drives reclaim. `run` is started by the composition root; `run_once` is one round."""

    def __init__(
        self, target: ReclaimTarget, store: ReclaimStore, signal: ReclaimSignal, clock: Clock
    ) -> None:
        self._target = target
        self._store = store
        self._signal = signal
        self._clock = clock
        self._tried: set[StripeId] = set()  # in the last round
        self._hopeless: dict[StripeId, float] = {}  # → when to try again
        self.dropped_stripes = 0
        self.moved_bytes = 0
        self.failed_rounds = 0

    async def run(self) -> None:
        """Reclaim for ever, at the pace that free space calls for."""
        self._signal.attend(True)
        try:
            while True:
                pace = pace_for(self._store.free_fraction())
                asked = await self._signal.wait(pace.interval_seconds)
                self._signal.begin()
                dropped = 0
                try:
                    dropped = await self.run_once(hurry=asked)
                except PosixError:
                    # The log or the disks take nothing now; the next round tries again.
                    self.failed_rounds += 1
                finally:
                    self._signal.finish(gained=dropped > 0)
        finally:
            self._signal.attend(False)

    async def run_once(self, *, hurry: bool = False) -> int:
        """Drop the dead, empty a few sparse stripes and drop those too; returns how many died.

        With `hurry`, somebody waits for space: the hardest pace, and no pauses.
        """
        if not hurry:
            return await self._round(pace_for(self._store.free_fraction()))
        dropped = await self._drop_dead(HURRY)
        if not dropped:
            dropped = await self._round(HURRY)
        if not dropped:
            # Stripes that are not sealed yet can't be reclaimed, however much of them is dead.
            await self._target.settle()
            dropped = await self._round(HURRY)
        return dropped

    async def _round(self, pace: Pace) -> int:
        dropped = await self._drop_dead(pace)
        for stripe in self._worth_emptying(pace):
            if not await self._empty(stripe, pace):
                break
        return dropped + await self._drop_dead(pace)

    def _worth_emptying(self, pace: Pace) -> list[StripeId]:
        now = self._clock.now()
        self._hopeless = {stripe: due for stripe, due in self._hopeless.items() if due > now}
        limit = CLEAN_BATCH + len(self._hopeless)
        found = self._target.sparse_stripes(pace.live_fraction, limit)
        for stripe in found:
            # What was emptied in the last round should be dead by now.
            if stripe in self._tried and len(self._hopeless) < HOPELESS_MAX:
                self._hopeless[stripe] = now + HOPELESS_SECONDS
        self._tried.clear()
        return [stripe for stripe in found if stripe not in self._hopeless][:CLEAN_BATCH]

    async def _drop_dead(self, pace: Pace) -> int:
        dropped = 0
        while True:
            started = self._clock.now()
            count = await self._target.drop_dead(DROP_BATCH)
            dropped += count
            if count < DROP_BATCH or self._signal.wanted:
                break
            await self._rest(started, pace)
        self.dropped_stripes += dropped
        return dropped

    async def _empty(self, stripe: StripeId, pace: Pace) -> bool:
        """Copy what is alive; False if there is no room for copies now."""
        ranges = await self._target.live_ranges(stripe)
        if sum(live.length for live in ranges) >= PREFETCH_FROM:
            self._store.prefetch(stripe)
        self._tried.add(stripe)
        for live in ranges:
            for piece in split(live, FUSE_WRITE_SIZE_MAX):
                started = self._clock.now()
                try:
                    await self._copy(stripe, piece)
                except PosixError as error:
                    if error.errno == EIO:
                        return True  # beyond redundancy: others are not
                    self._tried.discard(stripe)
                    if error.errno == ENOSPC:
                        return False
                    raise
                await self._rest(started, pace)
        return True

    async def _copy(self, stripe: StripeId, piece: LiveRange) -> None:
        data = self._store.read_now(stripe, piece.stripe_offset, piece.length)
        if data is None:
            data = await self._store.read(stripe, piece.stripe_offset, piece.length)
        await self._store.admit_for_reclaim(piece.length)
        # No await between append and relocate's proposal: the copy has its reference
        # before any barrier can see it.
        fragments = self._store.append_moved(stripe, piece.inode, piece.offset, data)
        await self._target.relocate(
            piece.inode, piece.offset, piece.length, stripe, piece.stripe_offset, fragments
        )
        self.moved_bytes += piece.length

    async def _rest(self, started: float, pace: Pace) -> None:
        """Sleep as long as the pace asks for work since `started`, or until somebody needs space."""
        worked = self._clock.now() - started
        if self._signal.wanted:
            await trio.lowlevel.checkpoint()
        else:
            await self._signal.wait(worked * (1.0 / pace.duty - 1.0))

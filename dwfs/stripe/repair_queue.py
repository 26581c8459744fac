"""Which stripe is mended next. Pure: takes `now`, gives decisions.

What is nearest to losing data comes first: stripes are ordered by how many more shards they can
lose (`StripeHealth.spare`), and among equals by age. The queue is bounded; when it is full, the least
urgent entry gives way and `overflowed` says that only another walk over the catalog finds it
again.

A stripe that can't be mended now, because no disk has room or one failed meanwhile, is tried again
after a pause that doubles each time, or at once when somebody calls `wake`: a disk came, left, or
got space.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain, count
from typing import Final

from dwfs.limits import REPAIR_QUEUE_MAX
from dwfs.types import StripeId

RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 300.0


class QueuedStripe:
    """One stripe that wants mending."""

    __slots__ = ("attempts", "bad", "lacking", "size_bytes", "spare", "stripe")

    def __init__(
        self, stripe: StripeId, spare: int, bad: Iterable[int], size_bytes: int, lacking: bool
    ) -> None:
        self.stripe = stripe
        self.lacking = lacking
        self.spare = spare
        self.bad = frozenset(bad)  # shards that were reported, which no index tells
        self.size_bytes = size_bytes  # to be written, about
        self.attempts = 0


class RepairQueue:
    """Stripes in order of urgency, and stripes that wait for better times."""

    def __init__(self, size_max: int = REPAIR_QUEUE_MAX) -> None:
        assert size_max > 0
        self._size_max = size_max
        self._ready: dict[int, OrderedDict[StripeId, QueuedStripe]] = {}  # by spare
        self._spares: dict[StripeId, int] = {}  # of the ready ones
        self._waiting: dict[StripeId, tuple[float, QueuedStripe]] = {}  # due time
        self._due: list[tuple[float, int, StripeId]] = []  # heap; may name stripes that left
        self._order = count()
        self.left_bytes = 0
        self.overflowed = False
        self.evicted: list[StripeId] = []  # that found no room; whoever cares empties the list

    def __contains__(self, stripe: StripeId) -> bool:
        return self._find(stripe) is not None

    def __len__(self) -> int:
        return len(self._spares) + len(self._waiting)

    @property
    def ready(self) -> int:
        """Stripes that can be taken now."""
        return len(self._spares)

    @property
    def waiting(self) -> int:
        """Stripes that wait for a disk or for time to pass."""
        return len(self._waiting)

    def add(
        self,
        stripe: StripeId,
        spare: int,
        bad: Iterable[int] = (),
        size_bytes: int = 0,
        *,
        lacking: bool = False,
    ) -> None:
        """Note that a stripe wants mending; what is known of it already is merged.

        `lacking`: the last walk counted it among those that lack redundancy. A stripe that waits
        goes on waiting, unless it has become more urgent.
        """
        known = self._find(stripe)
        entry = QueuedStripe(stripe, spare, bad, size_bytes, lacking)
        if known is not None:
            entry.bad |= known.bad
            entry.lacking |= known.lacking
            entry.attempts = known.attempts
            entry.size_bytes = max(size_bytes, known.size_bytes)
            held = self._waiting.get(stripe)
            if held is not None and spare >= known.spare:
                self.left_bytes += entry.size_bytes - known.size_bytes
                self._waiting[stripe] = (held[0], entry)
                return
            if held is None and spare == known.spare:
                self.left_bytes += entry.size_bytes - known.size_bytes
                self._ready[spare][stripe] = entry  # keeps its place in the row
                return
            self.discard(stripe)
        self._make_ready(entry)
        self._shrink()

    def take(self, limit: int, now: float) -> list[QueuedStripe]:
        """Up to `limit` stripes, the most urgent first; they are no longer in the queue."""
        self._promote(now)
        taken: list[QueuedStripe] = []
        for spare in sorted(self._ready):
            row = self._ready[spare]
            while row and len(taken) < limit:
                stripe, entry = row.popitem(last=False)
                del self._spares[stripe]
                self.left_bytes -= entry.size_bytes
                taken.append(entry)
            if not row:
                del self._ready[spare]
            if len(taken) == limit:
                break
        return taken

    def postpone(self, entry: QueuedStripe, now: float, wait_seconds: float | None = None) -> None:
        """Try again later: after `wait_seconds`, or twice as late as the last time."""
        known = self._find(entry.stripe)
        if known is not None:  # reported again meanwhile
            entry.bad |= known.bad
            self.discard(entry.stripe)
        if wait_seconds is None:
            wait_seconds = min(RETRY_SECONDS_MIN * 2.0**entry.attempts, RETRY_SECONDS_MAX)
            entry.attempts = min(entry.attempts + 1, 16)
        due = now + wait_seconds
        self._waiting[entry.stripe] = (due, entry)
        self.left_bytes += entry.size_bytes
        heapq.heappush(self._due, (due, next(self._order), entry.stripe))
        self._shrink()

    def wake(self) -> None:
        """Circumstances have changed: whatever waits may be tried at once."""
        for _, entry in list(self._waiting.values()):
            self.discard(entry.stripe)
            entry.attempts = 0
            self._make_ready(entry)
        self._due.clear()

    def forgive(self, stripe: StripeId, mended: Iterable[int]) -> None:
        """Those shards were written anew: reports of them that came meanwhile are out of date."""
        known = self._find(stripe)
        if known is not None and known.bad:
            known.bad = known.bad.difference(mended)
            if not known.bad:
                self.discard(stripe)

    def discard(self, stripe: StripeId) -> None:
        """Forget a stripe; one that isn't here is fine."""
        entry = self._find(stripe)
        if entry is None:
            return
        self.left_bytes -= entry.size_bytes
        if stripe in self._waiting:
            del self._waiting[stripe]
            return
        spare = self._spares.pop(stripe)
        row = self._ready[spare]
        del row[stripe]
        if not row:
            del self._ready[spare]

    def bad_shards(self) -> dict[StripeId, frozenset[int]]:
        """What was reported as bad, by stripe."""
        ready = (entry for row in self._ready.values() for entry in row.values())
        waiting = (entry for _, entry in self._waiting.values())
        return {entry.stripe: entry.bad for entry in chain(ready, waiting) if entry.bad}

    def next_due(self) -> float | None:
        """When the first of the waiting stripes may be tried again."""
        while self._due:
            due, _, stripe = self._due[0]
            held = self._waiting.get(stripe)
            if held is not None and held[0] == due:
                return due
            heapq.heappop(self._due)
        return None

    # --- inner -------------------------------------------------------------------------------

    def _find(self, stripe: StripeId) -> QueuedStripe | None:
        spare = self._spares.get(stripe)
        if spare is not None:
            return self._ready[spare][stripe]
        held = self._waiting.get(stripe)
        return None if held is None else held[1]

    def _make_ready(self, entry: QueuedStripe) -> None:
        self._ready.setdefault(entry.spare, OrderedDict())[entry.stripe] = entry
        self._spares[entry.stripe] = entry.spare
        self.left_bytes += entry.size_bytes

    def _promote(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, stripe = heapq.heappop(self._due)
            entry = self._waiting[stripe][1]
            self.discard(stripe)
            self._make_ready(entry)

    def _shrink(self) -> None:
        """Let the least urgent go; of the waiting ones, any, once nothing else is left."""
        while len(self) > self._size_max:
            self.overflowed = True
            if self._ready:
                stripe = next(reversed(self._ready[max(self._ready)]))
            else:
                stripe = next(iter(self._waiting))
            self.discard(stripe)
            self.evicted.append(stripe)

"""Records that a newer one of the same shard has replaced, and that must outlive the next sync.

Until that sync the newer record may not be durable; a crash must find the older one. Their segments
must not be unlinked before, so they are counted by segment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from dwfs.disk.record import Location
from dwfs.types import ShardKey

Replaced = tuple[ShardKey, Location]


class Superseded:
    """The waiting list. Loop thread only; no call waits."""

    def __init__(self) -> None:
        self._waiting: list[Replaced] = []
        self._places: set[Location] = set()  # the waiting ones, and those that a sync has taken
        self._by_segment: Counter[int] = Counter()

    def add(self, places: Sequence[Replaced]) -> None:
        """These wait for the next sync."""
        self._waiting.extend(places)
        self._places.update(place for _, place in places)
        self._by_segment.update(place.segment for _, place in places)

    def take_for_sync(self) -> list[Replaced]:
        """What the sync that begins now covers; still counted until `erased` or `put_back`."""
        taken, self._waiting = self._waiting, []
        return taken

    def put_back(self, places: list[Replaced]) -> None:
        """That sync failed: they wait on."""
        self._waiting[:0] = places

    def erased(self, places: Sequence[Replaced]) -> None:
        """They need not survive any more."""
        self._places.difference_update(place for _, place in places)
        self._by_segment.subtract(place.segment for _, place in places)
        self._by_segment = +self._by_segment

    def take_keys(self, keys: Collection[ShardKey]) -> list[Location]:
        """Older records of deleted shards: they need not wait for a sync, and must not outlive them,
        or a rebuild of the index would find them."""
        taken = [item for item in self._waiting if item[0] in keys]
        if taken:
            self._waiting = [item for item in self._waiting if item[0] not in keys]
            self.erased(taken)
        return [place for _, place in taken]

    def holds(self, segment: int) -> bool:
        """Whether a record in the segment waits."""
        return self._by_segment[segment] > 0

    def contains(self, place: Location) -> bool:
        """Whether that very record waits."""
        return place in self._places

    def clear(self) -> None:
        """Forget all: before a rebuild of the index."""
        self._waiting.clear()
        self._places.clear()
        self._by_segment.clear()

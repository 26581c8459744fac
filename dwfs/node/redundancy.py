"""How many stripes lack shards: those that were written while disks were gone.

The state says where each shard was put, and `b""` where none could be. A walk over all stripes, in
small pieces between other work, counts them: after the mount, and again whenever the pool may have
written degraded stripes or reclaim may have removed some.
"""

from __future__ import annotations

from typing import Final

import trio

from dwfs.stripe import StripeStore, absent_shards
from dwfs.types import StripeId
from dwfs.volume import Volume

_BATCH: Final = 256
_PAUSE_SECONDS: Final = 0.005  # between pieces of some milliseconds
_RECOUNT_SECONDS: Final = 10.0


class RedundancyCount:
    """Kept up to date by `run`."""

    def __init__(self, volume: Volume, stripes: StripeStore) -> None:
        self._volume = volume
        self._stripes = stripes
        self._counted = 0
        self._short_by = 0
        self._degraded_before = 0  # the store's counter when the last count began

    @property
    def short_stripes(self) -> int:
        """Stripes with fewer shards than they should have; new ones count at once."""
        return self._counted + self._stripes.counters().degraded - self._degraded_before

    @property
    def short_by(self) -> int:
        """The largest number of shards that one stripe lacks."""
        if self._short_by or not self.short_stripes:
            return self._short_by
        return 1

    async def run(self) -> None:
        """Count once, and again while there is something to count."""
        await self.count()
        while True:
            await trio.sleep(_RECOUNT_SECONDS)
            if self.short_stripes:
                await self.count()

    async def count(self) -> None:
        """Walk over all stripes."""
        degraded_before = self._stripes.counters().degraded
        counted = short_by = 0
        after: StripeId | None = None
        while seals := self._volume.catalog.seals(after, _BATCH):
            after = seals[-1].stripe
            for seal in seals:
                lacking = len(absent_shards(seal))
                if lacking:
                    counted += 1
                    short_by = max(short_by, lacking)
            await trio.sleep(_PAUSE_SECONDS)
        self._counted, self._short_by = counted, short_by
        self._degraded_before = degraded_before

"""Where readers leave word of shards that they found bad, for repair to pick up.

The stripe store exists before repair does (which needs the store), so the two meet here. A reader
that comes across the same bad shard a thousand times leaves one word; a flood is cut off, because
what is dropped is found again by the next reader or the next scrub.
"""

from __future__ import annotations

from typing import Final

import trio

from dwfs.stripe import Damage
from dwfs.types import StripeId

WAITING_MAX: Final = 16_384  # some megabytes


class DamageInbox:
    """One for each pool. Belongs to the loop thread."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[StripeId, int], Damage] = {}
        self._arrived = trio.Event()

    def put(self, damage: Damage) -> None:
        """Leave word. Never awaits."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.setdefault((damage.stripe, damage.shard), damage)
            self._arrived.set()

    async def take(self) -> list[Damage]:
        """All that came since the last call; waits for the first."""
        await self._arrived.wait()
        taken = list(self._waiting.values())
        self._waiting.clear()
        self._arrived = trio.Event()
        return taken

"""The end of stripes, and of those of them that are just being moved.

`drop` deletes the shards of stripes that no durable state refers to any more. It must never be held
up by one bad disk: reclaim gives space back on all the others, and a writer may be waiting for it. So
deletions run in the background, each disk's by itself, and the caller waits for them only so
long. What a disk that hangs, fails or is away does not delete is an orphan for its next sweep.

A stripe that a mover works on is *moving* (`begin_move`, `end_move`). Two things follow. The sweep
leaves it alone, because the shard that was just put on its new disk is not yet in any seal. And its
shards are not deleted under the mover's hands, because a delete must not overlap with a put of the
same shard: a stripe that dies on the way is deleted as soon as it has arrived. A crash in between
leaves orphans, for the sweep after the mount.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from dwfs.errors import MediumError
from dwfs.ports import DiskListing, ShardStore
from dwfs.stripe.space import SpaceAccount, shard_cost
from dwfs.types import DiskId, ShardKey, StripeId

# Deleting 32 stripes' shards takes a few milliseconds; a disk that needs so long is in trouble.
DROP_PATIENCE_SECONDS: Final = 1.0


async def delete_shards(
    store: ShardStore, keys: Sequence[ShardKey], disks: DiskListing, space: SpaceAccount
) -> None:
    """Delete shards of one disk. If it fails they are orphans, which its next sweep finds."""
    size = sum(shard_cost(store.length(key)) for key in keys if store.has(key))
    try:
        await store.delete(keys)
    except MediumError as error:
        disks.failed(error, store.disk)
    else:
        space.note_drop(store.disk, size)


class ShardDisposal:
    """Deletes shards, and knows which stripes are moving. Belongs to the loop thread."""

    def __init__(self, disks: DiskListing, space: SpaceAccount, nursery: trio.Nursery) -> None:
        self._disks = disks
        self._space = space
        self._nursery = nursery
        self._moving: dict[StripeId, int] = {}  # → shards to delete when it has arrived, or 0
        self._arrived = trio.Event()  # the next one has

    def is_moving(self, stripe: StripeId) -> bool:
        """Whether a mover works on the stripe."""
        return stripe in self._moving

    async def moves_settled(self) -> None:
        """Wait until every move that is under way now has ended."""
        claimed = set(self._moving)
        while claimed := claimed & self._moving.keys():
            await self._arrived.wait()

    def begin_move(self, stripe: StripeId) -> bool:
        """Claim the stripe for one mover; False if another has it."""
        if stripe in self._moving:
            return False
        self._moving[stripe] = 0
        return True

    def end_move(self, stripe: StripeId) -> None:
        """Let go of the stripe. If it has died meanwhile, its shards are deleted now."""
        total = self._moving.pop(stripe)
        arrived, self._arrived = self._arrived, trio.Event()
        arrived.set()
        if total:
            self._nursery.start_soon(self.drop, [(stripe, total)])

    async def drop(self, stripes: Sequence[tuple[StripeId, int]]) -> None:
        """Delete all shards of stripes, each given with its number of shards.

        Returns when the disks have done so, or when those that have not are not worth waiting for.
        """
        doomed: dict[DiskId, list[ShardKey]] = {}
        for stripe, total in stripes:
            if stripe in self._moving:
                self._moving[stripe] = total
                continue
            self._collect(stripe, total, doomed)
            await trio.lowlevel.checkpoint()
        left = len(doomed)
        finished = trio.Event()

        async def delete(store: ShardStore, found: list[ShardKey]) -> None:
            nonlocal left
            # A stripe may have been claimed since it was collected; then it dies after the move.
            keys = [key for key in found if not self._defer(key, stripes)]
            try:
                await delete_shards(store, keys, self._disks, self._space)
            finally:
                left -= 1
                if not left:
                    finished.set()

        for disk, found in doomed.items():
            present = self._disks.get(disk)
            if present is None:
                left -= 1
            else:
                self._nursery.start_soon(delete, present, found)
        if left:
            with trio.move_on_after(DROP_PATIENCE_SECONDS):
                await finished.wait()

    def _collect(self, stripe: StripeId, total: int, doomed: dict[DiskId, list[ShardKey]]) -> None:
        for store in self._disks:
            for number in range(total):
                key = ShardKey(stripe, number)
                if store.has(key):
                    doomed.setdefault(store.disk, []).append(key)

    def _defer(self, key: ShardKey, stripes: Sequence[tuple[StripeId, int]]) -> bool:
        if key.stripe not in self._moving:
            return False
        self._moving[key.stripe] = next(total for stripe, total in stripes if stripe == key.stripe)
        return True

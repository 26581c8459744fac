"""Finding orphans: shards on a disk that no stripe owns in that place.

They come from stripes whose seal never became durable before a crash, from disks that were away
while their stripes were dropped or moved, and from puts on a disk whose sync failed. The sweep
compares the disk's index with the state, in the background, some keys at a time.

Safety: a stripe that is in memory is left alone, whatever the state says of it. As a stripe is
known to the store from before its first put until its seal is committed, and no await lies between
looking and deciding, a shard that is judged an orphan can't be a live one in the making. All
volumes of the pool must be open: `owner_of` answers for every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from dwfs.errors import MediumError
from dwfs.ports import ShardStore
from dwfs.types import DiskId, ShardKey, StripeId, StripeSeal

SWEEP_BATCH = 512


def orphans(
    keys: Sequence[ShardKey],
    disk: DiskId,
    owner_of: Callable[[StripeId], StripeSeal | None],
    in_memory: Callable[[StripeId], bool],
) -> list[ShardKey]:
    """Those of a disk's shards that no stripe claims there."""
    found = []
    for key in keys:
        if in_memory(key.stripe):
            continue
        seal = owner_of(key.stripe)
        if seal is None or key.number >= len(seal.placement) or seal.placement[key.number] != disk:
            found.append(key)
    return found


async def sweep_disk(
    store: ShardStore,
    owner_of: Callable[[StripeId], StripeSeal | None],
    in_memory: Callable[[StripeId], bool],
    pause_seconds: float = 0.01,
) -> int:
    """Delete the orphans of one disk; returns how many. A failing disk ends the sweep."""
    deleted = 0
    after: ShardKey | None = None
    while keys := store.keys(after, SWEEP_BATCH):
        after = keys[-1]
        found = orphans(keys, store.disk, owner_of, in_memory)
        try:
            if found:
                await store.delete(found)
        except MediumError:
            return deleted  # whoever probes the disk finds out; orphans can wait
        deleted += len(found)
        await trio.sleep(pause_seconds)
    return deleted

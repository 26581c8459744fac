"""Finding orphans: shards on a disk that no stripe owns in that place.

They come from stripes whose seal never became durable before a crash, from disks that were away
while their stripes were dropped or moved, and from puts on a disk whose sync failed. The sweep
compares the disk's index with the state, in the background, some keys at a time.

Safety: a stripe that is in memory is left alone, whatever the state says of it. As a stripe is
known to the store from before its first put until its seal is committed, and no await lies between
looking and deciding, a shard that is judged an orphan can't be a live one in the making. Stripes
whose shards are just being moved count as in memory, too; and as a store forgets what it is told to
delete before it waits for anything, a mover that puts a shard here afterwards keeps it. All volumes
of the pool must be open: `owner_of` answers for every one of them.

What is left alone is handed back, to be looked at again when its stripe is sealed: after a crash the log
gives back stripes under the names that they had, which are then written anew and perhaps to other disks.
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
    put_off: list[ShardKey] | None = None,
) -> int:
    """Delete the orphans of one disk; returns how many. A failing disk ends the sweep.

    `put_off` gets the keys that can't be judged yet, because their stripes are in memory.
    """
    deleted = 0
    after: ShardKey | None = None
    while keys := store.keys(after, SWEEP_BATCH):
        after = keys[-1]
        if put_off is not None:
            put_off += [key for key in keys if in_memory(key.stripe)]
        try:
            deleted += await sweep_keys(store, keys, owner_of, in_memory)
        except MediumError:
            return deleted  # whoever probes the disk finds out; orphans can wait
        await trio.sleep(pause_seconds)
    return deleted


async def sweep_keys(
    store: ShardStore,
    keys: Sequence[ShardKey],
    owner_of: Callable[[StripeId], StripeSeal | None],
    in_memory: Callable[[StripeId], bool],
) -> int:
    """Delete those of these shards that are orphans; returns how many. Raises MediumError."""
    found = [
        key for key in orphans(keys, store.disk, owner_of, in_memory) if store.has(key)
    ]  # no await between judging and forgetting
    if found:
        await store.delete(found)
    return len(found)

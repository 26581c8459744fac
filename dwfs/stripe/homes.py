"""Which disk a shard is to be written to when it is moved or mended.

In this order: its own disk, if only the shard was bad; the disk that a mover's user asks for
(balancing), or that takes the place of the shard's old one (a replacement); else whichever disks
placement would choose among those that have no shard of the stripe. Distinctness is never given
up: two shards on one disk would be lost together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dwfs.ports import DiskListing, ShardStore
from dwfs.stripe.moving import Job
from dwfs.stripe.placement import choose_disks
from dwfs.stripe.space import SpaceAccount
from dwfs.types import DiskId


def nobody(disk: DiskId) -> DiskId | None:
    """No disk is being replaced."""
    return None


class HomeFinder:
    """Chooses disks. `successor_of(disk)` names the one that a disk is being replaced by."""

    def __init__(
        self,
        disks: DiskListing,
        space: SpaceAccount,
        successor_of: Callable[[DiskId], DiskId | None] = nobody,
    ) -> None:
        self._disks = disks
        self._space = space
        self._successor_of = successor_of

    def choose(self, job: Job, numbers: Sequence[int], length: int) -> dict[int, ShardStore]:
        """A disk for each of the shards, as far as there are any."""
        writable = {store.disk: store for store in self._disks.writable()}
        placement = job.seal.placement
        holders = {disk for disk in placement if disk}.union(put.store.disk for put in job.puts)
        chosen: dict[int, ShardStore] = {}
        homeless = []
        for number in numbers:
            own = placement[number]
            wish = job.fixed.get(number) or (self._successor_of(own) if own else None)
            store = writable.get(own)
            if number not in job.fixed and store is not None and own not in job.avoid:
                chosen[number] = store  # a bad shard on a good disk
            elif wish is not None and self._takes(job, writable.get(wish), holders, length):
                chosen[number] = writable[wish]
                holders.add(wish)
            elif number not in job.fixed:
                homeless.append(number)
        if homeless:
            candidates = self._space.candidates(holders | job.avoid)
            disks = choose_disks(job.stripe, candidates, len(homeless), length)
            for number, disk in zip(homeless, disks, strict=False):
                chosen[number] = writable[disk]
        return chosen

    def _takes(self, job: Job, store: ShardStore | None, holders: set[DiskId], length: int) -> bool:
        return (
            store is not None
            and store.disk not in holders
            and store.disk not in job.avoid
            and self._space.free_of(store) >= length
        )

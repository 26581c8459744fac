"""What the seals say of one disk: how much of the pool is on it, and what could not be read without.

A walk over all seals, in pieces between other work; some microseconds for each stripe.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import trio
import trio.lowlevel

from dwfs.ports import DiskListing, DiskRole, StripeCatalog
from dwfs.stripe import assess, layout_of
from dwfs.stripe.space import shard_cost
from dwfs.types import DiskId, StripeId, StripeSeal

_BATCH: Final = 256


class Holding(NamedTuple):
    """Shards that the seals place on a disk."""

    shards: int
    size_bytes: int  # on the disk, record headers included


async def holding_of(catalog: StripeCatalog, disk: DiskId) -> Holding:
    """What the disk should hold, whether it is there or not."""
    shards = size = 0
    async for seal in _seals(catalog):
        if disk not in seal.placement:
            continue
        layout = layout_of(seal)
        for number in layout.stored_shards():
            if seal.placement[number] == disk:
                shards += 1
                size += shard_cost(layout.payload_length(number))
    return Holding(shards, size)


async def unreadable_without(catalog: StripeCatalog, disks: DiskListing, disk: DiskId) -> int:
    """Stripes that can be read now, but could not be without the disk."""

    def role_without(other: DiskId) -> DiskRole:
        return DiskRole.AWAY if other == disk else disks.role(other)

    count = 0
    async for seal in _seals(catalog):
        if (
            disk in seal.placement
            and assess(seal, role_without, _has_all).unreadable
            and not assess(seal, disks.role, _has_all).unreadable
        ):
            count += 1
    return count


def _has_all(_disk: DiskId, _key: object) -> bool:
    return True


async def _seals(catalog: StripeCatalog) -> AsyncIterator[StripeSeal]:
    after: StripeId | None = None
    while seals := catalog.seals(after, _BATCH):
        after = seals[-1].stripe
        for seal in seals:
            yield seal
        await trio.lowlevel.checkpoint()

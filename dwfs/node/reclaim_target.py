"""What the cleaner sees of the volume: which stripes are dead or sparse, and what still uses them."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from dwfs.stripe import LiveRange
from dwfs.types import Extent, Fragment, InodeNumber, StripeId
from dwfs.volume import Volume
from dwfs.volume.commands import Relocate


class VolumeReclaimTarget:
    """Implements `dwfs.stripe.ReclaimTarget` over one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    async def drop_dead(self, limit: int) -> int:
        """Forget dead stripes durably, then delete their shards.

        What destroyed snapshots kept is settled before: it may be what makes stripes dead, and a
        writer that waits for space must not be refused while it is there to be had.
        """
        while self._volume.settling:
            await self._volume.reap()
            await trio.lowlevel.checkpoint()
        return await self._volume.drop_dead_stripes(limit)

    async def settle(self) -> None:
        """Have every stripe sealed that has been written to."""
        await self._volume.destage()

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        """Sealed stripes with few live bytes, worst first.

        None while destroyed snapshots' bytes are being settled: `Relocate` would do nothing.
        """
        if self._volume.settling:
            return []
        return self._volume.catalog.sparse_stripes(live_fraction, limit)

    async def live_ranges(self, stripe: StripeId) -> list[LiveRange]:
        """What of the stripe the extent maps still use, those of snapshots, too."""
        return [
            LiveRange(found.inode, found.offset, found.length, found.stripe_offset)
            for found in await self._volume.mapped_ranges(stripe)
        ]

    async def relocate(
        self,
        inode: int,
        offset: int,
        length: int,
        stripe: StripeId,
        stripe_offset: int,
        fragments: Sequence[Fragment],
    ) -> None:
        """Point file bytes that still map to the old place at the copy."""
        extents = []
        position = offset
        for fragment in fragments:
            extents.append(Extent(position, fragment.length, fragment.stripe, fragment.offset))
            position += fragment.length
        command = Relocate(
            InodeNumber(inode), offset, length, stripe, stripe_offset, tuple(extents)
        )
        await self._volume.propose(command)

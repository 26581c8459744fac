"""What the cleaner sees of the volume: which stripes are dead or sparse, and what still uses them."""

from __future__ import annotations

from collections.abc import Sequence

from dwfs.errors import PosixError
from dwfs.stripe import LiveRange
from dwfs.types import BackReference, Extent, Fragment, InodeNumber, StripeId
from dwfs.volume import Volume
from dwfs.volume.commands import Relocate


class VolumeReclaimTarget:
    """Implements `dwfs.stripe.ReclaimTarget` over one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    async def drop_dead(self, limit: int) -> int:
        """Forget dead stripes durably, then delete their shards."""
        return await self._volume.drop_dead_stripes(limit)

    async def settle(self) -> None:
        """Have every stripe sealed that has been written to."""
        await self._volume.destage()

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        """Sealed stripes with few live bytes, worst first."""
        return self._volume.catalog.sparse_stripes(live_fraction, limit)

    def live_ranges(self, stripe: StripeId) -> list[LiveRange]:
        """What of the stripe's summary the extent maps still use."""
        return live_ranges(self._volume, stripe)

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


def live_ranges(volume: Volume, stripe: StripeId) -> list[LiveRange]:
    """File bytes that still map to the stripe, as far as its summary tells.

    A range may have been written twice into one stripe; an extent belongs to the reference that
    puts the same file byte at the same stripe byte.
    """
    found: dict[tuple[int, int], LiveRange] = {}
    for reference in volume.summary(stripe):
        for extent in _extents_of(volume, reference):
            if (
                extent.stripe == stripe
                and extent.stripe_offset - extent.offset
                == reference.stripe_offset - reference.offset
            ):
                found[reference.inode, extent.offset] = LiveRange(
                    reference.inode, extent.offset, extent.length, extent.stripe_offset
                )
    return list(found.values())


def _extents_of(volume: Volume, reference: BackReference) -> list[Extent]:
    try:
        return volume.extents(reference.inode, reference.offset, reference.length)
    except PosixError:
        return []  # the file is gone

"""What can still be had of stripes that can't be mended.

A stripe is beyond mending when more than m of its shards are bad. But readers rebuild sector by sector,
and rot in different sectors of different shards leaves most of the stripe readable. So two questions are
answered here by reading: which files have really lost something, and what can be copied out while it
can still be read, before the next bad sector takes it.

Copying goes the cleaner's way: the bytes are appended anew and the file's extents are pointed at the
copy, only where they still point at the old place. What is lost stays where it is and answers EIO; a
stripe of which everything was copied is dead and is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import EIO
from typing import Final

from dwfs.errors import PosixError
from dwfs.limits import KIB, SECTOR_SIZE
from dwfs.stripe import LiveRange, ReclaimTarget, StripeStore
from dwfs.types import InodeNumber, StripeId
from dwfs.volume import Volume

_PIECE_SIZE: Final = 256 * KIB  # read at a time; a piece that fails is halved, down to a sector

LostRanges = Mapping[StripeId, Sequence[LiveRange]]


class Rescuer:
    """Sifts live ranges of stripes that can't be mended."""

    def __init__(self, volume: Volume, stripes: StripeStore, target: ReclaimTarget) -> None:
        self._volume = volume
        self._stripes = stripes
        self._target = target
        self.rescued_bytes = 0

    def live_ranges(self, stripes: Sequence[StripeId]) -> LostRanges:
        """What files still need of the stripes, as far as their summaries tell."""
        return {stripe: self._target.live_ranges(stripe) for stripe in stripes}

    async def sift(self, lost: LostRanges, *, copy: bool) -> list[InodeNumber]:
        """Read all ranges; gives the files that have lost something. With `copy`, rescue the rest."""
        damaged: dict[InodeNumber, None] = {}
        for stripe, ranges in lost.items():
            for live in ranges:
                if not await self._sift_range(stripe, live, copy=copy):
                    damaged[InodeNumber(live.inode)] = None
        return list(damaged)

    async def _sift_range(self, stripe: StripeId, live: LiveRange, *, copy: bool) -> bool:
        """Whether all of the range can be read."""
        whole = True
        pending = [live]
        while pending:
            piece = pending.pop()
            halves = _halves(piece)
            if halves and piece.length > _PIECE_SIZE:
                pending += halves
                continue
            data = await self._read(stripe, piece)
            if data is not None:
                if copy:
                    await self._copy(stripe, piece, data)
            elif halves and (copy or whole):
                pending += halves
            elif self._still_needed(stripe, piece):
                whole = False
            if not whole and not copy:
                return False  # one lost sector is enough to name the file
        return whole

    async def _read(self, stripe: StripeId, piece: LiveRange) -> bytes | None:
        try:
            return await self._stripes.read(stripe, piece.stripe_offset, piece.length)
        except PosixError as error:
            if error.errno != EIO:
                raise
            return None

    def _still_needed(self, stripe: StripeId, piece: LiveRange) -> bool:
        """Whether the file still maps the piece there: it may have been overwritten meanwhile."""
        number = InodeNumber(piece.inode)
        try:
            extents = self._volume.extents(number, piece.offset, piece.length)
        except PosixError:
            return False  # the file is gone
        return any(extent.stripe == stripe for extent in extents)

    async def _copy(self, stripe: StripeId, piece: LiveRange, data: bytes) -> None:
        try:
            await self._stripes.admit_for_reclaim(piece.length)
        except PosixError:
            return  # no room now: it stays readable where it is
        # No await between append and relocate's proposal: the copy has its reference before any
        # barrier can see it.
        fragments = self._stripes.append(piece.inode, piece.offset, data)
        await self._target.relocate(
            piece.inode, piece.offset, piece.length, stripe, piece.stripe_offset, fragments
        )
        self.rescued_bytes += piece.length


def _halves(piece: LiveRange) -> list[LiveRange]:
    """The piece cut at a sector's boundary near its middle; nothing if it lies in one sector."""
    start, end = piece.stripe_offset, piece.stripe_offset + piece.length
    first, last = start // SECTOR_SIZE, (end - 1) // SECTOR_SIZE
    if first == last:
        return []
    cut = (first + last + 1) // 2 * SECTOR_SIZE - start
    return [
        piece._replace(
            offset=piece.offset + cut, length=piece.length - cut, stripe_offset=start + cut
        ),
        piece._replace(length=cut),
    ]

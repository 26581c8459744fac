"""What can still be had of stripes that can't be mended.

A stripe is beyond mending when more than m of its shards are bad. But readers rebuild sector by sector,
and rot in different sectors of different shards leaves most of the stripe readable. So two questions are
answered here by reading: which files have really lost something, and what can be copied out while it
can still be read, before the next bad sector takes it.

Copying goes the cleaner's way: the bytes are appended anew and the file's extents are pointed at the
copy, only where they still point at the old place. What is lost stays where it is and answers EIO; a
stripe of which everything was copied is dead and is dropped.

A snapshot's files are files as well: what only a snapshot maps is rescued with the rest, and named by the
newest snapshot that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import EIO
from typing import Final, NamedTuple

from dwfs.errors import PosixError
from dwfs.limits import KIB, SECTOR_SIZE
from dwfs.node.checking.paths import view_of_epoch
from dwfs.stripe import ReclaimTarget, StripeStore
from dwfs.types import NO_EPOCH, Epoch, InodeNumber, StripeId
from dwfs.volume import Volume

_PIECE_SIZE: Final = 256 * KIB  # read at a time; a piece that fails is halved, down to a sector


class LostRange(NamedTuple):
    """File bytes that need a stripe which can't be mended."""

    inode: InodeNumber
    offset: int  # bytes, in the file
    length: int  # bytes
    stripe_offset: int  # bytes
    epoch: Epoch  # of the newest snapshot that has them; NO_EPOCH: the file has them now


class DamagedFile(NamedTuple):
    """A file that has lost something."""

    inode: InodeNumber
    epoch: Epoch  # of the newest snapshot in which it has; NO_EPOCH: it has now


LostRanges = Mapping[StripeId, Sequence[LostRange]]


class Rescuer:
    """Sifts live ranges of stripes that can't be mended."""

    def __init__(self, volume: Volume, stripes: StripeStore, target: ReclaimTarget) -> None:
        self._volume = volume
        self._stripes = stripes
        self._target = target
        self.rescued_bytes = 0

    async def live_ranges(self, stripes: Sequence[StripeId]) -> LostRanges:
        """What files still need of the stripes, as far as their summaries tell."""
        return {stripe: await ranges_of(self._volume, stripe) for stripe in stripes}

    async def sift(self, lost: LostRanges, *, copy: bool) -> list[DamagedFile]:
        """Read all ranges; gives the files that have lost something. With `copy`, rescue the rest."""
        damaged: dict[DamagedFile, None] = {}
        for stripe, ranges in lost.items():
            for live in ranges:
                if not await self._sift_range(stripe, live, copy=copy):
                    damaged[DamagedFile(live.inode, live.epoch)] = None
        return list(damaged)

    async def _sift_range(self, stripe: StripeId, live: LostRange, *, copy: bool) -> bool:
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

    async def _read(self, stripe: StripeId, piece: LostRange) -> bytes | None:
        try:
            return await self._stripes.read(stripe, piece.stripe_offset, piece.length)
        except PosixError as error:
            if error.errno != EIO:
                raise
            return None

    def _still_needed(self, stripe: StripeId, piece: LostRange) -> bool:
        """Whether the file still maps the piece there: it may have been overwritten meanwhile."""
        try:
            if piece.epoch == NO_EPOCH:
                extents = self._volume.extents(piece.inode, piece.offset, piece.length)
            else:
                view, _ = view_of_epoch(self._volume, piece.epoch)
                extents = view.extents(piece.inode, piece.offset, piece.length)
        except PosixError:
            return False  # the file is gone, or the snapshot
        return any(extent.stripe == stripe for extent in extents)

    async def _copy(self, stripe: StripeId, piece: LostRange, data: bytes) -> None:
        try:
            await self._stripes.admit_for_reclaim(piece.length)
        except PosixError:
            return  # no room now: it stays readable where it is
        # No await between append and relocate's proposal: the copy has its reference before any
        # barrier can see it.
        fragments = self._stripes.append_moved(stripe, piece.inode, piece.offset, data)
        await self._target.relocate(
            piece.inode, piece.offset, piece.length, stripe, piece.stripe_offset, fragments
        )
        self.rescued_bytes += piece.length


async def ranges_of(
    volume: Volume, stripe: StripeId, *, snapshots_only: bool = False
) -> list[LostRange]:
    """What files need of the stripe, now or in snapshots, as far as its summary tells."""
    return [
        LostRange(one.inode, one.offset, one.length, one.stripe_offset, one.newest)
        for one in await volume.mapped_ranges(stripe)
        if not snapshots_only or one.newest != NO_EPOCH
    ]


def _halves(piece: LostRange) -> list[LostRange]:
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

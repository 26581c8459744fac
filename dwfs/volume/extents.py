"""Extent lists: the pure core of the file map.

A list holds the extents of one node sorted by file offset, disjoint, none empty. `insert` and
`remove` change the list in place and account in `balance` what each stripe gained or lost, in
bytes, so that the caller settles live bytes once per command. Neighbours that continue each other
in the file and in the stripe, and were written in the same epoch, are merged, so a file written in
order has one extent per stripe.

A byte-array model checks these functions in tests/property/test_volume_extents.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TypeAlias

from dwfs.types import Extent, StripeId

_file_offset = attrgetter("offset")


Balance: TypeAlias = dict[StripeId, int]


class Kept:
    """What a command unmaps while the newest snapshot goes on mapping it: no loss to its stripe."""

    __slots__ = ("lengths", "seen_by")

    def __init__(self, seen_by: int) -> None:
        self.seen_by = seen_by  # epoch of the newest snapshot
        self.lengths: dict[tuple[int, StripeId], int] = {}  # bytes by epoch of writing and stripe


def insert(extents: list[Extent], new: Extent, balance: Balance, kept: Kept | None = None) -> None:
    """Map `new`'s range to `new`'s stripe bytes, in place of whatever was there.

    `kept` is None where there are no snapshots.
    """
    offset, length, stripe, epoch = new.offset, new.length, new.stripe, new.epoch
    end = offset + length
    balance[stripe] = balance.get(stripe, 0) + length
    index = len(extents)
    if index and offset < (last := extents[-1]).offset + last.length:
        index = remove(extents, offset, end, balance, kept)
    first = index  # extents[first:index] are swallowed by the merge
    if index:
        left = extents[index - 1]
        if (
            left.offset + left.length == offset
            and left.stripe == stripe
            and left.stripe_offset + left.length == new.stripe_offset
            and left.epoch == epoch
        ):
            first = index - 1
            length += left.length
            new = Extent(left.offset, length, stripe, left.stripe_offset, epoch)
    if index < len(extents):
        right = extents[index]
        if (
            right.offset == end
            and right.stripe == stripe
            and new.stripe_offset + length == right.stripe_offset
            and right.epoch == epoch
        ):
            index += 1
            new = Extent(new.offset, length + right.length, stripe, new.stripe_offset, epoch)
    extents[first:index] = (new,)


def remove(
    extents: list[Extent], start: int, end: int, balance: Balance, kept: Kept | None = None
) -> int:
    """Unmap [start, end); returns the index at which an extent for that range belongs."""
    low = bisect_right(extents, start, key=_file_offset)
    if low and extents[low - 1].offset + extents[low - 1].length > start:
        low -= 1
    high = bisect_left(extents, end, lo=low, key=_file_offset)
    if low >= high:
        return low
    rest: list[Extent] = []
    index = low
    first, last = extents[low], extents[high - 1]
    for extent in extents[low:high]:
        balance[extent.stripe] = balance.get(extent.stripe, 0) - extent.length
    if first.offset < start:
        length = start - first.offset
        rest.append(Extent(first.offset, length, first.stripe, first.stripe_offset, first.epoch))
        balance[first.stripe] += length
        index += 1
    if (length := last.offset + last.length - end) > 0:
        place = last.stripe_offset + last.length - length
        rest.append(Extent(end, length, last.stripe, place, last.epoch))
        balance[last.stripe] += length
    if kept is not None:
        _keep(extents[low:high], start, end, balance, kept)
    extents[low:high] = rest
    return index


def _keep(removed: list[Extent], start: int, end: int, balance: Balance, kept: Kept) -> None:
    """Move from the balance what of [start, end) the newest snapshot goes on mapping."""
    for extent in removed:
        if extent.epoch <= kept.seen_by:
            length = min(extent.offset + extent.length, end) - max(extent.offset, start)
            balance[extent.stripe] += length
            key = (extent.epoch, extent.stripe)
            kept.lengths[key] = kept.lengths.get(key, 0) + length


def relocate(extents: list[Extent], new: Extent, stripe: StripeId, shift: int) -> list[Extent]:
    """Map those parts of `new`'s range to it that map to `stripe` with this shift.

    The shift is stripe offset minus file offset. Returns what was moved, as it is mapped now; the
    epochs stay.
    """
    moved = [
        Extent(
            piece.offset,
            piece.length,
            new.stripe,
            new.stripe_offset + piece.offset - new.offset,
            piece.epoch,
        )
        for piece in slice_range(extents, new.offset, new.offset + new.length)
        if piece.stripe == stripe and piece.stripe_offset - piece.offset == shift
    ]
    unused: Balance = {}
    for piece in moved:
        insert(extents, piece, unused)
    return moved


def slice_range(extents: list[Extent], start: int, end: int) -> list[Extent]:
    """The extents within [start, end), clipped to it."""
    low = bisect_right(extents, start, key=_file_offset)
    if low and extents[low - 1].offset + extents[low - 1].length > start:
        low -= 1
    high = bisect_left(extents, end, lo=low, key=_file_offset)
    found = extents[low:high]
    if found:
        found[0] = clip(found[0], start, end)
        found[-1] = clip(found[-1], start, end)
    return found


def clip(extent: Extent, start: int, end: int) -> Extent:
    """The part of `extent` within [start, end), which it must touch."""
    offset = extent.offset
    low = start if start > offset else offset
    high = min(offset + extent.length, end)
    if low == offset and high - low == extent.length:
        return extent
    stripe_offset = extent.stripe_offset + low - offset
    return Extent(low, high - low, extent.stripe, stripe_offset, extent.epoch)

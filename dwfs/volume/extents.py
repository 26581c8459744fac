"""Extent lists: the pure core of the file map.

A list holds the extents of one node sorted by file offset, disjoint, none empty. `insert` and
`remove` change the list in place and account in `balance` what each stripe gained or lost, in
bytes, so that the caller settles live bytes once per command. Neighbours that continue each other
in the file and in the stripe are merged, so a file written in order has one extent per stripe.

A byte-array model checks these functions in tests/property/test_volume_extents.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TypeAlias

from dwfs.types import Extent, StripeId

Balance: TypeAlias = dict[StripeId, int]

_file_offset = attrgetter("offset")


def insert(extents: list[Extent], new: Extent, balance: Balance) -> None:
    """Map `new`'s range to `new`'s stripe bytes, in place of whatever was there."""
    offset, length, stripe = new.offset, new.length, new.stripe
    end = offset + length
    balance[stripe] = balance.get(stripe, 0) + length
    index = len(extents)
    if index and offset < (last := extents[-1]).offset + last.length:
        index = remove(extents, offset, end, balance)
    first = index  # extents[first:index] are swallowed by the merge
    if index:
        left = extents[index - 1]
        if (
            left.offset + left.length == offset
            and left.stripe == stripe
            and left.stripe_offset + left.length == new.stripe_offset
        ):
            first = index - 1
            length += left.length
            new = Extent(left.offset, length, stripe, left.stripe_offset)
    if index < len(extents):
        right = extents[index]
        if (
            right.offset == end
            and right.stripe == stripe
            and new.stripe_offset + length == right.stripe_offset
        ):
            index += 1
            new = Extent(new.offset, length + right.length, stripe, new.stripe_offset)
    extents[first:index] = (new,)


def remove(extents: list[Extent], start: int, end: int, balance: Balance) -> int:
    """Unmap [start, end); returns the index at which an extent for that range belongs."""
    low = bisect_right(extents, start, key=_file_offset)
    if low and extents[low - 1].offset + extents[low - 1].length > start:
        low -= 1
    high = bisect_left(extents, end, lo=low, key=_file_offset)
    if low >= high:
        return low
    kept: list[Extent] = []
    index = low
    first, last = extents[low], extents[high - 1]
    for extent in extents[low:high]:
        balance[extent.stripe] = balance.get(extent.stripe, 0) - extent.length
    if first.offset < start:
        length = start - first.offset
        kept.append(Extent(first.offset, length, first.stripe, first.stripe_offset))
        balance[first.stripe] += length
        index += 1
    if (length := last.offset + last.length - end) > 0:
        kept.append(Extent(end, length, last.stripe, last.stripe_offset + last.length - length))
        balance[last.stripe] += length
    extents[low:high] = kept
    return index


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
    return Extent(low, high - low, extent.stripe, extent.stripe_offset + low - offset)

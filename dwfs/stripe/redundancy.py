"""What is wrong with a stripe, and what would mend it. Pure.

A stripe of k + m shards can be read while k of them can. What each shard is worth follows from the
role of the disk that the seal names (`DiskRole`), from that disk's index, and from what readers and
scrub have reported. Two numbers come out of it: how many more shards may be lost before data is
(`spare`, by which repair is ordered), and which shards want a home (`needs`).

A shard on a disk that is only AWAY can't be read now but needs nothing: the disk is expected back,
and rebuilding for every reboot of a box would write terabytes for nothing. It does not count as
readable, though: if too many are away the stripe is unreadable for the time being, and `spare`
makes its other damage urgent.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from typing import NamedTuple

from dwfs.ports import DiskRole
from dwfs.stripe.layout import StripeLayout, layout_of
from dwfs.types import DiskId, ShardKey, StripeSeal


class ShardState(enum.Enum):
    """What one shard of a stripe is worth."""

    SOUND = "sound"  # where it should be, for all that is known
    EMPTY = "empty"  # a data shard without a sector: never stored, known to be zeros
    LEAVING = "leaving"  # readable, but its disk is to be emptied
    ABSENT = "absent"  # never stored: the stripe was written degraded
    LOST = "lost"  # its disk is gone
    BAD = "bad"  # its disk is there, the shard is missing from it or damaged
    AWAY = "away"  # its disk is away and expected back


READABLE = frozenset({ShardState.SOUND, ShardState.EMPTY, ShardState.LEAVING})
NEEDY = frozenset({ShardState.LEAVING, ShardState.ABSENT, ShardState.LOST, ShardState.BAD})

_STATE_OF_ROLE = {
    DiskRole.KEEP: ShardState.SOUND,
    DiskRole.LEAVE: ShardState.LEAVING,
    DiskRole.AWAY: ShardState.AWAY,
    DiskRole.GONE: ShardState.LOST,
}


class StripeHealth(NamedTuple):
    """One look at a stripe."""

    shards: tuple[ShardState, ...]  # k + m
    readable: int  # shards that can be had now, empty ones included
    spare: int  # readable - k: that many more may be lost
    needs: tuple[int, ...]  # shards that want a home, the lost ones before the leaving ones
    unreadable: bool  # fewer than k can be had now
    lost: bool  # ... and it stays so when every disk that is away is back

    @property
    def lacking(self) -> int:
        """Shards that redundancy lacks: those that need a home and can't be read."""
        return sum(self.shards[number] is not ShardState.LEAVING for number in self.needs)


def assess(
    seal: StripeSeal,
    role: Callable[[DiskId], DiskRole],
    has: Callable[[DiskId, ShardKey], bool],
    bad: Collection[int] = (),
    layout: StripeLayout | None = None,
) -> StripeHealth:
    """Judge a stripe by its seal.

    `has(disk, key)` tells whether the index of a readable disk knows the shard; `bad` are shards
    that were reported as damaged. `layout` saves computing it.
    """
    layout = layout or layout_of(seal)
    states = []
    for number, disk in enumerate(seal.placement):
        if layout.payload_length(number) == 0:
            states.append(ShardState.EMPTY)
            continue
        if not disk:
            states.append(ShardState.ABSENT)
            continue
        state = _STATE_OF_ROLE[role(disk)]
        # Of a disk that can't be asked, nothing but its role is known.
        if state in READABLE and (number in bad or not has(disk, ShardKey(seal.stripe, number))):
            state = ShardState.BAD
        states.append(state)
    readable = sum(state in READABLE for state in states)
    away = states.count(ShardState.AWAY)
    needs = [number for number, state in enumerate(states) if state in NEEDY]
    needs.sort(key=lambda number: states[number] is ShardState.LEAVING)
    return StripeHealth(
        shards=tuple(states),
        readable=readable,
        spare=readable - layout.data,
        needs=tuple(needs),
        unreadable=readable < layout.data,
        lost=readable + away < layout.data,
    )

"""Has every stripe all its shards, and can each be read?"""

from __future__ import annotations

from collections import Counter
from typing import Final

import trio

from dwfs.node.checking.disks import BadShards
from dwfs.node.checking.report import CheckReport, Progress
from dwfs.node.disks.listing import PoolDisks
from dwfs.ports import ShardFault
from dwfs.stripe import ShardState, StripeHealth, StripeStore, assess, layout_of
from dwfs.types import DiskId, ShardKey, StripeId, StripeSeal
from dwfs.volume import Volume

_BATCH: Final = 256
_MISSING: Final = frozenset({ShardState.ABSENT, ShardState.LOST, ShardState.AWAY})


async def check_stripes(
    volume: Volume,
    stripes: StripeStore,
    disks: PoolDisks,
    bad: BadShards,
    report: CheckReport,
    progress: Progress,
) -> set[StripeId]:
    """Judge every stripe by its seal, the disks' indexes, and what reading found (`bad`).

    Shards of a wrong length are added to `bad`.

    Gives the stripes that can't be read now.
    """
    lost: set[StripeId] = set()
    short: Counter[str] = Counter()
    after: StripeId | None = None

    def has(disk: DiskId, key: ShardKey) -> bool:
        store = disks.get(disk)
        return store is not None and store.has(key)

    while seals := volume.catalog.seals(after, _BATCH):
        after = seals[-1].stripe
        for seal in seals:
            if stripes.is_in_memory(seal.stripe):
                continue  # its shards are moving: whoever moves them sees to them
            _compare_lengths(seal, disks, bad, report)
            health = assess(seal, disks.role, has, _bad_now(seal, bad))
            report.shards_missing += _missing(seal, health, bad)
            if health.unreadable:
                lost.add(seal.stripe)
                _tell_lost(seal, health, report)
            elif health.readable < seal.geometry.total:
                report.stripes_short += 1
                short.update(_reasons(health))
        report.stripes += len(seals)
        await progress({"what": "stripes", "done": report.stripes, "total": None})
        await trio.lowlevel.checkpoint()
    report.stripes_lost = len(lost)
    if report.stripes_short:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(short.items()))
        report.add(
            "stripe",
            "shortage",
            f"{report.stripes_short} stripes lack shards ({reasons}); nothing is lost",
        )
    return lost


def _compare_lengths(
    seal: StripeSeal, disks: PoolDisks, bad: BadShards, report: CheckReport
) -> None:
    """A shard whose length is not what the seal says is as good as damaged."""
    layout = layout_of(seal)
    for number, disk in enumerate(seal.placement):
        store = disks.get(disk) if disk else None
        key = ShardKey(seal.stripe, number)
        wanted = layout.payload_length(number)
        if store is None or not wanted or not store.has(key):
            continue
        found = store.length(key)
        if found != wanted and number not in bad.get(seal.stripe, {}):
            bad.setdefault(seal.stripe, {})[number] = (disk, ShardFault.ROTTEN)
            report.shards_damaged += 1
            report.add(
                "stripe",
                "shortage",
                f"shard {number} of stripe {seal.stripe.hex()} has {found} bytes, not {wanted}",
            )


def _bad_now(seal: StripeSeal, bad: BadShards) -> frozenset[int]:
    """The stripe's bad shards that are still where they were when they were read."""
    found = bad.get(seal.stripe, {})
    return frozenset(
        number
        for number, (disk, _) in found.items()
        if number < len(seal.placement) and seal.placement[number] == disk
    )


def _missing(seal: StripeSeal, health: StripeHealth, bad: BadShards) -> int:
    """Shards that are not there, as against those that are and are damaged."""
    damaged = _bad_now(seal, bad)
    return sum(
        state in _MISSING or (state is ShardState.BAD and number not in damaged)
        for number, state in enumerate(health.shards)
    )


def _reasons(health: StripeHealth) -> list[str]:
    names = {
        ShardState.ABSENT: "shards never written",
        ShardState.LOST: "shards on disks that are gone",
        ShardState.AWAY: "shards on disks that are away",
        ShardState.BAD: "shards missing or damaged on their disks",
    }
    return [names[state] for state in health.shards if state in names]


def _tell_lost(seal: StripeSeal, health: StripeHealth, report: CheckReport) -> None:
    needed = seal.geometry.data
    name = f"stripe {seal.stripe.hex()}"
    if health.lost:
        text = f"{name} has {health.readable} of the {needed} shards that it needs: it is lost"
    else:
        text = (
            f"{name} can be read only when disks that are away are back: "
            f"{health.readable} of the {needed} shards that it needs are here"
        )
    report.add("stripe", "damage", text)

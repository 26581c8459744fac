"""What must be true of a pool that had the time to heal: exact accounts, full redundancy, sound shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from dwfs.errors import MediumError
from dwfs.node.assembly import Pool
from dwfs.node.check import check_pool
from dwfs.ports import ShardStore
from dwfs.stripe.redundancy import assess
from dwfs.types import DiskId, ShardKey, StripeId, StripeSeal
from tests.sim.engine_history import HistoryError

if TYPE_CHECKING:
    from tests.sim.engine_world import World

_ROUNDS: Final = 60
_ROUND_SECONDS: Final = 30.0
_PAGE: Final = 256


async def audit(pool: Pool, world: World, note: Callable[[str], None]) -> None:
    """Let the pool heal, then look at all of it. Raises HistoryError."""
    assert pool.services is not None, "nothing is missing any more"
    for disk in pool.foundation.disks.all():
        if disk.state == "offline":
            await pool.life_cycle.online(disk.id)
    await _scrub(pool)
    for _ in range(_ROUNDS):
        await pool.volume.destage()
        while await pool.volume.drop_dead_stripes():
            pass
        left = _what_is_left(pool)
        if not left:
            break
        await trio.sleep(_ROUND_SECONDS)
    else:
        raise HistoryError(f"the pool does not heal: {'; '.join(left)}")
    for store in list(pool.foundation.disks):
        await store.sync()  # what was replaced is erased only after one
    await _scrub(pool)  # again: the first one left alone what was still in memory
    await _read_every_shard(pool)
    report = await check_pool(pool, read=True, progress=_unheard)
    # A bad sector that holds nothing stays one, and is rightly told.
    bad_sectors = any(step.what == "lose-pages" for step in world.plan.steps)
    found = [
        f"{one.area}: {one.text}"
        for one in report.findings
        if not (bad_sectors and one.area == "segment" and "EIO" in one.text)
    ]
    if found:
        raise HistoryError(f"the check finds: {'; '.join(found)}")
    note("the audit is content")


async def _unheard(_progress: object) -> None:
    return None


async def _scrub(pool: Pool) -> None:
    """Have all silent damage found and mended."""
    assert pool.services is not None
    scrub = pool.services.scrub
    if scrub.status().state != "running":
        scrub.start()
    while scrub.status().state == "running":
        await trio.sleep(1)


def _what_is_left(pool: Pool) -> list[str]:
    """What is not yet as it should be."""
    disks = pool.foundation.disks
    left = [
        f"disk {disk.directory} is {disk.state}: {disk.reason}"
        for disk in disks.all()
        if disk.state in ("missing", "suspect", "removing", "offline")
    ]
    seals = _seals(pool)
    named: dict[DiskId, set[ShardKey]] = {}
    enough = len(disks.writable()) >= pool.foundation.header.geometry.total
    stores: dict[DiskId, ShardStore] = {store.disk: store for store in disks}
    for seal in seals:
        for number, disk in enumerate(seal.placement):
            named.setdefault(disk, set()).add(ShardKey(seal.stripe, number))
        health = assess(
            seal, disks.role, lambda disk, key: disk in stores and stores[disk].has(key)
        )
        if health.unreadable or (enough and health.needs):
            states = " ".join(state.value for state in health.shards)
            left.append(f"stripe {seal.stripe.hex()[:8]} is {states}")
    for store in stores.values():
        strays = _keys(store) - named.get(store.disk, set())
        if strays:
            left.append(
                f"disk {store.disk.hex()[:8]} holds {len(strays)} shards that no seal names"
            )
    if pool.volume.reaping:
        left.append(f"{pool.volume.reaping} destroyed snapshots are not reaped")
    if pool.volume.catalog.dead_stripes(1):
        left.append("dead stripes are not dropped")
    return left


def _seals(pool: Pool) -> list[StripeSeal]:
    found: list[StripeSeal] = []
    after: StripeId | None = None
    while page := pool.volume.catalog.seals(after, _PAGE):
        found += page
        after = page[-1].stripe
    return found


def _keys(store: ShardStore) -> set[ShardKey]:
    found: set[ShardKey] = set()
    after: ShardKey | None = None
    while page := store.keys(after, _PAGE):
        found.update(page)
        after = page[-1]
    return found


async def _read_every_shard(pool: Pool) -> None:
    """Each shard is what its checksums say; the pool had its time to mend it."""
    for store in list(pool.foundation.disks):
        for key in sorted(_keys(store), key=lambda key: (key.stripe, key.number)):
            try:
                await store.read_verified(key)
            except MediumError as error:
                raise HistoryError(f"a shard was not mended: {error}") from error

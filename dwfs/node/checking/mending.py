"""What `dwfs check --repair` does about what it found, while the pool is open.

Everything here uses the ways in which the pool heals itself, so it is safe beside readers and
writers: header copies are written anew, shards that nobody claims are deleted, stripes are mended and
their repair is read back, garbage in segments is erased or adopted, log and snapshots get their copies.
What can only be derived anew as a whole (a state that contradicts itself, an index that disagrees with
its segments) is left to a rebuild of the state directory, for which the pool must be closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from dwfs.errors import DwfsError, PosixError
from dwfs.node.assembly import Pool
from dwfs.node.checking.disks import BadShards
from dwfs.node.checking.report import CheckReport, Progress
from dwfs.node.reclaim_target import VolumeReclaimTarget
from dwfs.node.services.pool_services import PoolServices
from dwfs.node.services.rescue import LostRanges, Rescuer
from dwfs.stripe import Damage, DiskScrub

_QUIET_SECONDS: Final = 3600.0  # more than this and people want an answer: repair goes on anyway
_TELL_SECONDS: Final = 1.0


async def mend(
    pool: Pool, found: CheckReport, bad: BadShards, lost: LostRanges, progress: Progress
) -> list[str]:
    """Mend what can be mended now; gives sentences that say what was done."""
    services, copies = pool.services, pool.copies
    if services is None or copies is None:
        return []
    done: list[str] = []
    areas = {finding.area for finding in found.findings}
    if "header" in areas:
        missed = await pool.foundation.membership.change_header(lambda header: header)
        done.append(
            "the pool header was written anew to every disk"
            + (f" but {', '.join(missed)}" if missed else "")
        )
    if found.orphans:
        swept = 0
        for store in list(pool.foundation.disks):
            swept += await pool.sweep.sweep(store)
        done.append(f"{swept} shards that no stripe claims were deleted")
    if "log" in areas:
        try:
            whole = await copies.heal()
            done.append(
                f"log and snapshots have {'all' if whole else 'more of'} their copies again"
            )
        except (DwfsError, PosixError) as error:
            done.append(f"log and snapshots could not be healed: {error}")
    if "segment" in areas:
        done += await _resolve_segments(pool, services, progress)
    if areas & {"stripe", "segment"}:
        done += await _mend_stripes(services, bad, progress)
    if lost:
        rescuer = Rescuer(pool.volume, pool.stripes, VolumeReclaimTarget(pool.volume))
        await rescuer.sift(lost, copy=True)
        done.append(
            f"{rescuer.rescued_bytes} bytes were copied out of stripes that can't be mended"
        )
    return done


async def _resolve_segments(pool: Pool, services: PoolServices, progress: Progress) -> list[str]:
    """Scrub the disks: that erases garbage, adopts what belongs, and has damage repaired."""
    stores = list(pool.foundation.disks)
    scrubs = [services.make_scrub(store.disk, None) for store in stores]
    total = sum(store.space().used_bytes for store in stores)

    async def run(scrub: DiskScrub) -> None:
        await scrub.run()

    def look() -> Mapping[str, object]:
        done = sum(scrub.state.size_bytes for scrub in scrubs)
        return {"what": "segments", "done": done, "total": max(done, total)}

    async with trio.open_nursery() as telling:
        telling.start_soon(_tell, look, progress)
        async with trio.open_nursery() as nursery:
            for scrub in scrubs:
                nursery.start_soon(run, scrub)
        telling.cancel_scope.cancel()
    repaired = sum(scrub.state.repaired for scrub in scrubs)
    faults = sum(sum(scrub.state.faults.values()) for scrub in scrubs)
    return [f"{faults} faults in segments were dealt with, {repaired} shards were repaired"]


async def _mend_stripes(services: PoolServices, bad: BadShards, progress: Progress) -> list[str]:
    repairer = services.repairer
    before = repairer.mended_stripes
    for stripe, shards in bad.items():
        for number, (disk, fault) in shards.items():
            repairer.report(Damage(stripe, number, disk, fault))
    repairer.walk_soon()

    def look() -> Mapping[str, object]:
        job = repairer.progress()
        return {"what": "repair", "done": job.bytes_done, "total": job.bytes_total}

    with trio.move_on_after(_QUIET_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell, look, progress)
            await repairer.quiet()
            nursery.cancel_scope.cancel()
    mended = repairer.mended_stripes - before
    return [f"{mended} stripes have their full redundancy again"] if mended else []


async def _tell(look: Callable[[], Mapping[str, object]], progress: Progress) -> None:
    """Say how far it is, for ever: a command that hears nothing takes the owner for stuck."""
    while True:
        await progress(look())
        await trio.sleep(_TELL_SECONDS)

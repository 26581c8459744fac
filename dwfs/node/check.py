"""`dwfs check`: does everything that should be there exist, and does it fit together?

From the top: the header copies, the log's and the snapshots' copies, the volume's state (a second,
independent derivation of everything that it keeps), back-references, the disks' indexes and accounts,
each stripe's shards. A stripe is judged by what the disks' indexes say, or, with `read`, by reading
every record of every segment past the page cache.

Findings are sentences for people. What is *damage*: data that can't be read any more, a state that
contradicts itself. What is only a *shortage*: copies and shards that redundancy can replace. Both make the
command's exit code 10, because somebody should act. A *leftover* of something interrupted is reported, too,
but costs only space, and the next scrub clears it away.

With `repair` everything that can be derived is derived anew, and then all is checked a second time:
the report tells what is wrong after the repair, not what was. A state or an index that contradicts
itself is rebuilt as a whole from the disks, for which the pool must be closed (`closed_check`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import trio

from dwfs.log import snapshot_holders
from dwfs.node.assembly import Pool
from dwfs.node.checking.disks import BadShards, check_headers, check_indexes, read_segments
from dwfs.node.checking.mending import mend
from dwfs.node.checking.paths import paths_of_files
from dwfs.node.checking.references import check_references
from dwfs.node.checking.report import CheckReport, Finding, Progress
from dwfs.node.checking.stripes import check_stripes
from dwfs.node.reclaim_target import VolumeReclaimTarget
from dwfs.node.services.rescue import LostRanges, Rescuer
from dwfs.ports import ShardFault
from dwfs.send import unfinished_receive

__all__ = ["CheckReport", "Finding", "check_pool"]

_SWEEP_SECONDS: Final = 60.0  # that a check waits for the sweep after a mount


class _Look(NamedTuple):
    report: CheckReport
    bad: BadShards
    lost: LostRanges


async def check_pool(
    pool: Pool, *, read: bool, repair: bool = False, progress: Progress
) -> CheckReport:
    """Check an open pool, and mend what can be mended while it is open.

    Raises PosixError if it can't even be brought to rest, PoolBusyError in the middle of a receive.
    """
    unfinished = unfinished_receive(pool.volume, pool.name)
    if unfinished is not None:
        raise unfinished  # names and inodes do not fit together before the stream's end
    first = await _look(pool, progress, read=read)
    if not repair or first.report.clean or pool.read_only:
        return first.report
    repaired = await mend(pool, first.report, first.bad, first.lost, progress)
    report = (await _look(pool, progress, read=read)).report
    report.repaired = repaired
    return report


async def _look(pool: Pool, progress: Progress, *, read: bool) -> _Look:
    """Everything once."""
    report = CheckReport(pool=pool.name, read=read)
    disks = pool.foundation.disks
    await check_headers(pool.foundation, report)
    await _check_copies(pool, report)
    if not pool.read_only:
        await pool.volume.destage()
        with trio.move_on_after(_SWEEP_SECONDS):
            await pool.sweep.wait_idle()
    await progress({"what": "state", "done": 0, "total": None})
    # No await within: nothing may change the state while it is compared with itself.
    for text in pool.volume.check():
        report.add("state", "damage", text)
    await check_indexes(disks, pool.volume, pool.stripes, report)
    bad = await read_segments(disks, report, progress) if read else _known_bad(pool)
    lost = await check_stripes(pool.volume, pool.stripes, disks, bad, report, progress)
    files = await check_references(pool.volume, lost, report, progress)
    # Of a stripe with too few sound shards most sectors may still be readable.
    rescuer = Rescuer(pool.volume, pool.stripes, VolumeReclaimTarget(pool.volume))
    damaged = await rescuer.sift(files.lost, copy=False)
    report.damaged_files = await paths_of_files(pool.volume, damaged)
    away = pool.foundation.lost_disks
    what = "can't be read in full while disks are away" if away else "has lost data"
    for name in report.damaged_files:
        report.add("file", "damage", f"{name} {what}")
    report.needs_reopen |= any(
        finding.area == "state" and finding.severity == "damage" for finding in report.findings
    )
    return _Look(report, bad, files.lost)


def _known_bad(pool: Pool) -> BadShards:
    """What readers and scrubs found and nobody could mend yet."""
    bad: BadShards = {}
    reported = {} if pool.services is None else pool.services.repairer.bad_shards()
    for stripe, numbers in reported.items():
        seal = pool.volume.catalog.seal_of(stripe)
        if seal is not None:
            places = {number: seal.placement[number] for number in numbers}
            bad[stripe] = {number: (disk, ShardFault.ROTTEN) for number, disk in places.items()}
    return bad


def _with_paths(pool: Pool, text: str) -> str:
    """Disks by where they are mounted: the log knows them by their ids."""
    for disk in pool.foundation.disks.all():
        text = text.replace(f"disk {disk.id.hex()[:8]}", str(disk.directory))
    return text


async def _check_copies(pool: Pool, report: CheckReport) -> None:
    """Log and snapshots have all their copies, and each can be read."""
    if pool.log is None:
        report.add("log", "shortage", "the pool is open read-only: too many disks are gone")
        return
    status = pool.log.status()
    if status.copies < status.copies_wanted:
        report.add("log", "shortage", f"{status.copies} of {status.copies_wanted} copies")
    for finding in await pool.log.verify():
        report.add("log", finding.kind, _with_paths(pool, finding.detail))
    foundation = pool.foundation
    try:
        holders = await foundation.run_guarded(
            snapshot_holders,
            foundation.directories(),
            foundation.header.pool,
            foundation.header.root_volume,
            foundation.platform.medium,
        )
    except OSError as error:
        report.add("log", "shortage", f"the snapshots could not be looked at: {error}")
        return
    if holders and len(holders[0].disks) < status.copies_wanted:
        copies = f"{len(holders[0].disks)} of {status.copies_wanted} copies"
        report.add("log", "shortage", f"the newest snapshot of the state has {copies}")

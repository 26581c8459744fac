"""Are the disks what the header says, their segments sound, and their indexes in step?

Without reading: header copies, the index against the state (shards that no stripe claims) and against
the segments' accounts. With reading: every record of every segment, in disk order, all disks at once,
past the page cache; that also finds what no index knows of.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import trio

from dwfs.disk.scrubbing import SEGMENT_KEY
from dwfs.errors import DwfsError, MediumError
from dwfs.limits import MIB
from dwfs.node.checking.report import CheckReport, Progress
from dwfs.node.disks.listing import PoolDisk, PoolDisks
from dwfs.node.disks.survey import survey_disks
from dwfs.node.foundation import Foundation
from dwfs.ports import ScrubFinding, ShardFault, ShardStore
from dwfs.stripe import StripeStore, orphans
from dwfs.types import DiskId, DiskPosition, ShardKey, StripeId
from dwfs.volume import Volume

BadShards = dict[StripeId, dict[int, tuple[DiskId, ShardFault]]]

_BATCH: Final = 512
_PIECE_SIZE: Final = 8 * MIB
_TELL_SECONDS: Final = 0.5
_GARBAGE: Final = (ShardFault.DUPLICATE, ShardFault.STRAY)


async def check_headers(foundation: Foundation, report: CheckReport) -> None:
    """Every member is there, works, and has the newest header in both copies."""
    for disk in foundation.disks.all():
        if disk.state != "online":
            report.add("disk", "shortage", f"{disk.directory} is {disk.state}: {disk.reason}")
    try:
        survey = await foundation.run_guarded(
            survey_disks, foundation.config, foundation.platform.medium
        )
    except DwfsError as error:
        report.add("header", "damage", str(error))
        return
    except OSError as error:
        report.add("header", "shortage", f"the headers could not be read: {error}")
        return
    for stored in survey.stale:
        what = "is damaged (an older copy is used)" if stored.fallback else "is out of date"
        report.add("header", "shortage", f"the pool header in {stored.directory} {what}")


async def check_indexes(
    disks: PoolDisks, volume: Volume, stripes: StripeStore, report: CheckReport
) -> None:
    """No disk holds a shard that no stripe claims, and its accounts agree with its index."""
    for disk in disks.all():
        store = disk.store
        if store is None or disks.get(disk.id) is None:
            continue
        found = await _count_orphans(store, volume, stripes)
        report.orphans += found
        if found:
            report.add(
                "disk",
                "leftover",
                f"{disk.directory} holds {found} shards that no stripe claims: wasted space",
            )
        for text in store.check_accounts():
            report.add("space", "shortage", f"{disk.directory}: {text}")
            report.needs_reopen = True


async def _count_orphans(store: ShardStore, volume: Volume, stripes: StripeStore) -> int:
    found = 0
    after: ShardKey | None = None
    while keys := store.keys(after, _BATCH):
        after = keys[-1]
        # No await between looking at the index and at the state.
        found += len(orphans(keys, store.disk, volume.catalog.seal_of, stripes.is_in_memory))
        await trio.lowlevel.checkpoint()
    return found


async def read_segments(disks: PoolDisks, report: CheckReport, progress: Progress) -> BadShards:
    """Read every record of every disk; gives the live shards that are bad."""
    bad: BadShards = {}
    reading = [disk for disk in disks.all() if disks.get(disk.id) is not None]
    total = sum(disk.store.space().used_bytes for disk in reading if disk.store is not None)
    last_told = trio.current_time()

    async def read(disk: PoolDisk) -> None:
        nonlocal last_told
        store = disks.get(disk.id)
        position: DiskPosition | None = DiskPosition(0, 0)
        others: Counter[ShardFault] = Counter()
        while store is not None and position is not None:
            try:
                piece = await store.scrub(position, _PIECE_SIZE)
            except MediumError as error:
                report.add("disk", "shortage", f"{disk.directory} could not be read: {error}")
                break
            for finding in piece.findings:
                others[finding.fault] += not _note(finding, disk, bad, report)
            report.read_bytes += piece.size_bytes
            position = piece.following
            if trio.current_time() - last_told >= _TELL_SECONDS:
                last_told = trio.current_time()
                await progress({"what": "shards", "done": report.read_bytes, "total": total})
        for fault in _GARBAGE:
            if not others[fault]:
                continue
            report.add(
                "segment",
                "leftover",
                f"{disk.directory} holds {others[fault]} records that nothing needs "
                f"({fault.value}): wasted space",
            )

    async with trio.open_nursery() as nursery:
        for disk in reading:
            nursery.start_soon(read, disk)
    return bad


def _note(finding: ScrubFinding, disk: PoolDisk, bad: BadShards, report: CheckReport) -> bool:
    """Keep a finding about a live shard, or about a segment; tells whether it was one."""
    if finding.fault in _GARBAGE:
        return False
    if finding.key == SEGMENT_KEY:
        report.add("segment", "shortage", f"{disk.directory}: {finding.detail}")
        return True
    bad.setdefault(finding.key.stripe, {})[finding.key.number] = (disk.id, finding.fault)
    report.shards_damaged += 1
    report.add(
        "segment",
        "shortage",
        f"{disk.directory}: shard {finding.key.number} of stripe {finding.key.stripe.hex()} is "
        f"{finding.fault.value} ({finding.detail})",
    )
    return True

"""What a scrub may change on the disk: records that are wanted after all, and a segment's own tables.

A segment's prefix is known, and its footer can be made again from the index, but for the names of
records that are dead: those lines are left blank. That matters, because a segment without a prefix is
passed over when the index is rebuilt, with all that it holds. The footer is written over one that is
damaged already, so a crash in the middle makes nothing worse; and where a blank line is filled in again
such a crash costs the footer at most, without which a rebuild walks from record to record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dwfs.disk.access import DiskAccess
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.record import Location
from dwfs.disk.segment import (
    BLANK_KEY,
    DEAD,
    FooterEntry,
    pack_footer,
    pack_prefix,
    record_count,
    segment_path,
)
from dwfs.disk.transfer import enter_in_footer, overwrite
from dwfs.disk.writing import ShardWriter


async def adopt_record(
    directory: Path,
    access: DiskAccess,
    ledger: SegmentLedger,
    writer: ShardWriter,
    entry: FooterEntry,
) -> None:
    """Enter a whole record that lies in a closed segment into the index. Raises MediumError."""
    place = entry.location
    if place.segment not in ledger.numbers():
        return
    if ledger.account(place.segment).liveness_offset:
        path = segment_path(directory, place.segment)
        if not await access.run("adopt", enter_in_footer, access.medium, path, entry):
            return  # the footer has no line for it, so no rebuild would find it again
    # The segment may have been dropped, and the key been put, while the worker wrote.
    if place.segment in ledger.numbers() and ledger.index.get(entry.key) is None:
        ledger.enter(entry.key, place, ledger.account(place.segment).scanned)
        writer.touch(place.segment)


async def mend_segment(
    directory: Path,
    access: DiskAccess,
    ledger: SegmentLedger,
    writer: ShardWriter,
    number: int,
    indexed: Sequence[FooterEntry] | None,
) -> None:
    """Write a closed segment's prefix again, and its footer if `indexed` is given.

    `indexed` is what the index has in the segment. Raises MediumError. A delete may come meanwhile,
    and its mark be overwritten; so what is not live any more afterwards is marked once more.
    """

    def is_live(entry: FooterEntry) -> bool:
        return ledger.index.get(entry.key) == entry.location

    pieces = [(0, pack_prefix(access.disk, number))]
    account = ledger.account(number)
    live = [entry for entry in indexed or () if is_live(entry)]
    # A replaced record that waits for a sync is not in the index, but must be found after a crash.
    if indexed is not None and account.liveness_offset and not writer.has_superseded(number):
        footer = _footer(number, account.scanned, account.liveness_offset, live)
        if footer is not None:
            pieces.append((account.scanned, footer))
    path = segment_path(directory, number)
    await access.run("mend", overwrite, access.medium, path, pieces)
    marks = [
        (account.liveness_offset + entry.location.ordinal, bytes([DEAD]))
        for entry in live
        if not is_live(entry)
    ]
    if marks and number in ledger.numbers():
        await access.run("mend", overwrite, access.medium, path, marks)


def _footer(number: int, offset: int, liveness: int, live: Sequence[FooterEntry]) -> bytes | None:
    """A footer that fits where the damaged one lies, or None if the sizes don't add up."""
    count = record_count(offset, liveness)
    if count is None or any(entry.location.ordinal >= count for entry in live):
        return None
    entries = [
        FooterEntry(BLANK_KEY, Location(number, 0, ordinal, 0, 0)) for ordinal in range(count)
    ]
    for entry in live:
        entries[entry.location.ordinal] = entry
    dead = set(range(count)) - {entry.location.ordinal for entry in live}
    return pack_footer(number, offset, entries, dead)

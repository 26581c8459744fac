"""Bringing the index in step with the segments, when a store is opened.

Trusted index (clean stop, or only the process crashed): segments that the index knows as closed are
believed. Of the others the part behind the account's `scanned` position is scanned; it holds what was
put after the last commit of the index. Entries of segment files that have vanished are dropped. What
was deleted after the last commit stays in the index as an entry whose record is zeros; the volumes'
state no longer refers to it, and the mount's search for orphans deletes it again.

Untrusted index (the machine crashed, the state directory is new): all is forgotten and every segment
scanned, from its footer if it has one.

A key may be found in two places, when a crash came between a replacement and the erasure of the old
record. The later place (segment, offset) wins; the other is handed back to be erased after the next
sync, since the winner may not be durable yet.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from dwfs.disk.access import DiskAccess
from dwfs.disk.faults import medium_error
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.medium import Medium
from dwfs.disk.record import Location
from dwfs.disk.scan import SegmentScan, scan_segment
from dwfs.disk.segment import DIRECTORY_NAME, segment_numbers, segment_path
from dwfs.types import ShardKey

Progress = Callable[[int, int], None]  # (segments done, segments in all)

_ENTRIES_BETWEEN_CHECKPOINTS = 1_000  # some milliseconds of the loop's time

_log = logging.getLogger(__name__)


class Recovery(msgspec.Struct):
    """What recovery found besides the index. msgspec gives each instance its own containers."""

    next_number: int = 1  # of the first segment to be made
    allocated_bytes: int = 0  # of all segment files
    superseded: list[tuple[ShardKey, Location]] = []  # older records of keys found twice
    unsynced: set[int] = set()  # segments with records that no earlier sync may have covered
    unreadable: list[int] = []  # segments that could not be scanned, or not everywhere
    torn: int = 0


async def recover(
    directory: Path,
    access: DiskAccess,
    ledger: SegmentLedger,
    *,
    trusted: bool,
    progress: Progress | None = None,
) -> Recovery:
    """Make the ledger say what the segments hold. Raises MediumError if they can't be listed."""
    disk, medium = access.disk, access.medium
    numbers = await access.run("open", _prepare, medium, directory)
    if not trusted:
        ledger.clear()
    found = Recovery(next_number=max([0, *numbers, *ledger.numbers()]) + 1)
    vanished = ledger.numbers() - set(numbers)
    if vanished:
        lost = ledger.drop_entries_of(vanished)
        # After a crash this is usual: emptied segments are unlinked before the index is committed.
        _log.info(
            "disk %s: %d segments vanished with %d shards", disk.hex()[:8], len(vanished), lost
        )
    pending = [number for number in numbers if not ledger.account(number).liveness_offset]
    settled = set(numbers) - set(pending)
    found.allocated_bytes = await access.run("open", _allocated, medium, directory, settled)
    for done, number in enumerate(pending):
        if progress is not None:
            progress(done, len(pending))
        start = ledger.account(number).scanned
        try:
            finished = False
            while not finished:
                path = segment_path(directory, number)
                scan = await access.run_raw(scan_segment, medium, path, disk, number, start)
                await _enter(scan, ledger, found)
                start, finished = scan.scanned, scan.finished
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:  # it is the disk, not this segment
                raise medium_error(disk, "open", error) from error
            _log.warning("disk %s: segment %d: %s", disk.hex()[:8], number, error.strerror)
            found.unreadable.append(number)
            continue
    if progress is not None:
        progress(len(pending), len(pending))
    return found


async def _enter(scan: SegmentScan, ledger: SegmentLedger, found: Recovery) -> None:
    if scan.finished:
        found.allocated_bytes += scan.allocated_bytes
    found.torn += scan.torn
    if not scan.valid:
        if scan.allocated_bytes:
            _log.warning("segment %d is damaged or not of this disk; passed over", scan.number)
        else:  # a crash came between its creation and its first byte
            _log.info("segment %d was begun but never written; passed over", scan.number)
        found.unreadable.append(scan.number)
        return
    if scan.unread:
        _log.warning("segment %d can't be read everywhere", scan.number)
        found.unreadable.append(scan.number)
    if scan.live:
        found.unsynced.add(scan.number)
    for count, entry in enumerate(scan.live, start=1):
        present = ledger.index.get(entry.key)
        if present is None or _order(present) <= _order(entry.location):
            replaced = ledger.enter(entry.key, entry.location, entry.location.offset)
            if replaced is not None:
                found.superseded.append((entry.key, replaced))
        else:
            found.superseded.append((entry.key, entry.location))
        if count % _ENTRIES_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
    ledger.scanned(scan.number, scan.scanned, scan.liveness_offset)


def _order(location: Location) -> tuple[int, int]:
    return location.segment, location.offset


def _prepare(medium: Medium, directory: Path) -> list[int]:
    """Make the segments' directory if the disk is new to us; list what there is."""
    medium.make_directory(directory / DIRECTORY_NAME)
    return segment_numbers(medium, directory)


def _allocated(medium: Medium, directory: Path, numbers: set[int]) -> int:
    size = 0
    for number in numbers:
        try:
            size += medium.allocated_bytes(segment_path(directory, number))
        except OSError:
            continue  # unlinked or unreadable: it counts for nothing here, reads will tell
    return size

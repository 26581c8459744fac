"""Scrubbing one disk: is what lies there what should, segment by segment, in the order of the disk.

What should lie in a segment is known from three sources. The segment's footer names every place in it;
for one that this run writes the store's own list does; for the rest (left open by a crash, or with a
damaged footer) the index is searched for it, and the segment for records that nobody knows. Which of
these are live only the index says.

The look itself takes a worker a while, and puts and deletes go on. So what the worker found is held
against the index once more when it has come back, with no wait between that and the answer: a place
that is not live any more, or live by now, is no finding. A scrub changes nothing but this: it mends the
segment's own prefix and footer, which are derivable, because a later rebuild of the index rests on
them.
"""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path
from typing import Final

import msgspec
import trio

from dwfs.disk.access import DiskAccess
from dwfs.disk.faults import medium_error
from dwfs.disk.healing import adopt_record, mend_segment
from dwfs.disk.inspection import Inspection, SegmentOutline, Verdict, inspect, outline, read_entry
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.record import Location
from dwfs.disk.segment import (
    BLANK_KEY,
    DIRECTORY_NAME,
    PREFIX_SIZE,
    FooterEntry,
    segment_numbers,
    segment_path,
)
from dwfs.disk.writing import ShardWriter
from dwfs.errors import DiskTimeoutError, MediumError
from dwfs.ports import ScrubFinding, ScrubPiece, ShardFault
from dwfs.types import DiskPosition, ShardKey

SEGMENT_KEY: Final = BLANK_KEY  # of findings about a segment itself: no stripe has this id

_PREFIX_DAMAGED: Final = "the segment's prefix is damaged"
_DEAD_COST: Final = 4_096  # bytes of the budget that a look at a dead place costs
_ENTRIES_AT_ONCE: Final = 2_000  # of the index, between two checkpoints: some milliseconds

_log = logging.getLogger(__name__)


class _Plan(msgspec.Struct):
    """What is to be looked at in one segment."""

    number: int
    entries: list[FooterEntry]  # ascending by offset
    walk_end: int  # search the segment up to there for more; 0: `entries` is all there is
    check_dead: bool
    faults: list[ScrubFinding]  # of the segment itself; reported with the first piece
    exists: bool


class ShardScrubber:
    """The scrubbing part of a store. Several scrubs at a time are right, but each plans anew."""

    def __init__(
        self, directory: Path, access: DiskAccess, ledger: SegmentLedger, writer: ShardWriter
    ) -> None:
        self._directory = directory
        self._access = access
        self._medium = access.medium
        self._ledger = ledger
        self._writer = writer
        self._plan: _Plan | None = None  # of the segment that the last piece lay in

    async def scrub(self, start: DiskPosition, size_bytes: int) -> ScrubPiece:
        """Look at about `size_bytes` from `start` on. Raises MediumError if nothing can be listed."""
        plan = self._plan
        if plan is None or not start.offset or plan.number != start.segment:
            plan = await self._make_plan(start)
            if plan is None:
                return ScrubPiece((), 0, 0, None)
            self._plan = plan
        first = start.offset if plan.number == start.segment else 0
        chosen, end = self._choose(plan, first, size_bytes)
        last = end is None
        live = [entry for entry in chosen if self._is_live(entry)]
        dead = [entry.location for entry in chosen if plan.check_dead and not self._is_live(entry)]
        walk = None
        if plan.walk_end:
            walk = (max(first, PREFIX_SIZE), plan.walk_end if end is None else end)
        with self._writer.eraser.watch() as erased:
            found = await self._inspect(plan, live, dead, walk)
        # No wait from here on: what is judged is the index of this moment.
        findings = plan.faults if first == 0 else []
        findings = [*findings, *self._bad(found), *self._surplus(found, erased)]
        if last:
            self._plan = None
            following = DiskPosition(plan.number + 1, 0)
        else:
            assert end is not None
            following = DiskPosition(plan.number, end)
        return ScrubPiece(tuple(findings), len(live), found.size_bytes, following)

    async def erase(self, finding: ScrubFinding) -> None:
        """Free the record at the finding's place unless it is wanted by now. Raises MediumError."""
        place = await self._surplus_record(finding)
        if place is not None and self._ledger.index.get(finding.key) != place.location:
            await self._writer.eraser.erase([place.location])

    async def adopt(self, finding: ScrubFinding) -> None:
        """Enter the whole record at the finding's place into the index. Raises MediumError."""
        entry = await self._surplus_record(finding, whole=True)
        if entry is not None and self._ledger.index.get(finding.key) is None:
            await adopt_record(self._directory, self._access, self._ledger, self._writer, entry)

    # --- planning ----------------------------------------------------------------------------

    async def _make_plan(self, start: DiskPosition) -> _Plan | None:
        numbers = await self._access.run("scrub", self._numbers)
        ahead = [n for n in {*numbers, *self._ledger.numbers()} if n >= start.segment]
        if not ahead:
            return None
        number = min(ahead)
        try:
            seen = await self._outline(number)
        except OSError as error:
            problem = medium_error(self._access.disk, "scrub", error)
            if isinstance(problem, DiskTimeoutError):
                raise problem from error
            entries = await self._indexed(number)
            fault = self._fault(number, ShardFault.UNREADABLE, problem.cause)
            return _Plan(number, entries, 0, check_dead=False, faults=[fault], exists=True)
        if self._writer.active(number) is not None:
            return await self._plan_by_entries(number, seen)
        if seen.footer is not None and seen.prefix:
            entries = [entry for entry in seen.footer.entries if entry.location.offset]
            # A footer that was made again has blank lines: where those lay only a search tells.
            blank = len(entries) < len(seen.footer.entries)
            end = seen.footer.offset if blank else 0
            return _Plan(number, entries, end, check_dead=not blank, faults=[], exists=True)
        return await self._plan_by_index(number, seen)

    async def _outline(self, number: int) -> SegmentOutline:
        """What the segment says of itself; of one that was closed meanwhile, afterwards."""
        path = segment_path(self._directory, number)
        while True:
            active = self._writer.active(number)
            seen = await self._access.run_raw(
                outline, self._medium, path, self._access.disk, number
            )
            if self._writer.active(number) is active:
                return seen

    async def _plan_by_entries(self, number: int, seen: SegmentOutline) -> _Plan:
        """Of a segment that is being written: up to the first place where a put is under way."""
        faults = []
        if not seen.prefix and seen.exists:
            faults.append(self._fault(number, ShardFault.ROTTEN, _PREFIX_DAMAGED))
            await self._mend_segment(number, table=False)
        active = self._writer.active(number)
        entries = []
        if active is not None:
            end = active.scanned()
            entries = [entry for entry in active.entries if entry.location.offset < end]
        return _Plan(number, entries, 0, check_dead=False, faults=faults, exists=seen.exists)

    async def _plan_by_index(self, number: int, seen: SegmentOutline) -> _Plan:
        entries = await self._indexed(number)
        if not seen.exists:
            return _Plan(number, entries, 0, check_dead=False, faults=[], exists=False)
        faults = []
        known = number in self._ledger.numbers()
        if not seen.prefix and known:
            faults.append(self._fault(number, ShardFault.ROTTEN, _PREFIX_DAMAGED))
        closed_at = self._ledger.account(number).liveness_offset
        if seen.footer is None and closed_at:
            faults.append(self._fault(number, ShardFault.ROTTEN, "the segment's table is damaged"))
        if faults:
            await self._mend_segment(number, table=seen.footer is None)
        # Records in a segment that we don't know as ours are none of our business.
        walk_end = seen.size_bytes if known else 0
        return _Plan(number, entries, walk_end, check_dead=False, faults=faults, exists=True)

    async def _mend_segment(self, number: int, *, table: bool) -> None:
        try:
            await mend_segment(
                self._directory,
                self._access,
                self._ledger,
                self._writer,
                number,
                await self._indexed(number) if table else None,
            )
        except MediumError as error:
            self._access.check()
            _log.warning("%s; segment %d stays without a table", error, number)

    async def _indexed(self, number: int) -> list[FooterEntry]:
        """What the index has in the segment, in the order of the disk."""
        found: list[FooterEntry] = []
        after: ShardKey | None = None
        while True:
            page = self._ledger.index.page(after, _ENTRIES_AT_ONCE)
            found += [FooterEntry(key, place) for key, place in page if place.segment == number]
            if len(page) < _ENTRIES_AT_ONCE:
                return sorted(found, key=lambda entry: entry.location.offset)
            after = page[-1][0]
            await trio.lowlevel.checkpoint()
            self._access.check()

    def _numbers(self) -> list[int]:
        """In a worker: the segments that exist."""
        if not self._medium.is_directory(self._directory / DIRECTORY_NAME):
            raise FileNotFoundError(2, "No such file or directory", str(self._directory))
        return segment_numbers(self._medium, self._directory)

    # --- judging -----------------------------------------------------------------------------

    async def _inspect(
        self,
        plan: _Plan,
        live: list[FooterEntry],
        dead: list[Location],
        walk: tuple[int, int] | None,
    ) -> Inspection:
        detail, fault = "the segment's file is gone", ShardFault.MISSING
        if plan.exists:
            path = segment_path(self._directory, plan.number)
            try:
                return await self._access.run_raw(
                    inspect, self._medium, self._access.fence, path, live, dead, walk
                )
            except OSError as error:
                problem = medium_error(self._access.disk, "scrub", error)
                if isinstance(problem, DiskTimeoutError):
                    raise problem from error
                if not isinstance(error, FileNotFoundError):
                    detail, fault = problem.cause, ShardFault.UNREADABLE
        return Inspection(tuple(Verdict(fault, entry, detail) for entry in live), (), 0)

    def _bad(self, found: Inspection) -> list[ScrubFinding]:
        return [
            ScrubFinding(verdict.fault, verdict.entry.key, _position(verdict.entry), verdict.detail)
            for verdict in found.verdicts
            if self._is_live(verdict.entry)  # not deleted or replaced while we looked
        ]

    def _surplus(self, found: Inspection, erased: Set[Location]) -> list[ScrubFinding]:
        findings = []
        for remains in found.remains:
            entry = remains.entry
            if entry.location in erased or not self._is_surplus(entry):
                continue
            if not remains.whole:
                fault, detail = ShardFault.DUPLICATE, "what an unfinished write has left"
            elif self._ledger.index.get(entry.key) is not None:
                fault, detail = ShardFault.DUPLICATE, "the shard lies elsewhere on this disk"
            else:
                fault, detail = ShardFault.STRAY, "the index doesn't know the shard"
            findings.append(ScrubFinding(fault, entry.key, _position(entry), detail))
        return findings

    async def _surplus_record(
        self, finding: ScrubFinding, *, whole: bool = False
    ) -> FooterEntry | None:
        """The record that a finding was about, if it is still there and still surplus."""
        number, offset = finding.position
        if finding.fault not in (ShardFault.DUPLICATE, ShardFault.STRAY):
            return None
        path = segment_path(self._directory, number)
        remains = await self._access.run("scrub", read_entry, self._medium, path, number, offset)
        if remains is None or remains.entry.key != finding.key or (whole and not remains.whole):
            return None
        return remains.entry if self._is_surplus(remains.entry) else None

    def _choose(
        self, plan: _Plan, first: int, size_bytes: int
    ) -> tuple[list[FooterEntry], int | None]:
        """The entries from `first` on that fit the budget, at least one; where to go on, or None."""
        chosen: list[FooterEntry] = []
        spent = 0
        for entry in plan.entries:
            place = entry.location
            if place.offset < first:
                continue
            if spent >= size_bytes and chosen:
                return chosen, place.offset
            chosen.append(entry)
            spent += place.size if self._is_live(entry) else _DEAD_COST
        return chosen, None

    def _is_live(self, entry: FooterEntry) -> bool:
        return self._ledger.index.get(entry.key) == entry.location

    def _is_surplus(self, entry: FooterEntry) -> bool:
        """Whether nobody wants the record: not the index, not a sync to come, not a put under way."""
        return (
            not self._is_live(entry)
            and not self._writer.is_superseded(entry.location)
            and self._writer.active(entry.location.segment) is None
        )

    def _fault(self, number: int, fault: ShardFault, detail: str) -> ScrubFinding:
        return ScrubFinding(fault, SEGMENT_KEY, DiskPosition(number, 0), detail)


def _position(entry: FooterEntry) -> DiskPosition:
    return DiskPosition(entry.location.segment, entry.location.offset)

"""Do the extents of all files fit the summaries of the stripes that they map?

A stripe's summary tells which file bytes were written into it; the cleaner empties a stripe by it.
An extent that no line of the summary covers would keep its stripe from ever being emptied, and
is a sign that the state contradicts itself. A stripe that was restored from the log after a crash may
have no summary at all; that is as it should be.

One pass over all files; what is compared is read without an await in between, so that writes that go
on meanwhile can't make it contradict itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

import trio

from dwfs.errors import PosixError
from dwfs.limits import GIB
from dwfs.node.checking.paths import walk
from dwfs.node.checking.report import CheckReport, Progress
from dwfs.node.services.rescue import LostRange, ranges_of
from dwfs.types import NO_EPOCH, BackReference, Extent, InodeNumber, StripeId
from dwfs.volume import Volume

_SPAN: Final = GIB  # file bytes looked at in one go
_SUMMARIES_KEPT: Final = 256
_TELL_EVERY: Final = 4096  # files
_FINDINGS_MAX: Final = 100  # of this kind; one broken summary makes thousands

Covered = dict[tuple[int, int], list[tuple[int, int]]]


class FilesFound(NamedTuple):
    """What the pass over all files found besides contradictions."""

    files: int
    lost: dict[StripeId, list[LostRange]]  # what files and snapshots need of lost stripes


def cover(summary: Sequence[BackReference]) -> Covered:
    """The summary's file ranges, merged, by inode and by the shift between file and stripe."""
    found: Covered = {}
    for line in sorted(summary, key=lambda line: (line.inode, line.offset)):
        ranges = found.setdefault((line.inode, line.stripe_offset - line.offset), [])
        end = line.offset + line.length
        if ranges and line.offset <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((line.offset, end))
    return found


def covers(covered: Covered, inode: int, extent: Extent) -> bool:
    """Whether the whole extent lies within one of the ranges."""
    ranges = covered.get((inode, extent.stripe_offset - extent.offset), [])
    index = bisect_right(ranges, (extent.offset, 2**64)) - 1
    return index >= 0 and extent.end <= ranges[index][1]


async def check_references(
    volume: Volume, lost: AbstractSet[StripeId], report: CheckReport, progress: Progress
) -> FilesFound:
    """Compare all files with all summaries; notes findings, and finds what files need of `lost`."""
    files = _Files(volume, lost, report)
    async for number, _ in walk(volume):
        await files.look_at(number)
        if files.count % _TELL_EVERY == 0:
            await progress({"what": "files", "done": files.count, "total": None})
    for number in volume.orphans():
        await files.look_at(number)
    for stripe in sorted(lost):
        # Files in snapshots are as many as there are files, for each of them: only what is lost is
        # looked for there, and by its stripe.
        ranges = await ranges_of(volume, stripe, snapshots_only=True)
        if ranges:
            files.found_lost.setdefault(stripe, []).extend(ranges)
    report.findings_left_out += max(0, files.uncovered - _FINDINGS_MAX)
    return FilesFound(files.count, files.found_lost)


class _Files:
    """One pass over all files."""

    def __init__(self, volume: Volume, lost: AbstractSet[StripeId], report: CheckReport) -> None:
        self.count = 0
        self.uncovered = 0
        self.found_lost: dict[StripeId, list[LostRange]] = {}
        self._volume = volume
        self._lost = lost
        self._report = report
        self._linked: set[InodeNumber] = set()  # inodes of several names that were looked at
        self._summaries: dict[StripeId, Covered] = {}

    async def look_at(self, number: InodeNumber) -> None:
        """Compare one file's extents; one that is gone meanwhile is left out."""
        if number in self._linked:
            return
        self.count += 1
        try:
            if self._volume.inode(number).nlink > 1:
                self._linked.add(number)
            start = self._volume.next_data(number, 0)
            while start is not None:
                self._compare(number, self._volume.extents(number, start, _SPAN))
                start = self._volume.next_data(number, start + _SPAN)
                if start is not None:
                    await trio.lowlevel.checkpoint()
        except PosixError:
            return

    def _compare(self, number: InodeNumber, extents: Sequence[Extent]) -> None:
        for extent in extents:
            if extent.stripe in self._lost:
                found = LostRange(
                    number, extent.offset, extent.length, extent.stripe_offset, NO_EPOCH
                )
                self.found_lost.setdefault(extent.stripe, []).append(found)
            covered = self._covered_by(extent.stripe)
            if not covered or covers(covered, number, extent):
                continue
            # A clone adds lines to a summary, perhaps since it was read.
            del self._summaries[extent.stripe]
            if covers(self._covered_by(extent.stripe), number, extent):
                continue
            self.uncovered += 1
            if self.uncovered <= _FINDINGS_MAX:
                self._report.add(
                    "state",
                    "damage",
                    f"inode {number}: the extent at {extent.offset} is in no line of the summary "
                    f"of stripe {extent.stripe.hex()}",
                )

    def _covered_by(self, stripe: StripeId) -> Covered:
        covered = self._summaries.get(stripe)
        if covered is None:
            covered = cover(self._volume.summary(stripe))
            if covered:  # of a stripe that is not sealed yet there is none; later there may be
                if len(self._summaries) >= _SUMMARIES_KEPT:
                    self._summaries.clear()
                self._summaries[stripe] = covered
        return covered

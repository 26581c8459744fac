"""Erasing records: what the index has forgotten, what was replaced, what a scrub found to be surplus.

Who looks at the disk meanwhile (a scrub) may still see a record that is about to be zeroed; so it can
ask which those are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from dwfs.disk.access import DiskAccess
from dwfs.disk.append import ActiveSegment
from dwfs.disk.files import SegmentFile, SegmentFiles
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.open_segments import OpenSegments
from dwfs.disk.reclaim import Reclaim, reclaim
from dwfs.disk.record import Location
from dwfs.disk.segment import segment_path


class Eraser:
    """The erasing part of a store."""

    def __init__(
        self,
        directory: Path,
        access: DiskAccess,
        ledger: SegmentLedger,
        files: SegmentFiles,
        segments: OpenSegments,
    ) -> None:
        self.erased_bytes = 0  # since the start
        self._directory = directory
        self._access = access
        self._medium = access.medium
        self._ledger = ledger
        self._files = files
        self._segments = segments
        self._erasing: set[Location] = set()  # records that workers are about to zero
        self._watches: list[set[Location]] = []  # and those since somebody began to look

    async def erase(self, places: Collection[Location]) -> None:
        """Erase records that the index doesn't know (any more); unlink segments that hold nothing.

        Raises MediumError.
        """
        by_segment: defaultdict[int, list[Location]] = defaultdict(list)
        for place in places:
            by_segment[place.segment].append(place)
            self.erased_bytes += place.size
            if place.segment in self._segments.active:
                self._segments.active[place.segment].dead.add(place.ordinal)
        self._erasing.update(places)
        for watch in self._watches:
            watch.update(places)
        try:
            await self._erase(by_segment)
        finally:
            self._erasing.difference_update(places)

    async def _erase(self, by_segment: Mapping[int, list[Location]]) -> None:
        with trio.CancelScope(shield=True):
            for number in by_segment:
                while (
                    active := self._segments.active.get(number)
                ) is not None and active.closed is not None:
                    await active.closed.wait()
            self._access.check()
            work: list[Reclaim] = []
            unlink: list[Path] = []
            held: list[SegmentFile] = []
            for number, dead in by_segment.items():
                active = self._segments.active.get(number)
                if active is not None:
                    active.changed = True
                    held.append(active.file)
                elif self._segments.drop_if_empty(number):
                    unlink.append(segment_path(self._directory, number))
                    continue
                else:
                    self._segments.touched.setdefault(number, False)
                work.append(self._reclaim_work(number, dead, active))
            await self._access.run(
                "delete",
                reclaim,
                self._medium,
                self._access.fence,
                work,
                unlink,
                afterwards=self._files.hold(held),
            )

    def _reclaim_work(
        self, number: int, dead: list[Location], active: ActiveSegment | None
    ) -> Reclaim:
        liveness = self._ledger.account(number).liveness_offset
        return Reclaim(
            path=segment_path(self._directory, number),
            handle=active.file.handle if active is not None else None,
            ranges=tuple((place.offset, place.end) for place in dead),
            liveness_offsets=tuple(liveness + place.ordinal for place in dead) if liveness else (),
        )

    @contextmanager
    def watch(self) -> Iterator[set[Location]]:
        """The records that are being erased, and those that will be until the end of the `with`.

        Who looks at the disk meanwhile may still see them.
        """
        watch = set(self._erasing)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches = [one for one in self._watches if one is not watch]

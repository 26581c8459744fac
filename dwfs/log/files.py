"""A log file as its writer knows it: the one that grows, and the closed ones. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dwfs.log import format as fmt
from dwfs.log.copies import Begun
from dwfs.log.ports import RecordCipher
from dwfs.log.preallocation import Preallocation
from dwfs.log.recovery import SurveyedFile
from dwfs.types import DiskId, LogSequence, VolumeId


class Framed(msgspec.Struct, frozen=True):
    """A record ready to be written."""

    draft: fmt.RecordHeader  # without sealed length and digest
    head: bytes
    sealed: bytes
    digest: bytes

    @property
    def length(self) -> int:
        """Bytes in the file."""
        return len(self.head) + len(self.sealed)


class CurrentFile:
    """The file that takes records. State moves on only by `advance`, after the disks answered."""

    def __init__(self, header: fmt.FileHeader, begun: Begun, size_max: int) -> None:
        self.header = header
        self.preallocation = Preallocation(begun.paths, begun.header_size, size_max)
        self.handles = begun.handles  # members that hold everything so far
        # Disks that were given up last of all: they still hold what was acknowledged, and are the
        # only ones that a later `heal` can copy it from.
        self.last_holders: frozenset[DiskId] = frozenset()
        self.size = begun.header_size
        self.reach: dict[VolumeId, int] = {}
        self._number = 0
        self._chain = begun.digest
        self._declared = {start.stream: start.sequence for start in header.starts}

    def declares(self, start: fmt.StreamStart) -> bool:
        """Whether the stream's records may go here: its declaration is in the header."""
        declared = self._declared.get(start.stream)
        if declared is None:
            return False
        # A stream closed and opened again without its tail would leave a gap of sequences.
        return start.stream in self.reach or declared == start.sequence

    def draft_start(self) -> fmt.RecordHeader:
        """The start record, which makes the header's declarations count."""
        return self._draft(fmt.KIND_START, fmt.NO_STREAM, 0, (1, 0), fmt.NO_IDENTITY)

    def draft(self, start: fmt.StreamStart, identity: bytes, last: LogSequence) -> fmt.RecordHeader:
        """The header of the stream's next record."""
        span = (start.sequence, last)
        return self._draft(fmt.KIND_BATCH, start.stream, start.position, span, identity)

    def _draft(
        self, kind: int, stream: VolumeId, position: int, span: tuple[int, int], identity: bytes
    ) -> fmt.RecordHeader:
        return fmt.RecordHeader(
            kind,
            self._number,
            0,
            self.header.tag,
            stream,
            position,
            LogSequence(span[0]),
            LogSequence(span[1]),
            identity,
            self._chain,
        )

    def frame(self, draft: fmt.RecordHeader, payload: bytes, cipher: RecordCipher) -> Framed:
        """Seal and frame; pure but for the cipher's randomness, so any thread may do it."""
        aad = fmt.record_aad(draft)
        sealed = cipher.seal(payload, aad)
        assert len(sealed) <= fmt.SEALED_SIZE_MAX
        head, digest = fmt.encode_record(aad, sealed)
        return Framed(draft, head, sealed, digest)

    def advance(self, framed: Framed) -> None:
        """The record is durable on all members."""
        draft = framed.draft
        self._number += 1
        self._chain = framed.digest
        self.size += framed.length
        if draft.kind == fmt.KIND_BATCH:
            self.reach[draft.stream] = max(self.reach.get(draft.stream, 0), draft.reach)


class ClosedFile:
    """A file that only waits to be trimmed, and to be mended till then."""

    def __init__(
        self,
        header: fmt.FileHeader,
        size: int,
        reach: dict[VolumeId, int],
        whole: frozenset[DiskId],
        damaged: frozenset[DiskId],
        broken: bool,
    ) -> None:
        self.sequence = header.sequence
        self.file_id = header.file_id
        self.size = size
        self.reach = reach
        self.whole = whole  # disks with a complete copy
        self.damaged = damaged  # disks whose copy lacks something
        self.doubted = False  # a check found less than was believed
        self.broken = broken  # records in the middle are lost on all copies; left as it is
        # It was growing when its process died: of its last record nobody knows whether it was synced.
        self.unsettled = False

    @property
    def holders(self) -> frozenset[DiskId]:
        """Disks with a copy, complete or not."""
        return self.whole | self.damaged

    @classmethod
    def retired(cls, file: CurrentFile) -> ClosedFile:
        """The current file, closed.

        Copies that were dropped on the way count for nothing: after a sync that failed, reading may
        show what is not on the disk. A new copy replaces them.
        """
        whole = frozenset(file.handles) or file.last_holders
        return cls(file.header, file.size, file.reach, whole, frozenset(), False)

    @classmethod
    def surveyed(cls, file: SurveyedFile) -> ClosedFile:
        """A file of an earlier mount."""
        reach = {stream: run.reach for stream, run in file.facts.runs.items()}
        for stream, sequence in (file.facts.beyond or {}).items():
            reach[stream] = max(reach.get(stream, 0), sequence)
        return cls(
            file.facts.header,
            file.end,
            reach,
            frozenset(file.copies) - file.damaged,
            file.damaged,
            file.facts.beyond is not None,
        )

    def note_findings(self, lacking: frozenset[DiskId], absent: frozenset[DiskId]) -> None:
        """Copies that lack something are to be mended; in the place of absent ones, new ones made."""
        self.doubted = self.doubted or bool(self.whole & (lacking | absent))
        self.damaged = (self.damaged | lacking) - absent
        self.whole -= lacking | absent

    def disposable(self, trimmed: Mapping[VolumeId, int]) -> bool:
        """Whether all its records are behind their streams' trim points."""
        return all(trimmed.get(stream, 0) >= reach for stream, reach in self.reach.items())

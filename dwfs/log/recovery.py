"""Reading the log back: what the disks that are there still hold, and what of it is history.

`survey` reads every copy of every file once, checks chains, and keeps a few numbers a file.
`LogInventory.replay` walks the files again, one record in memory at a time, opens the records that
count, and refuses with DamageError if anything that may have been acknowledged is missing.

Both block; run them in a worker thread or before the loop starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from dwfs.disk.medium import Medium
from dwfs.errors import AuthenticationError, DamageError
from dwfs.log import format as fmt
from dwfs.log.chain import ChainWalk, Piece
from dwfs.log.copies import LOG_DIRECTORY, CopySource, open_sources
from dwfs.log.lineage import FileFacts, Lineage, StreamRun, missing, trace
from dwfs.log.ports import RecordCipher
from dwfs.log.watching import Watch
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId


class RecoveredRecord(msgspec.Struct, frozen=True):
    """A record of the history, opened. `last == first - 1` if it carries no commands."""

    stream: VolumeId
    first: LogSequence
    last: LogSequence
    payload: bytes


class SurveyedFile(msgspec.Struct):
    """One log file and its copies."""

    facts: FileFacts
    end: int  # bytes of the merged chain
    copies: dict[DiskId, Path]
    damaged: frozenset[DiskId]  # copies that lack something of the chain

    @property
    def sequence(self) -> int:
        """The sequence in the file's name."""
        return self.facts.header.sequence


class LogInventory:
    """All log files found. Made by `survey`."""

    def __init__(
        self,
        medium: Medium,
        files: list[SurveyedFile],
        headless: dict[int, str],
        highest_sequence: int,
        notes: list[str],
    ) -> None:
        self._medium = medium
        self.files = sorted(files, key=lambda file: file.facts.order)
        self._headless = headless
        self.highest_sequence = highest_sequence
        self.highest_incarnation = max((file.facts.header.incarnation for file in files), default=0)
        self.notes = notes  # what was ignored, for the operator
        facts = [file.facts for file in self.files]
        streams = {start.stream for fact in facts for start in fact.header.starts}
        self._lineages: dict[VolumeId, Lineage] = {}
        for stream in sorted(streams):
            lineage = trace(facts, stream)
            if lineage is not None:
                self._lineages[stream] = lineage

    @property
    def tails(self) -> dict[VolumeId, fmt.StreamStart]:
        """Where each stream goes on."""
        return {stream: lineage.tail for stream, lineage in self._lineages.items()}

    @property
    def begins(self) -> dict[VolumeId, LogSequence]:
        """The first command of each stream that the log still tells of, or would tell of.

        What comes before it is covered by a state snapshot, as far as it was ever acknowledged.
        """
        return {stream: lineage.oldest.sequence for stream, lineage in self._lineages.items()}

    def problems(self, replay_from: Mapping[VolumeId, LogSequence]) -> list[str]:
        """What keeps the streams from being replayed from there, in words."""
        facts = [file.facts for file in self.files]
        problems: list[str] = []
        started = max((file.sequence for file in self.files if file.facts.started), default=0)
        problems.extend(text for sequence, text in self._headless.items() if sequence > started)
        for stream, sequence in replay_from.items():
            lineage = self._lineages.get(stream)
            if lineage is not None:
                problem = missing(lineage, facts, sequence)
            elif sequence > 1:
                problem = f"volume {stream.hex()[:8]}: no log file tells of it"
            else:
                problem = None
            if problem is not None:
                problems.append(problem)
        return problems

    def replay(
        self,
        ciphers: Mapping[VolumeId, RecordCipher],
        replay_from: Mapping[VolumeId, LogSequence],
    ) -> Iterator[RecoveredRecord]:
        """The records of the streams in `ciphers`, in log order.

        Of each stream, those that carry a command ≥ `replay_from` (default 1), and those without
        commands that came after `replay_from - 1`. A first record may begin before `replay_from`.
        Each is given once. Raises DamageError, at once or in the middle; what was given till then
        must not be kept then.
        """
        wanted = {stream: replay_from.get(stream, LogSequence(1)) for stream in ciphers}
        problems = self.problems(wanted)
        if problems:
            raise DamageError(
                "the log is incomplete: " + "; ".join(problems) + "; attach the missing disks"
            )
        through: dict[int, dict[VolumeId, int]] = {}
        for stream in ciphers:
            lineage = self._lineages.get(stream)
            for index, position in lineage.links if lineage is not None else ():
                run = self.files[index].facts.runs[stream]
                if run.reach >= wanted[stream]:
                    through.setdefault(index, {})[stream] = position
        for index in sorted(through):
            yield from self._replay_file(self.files[index], through[index], ciphers, wanted)

    def _replay_file(
        self,
        file: SurveyedFile,
        through: Mapping[VolumeId, int],
        ciphers: Mapping[VolumeId, RecordCipher],
        wanted: Mapping[VolumeId, LogSequence],
    ) -> Iterator[RecoveredRecord]:
        with ExitStack() as stack:
            walk = ChainWalk(open_sources(self._medium, file.copies, stack))
            for piece in walk.pieces(upto=file.end):
                record = piece.record
                if (
                    record is None
                    or record.kind != fmt.KIND_BATCH
                    or record.position > through.get(record.stream, 0)
                    or record.reach < wanted[record.stream]
                ):
                    continue
                payload = _open(ciphers[record.stream], piece, file.sequence)
                yield RecoveredRecord(record.stream, record.first, record.last, payload)
        if walk.end < file.end:
            raise DamageError(
                f"log file {file.sequence:016x} can't be read any more at byte {walk.end}; "
                "check the disks and mount again"
            )


def _open(cipher: RecordCipher, piece: Piece, sequence: int) -> bytes:
    assert piece.record is not None
    try:
        return cipher.open(piece.sealed, fmt.record_aad(piece.record))
    except AuthenticationError as error:
        raise DamageError(
            f"log file {sequence:016x}, record {piece.record.number}: whole, but does not open "
            "with this pool's key: forged, or of another pool; remove the disk it came from"
        ) from error


def survey(
    directories: Mapping[DiskId, Path],
    pool: PoolId,
    header_cipher: RecordCipher,
    medium: Medium,
) -> LogInventory:
    """Read all log files in the disks' directories. Changes nothing.

    Raises FormatError for a newer format, DamageError for a file that the key does not open.
    """
    notes: list[str] = []
    named: dict[int, dict[DiskId, Path]] = {}
    for disk, directory in directories.items():
        try:
            names = medium.names(directory / LOG_DIRECTORY)
        except OSError as error:
            notes.append(f"disk {disk.hex()[:8]}: log can't be listed: {error.strerror}")
            continue
        for name in names:
            sequence = fmt.parse_file_name(name)
            if sequence is not None:
                named.setdefault(sequence, {})[disk] = directory / LOG_DIRECTORY / name
    files: list[SurveyedFile] = []
    headless: dict[int, str] = {}
    for sequence, paths in sorted(named.items()):
        for copies in _same_file(paths, medium):
            surveyed = survey_file(copies, pool, header_cipher, medium, notes)
            if isinstance(surveyed, SurveyedFile):
                files.append(surveyed)
            elif surveyed:
                headless[sequence] = f"log file {sequence:016x} has no whole header on any disk"
    return LogInventory(medium, files, headless, max(named, default=0), notes)


def _same_file(paths: Mapping[DiskId, Path], medium: Medium) -> list[dict[DiskId, Path]]:
    """Copies of one name, parted by file id: a disk that was away may hold another file's."""
    groups: dict[bytes, dict[DiskId, Path]] = {}
    unknown: dict[DiskId, Path] = {}
    with ExitStack() as stack:
        sources = open_sources(medium, paths, stack)
        for disk, source in sources.items():
            header = peek_header(source)
            target = unknown if header is None else groups.setdefault(header.file_id, {})
            target[disk] = paths[disk]
    if not groups:
        return [unknown]
    if len(groups) == 1:
        next(iter(groups.values())).update(unknown)
    return list(groups.values())


def peek_header(source: CopySource) -> fmt.FileHeader | None:
    """What a copy's header says, unauthenticated; None if it is not whole. Raises FormatError."""
    length = fmt.file_header_length(source.read(0, fmt.FILE_PREFIX_SIZE))
    decoded = None if length is None else fmt.decode_file_header(source.read(0, length))
    return None if decoded is None else decoded[0]


def survey_file(
    copies: dict[DiskId, Path],
    pool: PoolId,
    header_cipher: RecordCipher,
    medium: Medium,
    notes: list[str],
    watch: Watch | None = None,
) -> SurveyedFile | bool:
    """The file; without a header on any copy, whether records show that it was in use.

    False and a note for a file of another pool. Raises FormatError and DamageError as `survey`.
    """
    runs: dict[VolumeId, StreamRun] = {}
    damaged: set[DiskId] = set()
    started = False
    with ExitStack() as stack:
        sources = open_sources(medium, copies, stack, watch)
        walk = ChainWalk(sources)
        for piece in walk.pieces():
            damaged.update(piece.lacking)
            if piece.record is None:
                assert walk.header is not None
                if walk.header.pool != pool:
                    notes.append(f"log file {walk.header.sequence:016x}: of another pool; ignored")
                    return False
                _authenticate(walk, header_cipher)
            elif piece.record.kind == fmt.KIND_START:
                _open(header_cipher, piece, walk.header.sequence if walk.header else 0)
                started = True
            else:
                _count(runs, piece.record)
        beyond = walk.beyond()
    if walk.header is None:
        return beyond is not None
    facts = FileFacts(walk.header, started or beyond is not None, runs, beyond)
    kept = {disk: copies[disk] for disk in sources}
    return SurveyedFile(facts, walk.end, kept, frozenset(damaged))


def _count(runs: dict[VolumeId, StreamRun], record: fmt.RecordHeader) -> None:
    run = runs.get(record.stream)
    if run is None:
        runs[record.stream] = StreamRun.begin(record)
    elif record.position == run.last_position + 1:
        run.extend(record)
    else:
        raise DamageError(
            f"volume {record.stream.hex()[:8]}: its log records are out of order: forged; "
            "remove the disk that was tampered with"
        )


def _authenticate(walk: ChainWalk, cipher: RecordCipher) -> None:
    assert walk.header is not None
    try:
        cipher.open(walk.header_tag, walk.header_aad)
    except AuthenticationError as error:
        raise DamageError(
            f"log file {walk.header.sequence:016x} does not open with this pool's key: forged, or "
            "the wrong key; remove the disk it came from"
        ) from error

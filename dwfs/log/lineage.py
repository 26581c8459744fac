"""Which records of which files are the history, and which were superseded. Pure.

Every file declares, for every stream, the position, command sequence and identity at which it
continues the stream. A declaration counts once the file's start record is there: it is written
after the header is durable on all members, so a later mount that misses at most `m` disks knows of
the file and takes a higher incarnation. A file without a start record declares nothing.

History is therefore found from the end: the newest started file that declares a stream is its head;
its declaration names the record before (position and identity), which is looked for in older
files, newest first; that file's declaration names the next, and so on. Records that no
declaration leads to are superseded: the unacknowledged tail of a crash, on a disk that was away
when the pool was mounted again. As at most the last record of a file can be unacknowledged, a
file with more unlinked records than that means two histories, which is reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dwfs.log.format import NO_IDENTITY, FileHeader, RecordHeader, StreamStart
from dwfs.types import LogSequence, VolumeId


class StreamRun(msgspec.Struct):
    """One stream's records in one file: positions [first_position, last_position]."""

    first_position: int
    last_position: int
    last_sequence: int  # highest command sequence at last_position
    reach: int  # see RecordHeader.reach; over the whole run
    last_identity: bytes
    # The record before the last: where a younger declaration links when the last is superseded.
    before_identity: bytes = NO_IDENTITY
    before_sequence: int = 0

    @classmethod
    def begin(cls, record: RecordHeader) -> StreamRun:
        """The run of a single record."""
        return cls(record.position, record.position, record.last, record.reach, record.identity)

    def extend(self, record: RecordHeader) -> None:
        """Add the stream's next record."""
        assert record.position == self.last_position + 1, "the caller has checked it"
        self.before_identity = self.last_identity
        self.before_sequence = self.last_sequence
        self.last_position = record.position
        self.last_sequence = record.last
        self.last_identity = record.identity
        self.reach = max(self.reach, record.reach)


class FileFacts(msgspec.Struct):
    """What a survey found out of one file."""

    header: FileHeader
    started: bool  # the start record is there, or must have been
    runs: dict[VolumeId, StreamRun]
    beyond: dict[VolumeId, int] | None = None  # ChainWalk.beyond

    @property
    def order(self) -> tuple[int, int]:
        """Files sort by mount, then by sequence."""
        return self.header.incarnation, self.header.sequence

    def start_of(self, stream: VolumeId) -> StreamStart | None:
        """The file's declaration for the stream."""
        for start in self.header.starts:
            if start.stream == stream:
                return start
        return None


class Lineage(msgspec.Struct, frozen=True):
    """One stream's history: (index of the file, last position that counts), oldest first."""

    stream: VolumeId
    links: tuple[tuple[int, int], ...]
    oldest: StreamStart  # declaration of the oldest file reached
    tail: StreamStart  # where the stream goes on
    diverged: tuple[int, ...]  # files that hold more unlinked records than a crash explains
    head: int  # index of the head file


def trace(files: Sequence[FileFacts], stream: VolumeId) -> Lineage | None:
    """The stream's history over `files` (sorted by order), or None if no file declares it."""
    started = [
        (index, start)
        for index, file in enumerate(files)
        if file.started and (start := file.start_of(stream)) is not None
    ]
    if not started:
        return None
    head, oldest = started[-1]
    links: list[tuple[int, int]] = []
    run = files[head].runs.get(stream)
    if run is not None:
        links.append((head, run.last_position))
        tail = _after(stream, run.last_position, run.last_sequence, run.last_identity)
    else:
        tail = oldest
    for index, start in reversed(started[:-1]):
        run = files[index].runs.get(stream)
        if run is None:
            continue
        link = _link(run, oldest)
        if link is None:
            continue
        position, sequence = link
        if sequence + 1 != oldest.sequence:
            break  # the log was lost here once, and the volume went on from its own state
        links.append((index, position))
        oldest = start
    kept = dict(links)
    diverged = tuple(
        index
        for index, _ in started
        if (run := files[index].runs.get(stream)) is not None
        and run.last_position - kept.get(index, run.first_position - 1) > 1
    )
    return Lineage(stream, tuple(reversed(links)), oldest, tail, diverged, head)


def _link(run: StreamRun, younger: StreamStart) -> tuple[int, int] | None:
    """(position, command sequence) of the run's record that `younger` continues, if any."""
    if (run.last_position + 1, run.last_identity) == (younger.position, younger.previous):
        return run.last_position, run.last_sequence
    if run.last_position > run.first_position and (
        (run.last_position, run.before_identity) == (younger.position, younger.previous)
    ):
        return run.last_position - 1, run.before_sequence
    return None


def _after(stream: VolumeId, position: int, sequence: int, identity: bytes) -> StreamStart:
    return StreamStart(stream, position + 1, LogSequence(sequence + 1), identity)


def missing(lineage: Lineage, files: Sequence[FileFacts], replay_from: LogSequence) -> str | None:
    """What of the stream's commands from `replay_from` on can't be had, in words, or None."""
    name = f"volume {lineage.stream.hex()[:8]}"
    oldest = lineage.oldest
    if oldest.sequence > replay_from:
        return (
            f"{name}: log records before position {oldest.position} are missing "
            f"(commands {replay_from} to {oldest.sequence - 1})"
        )
    for index in lineage.diverged:
        run = files[index].runs[lineage.stream]
        # The last record may be an unacknowledged tail whose successor has been trimmed; the one
        # before it was acknowledged, and is history unless a state snapshot covers it.
        if run.before_sequence >= replay_from:
            return (
                f"{name}: log file {files[index].header.sequence:016x} holds another history "
                f"up to command {run.before_sequence}"
            )
    head = files[lineage.head]
    if head.beyond is not None:
        behind = head.beyond.get(lineage.stream)
        # A lone stream's last record behind the break tells all; with several, the lost record
        # may have been any stream's.
        alone = len(head.header.starts) == 1 and behind is not None
        if not alone or (behind is not None and behind >= replay_from):
            return (
                f"{name}: log file {head.header.sequence:016x} is damaged in the middle on all "
                f"copies, from command {lineage.tail.sequence} on"
            )
    return None

"""History is found from the newest declaration back; what it does not lead to is superseded."""

from __future__ import annotations

import pytest

from dwfs.log.format import FileHeader, StreamStart
from dwfs.log.lineage import FileFacts, StreamRun, missing, trace
from dwfs.types import LogSequence, PoolId, VolumeId

S = VolumeId(b"s" * 16)


def identity(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def file(
    incarnation: int, start: tuple[int, str], records: str = "", *, started: bool = True
) -> FileFacts:
    """A file that goes on at (position, previous); one command a record, named by letters."""
    position, previous = start
    header = FileHeader(
        PoolId(b"p" * 16),
        bytes([incarnation]) * 16,
        incarnation,
        incarnation,
        (),
        (StreamStart(S, position, LogSequence(position), identity(previous)),),
    )
    runs = {}
    if records:
        last = position + len(records) - 1
        before = identity(records[-2]) if len(records) > 1 else identity("")
        runs[S] = StreamRun(position, last, last, last, identity(records[-1]), before, last - 1)
    return FileFacts(header, started, runs)


CASES = {
    "one file": ([file(1, (1, ""), "abc")], [(0, 3)], 4),
    "two files": ([file(1, (1, ""), "abc"), file(2, (4, "c"), "de")], [(0, 3), (1, 5)], 6),
    "tail superseded": ([file(1, (1, ""), "abX"), file(2, (3, "b"), "c")], [(0, 2), (1, 3)], 4),
    "tail superseded by an empty file": ([file(1, (1, ""), "abX"), file(2, (3, "b"))], [(0, 2)], 3),
    "file without start record declares nothing": (
        [file(1, (1, ""), "abc"), file(2, (3, "b"), started=False)],
        [(0, 3)],
        4,
    ),
    "stale mount between": (
        [file(1, (1, ""), "ab"), file(2, (3, "b"), "X"), file(3, (3, "b"), "c")],
        [(0, 2), (2, 3)],
        4,
    ),
    "record repeated in a new file after a failure": (
        [file(1, (1, ""), "abc"), file(2, (3, "b"), "c")],
        [(0, 2), (1, 3)],
        4,
    ),
    "middle file trimmed": ([file(1, (1, ""), "ab"), file(3, (9, "h"), "i")], [(1, 9)], 10),
}


@pytest.mark.parametrize("name", CASES)
def test_history(name: str) -> None:
    files, links, following = CASES[name]
    lineage = trace(files, S)
    assert lineage is not None
    assert list(lineage.links) == links
    assert lineage.tail.position == following


def test_missing_middle_file_is_named_unless_a_snapshot_covers_it() -> None:
    files = [file(1, (1, ""), "ab"), file(3, (9, "h"), "i")]
    lineage = trace(files, S)
    assert lineage is not None
    assert "commands 3 to 8" in (missing(lineage, files, LogSequence(3)) or "")
    assert missing(lineage, files, LogSequence(9)) is None


def test_two_histories_are_reported() -> None:
    files = [file(1, (1, ""), "abXYZ"), file(2, (3, "b"), "c")]
    files[0].runs[S].before_identity = identity("Y")
    lineage = trace(files, S)
    assert lineage is not None
    assert missing(lineage, files, LogSequence(1)) is not None


def test_a_stale_tail_stays_harmless_when_its_successor_is_trimmed() -> None:
    files = [file(1, (1, ""), "abX"), file(3, (4, "c"), "d")]
    files[0].runs[S].last_sequence = 9
    lineage = trace(files, S)
    assert lineage is not None
    assert list(lineage.links) == [(1, 4)]
    assert missing(lineage, files, LogSequence(4)) is None
    assert missing(lineage, files, LogSequence(3)) is not None


def test_a_lost_and_continued_log_is_a_gap_only_for_those_who_need_it() -> None:
    younger = file(2, (4, "c"), "d")
    start = younger.header.starts[0]
    younger.header = FileHeader(
        younger.header.pool,
        younger.header.file_id,
        2,
        2,
        (),
        (StreamStart(S, start.position, LogSequence(20), start.previous),),
    )
    files = [file(1, (1, ""), "abc"), younger]
    lineage = trace(files, S)
    assert lineage is not None
    assert missing(lineage, files, LogSequence(20)) is None
    assert missing(lineage, files, LogSequence(4)) is not None

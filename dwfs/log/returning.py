"""What a disk that was away brings back, and what is to become of it.

While a disk is away, the log goes on without it: files are trimmed, records superseded, mounts come
and go. Its files then are one of these:

- a copy of a file that is still needed: it is adopted, and mended where it lacks something;
- a file that this log made and has no use for any more: removed;
- a file of an earlier mount all of whose commands lie before the begin of the log, so that a state
  snapshot covers what was acknowledged of them: removed. Its very last record may reach further, as
  it may never have been acknowledged, the same allowance that `lineage` makes;
- anything else is left alone and told: a file of a later mount, or with commands that nobody here
  knows, was written while the disk was used elsewhere, and may be all that is left of them.

Recovery would pass over what is removed here (see `lineage.missing`); it goes so that it can't take
room, or be taken for something by anybody, for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import ExitStack
from pathlib import Path

import msgspec

from dwfs.disk.medium import Medium
from dwfs.errors import DamageError, FormatError
from dwfs.log import format as fmt
from dwfs.log.chain import ChainWalk
from dwfs.log.copies import LOG_DIRECTORY, PART_SUFFIX, open_sources
from dwfs.log.lineage import FileFacts
from dwfs.log.ports import RecordCipher
from dwfs.log.recovery import SurveyedFile, peek_header, survey_file
from dwfs.log.watching import Watch
from dwfs.types import DiskId, PoolId, VolumeId


class Found(msgspec.Struct, frozen=True):
    """A file on a disk that the log doesn't know to be there."""

    name: str
    file_id: bytes | None = None  # None: no whole header
    facts: FileFacts | None = None  # of a file whose id the log doesn't know
    # Of a file without a whole header: how far the records in it reach; None if there is none.
    beyond: dict[VolumeId, int] | None = None
    problem: str = ""  # why it must be left alone


def look(
    watch: Watch,
    medium: Medium,
    disk: DiskId,
    directory: Path,
    pool: PoolId,
    header_cipher: RecordCipher,
    familiar: Set[str],
    known_ids: Set[bytes],
) -> list[Found]:
    """In a worker: the log files on the disk, but for those with `familiar` names."""
    watch.enter(disk)
    place = directory / LOG_DIRECTORY
    found = []
    for name in sorted(medium.names(place)):
        if name in familiar:
            continue
        if name.endswith(PART_SUFFIX) and fmt.parse_file_name(name.removesuffix(PART_SUFFIX)):
            found.append(Found(name))
        elif fmt.parse_file_name(name) is not None:
            found.append(
                _examine(watch, medium, disk, place / name, pool, header_cipher, known_ids)
            )
    return found


def _examine(
    watch: Watch,
    medium: Medium,
    disk: DiskId,
    path: Path,
    pool: PoolId,
    header_cipher: RecordCipher,
    known_ids: Set[bytes],
) -> Found:
    notes: list[str] = []
    try:
        with ExitStack() as stack:
            source = open_sources(medium, {disk: path}, stack, watch).get(disk)
            if source is None:
                return Found(path.name, problem="can't be opened")
            header = peek_header(source)
            if header is None:
                source.probe()
                return Found(path.name, beyond=ChainWalk({disk: source}).beyond())
        if header.file_id in known_ids:
            return Found(path.name, header.file_id)
        surveyed = survey_file({disk: path}, pool, header_cipher, medium, notes, watch)
    except (DamageError, FormatError) as error:
        return Found(path.name, problem=str(error))
    except OSError as error:
        return Found(path.name, problem=f"can't be read: {error.strerror}")
    if isinstance(surveyed, SurveyedFile):
        return Found(path.name, surveyed.facts.header.file_id, surveyed.facts)
    return Found(path.name, problem="is of another pool" if notes else "can't be read")


def reason_to_keep_headless(beyond: Mapping[VolumeId, int], floors: Mapping[VolumeId, int]) -> str:
    """As `reason_to_keep`, for a file whose header is damaged; `beyond`: how far its records reach."""
    for stream, reach in beyond.items():
        if reach > floors.get(stream, 0):
            return f"has no whole header, and commands up to {reach} that are unknown here"
    return ""


def reason_to_keep(
    facts: FileFacts, incarnation: int, own_ids: Set[bytes], floors: Mapping[VolumeId, int]
) -> str:
    """Why a file that the log doesn't know must stay; empty if it may go. Pure.

    `floors`: for each stream the last command that a state snapshot covers.
    """
    header = facts.header
    if header.file_id in own_ids:
        return ""
    if header.incarnation >= incarnation:
        return "was written by a later mount: the disk was in use elsewhere"
    for stream, run in facts.runs.items():
        if run.before_sequence > floors.get(stream, 0):
            return f"holds commands up to {run.before_sequence} that are unknown here"
    for stream, reach in (facts.beyond or {}).items():
        if reach > floors.get(stream, 0):
            return f"is damaged, and holds commands up to {reach} that are unknown here"
    return ""

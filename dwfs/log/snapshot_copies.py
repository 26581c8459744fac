"""Where the copies of state snapshots are, and giving the newest the copies it lacks.

As the log's files, a snapshot is wanted on m+1 disks. A new copy, or one that replaces a damaged one,
is made of all copies merged, under a temporary name, and gets its own when it is durable.

All functions block and run in worker threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from dwfs.disk.medium import Medium
from dwfs.errors import NoSpaceError
from dwfs.log import snapshot_format as fmt
from dwfs.log.copies import PART_SUFFIX, open_sources
from dwfs.log.ports import LogDisk, RecordCipher
from dwfs.log.selection import choose_members
from dwfs.log.snapshot_reader import FrameWalk, list_snapshots
from dwfs.log.snapshot_writer import SnapshotTargets
from dwfs.log.watching import GivenUpError, Watch
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId


class SnapshotCopies(msgspec.Struct, frozen=True):
    """One snapshot, by its header, and the disks that hold a copy; its content was not looked at."""

    header: fmt.SnapshotHeader
    size_bytes: int  # of one copy, the largest if they differ
    disks: tuple[DiskId, ...]


class SnapshotReport(msgspec.Struct, frozen=True):
    """How the newest snapshot is kept, after it was mended."""

    sequence: LogSequence | None  # None: there is no snapshot
    size_bytes: int
    holders: tuple[DiskId, ...]  # disks that take copies and have one
    mended: int  # copies made or replaced
    short: bool  # fewer copies than the disks could hold
    notes: tuple[str, ...] = ()
    failures: dict[DiskId, OSError] = {}  # msgspec copies an empty default


def snapshot_holders(
    directories: Mapping[DiskId, Path],
    pool: PoolId,
    volume: VolumeId,
    medium: Medium,
    watch: Watch | None = None,
) -> list[SnapshotCopies]:
    """The volume's snapshots, the newest first, and where they are. Reads headers only."""
    listed, _ = list_snapshots(directories, pool, volume, medium, [], watch)
    result = []
    for header, copies in listed:
        with ExitStack() as stack:
            sources = open_sources(medium, copies, stack, watch)
            size = max((source.size for source in sources.values()), default=0)
        result.append(SnapshotCopies(header, size, tuple(copies)))
    return result


def mend_snapshot(
    watch: Watch,
    medium: Medium,
    readable: Mapping[DiskId, Path],
    disks: Sequence[LogDisk],
    copies: int,
    identity: tuple[PoolId, VolumeId],
    cipher: RecordCipher,
    thorough: bool,
) -> SnapshotReport:
    """Give the newest snapshot `copies` copies on `disks`, from those on all `readable` ones.

    It is read only if copies are wanting, or to compare them if `thorough`.
    """
    notes: list[str] = []
    listed, found = list_snapshots(readable, *identity, medium, notes, watch)
    if not listed:
        if found:
            notes.append("no state snapshot has a whole header")
        return SnapshotReport(None, 0, (), 0, found, tuple(notes))
    header, paths = listed[0]
    takers = {disk.disk: disk for disk in disks}
    holders = [disk for disk in paths if disk in takers]
    wanted = min(copies, len(takers))
    with ExitStack() as stack:
        sources = open_sources(medium, paths, stack, watch)
        size_bytes = max((source.size for source in sources.values()), default=0)
    if len(holders) >= wanted and not thorough:
        return SnapshotReport(header.sequence, size_bytes, tuple(holders), 0, False, tuple(notes))
    damaged, whole, size_bytes = _compare(watch, medium, header, paths, cipher)
    if not whole:
        notes.append(f"state snapshot {header.sequence:016x} can't be read from any copy")
        return SnapshotReport(header.sequence, size_bytes, (), 0, True, tuple(notes))
    replaced = [takers[disk] for disk in holders if disk in damaged]
    spare = [disk for disk in disks if disk.disk not in holders]
    added = choose_members(spare, max(wanted - len(holders), 0), header.sequence, set(), size_bytes)
    done, failures = _copy_merged(watch, medium, header, paths, cipher, [*replaced, *added])
    good = [disk for disk in holders if disk not in damaged]
    good.extend(disk for disk in done if disk not in good)
    return SnapshotReport(
        header.sequence,
        size_bytes,
        tuple(good),
        len(done),
        len(good) < wanted,
        tuple(notes),
        failures,
    )


def remove_snapshots(watch: Watch, medium: Medium, disk: LogDisk, volume: VolumeId) -> None:
    """Remove all of the volume's snapshots from a disk, unfinished ones too."""
    folder = disk.directory / fmt.SNAPSHOT_DIRECTORY
    watch.enter(disk.disk)
    for name in medium.names(folder):
        parsed = fmt.parse_file_name(name.removesuffix(PART_SUFFIX))
        if parsed is not None and parsed[1] == volume.hex()[:16]:
            watch.enter(disk.disk)
            medium.remove(folder / name)


def _compare(
    watch: Watch,
    medium: Medium,
    header: fmt.SnapshotHeader,
    paths: Mapping[DiskId, Path],
    cipher: RecordCipher,
) -> tuple[set[DiskId], bool, int]:
    """(copies that lack something, whether all merged are whole, bytes of a whole one)."""
    with ExitStack() as stack:
        sources = open_sources(medium, paths, stack, watch)
        walk = FrameWalk(sources, header)
        damaged = set(paths) - set(sources)
        damaged |= walk.lacking(0, walk.header_bytes)
        whole = False
        offset = walk.end
        for frame, sealed in walk.frames():
            raw = fmt.encode_frame(frame.kind, frame.number, sealed)[0] + sealed
            damaged |= walk.lacking(offset, raw)
            offset = walk.end
            if frame.kind == fmt.KIND_FOOTER:
                whole = walk.footer(cipher, frame, sealed) is not None
    return damaged, whole, walk.end


def _copy_merged(
    watch: Watch,
    medium: Medium,
    header: fmt.SnapshotHeader,
    paths: Mapping[DiskId, Path],
    cipher: RecordCipher,
    disks: Sequence[LogDisk],
) -> tuple[list[DiskId], dict[DiskId, OSError]]:
    """Write what all copies together hold to the disks: (those that have it now, failures)."""
    if not disks:
        return [], {}
    targets = SnapshotTargets(medium, disks, fmt.file_name(header.sequence, header.volume), watch)
    whole = False
    try:
        with ExitStack() as stack:
            walk = FrameWalk(open_sources(medium, paths, stack, watch), header)
            targets.append(walk.header_bytes)
            for frame, sealed in walk.frames():
                targets.append(fmt.encode_frame(frame.kind, frame.number, sealed)[0], sealed)
                if frame.kind == fmt.KIND_FOOTER:
                    whole = walk.footer(cipher, frame, sealed) is not None
        if whole:
            return targets.publish(), targets.failures
    except NoSpaceError:
        pass  # every target failed; the failures tell
    except GivenUpError:
        targets.close()
        raise
    targets.discard()
    return [], targets.failures

"""Looking at a pool's disks without a key: what their headers say, and whether that fits.

What is read here is authenticated by nothing yet (`verify_header` needs the root key), so it serves
to choose disks and keyslots, and for people to read; never to change anything.

Refused outright, because going on could harm somebody's data: a disk of another pool in one of our
places, one disk in two places, a format that a newer dwfs made. A disk that is not there, or whose
header is damaged in both copies, is only missing: that is what redundancy is for.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from dwfs.config import PoolConfig, format_uuid
from dwfs.disk import (
    DiskCondition,
    FreeSpace,
    HeaderSurvey,
    PoolHeader,
    StoredHeader,
    free_space,
    probe,
    read_header,
    survey_headers,
)
from dwfs.errors import DwfsError, FormatError, NotEnoughDisksError
from dwfs.node.status import (
    DiskState,
    DiskStatus,
    PoolStatus,
    UsageStatus,
    assess,
    explain,
)
from dwfs.types import DiskId


class FoundDisk(msgspec.Struct, frozen=True):
    """A member of the pool and where it was looked for."""

    id: DiskId
    directory: Path
    stored: StoredHeader | None  # None: missing
    problem: str  # why it is missing; for people


class PoolSurvey(msgspec.Struct, frozen=True):
    """The pool as its disks describe it."""

    header: PoolHeader  # the newest
    disks: tuple[FoundDisk, ...]  # every member, in the header's order
    stale: tuple[StoredHeader, ...]  # present members whose copy is to be rewritten

    @property
    def present(self) -> list[FoundDisk]:
        """Members that are there."""
        return [disk for disk in self.disks if disk.stored is not None]

    @property
    def missing(self) -> list[FoundDisk]:
        """Members that are not there."""
        return [disk for disk in self.disks if disk.stored is None]


def survey_disks(config: PoolConfig) -> PoolSurvey:
    """Read the headers of all configured disks; blocking.

    Raises FormatError for what must not be touched, NotEnoughDisksError if no disk can be read.
    """
    found: list[StoredHeader] = []
    problems: dict[Path, str] = {}
    damage: FormatError | None = None
    for disk in config.disks:
        try:
            found.append(read_header(disk.path))
        except FormatError as error:
            if "newer dwfs" in str(error):
                raise
            problems[disk.path] = _missing_reason(disk.path, str(error))
            if (disk.path / "dwfs-disk").exists():
                damage = error
        except DwfsError as error:
            problems[disk.path] = str(error)
    if not found:
        if damage is not None:
            raise damage
        places = ", ".join(str(disk.path) for disk in config.disks)
        raise NotEnoughDisksError(f"no disk of pool {config.name!r} is there: looked in {places}")
    result = survey_headers(found, config.pool)
    _refuse_confusion(config, result)
    return _combine(config, result, problems)


def read_newest_header(config: PoolConfig) -> PoolHeader:
    """The pool's newest header, unverified; blocking. Raises as `survey_disks`."""
    return survey_disks(config).header


def survey_pool(config: PoolConfig, mountpoint: str | None) -> PoolStatus:
    """The status of a pool that no process owns; blocking, needs no key."""
    try:
        survey = survey_disks(config)
    except NotEnoughDisksError as error:
        return _nothing_there(config, str(error))
    header = survey.header
    space = free_space([disk.directory for disk in survey.present])
    disks = [_offline_status(disk, space.get(disk.directory)) for disk in survey.disks]
    health, left = assess(header.geometry.parity, [disk.state for disk in disks])
    return PoolStatus(
        pool=config.name,
        uuid=config.uuid,
        pid=None,
        health=health,
        redundancy_left=left,
        data=header.geometry.data,
        parity=header.geometry.parity,
        disks=disks,
        usage=UsageStatus(None, None, None),
        work=[],
        mountpoint=mountpoint,
        erasure=None,
        unforeseen_errors=0,
        read_only=False,
        degraded_stripes=None,
        advice=explain(health, left, header.geometry.parity, disks, 0),
    )


def _refuse_confusion(config: PoolConfig, result: HeaderSurvey) -> None:
    for stored in result.foreign:
        other = stored.header
        raise FormatError(
            f"{stored.directory} holds a disk of pool {other.name!r} ({format_uuid(other.pool)}), "
            f"not of {config.name!r}: mount the right disk there"
        )
    for stored in result.duplicates:
        raise FormatError(
            f"{stored.directory} holds a copy of disk {stored.header.disk.hex()[:8]}, which is "
            "also in another place: remove the copy"
        )


def _combine(config: PoolConfig, result: HeaderSurvey, problems: dict[Path, str]) -> PoolSurvey:
    # A disk counts by what its header says, not by where it is: mounts may change places.
    by_id = {stored.header.disk: stored for stored in (*result.current, *result.stale)}
    configured = {disk.id: disk.path for disk in config.disks}
    disks = []
    for member in result.newest.header.members:
        stored = by_id.get(member.id)
        if stored is not None:
            disks.append(FoundDisk(member.id, stored.directory, stored, ""))
            continue
        directory = configured.get(member.id, Path(member.label))
        problem = problems.get(directory, "another disk of the pool is in its place")
        disks.append(FoundDisk(member.id, directory, None, problem))
    return PoolSurvey(result.newest.header, tuple(disks), result.stale)


def _missing_reason(directory: Path, otherwise: str) -> str:
    if not directory.exists():
        return "its directory is gone"
    if not (directory / "dwfs-disk").exists():
        return "its directory holds no dwfs disk; is the disk mounted?"
    return otherwise


def _offline_status(disk: FoundDisk, space: FreeSpace | None) -> DiskStatus:
    state: DiskState = "missing" if disk.stored is None else "online"
    reason = disk.problem
    if disk.stored is not None and probe(disk.directory, disk.id) is DiskCondition.READ_ONLY:
        state, reason = "failing", "its filesystem is read-only"
    return DiskStatus(
        id=format_uuid(disk.id),
        path=str(disk.directory),
        state=state,
        size_bytes=None if space is None else space.size_bytes,
        used_bytes=None,
        errors=0,
        reason=reason,
    )


def _nothing_there(config: PoolConfig, reason: str) -> PoolStatus:
    disks = [
        DiskStatus(
            id=format_uuid(disk.id),
            path=str(disk.path),
            state="missing",
            size_bytes=None,
            used_bytes=None,
            errors=0,
            reason=_missing_reason(disk.path, reason),
        )
        for disk in config.disks
    ]
    return PoolStatus(
        pool=config.name,
        uuid=config.uuid,
        pid=None,
        health="failed",
        redundancy_left=0,
        data=0,
        parity=0,
        disks=disks,
        usage=UsageStatus(None, None, None),
        work=[],
        mountpoint=None,
        erasure=None,
        unforeseen_errors=0,
        read_only=False,
        degraded_stripes=None,
        advice=[reason],
    )

"""Looking at a pool's disks without a key: what their headers say, and whether that fits.

What is read here is authenticated by nothing yet (`verify_header` needs the root key), so it serves
to choose disks and keyslots, and for people to read; never to change anything.

Refused outright, because going on could harm somebody's data: a disk of another pool in one of our
places, one disk in two places, a format that a newer dwfs made. A disk that is not there, or whose
header is damaged in both copies, is only missing: that is what redundancy is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from dwfs.config import PoolConfig, format_uuid
from dwfs.disk import (
    POSIX_MEDIUM,
    DiskCondition,
    FreeSpace,
    HeaderSurvey,
    Medium,
    PoolHeader,
    StoredHeader,
    free_space,
    probe,
    read_header,
    survey_headers,
)
from dwfs.disk.header import HEADER_NAME
from dwfs.errors import (
    DwfsError,
    ForeignFormatError,
    FormatError,
    NewerFormatError,
    NotEnoughDisksError,
)
from dwfs.node.status import (
    DiskState,
    DiskStatus,
    PoolStatus,
    UsageStatus,
    assess,
    explain,
)
from dwfs.types import DiskId

_DISKS_ALONE: Final = (
    "this is what the disks tell; space, and data that lacks redundancy, are known while it is open"
)


class FoundDisk(msgspec.Struct, frozen=True):
    """A member of the pool and where it was looked for."""

    id: DiskId
    directory: Path
    stored: StoredHeader | None  # None: missing
    problem: str  # why it is missing; for people
    wish: str = "active"  # the member's state in the header: "active", "offline", "removing"
    label: str = ""


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


class Look(msgspec.Struct, frozen=True):
    """What one directory holds: a header, or why there is none."""

    directory: Path
    stored: StoredHeader | None
    error: DwfsError | None
    damaged: bool = False  # a disk is there, but its header is damaged in both copies


def look_at(directory: Path, medium: Medium) -> Look:
    """Read the header in one directory; blocking. Raises OSError if the disk doesn't answer."""
    try:
        return Look(directory, read_header(directory, medium), None)
    except FormatError as error:
        foreign = isinstance(error, ForeignFormatError | NewerFormatError)
        return Look(directory, None, error, not foreign and _holds_disk(directory, medium))
    except DwfsError as error:
        return Look(directory, None, error)


def survey_disks(config: PoolConfig, medium: Medium = POSIX_MEDIUM) -> PoolSurvey:
    """Read the headers of all configured disks, one after another; blocking.

    Raises FormatError for what must not be touched, NotEnoughDisksError if no disk can be read.
    """
    return judge(config, [look_at(path, medium) for path in config.places], medium)


def judge(config: PoolConfig, looks: Sequence[Look], medium: Medium = POSIX_MEDIUM) -> PoolSurvey:
    """What the configured directories hold together. Raises as `survey_disks`."""
    found: list[StoredHeader] = []
    problems: dict[Path, str] = {}
    damage: DwfsError | None = None
    for look in looks:
        if look.stored is not None:
            found.append(look.stored)
        elif isinstance(look.error, NewerFormatError):
            raise look.error
        else:
            problems[look.directory] = _problem(look, medium)
            damage = look.error if look.damaged else damage
    if not found:
        if damage is not None:
            raise damage
        places = ", ".join(map(str, config.places))
        raise NotEnoughDisksError(f"no disk of pool {config.name!r} is there: looked in {places}")
    result = survey_headers(found, config.pool)
    _refuse_confusion(config, result)
    return _combine(config, result, problems)


def _problem(look: Look, medium: Medium) -> str:
    text = str(look.error)
    # Only of a directory that answered is more asked than was found.
    return _missing_reason(look.directory, text, medium) if _answered(look) else text


def _answered(look: Look) -> bool:
    return isinstance(look.error, FormatError)


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
    health, left = assess(header.geometry, [disk.state for disk in disks])
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
        advice=[*explain(health, left, header.geometry.parity, disks, 0), _DISKS_ALONE],
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
            disks.append(
                FoundDisk(member.id, stored.directory, stored, "", member.state, member.label)
            )
            continue
        directory = configured.get(member.id, Path(member.label))
        problem = problems.get(directory, "another disk of the pool is in its place")
        disks.append(FoundDisk(member.id, directory, None, problem, member.state, member.label))
    return PoolSurvey(result.newest.header, tuple(disks), result.stale)


def _missing_reason(directory: Path, otherwise: str, medium: Medium = POSIX_MEDIUM) -> str:
    if not medium.is_directory(directory):
        return "its directory is gone"
    if not _holds_disk(directory, medium):
        return "its directory holds no dwfs disk; is the disk mounted?"
    return otherwise


def _holds_disk(directory: Path, medium: Medium) -> bool:
    try:
        return HEADER_NAME in medium.names(directory)
    except OSError:
        return True  # it may well; that it can't be read is what is to be said


def _offline_status(disk: FoundDisk, space: FreeSpace | None) -> DiskStatus:
    state: DiskState = "missing" if disk.stored is None else "online"
    reason = disk.problem
    if disk.wish == "offline":
        state, reason = "offline", "taken offline by an administrator"
    elif disk.stored is not None and disk.wish == "removing":
        state, reason = "removing", "it is being removed"
    elif disk.stored is not None and probe(disk.directory, disk.id) is DiskCondition.READ_ONLY:
        state, reason = "failing", "its filesystem is read-only"
    return DiskStatus(
        id=format_uuid(disk.id),
        path=str(disk.directory),
        state=state,
        size_bytes=None if space is None or disk.stored is None else space.size_bytes,
        used_bytes=None,
        errors=0,
        reason=reason,
        label=disk.label,
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

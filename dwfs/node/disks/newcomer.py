"""Looking at a directory that is to become a disk of the pool, and making it one.

Refused is what could cost somebody data (a disk of another pool, a directory with files in it) and what
could not work. What is taken, besides an empty directory: what a disk left behind that was removed
from this pool, or was about to be added when the machine crashed. Its header carries the MAC of our
key and names a disk that is no member, so nothing of ours is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from dwfs.config import format_uuid
from dwfs.disk import (
    Medium,
    MediumSpace,
    PoolHeader,
    StoredHeader,
    erase_disk,
    read_header,
    share_space,
    write_header,
)
from dwfs.disk.header import HEADER_NAME
from dwfs.errors import DwfsError, FormatError, NoSpaceError, UsageError
from dwfs.limits import DISK_SIZE_MIN, MIB
from dwfs.types import DiskId

_HARMLESS: Final = frozenset({"lost+found"})

Verify = Callable[[StoredHeader], None]


class Newcomer(msgspec.Struct, frozen=True):
    """A directory that can become a disk."""

    directory: Path
    exists: bool
    leftover: bool  # it holds what an earlier disk of this pool left
    size_bytes: int
    available_bytes: int  # for shards
    shares_with: Path | None  # a disk of the pool on the same filesystem


def inspect_newcomer(
    directory: Path,
    header: PoolHeader,
    members: Mapping[Path, str],
    verify: Verify,
    medium: Medium,
) -> Newcomer:
    """Judge the directory; blocking, changes nothing.

    `members` are the directories of the pool's disks, and their states. `verify` checks a header's
    MAC. Raises UsageError, FormatError, NoSpaceError, or OSError if the directory can't be looked at.
    """
    if not directory.is_absolute():
        raise UsageError(f"{directory} is not an absolute path")
    _check_apart(directory, members)
    exists = medium.is_directory(directory)
    if not exists and not medium.is_directory(directory.parent):
        raise UsageError(f"{directory} is not there, and neither is the directory it would be in")
    names = set(medium.names(directory)) - _HARMLESS if exists else set()
    leftover = any(name.startswith(HEADER_NAME) for name in names)
    if leftover:
        _check_leftover(directory, header, members, verify, medium)
    elif names:
        raise UsageError(
            f"{directory} is not empty (it holds {min(names)!r}): give an empty directory"
        )
    place = directory if exists else directory.parent
    return _measure(directory, place, exists, leftover, members, medium)


def prepare_newcomer(
    newcomer: Newcomer,
    header: PoolHeader,
    key: bytes | bytearray | memoryview,
    medium: Medium,
) -> None:
    """Make the directory a disk with that header; blocking. Raises OSError."""
    if newcomer.leftover:
        erase_disk(newcomer.directory, medium)
    if not newcomer.exists:
        medium.make_directory(newcomer.directory)
    write_header(newcomer.directory, header, key, medium)
    # Again, so that there is a previous copy from the start.
    write_header(newcomer.directory, header, key, medium)


def _check_apart(directory: Path, members: Mapping[Path, str]) -> None:
    real = directory.resolve()
    for other, state in members.items():
        other_real = other.resolve()
        if real == other_real and state != "missing":
            raise UsageError(f"{directory} is a disk of this pool already")
        if real != other_real and (
            real.is_relative_to(other_real) or other_real.is_relative_to(real)
        ):
            raise UsageError(f"{directory} and {other} lie within each other: they are one disk")


def _check_leftover(
    directory: Path,
    header: PoolHeader,
    members: Mapping[Path, str],
    verify: Verify,
    medium: Medium,
) -> None:
    """Raise unless what lies there is what a former disk of this pool left."""
    try:
        stored = read_header(directory, medium)
    except DwfsError as error:
        raise FormatError(
            f"{directory} holds a disk of some dwfs pool that can't be read ({error}): nothing was"
            " changed; give an empty directory"
        ) from None
    found = stored.header
    if found.pool != header.pool:
        raise FormatError(
            f"{directory} holds a disk of pool {found.name!r} ({format_uuid(found.pool)}): nothing"
            " was changed"
        )
    name = f"{directory} holds disk {found.disk.hex()[:8]} of this pool"
    if any(member.id == found.disk for member in header.members):
        for other, state in members.items():
            if state != "missing" and _holds(other, found.disk, medium):
                raise UsageError(f"{name}, as {other} does: one is a copy; give an empty directory")
        raise UsageError(
            f"{name}, which is a member: it is taken back by itself; see 'dwfs status'"
        )
    try:
        verify(stored)
    except FormatError as error:
        raise FormatError(f"{error}; nothing was changed") from None


def _holds(directory: Path, disk: DiskId, medium: Medium) -> bool:
    try:
        return read_header(directory, medium).header.disk == disk
    except (DwfsError, OSError):
        return False


def _measure(
    directory: Path,
    place: Path,
    exists: bool,
    leftover: bool,
    members: Mapping[Path, str],
    medium: Medium,
) -> Newcomer:
    space = medium.space(place)
    if space.read_only:
        raise UsageError(f"{directory} is on a read-only filesystem")
    filesystems: dict[Path, MediumSpace] = {directory: space}
    for member, state in members.items():
        if state in ("missing", "offline") or member == directory:
            continue
        try:
            filesystems[member] = medium.space(member)
        except OSError:
            continue
    sharing = [
        member
        for member, found in filesystems.items()
        if member != directory and found.device == space.device
    ]
    share = share_space(filesystems)[directory]
    if share.available_bytes < DISK_SIZE_MIN:
        raise NoSpaceError(
            f"{directory} has {share.available_bytes // MIB} MiB of free space for dwfs, but a disk"
            f" needs at least {DISK_SIZE_MIN // MIB} MiB"
        )
    return Newcomer(
        directory=directory,
        exists=exists,
        leftover=leftover,
        size_bytes=share.size_bytes,
        available_bytes=share.available_bytes,
        shares_with=sharing[0] if sharing else None,
    )

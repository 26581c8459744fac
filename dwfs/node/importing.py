"""Making a pool known on a machine from its disks alone: the boot disk died, or the disks moved.

Everything that a machine keeps about a pool can be had again from the disks: the configuration from
their headers, the state directory from the newest state snapshot, the log and the segments. So
importing is: look at the directories given, refuse what is ambiguous, check the key, write the
configuration, throw away whatever state directory an earlier life left, and open once.

Safety: until the key has opened the pool and every header carried its MAC, nothing is changed on this
machine, and nothing ever on a disk but what recovery and a mount would do. An older state directory
is never believed: the pool may have been used elsewhere since. It is discarded before the
configuration is written, so a kill at any point leaves either nothing or a pool that the next mount
recovers by itself; running the import again is always allowed and does the same once more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import trio

from dwfs.config import (
    ConfiguredDisk,
    Directories,
    PoolConfig,
    Unlock,
    check_pool_name,
    format_uuid,
    load_config,
    save_config,
)
from dwfs.disk import (
    DiskMember,
    HeaderSurvey,
    PoolHeader,
    StoredHeader,
    read_header,
    survey_headers,
)
from dwfs.errors import (
    DwfsError,
    FormatError,
    NewerFormatError,
    NotEnoughDisksError,
    UsageError,
)
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.content_count import Content, count_content
from dwfs.node.credential import Credential
from dwfs.node.disks.survey import survey_disks
from dwfs.node.keyslots import unlock
from dwfs.node.lock import PoolLock
from dwfs.node.pool import open_pool
from dwfs.node.recovery import Report, discard_state
from dwfs.types import PoolId


class ImportPlan(msgspec.Struct, frozen=True):
    """What an import would do; nothing has been changed for it."""

    config: PoolConfig
    parity: int
    known: bool  # configured here already, under the same name
    missing: tuple[DiskMember, ...]  # members that were not found
    notes: tuple[str, ...]  # for people: directories left aside, copies that are out of date


class ImportedPool(msgspec.Struct, frozen=True):
    """What `dwfs import --json` prints."""

    pool: str
    uuid: str
    data: int
    parity: int
    disks: list[str]  # directories of the disks that were found
    missing: list[str]  # the others, by the directory they were added under
    files: int  # everything but directories
    directories: int  # without the root
    stored_bytes: int  # what users have stored
    last_change_ns: int  # of the youngest change in the pool, since the Unix epoch
    unreadable: int  # damaged records met on the way; `dwfs check` says more
    notes: list[str]
    snapshots: int = 0
    scheduled_snapshots: int = 0  # of them those that a schedule took, which is not on the disks


def plan_import(
    directories: Directories, places: Sequence[Path], name: str | None = None
) -> ImportPlan:
    """Look at the directories and decide what pool they make. Blocking; changes nothing.

    `places` are absolute. Raises UsageError, FormatError, NotEnoughDisksError.
    """
    found, left_aside = _read_headers(_distinct(places))
    _refuse_several_pools(found)
    if not found:
        raise NotEnoughDisksError(
            "none of the directories given holds a usable dwfs disk: "
            + "; ".join(f"{place}: {why}" for place, why in left_aside.items())
        )
    survey = survey_headers(found)
    header = survey.newest.header
    _refuse_copies(survey)
    missing = _missing_members(survey)
    _refuse_too_few(header, missing, left_aside)
    chosen = header.name if name is None else name
    check_pool_name(chosen)
    existing = _existing_config(directories, chosen, header.pool)
    return ImportPlan(
        config=_configuration(chosen, survey, existing),
        parity=header.geometry.parity,
        known=existing is not None,
        missing=missing,
        notes=tuple(_notes(survey, left_aside)),
    )


async def import_pool(
    directories: Directories,
    plan: ImportPlan,
    credential: Credential,
    *,
    keyfile: Path | None = None,
    before_changes: Callable[[], None] = lambda: None,
    report: Report = lambda _what, _done, _total: None,
) -> ImportedPool:
    """Carry the plan out; seconds to minutes. `keyfile` is noted in the configuration.

    `before_changes` is called when the key has proved right, before anything is written.
    Raises WrongKeyError or FormatError with nothing changed, PoolBusyError, and what opening a pool
    raises; after the latter the pool is configured, and a mount or another import tries again.
    """
    config = plan.config
    if keyfile is not None:
        config = msgspec.structs.replace(config, unlock=Unlock(keyfile=keyfile))
    report("checking the key", 0, 0)
    await trio.to_thread.run_sync(_check_key, config, credential)
    before_changes()
    await trio.to_thread.run_sync(_configure, directories, config)
    options = OpenOptions(report=report)
    async with open_pool(directories, config, credential, options) as pool:
        content = await count_content(pool.volume, report)
        return _describe(plan, pool, content)


def _distinct(places: Sequence[Path]) -> list[Path]:
    """The directories, each once. Raises UsageError for a path that is no directory."""
    chosen: dict[tuple[int, int], Path] = {}
    for place in places:
        try:
            status = place.stat()
        except OSError as error:
            raise UsageError(
                f"can't look into {place}: {error.strerror}; leave it out if that disk is lost"
            ) from None
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{place} is not a directory: give the directory a disk is mounted at")
        chosen.setdefault((status.st_dev, status.st_ino), place)
    return list(chosen.values())


def _read_headers(places: Sequence[Path]) -> tuple[list[StoredHeader], dict[Path, str]]:
    """The headers that can be read, and why the other directories hold none."""
    found: list[StoredHeader] = []
    left_aside: dict[Path, str] = {}
    for place in places:
        try:
            found.append(read_header(place))
        except NewerFormatError:
            raise  # it may be the newest header of all: nothing may be concluded without it
        except DwfsError as error:
            left_aside[place] = _without_prefix(str(error), place)
    return found, left_aside


def _without_prefix(text: str, place: Path) -> str:
    return text.removeprefix(f"{place} ").removeprefix("is ")


def _refuse_several_pools(found: Sequence[StoredHeader]) -> None:
    by_pool: dict[PoolId, list[StoredHeader]] = {}
    for stored in found:
        by_pool.setdefault(stored.header.pool, []).append(stored)
    if len(by_pool) < 2:
        return
    parts = [
        f"{group[0].header.name!r} ({format_uuid(pool)}) in "
        + ", ".join(str(stored.directory) for stored in group)
        for pool, group in by_pool.items()
    ]
    raise FormatError(
        f"the directories hold disks of {len(by_pool)} pools: {'; '.join(parts)}: "
        "import them one after another, each with its own directories"
    )


def _refuse_copies(survey: HeaderSurvey) -> None:
    if not survey.duplicates:
        return
    copy = survey.duplicates[0]
    first = next(
        stored
        for stored in (*survey.current, *survey.stale, *survey.removed)
        if stored.header.disk == copy.header.disk
    )
    hint = ""
    if first.header.generation > copy.header.generation:
        hint = f" ({first.directory} is the newer one)"
    raise FormatError(
        f"{first.directory} and {copy.directory} hold the same disk "
        f"{copy.header.disk.hex()[:8]}, so one is a copy{hint}: leave the copy out"
    )


def _missing_members(survey: HeaderSurvey) -> tuple[DiskMember, ...]:
    """Every member that no directory held."""
    absent = set(survey.missing())
    return tuple(member for member in survey.newest.header.members if member.id in absent)


def _refuse_too_few(
    header: PoolHeader, missing: Sequence[DiskMember], left_aside: Mapping[Path, str]
) -> None:
    parity, total = header.geometry.parity, len(header.members)
    if len(missing) <= parity:
        return
    more = len(missing) - parity
    unusable = "".join(f"; of no use: {place} ({why})" for place, why in left_aside.items())
    raise NotEnoughDisksError(
        f"pool {header.name!r} has {total} disks and {total - parity} of them are needed, but only "
        f"{total - len(missing)} {'was' if total - len(missing) == 1 else 'were'} found: attach at least {more} more of these, named by the "
        f"directory they were added under, and give --disk for each: "
        f"{', '.join(member.label for member in missing)}{unusable}"
    )


def _existing_config(directories: Directories, name: str, pool: PoolId) -> PoolConfig | None:
    """The pool's configuration under this name, if there is one. Raises UsageError if it can't be."""
    for other in directories.pools():
        try:
            config = load_config(directories, other)
        except FormatError as error:
            if other == name:
                raise FormatError(f"{error}; move that file away and import again") from None
            continue  # somebody else's trouble: `dwfs status` tells of it
        path = directories.config_file(other)
        if other == name and config.pool != pool:
            raise UsageError(
                f"another pool {name!r} ({config.uuid}) is configured here already ({path}): give "
                "this one another name with --name"
            )
        if other == name:
            return config
        if config.pool == pool:
            raise UsageError(
                f"this pool is configured here already, as {other!r}: use 'dwfs mount {other} DIR', "
                f"or move {path} away to import it as {name!r}"
            )
    return None


def _configuration(name: str, survey: HeaderSurvey, existing: PoolConfig | None) -> PoolConfig:
    header = survey.newest.header
    found = {stored.header.disk: stored.directory for stored in (*survey.current, *survey.stale)}
    known = {} if existing is None else {disk.id: disk.path for disk in existing.disks}
    disks = tuple(
        ConfiguredDisk(
            member.id, found.get(member.id) or known.get(member.id) or Path(member.label)
        )
        for member in header.members
    )
    if existing is not None:
        return msgspec.structs.replace(existing, disks=disks)
    return PoolConfig(name=name, pool=header.pool, disks=disks)


def _notes(survey: HeaderSurvey, left_aside: Mapping[Path, str]) -> list[str]:
    notes = [f"left aside {place}: {why}" for place, why in left_aside.items()]
    notes += [
        f"left aside {stored.directory}: that disk was removed from the pool, what is on it is no "
        "longer needed"
        for stored in survey.removed
    ]
    for stored in survey.stale:
        if stored.fallback:
            notes.append(f"the pool header in {stored.directory} was damaged; it is mended")
        else:
            notes.append(
                f"the disk in {stored.directory} missed changes while it was away; it is brought "
                "in step"
            )
    return notes


def _check_key(config: PoolConfig, credential: Credential) -> None:
    """Raise WrongKeyError or FormatError unless the key opens the pool and made all headers."""
    unlock(survey_disks(config), credential).wipe()


def _configure(directories: Directories, config: PoolConfig) -> None:
    """Forget what this machine thought of the pool, and write down where its disks are."""
    with PoolLock.acquire(directories, config.name):
        state_directory = directories.state_directory(config.name)
        if state_directory.is_dir():
            discard_state(state_directory)
            _sync_directory(state_directory)
        save_config(directories, config)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(plan: ImportPlan, pool: Pool, content: Content) -> ImportedPool:
    header = pool.foundation.header
    absent = {member.id for member in plan.missing}
    snapshots = pool.volume.snapshots()
    return ImportedPool(
        pool=pool.name,
        uuid=plan.config.uuid,
        data=header.geometry.data,
        parity=header.geometry.parity,
        disks=[str(disk.path) for disk in plan.config.disks if disk.id not in absent],
        missing=[member.label for member in plan.missing],
        files=content.files,
        directories=content.directories,
        stored_bytes=pool.volume.usage().allocated_bytes,
        last_change_ns=content.last_change_ns,
        unreadable=content.unreadable,
        notes=list(plan.notes),
        snapshots=len(snapshots),
        scheduled_snapshots=sum(1 for one in snapshots if one.automatic),
    )

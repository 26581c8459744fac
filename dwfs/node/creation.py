"""Making a pool: check everything first, then write, and take everything back if that fails.

Order of writing: headers with their keyslots on every disk, then a first opening that makes the
empty root volume durable, and the configuration last. A pool exists here when its configuration
does; a crash before that leaves directories that `init` refuses with a line that says what they
are.

The first opening matters for safety: from then on the disks hold a log, so "no log to be found"
always means "lost", never "new", and nobody can take a pool whose log disks are away for an empty
one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from dwfs.config import (
    ConfiguredDisk,
    Directories,
    PoolConfig,
    Unlock,
    check_pool_name,
    format_uuid,
    save_config,
)
from dwfs.crypto import Keyslot, RootKeys, add_slot, new_recovery_key, new_root_key
from dwfs.disk import DiskMember, PoolHeader, read_header, write_header
from dwfs.errors import DwfsError, FormatError, NoSpaceError, NotEnoughDisksError, UsageError
from dwfs.limits import DISK_SIZE_MIN, MIB, POOL_DISKS_MAX
from dwfs.node.credential import Credential
from dwfs.node.keyslots import encode_slots
from dwfs.node.lock import PoolLock
from dwfs.types import DiskId, Geometry, PoolId, VolumeId

_HARMLESS_ENTRIES = frozenset({"lost+found"})

FirstOpening = Callable[[Directories, PoolConfig, Credential], None]


class PoolPlan(msgspec.Struct, frozen=True):
    """What is to be made."""

    name: str
    disks: tuple[Path, ...]  # absolute
    geometry: Geometry
    recovery_file: Path | None = None  # absolute; None: the caller shows the key
    unlock: Unlock = Unlock()


class CreatedPool(msgspec.Struct, frozen=True):
    """What was made. The recovery key is nowhere else."""

    uuid: str
    recovery_key: str


def check_plan(directories: Directories, plan: PoolPlan) -> list[str]:
    """Refuse what can't work, before anything changes; returns warnings. Blocking.

    Raises UsageError, FormatError, NotEnoughDisksError or NoSpaceError.
    """
    check_pool_name(plan.name)
    if directories.config_file(plan.name).exists():
        raise UsageError(
            f"a pool {plan.name!r} is configured already ({directories.config_file(plan.name)})"
        )
    geometry = plan.geometry
    if len(plan.disks) < geometry.total:
        raise NotEnoughDisksError(
            f"{geometry.data}+{geometry.parity} needs at least {geometry.total} disks, but "
            f"{len(plan.disks)} {'was' if len(plan.disks) == 1 else 'were'} given: add disks, or choose smaller --data or --parity"
        )
    if len(plan.disks) > POOL_DISKS_MAX:
        raise UsageError(f"a pool has at most {POOL_DISKS_MAX} disks, not {len(plan.disks)}")
    _check_distinct(plan.disks)
    for path in plan.disks:
        _check_directory(path)
    _check_recovery_file(plan)
    return _check_space(plan.disks)


def create_pool(
    directories: Directories,
    plan: PoolPlan,
    credential: Credential,
    first_opening: FirstOpening,
) -> CreatedPool:
    """Make the pool; blocking, seconds. Raises DwfsError or OSError with everything taken back."""
    check_plan(directories, plan)
    credential.protector()  # refuses an unfit secret while nothing is there yet
    with contextlib.ExitStack() as undo:
        _forget_new_directories(directories, undo)
        undo.callback(_remove_runtime, directories.runtime_directory(plan.name))
        PoolLock.acquire(directories, plan.name).release()  # nobody else has a pool of that name
        made = _create(directories, plan, credential, first_opening, undo)
        undo.pop_all()
        return made


def _create(
    directories: Directories,
    plan: PoolPlan,
    credential: Credential,
    first_opening: FirstOpening,
    undo: contextlib.ExitStack,
) -> CreatedPool:
    pool = PoolId(os.urandom(16))
    recovery_key = new_recovery_key()
    members = tuple(DiskMember(DiskId(os.urandom(16)), str(path)) for path in plan.disks)
    with RootKeys(new_root_key(), pool) as keys:
        # The recovery slot comes first: whatever else happens, there is a way in.
        slots: list[Keyslot] = []
        recovery = Credential("recovery", recovery_key.encode())
        for given, label in ((recovery, "recovery"), (credential, "made by init")):
            slots.append(
                add_slot(
                    keys.root,
                    given.protector(),
                    pool=pool,
                    slots=slots,
                    label=label,
                    created_ns=time.time_ns(),
                )
            )
        header = PoolHeader(
            pool=pool,
            name=plan.name,
            generation=1,
            geometry=plan.geometry,
            disk=members[0].id,
            members=members,
            keyslots=encode_slots(slots),
            root_volume=VolumeId(os.urandom(16)),
            created_ns=time.time_ns(),
            state_id=os.urandom(16),
        )
        with keys.header_key().view() as key:
            for member, path in zip(members, plan.disks, strict=True):
                _prepare_directory(path, undo)
                mine = msgspec.structs.replace(header, disk=member.id)
                write_header(path, mine, key)
                # Again, so that there is a previous copy: one that rots is then mended by the next
                # mount, instead of costing a disk.
                write_header(path, mine, key)
    config = PoolConfig(
        name=plan.name,
        pool=pool,
        disks=tuple(
            ConfiguredDisk(member.id, path)
            for member, path in zip(members, plan.disks, strict=True)
        ),
        unlock=plan.unlock,
    )
    undo.callback(shutil.rmtree, directories.state_directory(plan.name), ignore_errors=True)
    first_opening(directories, config, credential)
    if plan.recovery_file is not None:
        undo.callback(plan.recovery_file.unlink, missing_ok=True)
        _write_recovery_file(plan.recovery_file, recovery_key)
    undo.callback(directories.config_file(plan.name).unlink, missing_ok=True)
    save_config(directories, config)
    return CreatedPool(format_uuid(pool), recovery_key)


def _check_distinct(paths: Sequence[Path]) -> None:
    seen: dict[object, Path] = {}
    for path in paths:
        real = Path(os.path.realpath(path))
        identities: list[object] = [str(real)]
        if real.exists():
            status = real.stat()
            identities.append((status.st_dev, status.st_ino))
        for identity in identities:
            if identity in seen and seen[identity] != path:
                raise UsageError(f"{path} and {seen[identity]} are the same directory")
            if identity in seen:
                raise UsageError(f"the disk {path} is given twice")
        for other in {str(found): found for found in seen.values()}.values():
            other_real = Path(os.path.realpath(other))
            if real.is_relative_to(other_real) or other_real.is_relative_to(real):
                raise UsageError(f"{path} and {other} lie within each other: they are one disk")
        seen.update(dict.fromkeys(identities, path))


def _check_directory(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the path {os.fsencode(path)!r} is not valid UTF-8") from None
    if not os.path.lexists(path):
        parent = path.parent
        if not parent.is_dir():
            raise UsageError(f"{path} is not there, and neither is the directory it would be in")
        _check_writable(parent)
        return
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory")
    _check_writable(path)
    entries = sorted(set(os.listdir(path)) - _HARMLESS_ENTRIES)
    if not entries:
        return
    if any(entry.startswith("dwfs-disk") for entry in entries):
        raise FormatError(f"{path} already holds {_describe_occupant(path)}: nothing was changed")
    raise UsageError(f"{path} is not empty (it holds {entries[0]!r}): give an empty directory")


def _describe_occupant(path: Path) -> str:
    try:
        header = read_header(path).header
    except DwfsError:
        return "a disk of some dwfs pool"
    return f"a disk of pool {header.name!r} ({format_uuid(header.pool)})"


def _check_writable(path: Path) -> None:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise UsageError(f"{path} is on a read-only filesystem")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(f"no permission to write in {path}")


def _check_recovery_file(plan: PoolPlan) -> None:
    path = plan.recovery_file
    if path is None:
        return
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already: give --recovery-file a new name")
    if not path.parent.is_dir():
        raise UsageError(f"the directory of {path} is not there")
    _check_writable(path.parent)
    real = Path(os.path.realpath(path))
    for disk in plan.disks:
        if real.is_relative_to(os.path.realpath(disk)):
            raise UsageError(f"{path} would lie on the disk {disk} that it is to unlock")


def _check_space(paths: Sequence[Path]) -> list[str]:
    """NoSpaceError for a disk that is too small; a warning for disks on one filesystem."""
    places = {path: path if path.exists() else path.parent for path in paths}
    devices = {path: place.stat().st_dev for path, place in places.items()}
    sharers = Counter(devices.values())
    for path, place in places.items():
        status = os.statvfs(place)
        share = status.f_bavail * status.f_frsize // sharers[devices[path]]
        if share < DISK_SIZE_MIN:
            raise NoSpaceError(
                f"{path} has {share // MIB} MiB of free space, but a disk needs at least "
                f"{DISK_SIZE_MIN // MIB} MiB"
            )
    shared = [path for path in paths if sharers[devices[path]] > 1]
    if not shared:
        return []
    return [
        (
            f"{len(shared)} of the disks ({shared[0]}, …) share a filesystem: if it fails, they "
            "all do; give each disk a device of its own"
        )
    ]


def _prepare_directory(path: Path, undo: contextlib.ExitStack) -> None:
    """Make the directory if it isn't there; register how to leave it as it was."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        undo.callback(_empty, path)
    else:
        undo.callback(shutil.rmtree, path, ignore_errors=True)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name in _HARMLESS_ENTRIES:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _forget_new_directories(directories: Directories, undo: contextlib.ExitStack) -> None:
    """Register the removal of those of our directories that are not there yet."""
    wanted = [directories.config, directories.state, directories.runtime_directory("x").parent]
    for directory in wanted:
        for ancestor in [*reversed(directory.parents), directory]:
            if not ancestor.exists():
                undo.callback(_remove_if_empty, ancestor)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _remove_runtime(directory: Path) -> None:
    # The one case in which a lock file is removed: its pool never came into being.
    for name in ("lock", "control.sock", "dwfs.log"):
        (directory / name).unlink(missing_ok=True)
    _remove_if_empty(directory)


def _write_recovery_file(path: Path, recovery_key: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(recovery_key + "\n")
        file.flush()
        os.fsync(file.fileno())

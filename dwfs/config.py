"""Where a pool's files are on this machine, and what its configuration says.

A pool is known here by one TOML file, `<config>/<pool>.toml`. It holds nothing secret and nothing
that can't be had again from the pool's disks: paths of the disks, how to unlock, mount options,
tunables. The pool's own truth (members, keyslots, geometry) is in the header on every disk; where
the two differ, the header wins, and the file only says where to look.

`DWFS_ROOT` moves the three directories, so that tests and several installations live side by side.
"""

from __future__ import annotations

import os
import re
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from dwfs.errors import FormatError, PoolNotFoundError, UsageError
from dwfs.limits import (
    CONFIG_SIZE_MAX,
    DISK_REBUILD_SECONDS,
    DURABLE_WITHIN_SECONDS,
    POOL_NAME_LENGTH_MAX,
    SCHEDULED_SNAPSHOTS_MAX,
)
from dwfs.types import DiskId, PoolId

CONFIG_VERSION: Final = 1
_REBUILD_SECONDS_MAX: Final = 365 * 86_400
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Directories(msgspec.Struct, frozen=True):
    """The three directories that dwfs uses on a machine, and the names of a pool's files in them."""

    config: Path  # survives; small text files
    state: Path  # survives, but may be lost: everything in it can be rebuilt from the disks
    runtime: Path  # gone after a reboot: lock, control socket, log

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Directories:
        """`/etc/dwfs`, `/var/lib/dwfs`, `/run/dwfs`, or all of them under `DWFS_ROOT`."""
        root = environment.get("DWFS_ROOT", "")
        if not root:
            return cls(Path("/etc/dwfs"), Path("/var/lib/dwfs"), Path("/run/dwfs"))
        base = Path(root).absolute()
        return cls(base / "etc", base / "lib", base / "run")

    def config_file(self, pool: str) -> Path:
        """The pool's configuration."""
        return self.config / f"{pool}.toml"

    def state_directory(self, pool: str) -> Path:
        """Shard index, volume state and validity marker."""
        return self.state / pool

    def runtime_directory(self, pool: str) -> Path:
        """Lock, control socket and log of the owning process."""
        return self.runtime / pool

    def lock_file(self, pool: str) -> Path:
        """Held with flock by the owning process; contains its pid."""
        return self.runtime / pool / "lock"

    def control_socket(self, pool: str) -> Path:
        """Where the owning process listens."""
        return self.runtime / pool / "control.sock"

    def log_file(self, pool: str) -> Path:
        """What a background mount writes its log to."""
        return self.runtime / pool / "dwfs.log"

    def pools(self) -> list[str]:
        """Names of the configured pools, sorted."""
        try:
            names = [entry.stem for entry in self.config.iterdir() if entry.suffix == ".toml"]
        except OSError:
            return []
        return sorted(name for name in names if is_pool_name(name))


class ConfiguredDisk(msgspec.Struct, frozen=True):
    """Where one disk of the pool is mounted on this machine."""

    id: DiskId
    path: Path


class Unlock(msgspec.Struct, frozen=True):
    """How the pool is unlocked when the command line doesn't say: paths, never secrets."""

    keyfile: Path | None = None
    passphrase_file: Path | None = None
    recovery_key_file: Path | None = None


class Tunables(msgspec.Struct, frozen=True):
    """What an operator may change without harm to the contract that he has been told of."""

    durable_seconds: float = DURABLE_WITHIN_SECONDS
    # How long a missing disk is waited for before its shards are rebuilt on the others.
    rebuild_after_seconds: float = DISK_REBUILD_SECONDS


class ScrubSchedule(msgspec.Struct, frozen=True):
    """When the pool reads all that it holds by itself, and how fast."""

    every_days: float = 30.0  # 0: never by itself
    rate_mib: float | None = None  # MiB a second on each disk, at most; None: as it leaves room


class SnapshotSchedule(msgspec.Struct, frozen=True):
    """How many snapshots are taken and kept by themselves, by kind; 0: none of that kind.

    All 0, as a pool begins and as it is after an import: none is taken, and none that is there is
    destroyed. A schedule that got lost must not take snapshots with it.
    """

    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


class PoolConfig(msgspec.Struct, frozen=True):
    """One pool, as configured on this machine."""

    name: str
    pool: PoolId
    disks: tuple[ConfiguredDisk, ...]
    unlock: Unlock = Unlock()
    mount_options: tuple[str, ...] = ()
    tunables: Tunables = Tunables()
    scrub: ScrubSchedule = ScrubSchedule()
    snapshots: SnapshotSchedule = SnapshotSchedule()

    @property
    def uuid(self) -> str:
        """The pool's id in the usual dashed form."""
        return format_uuid(self.pool)

    @property
    def places(self) -> list[Path]:
        """The directories to look in, each once.

        Two disks may be listed with the same one: a dead disk, and the disk that stands in its place.
        """
        return list(dict.fromkeys(disk.path for disk in self.disks))


def is_pool_name(name: str) -> bool:
    """Whether `name` may name a pool: it becomes a file name and a mount source."""
    return len(name) <= POOL_NAME_LENGTH_MAX and _NAME.fullmatch(name) is not None


def check_pool_name(name: str) -> None:
    """Raise UsageError unless `name` may name a pool."""
    if not is_pool_name(name):
        raise UsageError(
            f"bad pool name {name!r}: use 1 to {POOL_NAME_LENGTH_MAX} letters, digits, '-', '_' "
            "or '.', beginning with a letter or digit"
        )


def format_uuid(identifier: bytes) -> str:
    """A 16-byte identifier in the dashed form that people know."""
    return str(uuid.UUID(bytes=identifier))


def load_config(directories: Directories, name: str) -> PoolConfig:
    """Read a pool's configuration. Raises PoolNotFoundError, FormatError or UsageError."""
    check_pool_name(name)
    path = directories.config_file(name)
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_SIZE_MAX + 1)
    except FileNotFoundError:
        known = ", ".join(directories.pools()) or "none"
        raise PoolNotFoundError(
            f"no pool {name!r} is known here ({path} is absent; known: {known}); if its disks are "
            "here, 'dwfs import --disk DIR …' makes it known"
        ) from None
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    if len(raw) > CONFIG_SIZE_MAX:
        raise FormatError(
            f"{path} is larger than {CONFIG_SIZE_MAX} bytes: not a pool configuration"
        )
    try:
        return _parse(tomllib.loads(raw.decode()), name)
    except (
        UnicodeDecodeError,
        tomllib.TOMLDecodeError,
        msgspec.ValidationError,
        ValueError,
    ) as error:
        raise FormatError(f"{path}: {error}") from None


def save_config(directories: Directories, config: PoolConfig) -> None:
    """Write a pool's configuration atomically, readable by its owner only."""
    check_pool_name(config.name)
    directories.config.mkdir(parents=True, exist_ok=True, mode=0o755)
    target = directories.config_file(config.name)
    temporary = target.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(render_config(config).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(directories.config)


def render_config(config: PoolConfig) -> str:
    """The configuration as TOML text."""
    lines = [
        "# A dwfs pool on this machine. See docs/operations.md. Holds no secret.",
        f"version = {CONFIG_VERSION}",
        f"name = {_quote(config.name)}",
        f"uuid = {_quote(config.uuid)}",
        f"mount_options = [{', '.join(map(_quote, config.mount_options))}]",
        "",
        "[unlock]",
    ]
    for key, path in _unlock_items(config.unlock):
        if path is not None:
            lines.append(f"{key} = {_quote(str(path))}")
    lines += [
        "",
        "[tunables]",
        f"durable_seconds = {config.tunables.durable_seconds!r}",
        f"rebuild_after_seconds = {config.tunables.rebuild_after_seconds!r}",
        "",
        "[scrub]",
        f"every_days = {config.scrub.every_days!r}",
    ]
    if config.scrub.rate_mib is not None:
        lines.append(f"rate_mib = {config.scrub.rate_mib!r}")
    lines += ["", "[snapshots]"]
    for kind in SnapshotSchedule.__struct_fields__:
        lines.append(f"{kind} = {getattr(config.snapshots, kind)}")
    lines += ["", "[disks]"]
    for disk in config.disks:
        lines.append(f"{_quote(format_uuid(disk.id))} = {_quote(str(disk.path))}")
    return "\n".join(lines) + "\n"


def _unlock_items(unlock: Unlock) -> list[tuple[str, Path | None]]:
    return [
        ("keyfile", unlock.keyfile),
        ("passphrase_file", unlock.passphrase_file),
        ("recovery_key_file", unlock.recovery_key_file),
    ]


class _FileUnlock(msgspec.Struct, forbid_unknown_fields=True):
    keyfile: str | None = None
    passphrase_file: str | None = None
    recovery_key_file: str | None = None


class _FileTunables(msgspec.Struct, forbid_unknown_fields=True):
    durable_seconds: float = DURABLE_WITHIN_SECONDS
    rebuild_after_seconds: float = DISK_REBUILD_SECONDS


class _FileScrub(msgspec.Struct, forbid_unknown_fields=True):
    every_days: float = 30.0
    rate_mib: float | None = None


class _FileSnapshots(msgspec.Struct, forbid_unknown_fields=True):
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file's shape; unknown keys are refused, because a misspelt one would be ignored."""

    version: int
    name: str
    uuid: str
    disks: dict[str, str]
    mount_options: list[str] = []
    unlock: _FileUnlock = msgspec.field(default_factory=_FileUnlock)
    tunables: _FileTunables = msgspec.field(default_factory=_FileTunables)
    scrub: _FileScrub = msgspec.field(default_factory=_FileScrub)
    snapshots: _FileSnapshots = msgspec.field(default_factory=_FileSnapshots)


def _parse(document: dict[str, object], name: str) -> PoolConfig:
    version = document.get("version")
    if isinstance(version, int) and version > CONFIG_VERSION:
        raise ValueError(f"version {version} is newer than this dwfs knows ({CONFIG_VERSION})")
    file = msgspec.convert(document, _File)
    if file.name != name:
        raise ValueError(f"it names the pool {file.name!r}, not {name!r}")
    if not 0.1 <= file.tunables.durable_seconds <= 60:
        raise ValueError("durable_seconds must be between 0.1 and 60")
    if not 0 <= file.tunables.rebuild_after_seconds <= _REBUILD_SECONDS_MAX:
        raise ValueError("rebuild_after_seconds must be between 0 and 31536000 (a year)")
    schedule = ScrubSchedule(file.scrub.every_days, file.scrub.rate_mib)
    if not 0 <= schedule.every_days <= 3650:
        raise ValueError("scrub: every_days must be between 0 (never) and 3650")
    if schedule.rate_mib is not None and not 0.1 <= schedule.rate_mib <= 100_000:
        raise ValueError("scrub: rate_mib must be between 0.1 and 100000")
    snapshots = _snapshot_schedule(file.snapshots)
    if not file.disks:
        raise ValueError("it lists no disks")
    disks = tuple(
        ConfiguredDisk(DiskId(uuid.UUID(identifier).bytes), Path(path))
        for identifier, path in file.disks.items()
    )
    return PoolConfig(
        name=file.name,
        pool=PoolId(uuid.UUID(file.uuid).bytes),
        disks=disks,
        unlock=Unlock(
            keyfile=_path(file.unlock.keyfile),
            passphrase_file=_path(file.unlock.passphrase_file),
            recovery_key_file=_path(file.unlock.recovery_key_file),
        ),
        mount_options=tuple(file.mount_options),
        tunables=Tunables(
            durable_seconds=file.tunables.durable_seconds,
            rebuild_after_seconds=file.tunables.rebuild_after_seconds,
        ),
        scrub=schedule,
        snapshots=snapshots,
    )


def _snapshot_schedule(file: _FileSnapshots) -> SnapshotSchedule:
    schedule = SnapshotSchedule(file.hourly, file.daily, file.weekly, file.monthly)
    for kind in schedule.__struct_fields__:
        if not 0 <= getattr(schedule, kind) <= SCHEDULED_SNAPSHOTS_MAX:
            raise ValueError(
                f"snapshots: {kind} must be between 0 (none) and {SCHEDULED_SNAPSHOTS_MAX}"
            )
    return schedule


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _quote(text: str) -> str:
    """A TOML basic string. Paths may hold any character but NUL."""
    pieces = []
    for character in text:
        if character in '"\\':
            pieces.append("\\" + character)
        elif ord(character) < 0x20 or ord(character) == 0x7F:
            pieces.append(f"\\u{ord(character):04x}")
        elif 0xD800 <= ord(character) <= 0xDFFF:
            raise UsageError(f"the path {text!r} is not valid UTF-8, which the configuration needs")
        else:
            pieces.append(character)
    return '"' + "".join(pieces) + '"'


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

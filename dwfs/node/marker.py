"""Whether what the state directory holds can be believed.

The shard index and the volume state are LMDB environments that are committed without a sync. Such
an environment is whole after a crash of the *process* (the kernel still has every page) but not
after a crash of the *machine*. So the owner leaves a marker beside them: the boot in which it
wrote, and whether it closed in order and synced. The state may be believed if it was closed
cleanly, or if the machine has not rebooted since. Otherwise it is discarded and made anew from
the disks, which is always possible.

A state directory can also be left behind: the pool is imported on another machine, used there, and
comes back. So the pool header names the state directory that is up to date by a random `state_id`,
which the marker repeats. Whoever makes a state anew gives the pool a new one, before anything else
is written; every other state directory is stale from then on.

Safety: the marker turns "in use" (durably) before the first change of the state, and "clean" only
after the state itself was synced.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from dwfs.types import PoolId

STATE_FORMAT: Final = 1  # of the state directory as a whole; another number means: rebuild
# A damaged database may kill the process that reads it (SIGBUS), which then can't say so. One opening
# that was killed may have been killed by somebody; two are a reason for doubt.
_OPENINGS_MAX: Final = 2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Marker(msgspec.Struct, frozen=True):
    """The marker's content, as JSON in the file `marker`."""

    format: int
    pool: str  # hex; a state directory left by another pool of the same name is not ours
    boot_id: str  # of the boot in which the state was last written
    clean: bool  # closed in order, everything synced
    state_id: str = ""  # hex; that of the pool header when the state was made
    openings: int = 0  # begun since the last one that came to an end, good or bad


# Made once, here: msgspec (0.22) builds what it needs of a type at the type's first use, and two
# threads that do so at the same time crash the process.
_DECODER: Final = msgspec.json.Decoder(Marker)


def current_boot_id() -> str:
    """The kernel's id of this boot; a new random one wherever the kernel has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return os.urandom(16).hex()


def is_believable(directory: Path, pool: PoolId, state_id: bytes) -> bool:
    """Whether the state directory is consistent (if perhaps behind the log)."""
    marker = _read_ours(directory, pool, state_id)
    if marker is None or marker.openings >= _OPENINGS_MAX:
        return False
    return marker.clean or marker.boot_id == current_boot_id()


def is_clean(directory: Path, pool: PoolId, state_id: bytes) -> bool:
    """Whether the state directory was closed in order by this pool, and nobody used the pool since."""
    marker = _read_ours(directory, pool, state_id)
    return marker is not None and marker.clean


def is_current(directory: Path, pool: PoolId, state_id: bytes) -> bool:
    """Whether the pool header still means this state directory, believable or not."""
    return _read_ours(directory, pool, state_id) is not None


def mark(directory: Path, pool: PoolId, state_id: bytes, *, clean: bool) -> None:
    """Write the marker durably and atomically."""
    _write(directory, Marker(STATE_FORMAT, pool.hex(), current_boot_id(), clean, state_id.hex()))


def mark_opening(directory: Path, pool: PoolId, state_id: bytes) -> None:
    """As `mark`, not clean, for an opening that begins: `mark` says that it came to its end."""
    before = _read_ours(directory, pool, state_id)
    openings = 1 if before is None else before.openings + 1
    fresh = Marker(
        STATE_FORMAT, pool.hex(), current_boot_id(), False, state_id.hex(), openings=openings
    )
    _write(directory, fresh)


def forgive_opening(directory: Path, pool: PoolId, state_id: bytes) -> None:
    """The opening came to nothing, but in order: that is no reason to doubt the databases."""
    before = _read_ours(directory, pool, state_id)
    if before is not None and before.openings:
        _write(directory, msgspec.structs.replace(before, openings=before.openings - 1))


def distrust(directory: Path) -> None:
    """The databases turned out to be damaged: the next opening makes them anew."""
    (directory / "marker").unlink(missing_ok=True)


def readopt(directory: Path, state_id: bytes) -> None:
    """Make a state directory the current one again, whose successor came to nothing.

    For who knows that nothing was written to the pool under the successor's id. What the marker says
    of the state itself stays as it is. Raises OSError if there is no marker.
    """
    marker = _DECODER.decode((directory / "marker").read_bytes())
    _write(directory, msgspec.structs.replace(marker, state_id=state_id.hex()))


def _write(directory: Path, marker: Marker) -> None:
    target = directory / "marker"
    temporary = directory / "marker.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(marker))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_ours(directory: Path, pool: PoolId, state_id: bytes) -> Marker | None:
    try:
        marker = _DECODER.decode((directory / "marker").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    expected = (STATE_FORMAT, pool.hex(), state_id.hex())
    return marker if (marker.format, marker.pool, marker.state_id) == expected else None

"""How much room disks have, and how much of it dwfs may use.

Directories that share a filesystem (tests, or a user who puts two "disks" on one device) share its
free space: each is told an equal part, or the pool would believe in space that is there only once. A
reserve is kept on each filesystem, so that deletes, logs and headers can still be written when the
pool says that it is full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from dwfs import limits
from dwfs.disk.medium import POSIX_MEDIUM, Medium, MediumSpace

PlaceT = TypeVar("PlaceT", bound=Hashable)


class FreeSpace(msgspec.Struct, frozen=True):
    """One directory's part of its filesystem, in bytes."""

    size_bytes: int
    available_bytes: int  # after the reserve, divided among the directories on the filesystem
    reserve_bytes: int = 0  # the directory's part of the reserve
    short_bytes: int = 0  # of it, what is in use

    def after(self, grown_bytes: int) -> tuple[int, int]:
        """(available, left of the reserve) when shards have grown by so much since.

        What is given back fills the reserve first: else a full pool would live it up, round by round.
        """
        room = max(0, self.available_bytes + self.reserve_bytes - self.short_bytes - grown_bytes)
        left = min(room, self.reserve_bytes)
        return room - left, left


def reserve_bytes(size_bytes: int) -> int:
    """What is kept free on a filesystem of that size: for deletes, the log and its snapshots."""
    share = int(size_bytes * limits.DISK_RESERVE_FRACTION)
    log_room = min(int(size_bytes * limits.DISK_LOG_ROOM_FRACTION), limits.DISK_LOG_ROOM)
    return min(max(share, log_room, limits.DISK_RESERVE_MIN), limits.DISK_RESERVE_MAX)


def free_space(directories: Sequence[Path], medium: Medium = POSIX_MEDIUM) -> dict[Path, FreeSpace]:
    """Space of each directory that can be asked; blocking. One that fails is left out."""
    filesystems: dict[Path, MediumSpace] = {}
    for directory in directories:
        try:
            filesystems[directory] = medium.space(directory)
        except OSError:
            continue  # the probe, not the space count, tells what is wrong with it
    return share_space(filesystems)


def share_space(filesystems: Mapping[PlaceT, MediumSpace]) -> dict[PlaceT, FreeSpace]:
    """Divide each filesystem among the places that lie on it."""
    sharers = Counter(space.device for space in filesystems.values())
    return {place: _part(space, sharers[space.device]) for place, space in filesystems.items()}


def _part(space: MediumSpace, sharers: int) -> FreeSpace:
    reserve = reserve_bytes(space.size_bytes)
    return FreeSpace(
        size_bytes=space.size_bytes // sharers,
        available_bytes=max(0, space.available_bytes - reserve) // sharers,
        reserve_bytes=reserve // sharers,
        short_bytes=max(0, reserve - space.available_bytes) // sharers,
    )

"""How much room disks have, and how much of it dwfs may use.

Directories that share a filesystem (tests, or a user who puts two "disks" on one device) share its
free space: each is told an equal part, or the pool would believe in space that is there only once. A
reserve is kept on each filesystem, so that deletes, logs and headers can still be written when the
pool says that it is full.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dwfs import limits


class FreeSpace(msgspec.Struct, frozen=True):
    """One directory's part of its filesystem, in bytes."""

    size_bytes: int
    available_bytes: int  # after the reserve, divided among the directories on the filesystem


def reserve_bytes(size_bytes: int) -> int:
    """What is kept free on a filesystem of that size."""
    share = int(size_bytes * limits.DISK_RESERVE_FRACTION)
    return min(max(share, limits.DISK_RESERVE_MIN), limits.DISK_RESERVE_MAX)


def free_space(directories: Sequence[Path]) -> dict[Path, FreeSpace]:
    """Space of each directory that can be asked; blocking. One that fails is left out."""
    filesystems: dict[Path, tuple[int, os.statvfs_result]] = {}
    for directory in directories:
        try:
            filesystems[directory] = (os.stat(directory).st_dev, os.statvfs(directory))
        except OSError:
            continue  # the probe, not the space count, tells what is wrong with it
    sharers = Counter(device for device, _ in filesystems.values())
    return {
        directory: _part(status, sharers[device])
        for directory, (device, status) in filesystems.items()
    }


def _part(status: os.statvfs_result, sharers: int) -> FreeSpace:
    size = status.f_blocks * status.f_frsize
    available = max(0, status.f_bavail * status.f_frsize - reserve_bytes(size))
    return FreeSpace(size_bytes=size // sharers, available_bytes=available // sharers)

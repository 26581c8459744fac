"""How long a disk may take, and how its trouble is weighed: one set of rules for all disks of a pool."""

from __future__ import annotations

import msgspec

from dwfs.limits import DISK_DEADLINE_SECONDS, DISK_HANG_SECONDS, DISK_PROBE_SECONDS
from dwfs.node.disks.states import Rules


class DiskTiming(msgspec.Struct, frozen=True):
    """Times in seconds."""

    probe_seconds: float = DISK_PROBE_SECONDS  # between looks at a disk
    deadline_seconds: float = DISK_DEADLINE_SECONDS  # after which an operation is given up
    hang_seconds: float = DISK_HANG_SECONDS  # after which a disk that does not answer is missing
    expire_seconds: float = 0.25  # between looks at the operations that are under way
    space_seconds: float = 2.0  # how old the free space that writes are admitted against may be
    rules: Rules = Rules()

"""What the log is composed of: handed in once, by the composition root."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from dwfs import limits
from dwfs.disk.medium import Medium
from dwfs.log.ports import DiskList, ExecutorFactory, FailureReport, LogDisk, RecordCipher
from dwfs.types import DiskId, PoolId


class LogSettings(msgspec.Struct, frozen=True):
    """What a log needs from its composition root."""

    pool: PoolId
    copies: int  # m + 1
    header_cipher: RecordCipher  # of the pool; authenticates file headers
    disks: DiskList  # that take copies; asked whenever a set is chosen
    make_executor: ExecutorFactory  # a one-thread executor of that name
    on_disk_failed: FailureReport
    random_bytes: Callable[[int], bytes]
    medium: Medium
    file_size: int = limits.LOG_FILE_SIZE
    preallocation_size: int = limits.LOG_PREALLOCATION_SIZE  # 0: none
    # Disks whose copies can be read, though they may take no more: failing ones, and those that are
    # being removed. None: those of `disks`.
    readable: DiskList | None = None
    deadline_seconds: float = limits.DISK_DEADLINE_SECONDS  # for one operation of a disk
    stopwatch: Callable[[], float] = time.perf_counter  # measures writes; called in any thread

    def readable_disks(self) -> dict[DiskId, LogDisk]:
        """All disks whose copies can be read now."""
        readable = {} if self.readable is None else {disk.disk: disk for disk in self.readable()}
        return readable | {disk.disk: disk for disk in self.disks()}

"""What the log is composed of: handed in once, by the composition root."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dwfs import limits
from dwfs.log.medium import Medium
from dwfs.log.ports import DiskList, ExecutorFactory, FailureReport, RecordCipher
from dwfs.types import PoolId


class LogSettings(msgspec.Struct, frozen=True):
    """What a log needs from its composition root."""

    pool: PoolId
    copies: int  # m + 1
    header_cipher: RecordCipher  # of the pool; authenticates file headers
    disks: DiskList  # asked whenever a set is chosen
    make_executor: ExecutorFactory  # a one-thread executor of that name
    on_disk_failed: FailureReport
    random_bytes: Callable[[int], bytes]
    medium: Medium
    file_size: int = limits.LOG_FILE_SIZE
    preallocation_size: int = limits.LOG_PREALLOCATION_SIZE  # 0: none

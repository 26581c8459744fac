"""From an operating system error to the error that the engine acts on."""

from __future__ import annotations

import errno
import os
from typing import Final

from dwfs.errors import DiskFullError, DiskTimeoutError, MediumError
from dwfs.types import DiskId

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def medium_error(disk: DiskId, operation: str, error: OSError) -> MediumError:
    """The `MediumError` for `error`: DiskFullError if only room is lacking, DiskTimeoutError if the
    disk did not answer."""
    number = error.errno
    if number == errno.ETIMEDOUT:
        return DiskTimeoutError(disk, operation, "timed out: the disk does not answer")
    kind = DiskFullError if number in _FULL else MediumError
    name = errno.errorcode.get(number, str(number)) if number is not None else "error"
    text = os.strerror(number) if number is not None else str(error)
    return kind(disk, operation, f"{name}: {text}")

"""From an operating system error to the error that the engine acts on."""

from __future__ import annotations

import errno
import os
from typing import Final

from dwfs.errors import DiskFullError, MediumError
from dwfs.types import DiskId

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def medium_error(disk: DiskId, operation: str, error: OSError) -> MediumError:
    """The `MediumError` for `error`: DiskFullError if only room is lacking."""
    kind = DiskFullError if error.errno in _FULL else MediumError
    number = error.errno
    name = errno.errorcode.get(number, str(number)) if number is not None else "error"
    text = os.strerror(number) if number is not None else str(error)
    return kind(disk, operation, f"{name}: {text}")

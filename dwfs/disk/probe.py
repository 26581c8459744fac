"""Is the disk there? A look at its identity file that must reach the medium.

A vanished mount leaves an empty directory, a swapped disk another identity, a dying one an I/O error,
a filesystem that gave up is read-only. The page cache would hide all of these, so it is told to
forget the file first.
"""

from __future__ import annotations

import enum
from pathlib import Path

from dwfs.disk.header import HEADER_NAME, read_header
from dwfs.disk.medium import POSIX_MEDIUM, Medium
from dwfs.errors import DwfsError, ForeignFormatError, NewerFormatError
from dwfs.types import DiskId


class DiskCondition(enum.Enum):
    """What a probe found."""

    OK = "ok"
    MISSING = "missing"  # no identity file: unmounted, or erased
    FOREIGN = "foreign"  # another disk is in its place
    UNREADABLE = "unreadable"  # I/O error, or the identity is damaged in both copies
    READ_ONLY = "read-only"


def probe(directory: Path, disk: DiskId, medium: Medium = POSIX_MEDIUM) -> DiskCondition:
    """Look at the disk in `directory`, which should be `disk`; blocking: run it in the executor."""
    try:
        _forget_cached(medium, directory / HEADER_NAME)
        stored = read_header(directory, medium)
        read_only = medium.space(directory).read_only
    except (FileNotFoundError, NotADirectoryError):
        return DiskCondition.MISSING
    except (ForeignFormatError, NewerFormatError):
        return DiskCondition.FOREIGN
    except (OSError, DwfsError):
        return DiskCondition.UNREADABLE
    if stored.header.disk != disk:
        return DiskCondition.FOREIGN
    return DiskCondition.READ_ONLY if read_only else DiskCondition.OK


def _forget_cached(medium: Medium, path: Path) -> None:
    handle = medium.open(path)
    try:
        medium.forget_cached(handle)
    finally:
        medium.close(handle)

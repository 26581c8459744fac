"""The attendance file: which opening of the disk was the last one.

Whoever opens a disk for writing draws a random token, writes it to the disk durably, and keeps it beside
the index that describes the disk. At the next opening the two are compared. They differ if the disk
was used by another owner meanwhile, if what lies there is an older copy (a clone, a restored image), or
if the disk missed an opening; whatever the index says of it is then not to be believed, and is rebuilt
from the segments. They are equal only if nobody opened the disk since, because nobody else could have
guessed the token.

The counter is for people and for `dwfs check`: of two copies of one disk, the greater one is newer.

The file is replaced as a whole, so that a crash leaves the old one or the new one. It is no secret and
needs no MAC: who can write to the disk can do worse than have its index rebuilt. Layout:
docs/formats.md, "Attendance".
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import msgspec

from dwfs.codec import CHECKSUM_SIZE, checksum
from dwfs.disk.header import replace_file
from dwfs.disk.medium import POSIX_MEDIUM, Medium
from dwfs.types import DiskId, PoolId

ATTENDANCE_NAME: Final = "dwfs-attendance"
TOKEN_SIZE: Final = 16

_MAGIC: Final = b"dwfsatt\0"
_VERSION: Final = 1
# magic, version, reserved (0), pool, disk, counter, token
_FIELDS: Final = struct.Struct("<8sII16s16sQ16s")
_SIZE: Final = _FIELDS.size + CHECKSUM_SIZE

assert _SIZE == 88


class Attendance(msgspec.Struct, frozen=True):
    """One opening of a disk."""

    pool: PoolId
    disk: DiskId
    counter: int  # openings so far; 64 bits
    token: bytes  # 16 random bytes of this opening


def pack_attendance(attendance: Attendance) -> bytes:
    """The file's content."""
    assert len(attendance.token) == TOKEN_SIZE
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        0,
        attendance.pool,
        attendance.disk,
        attendance.counter,
        attendance.token,
    )
    return fields + checksum(fields)


def parse_attendance(content: bytes) -> Attendance | None:
    """What the file says, or None if it is damaged, of another version, or not ours."""
    if len(content) != _SIZE or checksum(content[: _FIELDS.size]) != content[_FIELDS.size :]:
        return None
    magic, version, _, pool, disk, counter, token = _FIELDS.unpack_from(content)
    if magic != _MAGIC or version != _VERSION:
        return None
    return Attendance(PoolId(pool), DiskId(disk), counter, token)


def read_attendance(directory: Path, medium: Medium = POSIX_MEDIUM) -> Attendance | None:
    """The disk's attendance; blocking. None if it is absent or damaged. Raises OSError."""
    try:
        handle = medium.open(directory / ATTENDANCE_NAME)
    except FileNotFoundError:
        return None
    try:
        return parse_attendance(medium.read(handle, 0, _SIZE + 1))
    finally:
        medium.close(handle)


def write_attendance(
    directory: Path, attendance: Attendance, medium: Medium = POSIX_MEDIUM
) -> None:
    """Replace the disk's attendance durably; blocking. Raises OSError, with the old one in place."""
    replace_file(medium, directory, ATTENDANCE_NAME, pack_attendance(attendance))

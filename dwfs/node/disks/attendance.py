"""Whether a disk is as we left it: did nobody use it since, and did it miss nothing?

At each opening of a disk, and again when it is closed in order, a fresh random token is written to it,
durably, and then remembered in the state directory, in the same transaction as the disk's shard index.
When the disk is opened the next time, the tokens are compared:

- equal: nobody has opened this disk since our index was committed, and it is no older copy, for
  that would carry an older token, also one that was made while the disk was in use. The index is trusted, and only catches up with the segments' tails;
- different, or none: the disk was used elsewhere, restored from a copy, or our commit did not come
  to pass. The index is rebuilt from the segments' footers, which is cheap, and always right.

Safety: writing to the disk comes first. A crash between the two costs a rebuild; the other way round
it could make an index trusted that is not.

A disk that failed while it was in use may have lost what its page cache had promised, and its index
would not know. So its token is forgotten as soon as it goes missing or fails to sync.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from dwfs.disk import Attendance, Medium, read_attendance, write_attendance
from dwfs.disk.attendance import TOKEN_SIZE
from dwfs.node.index_environment import IndexEnvironment
from dwfs.ports import Randomness
from dwfs.types import DiskId, PoolId


class AttendanceBook:
    """The tokens that the state directory remembers. Belongs to the loop thread."""

    def __init__(self, index: IndexEnvironment) -> None:
        self._index = index

    def is_unchanged(self, disk: DiskId, found: Attendance | None) -> bool:
        """Whether what was found on the disk is what we left there."""
        return found is not None and self._index.note(_name(disk)) == found.token

    def remember(self, written: Attendance) -> None:
        """The token that was just written; lasts from the next commit on."""
        self._index.set_note(_name(written.disk), written.token)

    def forget(self, disk: DiskId) -> None:
        """The disk's index is to be rebuilt at its next opening."""
        self._index.set_note(_name(disk), b"")


class Signature(msgspec.Struct, frozen=True):
    """What `sign_in` found and did."""

    found: Attendance | None
    written: Attendance | None  # None: the disk can't be written now
    problem: str = ""


def sign_in(
    directory: Path, pool: PoolId, disk: DiskId, medium: Medium, randomness: Randomness
) -> Signature:
    """Read what the disk has, and leave a fresh token; blocking.

    A disk that can be read but not written is still of use; and a bad sector in this small file costs
    a rebuild of the disk's index, not the disk.
    """
    try:
        found = read_attendance(directory, medium)
    except OSError:
        found = None
    if found is not None and (found.pool, found.disk) != (pool, disk):
        found = None
    counter = 1 if found is None else found.counter + 1
    written = Attendance(pool, disk, counter, randomness.bytes(TOKEN_SIZE))
    try:
        write_attendance(directory, written, medium)
    except OSError as error:
        return Signature(found, None, error.strerror or str(error))
    return Signature(found, written)


def _name(disk: DiskId) -> bytes:
    return b"attendance." + disk.hex().encode()

"""Every error that leaves a layer, and who must act on it.

Three families:

- `PosixError`: the answer to a filesystem request; carries an errno and goes to the *caller*.
- `DwfsError` subclasses: something about the pool, a disk or a key; the *operator* must act. Each
  has an exit code for the command line, and its text is one line that says what failed, why, and
  what to do.
- `MediumError`: a disk did not do what was asked; the *engine* acts (other shards, other disks).

Our own bugs are `AssertionError`s and are never caught except at the outermost gateways.
"""

from __future__ import annotations

import errno as errno_module
import os
from typing import ClassVar


class PosixError(Exception):
    """A filesystem request failed with `errno`; nothing was changed."""

    __slots__ = ("errno",)

    def __init__(self, errno: int, detail: str = "") -> None:
        super().__init__(errno, detail)
        self.errno = errno

    def __str__(self) -> str:
        detail = self.args[1]
        name = errno_module.errorcode.get(self.errno, str(self.errno))
        text = f"{name}: {os.strerror(self.errno)}"
        return f"{text} ({detail})" if detail else text


class DwfsError(Exception):
    """Base of the operator's errors. `exit_code` is documented in docs/operations.md."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False


class UsageError(DwfsError):
    """The command line or configuration asks for something impossible."""

    exit_code = 2


class PoolNotFoundError(DwfsError):
    """No pool of that name is configured here."""

    exit_code = 3


class PoolBusyError(DwfsError):
    """Another process owns the pool, or the mount point is in use."""

    exit_code = 4
    retryable = True


class WrongKeyError(DwfsError):
    """No keyslot opens with what was given."""

    exit_code = 5


class FormatError(DwfsError):
    """Bytes on a disk are not what this version of dwfs can read: damaged, foreign or newer."""

    exit_code = 6


class NewerFormatError(FormatError):
    """A newer dwfs made it; this one must not touch it."""


class ForeignFormatError(FormatError):
    """Not dwfs's at all."""


class NotEnoughDisksError(DwfsError):
    """Fewer usable disks than the request needs."""

    exit_code = 7


class NoSpaceError(DwfsError):
    """A disk or the pool has no room for what was asked."""

    exit_code = 8


class StateError(DwfsError):
    """What this machine remembers of a pool is damaged; the next opening makes it anew from the disks."""


class UnsupportedSystemError(DwfsError):
    """The machine lacks something that dwfs needs (`/dev/fuse`, a privilege, a kernel feature)."""

    exit_code = 9


class DamageError(DwfsError):
    """Data is lost or damaged beyond what redundancy can mend."""

    exit_code = 10


class ControlError(DwfsError):
    """The owning process could not be asked, or answered with an error."""

    exit_code = 11
    retryable = True


class MediumError(Exception):
    """One disk failed one operation. The engine counts it and goes elsewhere."""

    def __init__(self, disk: bytes, operation: str, cause: str) -> None:
        super().__init__(f"disk {disk.hex()[:8]}: {operation}: {cause}")
        self.disk = disk
        self.operation = operation
        self.cause = cause


class DiskFullError(MediumError):
    """The disk has no room (ENOSPC, EDQUOT); nothing else is wrong with it."""


class DiskTimeoutError(MediumError):
    """The disk did not answer in time. It may still be at it: memory that it was given to read or
    write must not be used again.
    """


class ShardMissingError(MediumError):
    """The disk holds no such shard."""


class ShardDamagedError(MediumError):
    """The shard's bytes are not those that were written."""


class AuthenticationError(Exception):
    """Sealed bytes did not open: damaged, moved or forged. Never carries key or plaintext."""


class ExpansionError(Exception):
    """Authentic compressed bytes do not expand to what their seal says: a newer format, or our bug."""

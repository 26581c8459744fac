"""Commands: every change of a volume's state, as data.

A command carries all that makes its effect deterministic: inode numbers, times, fragments. Applying
the same commands in the same order to the same state gives the same state on every machine and
after every crash; that is what makes the log the truth and the state a view of it.

A log batch is one record of the log: consecutive commands, plus facts about stripes (`seals`,
`data`). The facts are idempotent and commute with commands, so they stand outside the order.

Tags are short integers and fields are positional: both are the on-disk format (docs/formats.md).
Fields are only ever added at the end, with a default.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from dwfs.types import (
    Extent,
    InodeNumber,
    LogSequence,
    ShardMove,
    StripeData,
    StripeId,
    StripeSeal,
)
from dwfs.volume.properties import Properties
from dwfs.volume.transfer import Origin, StateRecord, Totals

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

NO_INODE: Final = InodeNumber(0)  # the "parent" with which the root itself is created


class Create(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Make an inode of any type and its first name. The root has parent `NO_INODE`, name b""."""

    parent: InodeNumber
    name: bytes
    inode: InodeNumber  # from `Volume.allocate_inode`
    mode: int  # with the file type
    uid: int
    gid: int
    device: int
    target: bytes  # of a symbolic link, else b""
    xattrs: tuple[tuple[bytes, bytes], ...]  # (name, value): inherited ACLs, security labels
    time_ns: int


class Link(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Give a file (never a directory) one more name."""

    inode: InodeNumber
    parent: InodeNumber
    name: bytes
    time_ns: int


class Unlink(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Remove a name of anything but a directory; without names the inode is an orphan."""

    parent: InodeNumber
    name: bytes
    time_ns: int


class RemoveDirectory(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Remove an empty directory's name; the inode becomes an orphan."""

    parent: InodeNumber
    name: bytes
    time_ns: int


class Rename(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Move a name. `flags`: RENAME_NOREPLACE or RENAME_EXCHANGE or 0, as renameat2(2)."""

    parent: InodeNumber
    name: bytes
    new_parent: InodeNumber
    new_name: bytes
    flags: int
    time_ns: int


class SetAttributes(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Change what is not None; `mode` is the permission bits (the type stays).

    A change of `size` sets mtime to `ctime_ns`, unless `mtime_ns` is given.
    """

    inode: InodeNumber
    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime_ns: int | None
    mtime_ns: int | None
    ctime_ns: int | None  # None: leave it (an atime update by the filesystem itself)


class WriteExtents(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Map file bytes to stripe bytes; the size grows to the last extent's end."""

    inode: InodeNumber
    extents: tuple[Extent, ...]
    mtime_ns: int | None  # sets mtime and ctime
    mode: int | None  # permission bits, where a write clears set-user-id


class PunchHole(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Unmap file bytes [offset, offset+length); the size stays."""

    inode: InodeNumber
    offset: int
    length: int
    time_ns: int


class SetXattr(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Set an extended attribute; `flags` as setxattr(2)."""

    inode: InodeNumber
    name: bytes
    value: bytes
    flags: int
    time_ns: int
    mode: int | None  # permission bits, where setting an ACL changes them


class RemoveXattr(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Remove an extended attribute."""

    inode: InodeNumber
    name: bytes
    time_ns: int


class Purge(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Release orphans that nobody has open. Bounded: large ones need several."""

    inodes: tuple[InodeNumber, ...]


class Relocate(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """The cleaner copied [offset, offset+length) of a file out of `stripe`.

    Applies only to those parts that still map to `stripe` at `stripe_offset`; times stay.
    """

    inode: InodeNumber
    offset: int
    length: int
    stripe: StripeId
    stripe_offset: int
    extents: tuple[Extent, ...]


class DropStripes(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Forget sealed stripes without a live byte. Others in the list are left alone."""

    stripes: tuple[StripeId, ...]


class MoveShards(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Shards lie durably on other disks now: repair, evacuation and balancing make these.

    A move applies only where the stripe's seal still names its `source`, so that two of them can't
    undo each other; moves of stripes that are gone are ignored.
    """

    moves: tuple[ShardMove, ...]


class TakeSnapshot(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Keep the state as it is now under a name."""

    name: str
    time_ns: int
    automatic: bool


class DestroySnapshot(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Forget a snapshot. What only it kept is given back by `ReapSnapshots`."""

    name: str


class ReapSnapshots(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Settle up to `limit` records of destroyed snapshots; nothing if there are none."""

    limit: int


class Rollback(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Begin to make the newest snapshot the current state; `RollbackStep`s do it."""

    name: str


class RollbackStep(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Go on with a rollback up to a key; b"" goes to the end and finishes it.

    A key and not a number of records, because how many there are depends on when they were flushed.
    """

    until: bytes


class SetProperties(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Replace the volume's properties by these."""

    properties: Properties


class BeginReceive(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Begin to make the volume what the snapshot `origin` is, from `base` on or from nothing."""

    origin: Origin
    base: Origin | None
    time_ns: int


class ReceiveRecords(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Apply records of the stream that is being received; its data comes as `WriteExtents`."""

    records: tuple[StateRecord, ...]


class MarkReceived(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """All frames before `next_frame` have been applied; `digest` stands for their content."""

    next_frame: int
    digest: bytes


class FinishReceive(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """Compare with what was sent, and take the snapshot that the stream was made for."""

    totals: Totals


class AbortReceive(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Give an unfinished receive up: before the rollback, and when that is `done`."""

    done: bool


class CloneRange(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """Map file bytes of `target` to the stripe bytes to which `source` maps its own; holes, too.

    The target's size grows to the range's end, as by a write.
    """

    source: InodeNumber
    offset: int  # bytes, in the source
    length: int
    target: InodeNumber  # may be the source, if the ranges don't overlap
    target_offset: int
    time_ns: int  # mtime and ctime of the target
    mode: int | None  # permission bits of the target, where a write clears set-user-id


InodeCommand: TypeAlias = (
    Create
    | Link
    | Unlink
    | RemoveDirectory
    | SetAttributes
    | WriteExtents
    | PunchHole
    | CloneRange
    | SetXattr
    | RemoveXattr
)
OtherCommand: TypeAlias = (
    Rename
    | Purge
    | Relocate
    | DropStripes
    | MoveShards
    | TakeSnapshot
    | DestroySnapshot
    | ReapSnapshots
    | Rollback
    | RollbackStep
    | SetProperties
    | BeginReceive
    | ReceiveRecords
    | MarkReceived
    | FinishReceive
    | AbortReceive
)
Command: TypeAlias = InodeCommand | OtherCommand


class LogBatch(msgspec.Struct, frozen=True, array_like=True):
    """One log record: commands `first_sequence`, `first_sequence`+1, … and stripe facts.

    A batch of mere facts has no commands and takes no sequence number; its `first_sequence` is that
    of the command that comes next.
    """

    first_sequence: LogSequence
    commands: tuple[Command, ...]
    seals: tuple[StripeSeal, ...]
    data: tuple[StripeData, ...]


class EncodedBatch(msgspec.Struct, frozen=True, array_like=True):
    """A `LogBatch` whose commands were encoded when they were proposed; the same bytes."""

    first_sequence: LogSequence
    commands: list[msgspec.Raw]
    seals: list[StripeSeal]
    data: list[StripeData]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LogBatch)

encode_command = _encoder.encode


def encode_batch(batch: LogBatch | EncodedBatch) -> bytes:
    """The payload of a log record."""
    return _encoder.encode(batch)


def decode_batch(payload: bytes | memoryview) -> LogBatch:
    """The batch in a log record. Raises msgspec.MsgspecError on foreign bytes."""
    return _decoder.decode(payload)

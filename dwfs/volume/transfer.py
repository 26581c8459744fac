"""What is said of a volume when it is sent elsewhere: records of inodes, names and data.

Records are logical: none has a key, a hash or a place of bytes in it, because the volume that
receives them has keys of its own. Taken together and in their order they turn a volume that equals
one snapshot into one that equals another. Each is idempotent, so a receiver that starts again at
some record that it had applied before ends with the same.

Tags and positions are the stream's format and the log's (docs/formats.md, docs/send.md). Fields are
only ever added at the end, with a default.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from dwfs.types import Epoch, InodeNumber

RECEIVING_NAME: Final = (
    ".receiving"  # snapshot of the empty volume, while its first stream comes in
)


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot's identity wherever it is: the volume that took it, and when."""

    pool: bytes  # 16 bytes
    volume: bytes  # 16 bytes
    epoch: int  # in that volume; never used twice there
    time_ns: int  # tells apart those of a volume that was rolled back, or made anew from its disks
    name: str


class InodeRecord(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A file of any type as it is now; see `dwfs.volume.records.Inode`. Precedes its data."""

    number: InodeNumber
    mode: int
    nlink: int
    uid: int
    gid: int
    device: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    parent: InodeNumber
    entry_count: int
    target: bytes


class GoneRecord(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The inode is not there any more. What it mapped was unmapped by `HoleRecord`s before."""

    number: InodeNumber


class XattrRecord(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """An extended attribute's value; None: it is removed."""

    number: InodeNumber
    name: bytes
    value: bytes | None


class HoleRecord(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """File bytes [offset, offset+length) that were mapped are a hole now."""

    number: InodeNumber
    offset: int
    length: int


class NameRecord(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """What a name in a directory means; inode 0: nothing any more."""

    parent: InodeNumber
    name: bytes
    inode: InodeNumber
    kind: int  # as in d_type: mode >> 12


class DataRecord(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Bytes of a file. Not part of commands: the receiver stores them and maps where they went."""

    number: InodeNumber
    offset: int
    data: bytes


StateRecord: TypeAlias = InodeRecord | GoneRecord | XattrRecord | HoleRecord | NameRecord
StreamRecord: TypeAlias = StateRecord | DataRecord


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """What a whole stream changes; orphans are not sent, and not counted."""

    inodes: int  # more than there were; may be below 0
    allocated_bytes: int  # likewise
    records: int  # without those of data
    data_bytes: int


class Received(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot that was received: whose it is a copy of, and which it is here."""

    origin: Origin
    epoch: Epoch  # here


class Receiving(msgspec.Struct, frozen=True, array_like=True):
    """A stream that has not come in to its end."""

    origin: Origin  # of the snapshot that it makes
    base: Origin | None  # of the one that it starts from; None: from nothing
    inodes: int  # that the volume had when it began; 0 for a full stream
    allocated_bytes: int  # likewise
    own_base: bool  # the snapshot to go back to was taken for this, as `RECEIVING_NAME`
    next_frame: int = 0  # all frames before it are in the state
    digest: bytes = b""  # of these frames' content
    aborting: bool = False  # going back: nothing else is possible any more


class ReceiveState(msgspec.Struct, frozen=True, array_like=True):
    """What a volume remembers of streams."""

    unfinished: Receiving | None = None
    received: tuple[Received, ...] = ()  # of snapshots that may still be there


_decoder = msgspec.msgpack.Decoder(ReceiveState)

encode_receive_state = msgspec.msgpack.Encoder().encode


def decode_receive_state(value: bytes | None) -> ReceiveState:
    """What is stored under the state's key; nothing where nothing ever was."""
    return ReceiveState() if value is None else _decoder.decode(value)

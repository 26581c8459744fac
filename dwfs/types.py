"""Identifiers and small value types that every layer shares.

Identifiers are `NewType`s over `bytes` or `int`, so that the type checker keeps a disk from being
taken for a volume while they cost nothing at run time. Structs are frozen: a value that has been
handed over is never changed behind the holder's back.
"""

from __future__ import annotations

from typing import NamedTuple, NewType

import msgspec

PoolId = NewType("PoolId", bytes)  # 16 bytes, random
DiskId = NewType("DiskId", bytes)  # 16 bytes, random
VolumeId = NewType("VolumeId", bytes)  # 16 bytes, random
StripeId = NewType("StripeId", bytes)  # 16 bytes, random; unique in the pool for ever
InodeNumber = NewType("InodeNumber", int)  # 64 bits, never reused within a volume
LogSequence = NewType("LogSequence", int)  # 64 bits, counts a volume's commands from 1
Epoch = NewType("Epoch", int)  # 32 bits, a volume's snapshot counter, from 1

ROOT_INODE = InodeNumber(1)
INODE_NUMBER_BITS = 48  # what lies above tells apart the snapshots that one mount shows
CLONE_NAME_PREFIX = ".dwfs-clone-"  # of files that 'dwfs clone' is making
FIRST_EPOCH = Epoch(1)
NO_EPOCH = Epoch(0)  # of no snapshot


class Geometry(msgspec.Struct, frozen=True, array_like=True):
    """A coding profile: `data` (k) and `parity` (m) shards a stripe."""

    data: int
    parity: int

    @property
    def total(self) -> int:
        """k + m: the number of distinct disks that a whole stripe needs."""
        return self.data + self.parity


class Fragment(msgspec.Struct, frozen=True, array_like=True):
    """A run of plaintext bytes inside one stripe: where the stripe layer put appended data."""

    stripe: StripeId
    offset: int  # bytes, in the stripe's plaintext
    length: int  # bytes, > 0


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """A mapping of file bytes [offset, offset+length) to bytes of a stripe."""

    offset: int  # bytes, in the file
    length: int  # bytes, > 0
    stripe: StripeId
    stripe_offset: int  # bytes, in the stripe's plaintext
    # In which the bytes were written; 0: before the first snapshot. The machine's to set.
    epoch: int = 0

    @property
    def end(self) -> int:
        """First file byte after the extent."""
        return self.offset + self.length


class BackReference(msgspec.Struct, frozen=True, array_like=True):
    """One line of a stripe's summary: which file bytes were appended at `stripe_offset`.

    A summary tells who *may* still use the bytes; the extent map tells who does.
    """

    inode: InodeNumber
    offset: int  # bytes, in the file
    length: int  # bytes
    stripe_offset: int  # bytes


class StripeFrames(msgspec.Struct, frozen=True, array_like=True):
    """How the plaintext of a compressed stripe lies in its sectors.

    It was cut into frames, each of which was compressed by itself, or kept as it was if that did not
    make it smaller; what they became stands end to end. `lengths` holds 2 bytes for each frame,
    little-endian: its stored length, or 0 for one that was kept.
    """

    codec: int  # 1: zstd
    frame_size: int  # plaintext bytes of each frame but the last
    stored_length: int  # of all frames together
    lengths: bytes


class StripeSeal(msgspec.Struct, frozen=True, array_like=True):
    """All that is needed to read a stripe whose shards are durable on their disks.

    `placement[i]` is the disk of shard i, or b"" where the shard could not be written (a stripe
    written degraded). Carried in log batches; kept in the volume's state.
    """

    stripe: StripeId
    salt: bytes  # 24 random bytes; derives the one-stripe key
    key_version: int
    geometry: Geometry
    length: int  # plaintext bytes, > 0
    sector_size: int  # plaintext bytes of each sector but the last
    placement: tuple[DiskId, ...]  # k + m entries
    summary: tuple[BackReference, ...]
    frames: StripeFrames | None = None  # None: not compressed

    @property
    def stored_length(self) -> int:
        """Bytes that were sealed: those of the plaintext, or what it was compressed to."""
        return self.length if self.frames is None else self.frames.stored_length


class StripeData(msgspec.Struct, frozen=True, array_like=True):
    """Plaintext of an unsealed stripe that rides in the log: bytes [offset, offset+len(data))."""

    stripe: StripeId
    offset: int
    data: bytes


class ShardKey(msgspec.Struct, frozen=True, array_like=True):
    """Names one shard in the whole pool."""

    stripe: StripeId
    number: int  # 0 .. k+m-1


class ShardMove(msgspec.Struct, frozen=True, array_like=True):
    """A shard's change of place, as the state is told of it once the shard lies there durably.

    `source` is the disk that the seal names so far, or b"" for a shard that was never stored.
    """

    stripe: StripeId
    number: int  # of the shard
    source: DiskId
    target: DiskId


class DiskPosition(NamedTuple):
    """A place on a disk in the order in which a scrub reads it; (0, 0) is the start."""

    segment: int
    offset: int  # bytes, in the segment file


class DiskSpace(msgspec.Struct, frozen=True):
    """Space on one disk, in bytes, as its filesystem and our segments report it.

    `available_bytes` is what is left after the reserve (limits.DISK_RESERVE_*), already divided
    among the pool's disks that share one filesystem.
    """

    size_bytes: int
    available_bytes: int
    used_bytes: int  # by shards; log and snapshots, bounded in limits.py, come on top
    reserve_bytes: int = 0  # what is left of the reserve; some of it may be used to make room

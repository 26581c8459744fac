"""The seams of the system: what a layer needs from the one below, as `Protocol`s.

An implementation is handed to its user in the constructor by a composition root
(`dwfs.node.pool`). Every implementation, fakes included, passes the port's contract suite in
`tests/contract/`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec

from dwfs.types import (
    DiskId,
    DiskPosition,
    DiskSpace,
    Fragment,
    Geometry,
    ShardKey,
    StripeData,
    StripeId,
    StripeSeal,
)

ResultT = TypeVar("ResultT")


class Clock(Protocol):
    """Time, so that simulations can make it."""

    def now(self) -> float:
        """Monotonic seconds."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""


class Randomness(Protocol):
    """Random bytes; cryptographically strong outside tests."""

    def bytes(self, count: int) -> bytes:
        """`count` fresh random bytes."""


class ErasureCoder(Protocol):
    """A systematic (k, m) code over equally long shards; zfec's code defines the bytes."""

    geometry: Geometry

    def encode(self, data: Sequence[memoryview], parity: Sequence[memoryview]) -> None:
        """Fill `parity` (m writable views) from `data` (k views), all of one length.

        Releases the GIL; call it in a worker thread for more than 64 KiB.
        """

    def decode(
        self, present: dict[int, memoryview], wanted: Sequence[int], length: int
    ) -> list[bytes]:
        """Rebuild shards `wanted` from any k of `present` (shard number → bytes of `length`).

        Raises ValueError if fewer than k are present.
        """


class ShardFault(enum.Enum):
    """What a scrub finds wrong with a place on a disk."""

    MISSING = "missing"  # the index has it, the disk has zeros or no such file
    TORN = "torn"  # its header is whole, its payload is cut short or zeros from some point on
    ROTTEN = "rotten"  # header or payload are not what was written
    MISDIRECTED = "misdirected"  # a record that belongs elsewhere lies in its place
    UNREADABLE = "unreadable"  # the disk answers with an error
    DUPLICATE = "duplicate"  # an older record of a shard that the index has elsewhere
    STRAY = "stray"  # a whole record that the index doesn't have at all


class ScrubFinding(msgspec.Struct, frozen=True):
    """One fault, and where it lies."""

    fault: ShardFault
    key: ShardKey
    position: DiskPosition
    detail: str  # for people


class ScrubPiece(msgspec.Struct, frozen=True):
    """What one step of a scrub did."""

    findings: tuple[ScrubFinding, ...]
    records: int  # looked at
    size_bytes: int  # read
    following: DiskPosition | None  # where to go on; None: the disk is through


class ShardStore(Protocol):
    """One disk's shards. Raises `MediumError` (and its kinds) when the disk fails an operation.

    Durability: `put` and `delete` are durable after the next `sync` that returns. `put` of a key
    that exists replaces it. A shard's payload may be empty (a zero-length data shard).
    """

    disk: DiskId

    async def put(self, key: ShardKey, header: bytes, payload: memoryview) -> None:
        """Append one shard. `header` is opaque stripe-layer metadata (≤ 1 KiB), kept beside it."""

    def has(self, key: ShardKey) -> bool:
        """Whether the index knows the shard. No I/O; microseconds."""

    def length(self, key: ShardKey) -> int:
        """Payload bytes of the shard. Raises ShardMissingError."""

    def read_cached(
        self, key: ShardKey, offset: int, length: int, *, patient: bool = True
    ) -> bytes | None:
        """Payload bytes if the page cache has them all (RWF_NOWAIT), else None. Never blocks.

        `patient`: give a fast disk a fraction of a millisecond to deliver. Without, what is not there
        is at least on its way when the call returns. The bytes are *not* checked: the sector's AEAD
        tag does that.
        """

    async def read(self, key: ShardKey, offset: int, length: int) -> bytes:
        """Payload bytes [offset, offset+length), clipped at the shard's end; unchecked as above."""

    async def read_verified(self, key: ShardKey) -> tuple[bytes, bytes]:
        """(header, payload) of the whole shard, checksum and identity checked.

        Raises ShardMissingError or ShardDamagedError.
        """

    async def delete(self, keys: Sequence[ShardKey]) -> None:
        """Forget shards and give their space back. Unknown keys are ignored."""

    async def sync(self) -> None:
        """Make all earlier puts and deletes durable: one fdatasync a touched segment."""

    async def read_back(self, key: ShardKey) -> tuple[bytes, bytes]:
        """As `read_verified`, but from the medium: the page cache is told to forget it first.

        Call it after `sync`: what is not yet written back can't be forgotten.
        """

    async def scrub(self, start: DiskPosition, size_bytes: int) -> ScrubPiece:
        """Read on from `start` in disk order, about `size_bytes` of records, past the page cache.

        Every live record is checked whole, and so is what lies where no live record should be.
        Changes nothing. A record that is put or deleted meanwhile is no finding. Raises MediumError
        only if the disk as a whole can't be listed; a bad place is a finding.
        """

    async def erase(self, finding: ScrubFinding) -> None:
        """Free the space of a DUPLICATE or STRAY; ignored if it is live by now. Raises MediumError."""

    async def adopt(self, finding: ScrubFinding) -> None:
        """Enter a STRAY into the index: the volumes' state wants it here. Ignored if it has the key."""

    def keys(self, after: ShardKey | None, limit: int) -> list[ShardKey]:
        """Up to `limit` keys in (stripe, number) order, strictly after `after`. No I/O."""

    def space(self) -> DiskSpace:
        """Space on the disk; cached, refreshed by the disk's owner."""


class StripeCatalog(Protocol):
    """Where the stripe layer learns of stripes that were sealed earlier: the volumes' state."""

    def seal_of(self, stripe: StripeId) -> StripeSeal | None:
        """The stripe's seal (its summary may be left out: an empty tuple), or None if unknown."""

    def dead_stripes(self, limit: int) -> list[StripeId]:
        """Sealed stripes without a live byte."""

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        """Sealed stripes whose live bytes are at most that fraction of their length, worst first."""

    def seals(self, after: StripeId | None, limit: int) -> list[StripeSeal]:
        """Up to `limit` seals in the order of their ids, strictly after `after`; no summaries."""


class DataStore(Protocol):
    """What the volume and VFS layers see of the stripe layer. One per pool and volume key."""

    async def admit(self, length: int) -> None:
        """Wait until `length` more bytes may be appended (memory), or raise PosixError ENOSPC/EIO."""

    def append(self, inode: int, offset: int, data: bytes | memoryview) -> list[Fragment]:
        """Take data into the open stripe; returns where it went. Never awaits.

        `inode` and `offset` go into the stripe's summary.
        """

    def read_now(self, stripe: StripeId, offset: int, length: int) -> bytes | None:
        """Plaintext if it can be had without waiting (memory, page cache), else None."""

    async def read(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """Exactly `length` plaintext bytes. Rebuilds from parity. Raises PosixError EIO."""

    def prefetch(self, stripe: StripeId) -> None:
        """Start reading the whole stripe into the read cache; returns at once."""

    def unlogged_bytes(self) -> int:
        """Plaintext bytes neither handed out by `take_unlogged` nor covered by a handed-out seal."""

    def take_unlogged(self) -> list[StripeData]:
        """Hand all unlogged bytes to the log, which is responsible for them from now on.

        Only allowed while `unlogged_bytes() <= LOG_INLINE_MAX`.
        """

    def rotate(self) -> None:
        """Close the open stripe; it is coded and written in the background."""

    async def settle(self) -> list[StripeSeal]:
        """Wait until every closed stripe is written and synced; return seals not yet handed out.

        Only for who logs the seals, because each is handed out once. Raises PosixError EIO if a stripe
        can't be stored now (it stays in memory, readable, and is tried again by the next call).
        """

    def settled(self) -> list[StripeSeal]:
        """As `settle`, without waiting: only seals of stripes that are already synced."""

    def committed(self, seals: Sequence[StripeSeal]) -> None:
        """The catalog now answers for these stripes; their buffers may be dropped."""

    def restore(self, data: Sequence[StripeData]) -> None:
        """Recovery: take back the plaintext of an unsealed stripe, as a closed stripe to write."""

    async def drop(self, stripes: Sequence[StripeId]) -> None:
        """Delete the shards of stripes that no durable state refers to."""


class KeyProtector(Protocol):
    """One way to wrap and unwrap the pool's root key: a kind of keyslot."""

    kind: str
    parameters: dict[str, int | str]  # public; `dwfs key list` shows them, `context` binds them

    def wrap(self, root_key: memoryview, context: bytes) -> bytes:
        """An opaque wrapped key, bound to `context`."""

    def unwrap(self, wrapped: bytes, context: bytes, into: memoryview) -> None:
        """Write the root key to `into`. Raises WrongKeyError."""


class DiskRole(enum.Enum):
    """What a disk's state means for the shards that the seals place on it."""

    KEEP = "keep"  # readable; they are where they should be
    LEAVE = "leave"  # readable, but they are to be moved elsewhere
    AWAY = "away"  # not readable now, expected back: nothing is rebuilt yet
    GONE = "gone"  # not readable, not expected back, or no disk of the pool: rebuild them


class DiskListing(Protocol):
    """What the pool knows of its disks, for the layers that choose among them."""

    def role(self, disk: DiskId) -> DiskRole:
        """What is to become of shards on the disk; GONE for one that is unknown, or b""."""

    def patience_seconds(self, disk: DiskId) -> float:
        """How long a reader waits for this disk before it asks others as well (a hedged read).

        0.0: the disk is suspect; ask the others first. `inf`: never, there is nothing to gain.
        """

    def writable(self) -> list[ShardStore]:
        """Disks that new shards may go to."""

    def get(self, disk: DiskId) -> ShardStore | None:
        """A disk that can be read now, or None."""

    def failed(self, error: Exception, disk: DiskId) -> None:
        """Tell that the disk failed an operation; may take it out of service."""

    def __iter__(self) -> Iterator[ShardStore]: ...

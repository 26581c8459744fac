"""The seams of the system: what a layer needs from the one below, as `Protocol`s.

An implementation is handed to its user in the constructor by a composition root
(`dwfs.node.pool`). Every implementation, fakes included, passes the port's contract suite in
`tests/contract/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from dwfs.types import (
    DiskId,
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

    def read_cached(self, key: ShardKey, offset: int, length: int) -> bytes | None:
        """Payload bytes if the page cache has them all (RWF_NOWAIT), else None. Never blocks.

        The bytes are *not* checked: the sector's AEAD tag does that.
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

        Raises PosixError EIO if a stripe can't be stored now (it stays in memory, readable, and is
        tried again by the next call).
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


class DiskListing(Protocol):
    """What the pool knows of its disks, for the layers that choose among them."""

    def writable(self) -> list[ShardStore]:
        """Disks that new shards may go to."""

    def get(self, disk: DiskId) -> ShardStore | None:
        """A disk that can be read now, or None."""

    def failed(self, error: Exception, disk: DiskId) -> None:
        """Tell that the disk failed an operation; may take it out of service."""

    def __iter__(self) -> Iterator[ShardStore]: ...

"""The vocabulary of moving shards: what the mover needs, is asked for, works on, and answers."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from dwfs.codec import checksum
from dwfs.ports import ShardStore
from dwfs.types import DiskId, ShardKey, ShardMove, StripeId, StripeSeal


class MoveTarget(Protocol):
    """The volumes' state, as the mover needs it; implemented by the composition root."""

    async def place(self, moves: Sequence[ShardMove]) -> None:
        """Propose one MoveShards with all moves, and make it durable.

        Without moves: make durable what was proposed before. Raises PosixError; the moves may
        then have been applied or not, all or none.
        """


class MovingStripes(Protocol):
    """What the mover needs of `StripeStore`."""

    def begin_move(self, stripe: StripeId) -> bool:
        """Claim a sealed stripe; False if it is unknown, not yet committed, or claimed."""

    def end_move(self, stripe: StripeId) -> None:
        """Let go of it; if it died meanwhile its shards are deleted now."""

    def forget(self, stripe: StripeId) -> None:
        """Its placement has changed in the catalog."""

    async def read_stored(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """As `DataStore.read`, but bytes as they were sealed, perhaps compressed."""


class MendRequest(NamedTuple):
    """A stripe to be looked after, with what was reported of it."""

    stripe: StripeId
    bad: frozenset[int] = frozenset()  # shards that a reader or a scrub found bad


class Outcome(enum.Enum):
    """What became of one stripe."""

    WHOLE = "whole"  # nothing is left to do, or nothing was
    NO_TARGET = "no target"  # some shard finds no disk with room that has none of the stripe
    UNREADABLE = "unreadable"  # fewer than k shards can be had
    FAILED = "failed"  # a disk or the log failed meanwhile: worth another try
    BUSY = "busy"  # somebody else has it just now
    GONE = "gone"  # the catalog doesn't know it any more


class MendReport(msgspec.Struct):
    """What one batch came to."""

    outcomes: dict[StripeId, Outcome] = msgspec.field(default_factory=dict)
    moved: int = 0  # shards that have a new disk
    repaired: int = 0  # shards written anew on their own disk
    read_bytes: int = 0
    written_bytes: int = 0
    # Of each moved shard, the disk that it left and its bytes.
    left: list[tuple[DiskId, int]] = msgspec.field(default_factory=list)
    bad: dict[StripeId, frozenset[int]] = msgspec.field(default_factory=dict)  # reported or found
    handled: dict[StripeId, frozenset[int]] = msgspec.field(default_factory=dict)  # shards written


class Put:
    """One shard that was put and is on its way to being believed."""

    __slots__ = ("digest", "header", "length", "number", "source", "store")

    def __init__(
        self, number: int, source: DiskId, store: ShardStore, header: bytes, payload: bytes
    ) -> None:
        self.number = number
        self.source = source
        self.store = store
        self.header = header
        self.length = len(payload)
        self.digest = checksum(payload)

    @property
    def in_place(self) -> bool:
        """Whether the shard stays on its disk."""
        return self.store.disk == self.source


class Job:
    """One claimed stripe."""

    __slots__ = (
        "avoid",
        "failed",
        "fixed",
        "gone",
        "no_target",
        "puts",
        "seal",
        "suspected",
        "unreadable",
    )

    def __init__(self, seal: StripeSeal) -> None:
        self.seal = seal
        self.suspected: frozenset[int] = frozenset()
        self.fixed: dict[int, DiskId] = {}  # balancing: the only disk that will do
        self.avoid: set[DiskId] = set()  # disks that failed this stripe
        self.puts: list[Put] = []
        self.failed = False
        self.gone = False  # the catalog doesn't know it any more
        self.no_target = False
        self.unreadable = False

    @property
    def stripe(self) -> StripeId:
        """Its id."""
        return self.seal.stripe

    def key(self, put: Put) -> ShardKey:
        """Of one of its shards."""
        return ShardKey(self.seal.stripe, put.number)

    def outcome(self) -> Outcome:
        """The worst that was met."""
        if self.gone:
            return Outcome.GONE
        if self.unreadable:
            return Outcome.UNREADABLE
        if self.failed:
            return Outcome.FAILED
        return Outcome.NO_TARGET if self.no_target else Outcome.WHOLE

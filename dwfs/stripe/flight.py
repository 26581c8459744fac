"""A closed stripe on its way to the disks; `writer` drives it and explains the states."""

from __future__ import annotations

import enum
from typing import Final

from dwfs.ports import ShardStore
from dwfs.stripe.builder import StripeBuilder
from dwfs.stripe.layout import StripeLayout
from dwfs.types import DiskId, StripeSeal

NO_DISK: Final = DiskId(b"")


class FlightState(enum.Enum):
    """See the diagram in `writer`."""

    QUEUED = enum.auto()
    WRITING = enum.auto()
    WRITTEN = enum.auto()
    SYNCED = enum.auto()
    FAILED = enum.auto()


class Flight:
    """One closed stripe until its seal is committed."""

    __slots__ = (
        "avoid",
        "builder",
        "full",
        "handed_out",
        "layout",
        "lent",
        "parity",
        "parity_buffer",
        "placement",
        "released",
        "seal",
        "state",
        "unsynced",
        "waiting_bytes",
    )

    def __init__(self, builder: StripeBuilder, layout: StripeLayout, seal: StripeSeal) -> None:
        self.builder = builder
        # Layout and seal change when the stripe is compressed, which comes first; the seal's placement
        # becomes true when the flight is SYNCED.
        self.layout = layout
        self.seal = seal
        self.state = FlightState.QUEUED
        self.placement: list[DiskId] = [NO_DISK] * layout.total
        # Shards put, but not yet covered by a sync of the store that took them.
        self.unsynced: dict[int, ShardStore] = {}
        self.avoid: set[DiskId] = set()  # disks that failed this stripe
        self.full: set[DiskId] = set()  # those of them that only lack room
        self.parity: list[memoryview] = []
        self.parity_buffer: bytearray | None = None
        self.lent = False  # a disk that hangs may still read from the buffers
        self.handed_out = False
        self.released = False  # the buffer is given back: read from the disks
        self.waiting_bytes = builder.length  # until the disks report them as used

"""Read-ahead: whole stripes' data shards, fetched in the background for sequential readers.

Entries hold *sealed* bytes exactly as they came from the disks, in pieces that never split a
sector, so that filling the cache copies nothing and serving from it is one AEAD open a sector.
The cache is bounded in bytes and forgets the least recently used stripe first; a stripe that
is being fetched counts in full from the start.

A stripe with lost data shards is rebuilt once, when it is fetched: parity is read along with the
data shards that are there, only what is lost is decoded, in a worker thread, and readers that come
later don't notice. A disk that is late counts as lost, as long as there is parity.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from dwfs.stripe.gather import READ_PIECE, Column, ShardGatherer
from dwfs.stripe.opened import OpenedStripe
from dwfs.types import StripeId


class CachedStripe:
    """The data shards of one stripe, as far as they have arrived."""

    __slots__ = ("opened", "pieces", "ready")

    def __init__(self, opened: OpenedStripe) -> None:
        layout = opened.layout
        self.opened = opened
        self.ready = [trio.Event() for _ in range(layout.data)]
        self.pieces: list[list[bytes | None]] = [
            [None] * -(-layout.payload_length(shard) // READ_PIECE) for shard in range(layout.data)
        ]

    def fill(self, shard: int, number: int, piece: bytes) -> None:
        """A piece has come; whoever waits for its shard goes on when it was the last."""
        pieces = self.pieces[shard]
        pieces[number] = piece
        if all(known is not None for known in pieces):
            self.ready[shard].set()

    def lacks(self, shard: int, number: int) -> bool:
        """Whether the piece exists and has not come."""
        pieces = self.pieces[shard]
        return number < len(pieces) and pieces[number] is None

    def sealed(self, shard: int, offset: int, length: int) -> list[memoryview] | None:
        """Views of payload bytes [offset, offset+length), or None while a part is not there.

        `offset` is at a sector; the views join at sectors.
        """
        views = []
        while length > 0:
            number, start = divmod(offset, READ_PIECE)
            piece = self.pieces[shard][number]
            if piece is None:
                return None
            size = min(length, READ_PIECE - start)
            views.append(memoryview(piece)[start : start + size])
            offset += size
            length -= size
        return views


class ReadAheadCache:
    """Least recently used stripes, up to `size_max` bytes."""

    def __init__(self, gatherer: ShardGatherer, nursery: trio.Nursery, size_max: int) -> None:
        self._gatherer = gatherer
        self._nursery = nursery
        self._size_max = size_max
        self._size = 0
        self._entries: OrderedDict[StripeId, CachedStripe] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Bytes held or about to be."""
        return self._size

    def get(self, stripe: StripeId) -> CachedStripe | None:
        """The entry, marked as used."""
        entry = self._entries.get(stripe)
        if entry is not None:
            self._entries.move_to_end(stripe)
        return entry

    def prefetch(self, opened: OpenedStripe) -> None:
        """Start fetching the stripe unless it is here or on its way."""
        stripe = opened.seal.stripe
        if stripe in self._entries or opened.layout.sealed_length > self._size_max:
            return
        entry = CachedStripe(opened)
        self._entries[stripe] = entry
        self._size += opened.layout.sealed_length
        while self._size > self._size_max:
            self.forget(next(iter(self._entries)))
        self._nursery.start_soon(self._fill, entry)

    def forget(self, stripe: StripeId) -> None:
        """Drop the entry; readers that hold it may go on with it."""
        entry = self._entries.pop(stripe, None)
        if entry is not None:
            self._size -= entry.opened.layout.sealed_length

    def clear(self) -> None:
        """Drop all entries; readers that hold one may go on with it."""
        self._entries.clear()
        self._size = 0

    async def _fill(self, entry: CachedStripe) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for number in range(-(-entry.opened.layout.shard_length // READ_PIECE)):
                    nursery.start_soon(self._fill_column, entry, number)
        finally:
            # Whatever is still missing is up to the reader, who must not wait for it.
            for event in entry.ready:
                event.set()

    async def _fill_column(self, entry: CachedStripe, number: int) -> None:
        """Fetch piece `number` of every data shard; rebuild those that can't be had in time."""
        layout = entry.opened.layout
        offset = number * READ_PIECE
        width = min(READ_PIECE, layout.shard_length - offset)

        def arrived(shard: int, piece: bytes) -> None:
            if shard < layout.data:
                entry.fill(shard, number, piece)

        column = Column(self._gatherer, entry.opened, offset, width, arrived=arrived)
        enough = await column.gather()
        lost = [shard for shard in range(layout.data) if entry.lacks(shard, number)]
        if not enough or not lost:
            return
        rebuilt = await self._gatherer.decode(entry.opened, column.present, lost, width)
        for shard, piece in zip(lost, rebuilt, strict=True):
            length = min(width, layout.payload_length(shard) - offset)
            entry.fill(shard, number, piece if length == width else piece[:length])

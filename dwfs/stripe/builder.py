"""A stripe whose bytes are still in memory: being filled, or closed and on its way to the disks.

Sans-I/O. Full sectors are sealed as soon as they are full, straight from the caller's bytes into
the stripe's buffer; what does not fill a sector waits as plaintext in `tail`. So closing a stripe
costs one sector at most, and plaintext is touched once.

Bytes are immutable once appended: reading back, at any time until the buffer is released, opens
sealed sectors or copies from the tail. The same way gives the log its inline data, so that
nothing has to be kept twice.

Invariants: 0 ≤ logged ≤ length ≤ capacity; sealed sectors hold [0, sectors·size); the tail holds
the rest; after `close` the tail is empty and the buffer is zero from the sealed end to the end of
the code's last data column.
"""

from __future__ import annotations

from dwfs.limits import AEAD_TAG_SIZE, STRIPE_REFERENCES_MAX
from dwfs.stripe.layout import StripeLayout
from dwfs.stripe.sealing import StripeCipher
from dwfs.types import BackReference, Geometry, InodeNumber, StripeId


class StripeBuilder:
    """One stripe in memory. `buffer` is lent by the caller and given back after `release`."""

    __slots__ = (
        "_cipher",
        "_data",
        "_filled",
        "_inode",
        "_inode_offset",
        "_references",
        "_run_length",
        "_run_start",
        "_sealed",
        "_tail",
        "_view",
        "buffer",
        "capacity",
        "closed",
        "key_version",
        "length",
        "logged",
        "salt",
        "sealed_size",
        "sector_size",
        "stripe",
    )

    def __init__(
        self,
        stripe: StripeId,
        salt: bytes,
        key_version: int,
        cipher: StripeCipher,
        buffer: bytearray,
        *,
        sector_size: int,
        sectors: int,
    ) -> None:
        self.stripe = stripe
        self.salt = salt
        self.key_version = key_version
        self.buffer = buffer
        self.sector_size = sector_size
        self.sealed_size = sector_size + AEAD_TAG_SIZE
        self.capacity = sectors * sector_size
        self.length = 0
        self.logged = 0  # plaintext bytes that the log has taken charge of
        self.closed = False
        self._cipher = cipher
        self._view = memoryview(buffer)
        self._data = bytearray(sector_size)
        self._tail = memoryview(self._data)
        self._filled = 0  # bytes in the tail
        self._sealed = 0  # sectors
        self._references: list[BackReference] = []
        self._inode = -1  # the last reference, still growing
        self._inode_offset = 0
        self._run_start = 0
        self._run_length = 0

    @property
    def room(self) -> int:
        """Plaintext bytes that can still be appended."""
        if self.closed or len(self._references) >= STRIPE_REFERENCES_MAX:
            return 0
        return self.capacity - self.length

    def append(self, inode: int, offset: int, data: memoryview) -> None:
        """Take all of `data`, which must fit into `room`."""
        size = len(data)
        self._refer(inode, offset, size)
        filled = self._filled
        sector_size = self.sector_size
        position = 0
        if filled or size < sector_size:
            position = min(sector_size - filled, size)
            self._tail[filled : filled + position] = data[:position]
            if filled + position < sector_size:
                self._filled = filled + position
                return
            self._seal(self._tail)
            self._filled = 0
        while size - position >= sector_size:
            self._seal(data[position : position + sector_size])
            position += sector_size
        if position < size:
            rest = size - position
            self._tail[:rest] = data[position:]
            self._filled = rest

    def _refer(self, inode: int, offset: int, size: int) -> None:
        """Count `size` bytes more, and note for whom they are."""
        assert 0 < size <= self.capacity - self.length
        assert not self.closed
        if inode == self._inode and offset == self._inode_offset + self._run_length:
            self._run_length += size
        else:
            self._end_reference()
            self._inode = inode
            self._inode_offset = offset
            self._run_start = self.length
            self._run_length = size
        self.length += size

    def _seal(self, plaintext: memoryview) -> None:
        start = self._sealed * self.sealed_size
        self._cipher.seal_sector(
            self._sealed, plaintext, self._view[start : start + len(plaintext) + AEAD_TAG_SIZE]
        )
        self._sealed += 1

    def _end_reference(self) -> None:
        if self._run_length:
            self._references.append(
                BackReference(
                    InodeNumber(self._inode), self._inode_offset, self._run_length, self._run_start
                )
            )
            self._run_length = 0

    def close(self, geometry: Geometry) -> StripeLayout:
        """Seal the tail and zero the code's padding; nothing can be appended any more."""
        self._end()
        if self._filled:
            self._seal(self._tail[: self._filled])
            self._filled = 0
        layout = StripeLayout(self.length, geometry, self.sector_size)
        padded = geometry.data * layout.shard_length
        if padded > layout.sealed_length:
            self._view[layout.sealed_length : padded] = bytes(padded - layout.sealed_length)
        return layout

    def _end(self) -> None:
        """Nothing can be appended any more."""
        assert self.length > 0
        assert not self.closed
        self._end_reference()
        self.closed = True

    def summary(self) -> tuple[BackReference, ...]:
        """Who the appended bytes were for, in order, contiguous runs merged."""
        assert self.closed
        return tuple(self._references)

    def adopt_summary(self, references: tuple[BackReference, ...]) -> None:
        """Recovery: replace the summary by the one that is known of the stripe."""
        self._references = list(references)
        self._run_length = 0

    def columns(self, layout: StripeLayout) -> list[memoryview]:
        """The k data shards, each padded to the shard length, as views of the buffer."""
        width = layout.shard_length
        return [self._view[i * width : (i + 1) * width] for i in range(layout.data)]

    def payload(self, layout: StripeLayout, shard: int) -> memoryview:
        """What is stored of data shard `shard`."""
        start = shard * layout.shard_length
        return self._view[start : start + layout.payload_length(shard)]

    def read(self, offset: int, length: int) -> bytes:
        """Plaintext [offset, offset+length), which must have been appended."""
        assert offset >= 0
        assert 0 < length <= self.length - offset
        sector_size = self.sector_size
        first, last = offset // sector_size, (offset + length - 1) // sector_size
        parts = []
        for sector in range(first, last + 1):
            if sector < self._sealed:
                start = sector * self.sealed_size
                size = min(self.length - sector * sector_size, sector_size) + AEAD_TAG_SIZE
                plain = self._cipher.open_sector(sector, self._view[start : start + size])
            else:
                plain = bytes(self._tail[: self._filled])
            parts.append(plain)
        base = offset - first * sector_size
        if len(parts) == 1:
            return parts[0][base : base + length]
        parts[0] = parts[0][base:]
        parts[-1] = parts[-1][: offset + length - last * sector_size]
        return b"".join(parts)

    def release(self) -> list[bytearray]:
        """Let go of the buffers; the stripe can't be read from here any more."""
        self._view.release()
        return [self.buffer]

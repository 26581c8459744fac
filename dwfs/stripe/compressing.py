"""A stripe that is compressed once it is closed.

Compressing takes too long for the loop, so until then the bytes wait as plaintext. The writer has
them compressed in a worker thread, a few frames at a time, while readers and the log go on reading
them; what they become is sealed into a second buffer. Each sector is sealed once, as everywhere:
nothing is sealed before it is compressed, and a stripe whose disks fail is written again from the
second buffer.

Sealing stays on the loop. A thread would have to wait for the interpreter after each sector, which
takes much longer than to seal it when the loop is busy.

If no frame shrinks, the stripe becomes the very one that it would have been without compression.
"""

from __future__ import annotations

from dwfs.codec import FrameCompressor
from dwfs.limits import FRAME_SIZE, FRAMES_PER_STEP
from dwfs.stripe.builder import StripeBuilder
from dwfs.stripe.frames import frames_of
from dwfs.stripe.layout import StripeLayout, buffer_capacity
from dwfs.stripe.sealing import StripeCipher
from dwfs.types import Geometry, StripeFrames, StripeId


class CompressingBuilder(StripeBuilder):
    """As a `StripeBuilder`, but `buffer` holds plaintext.

    After `close`, lend it a buffer of `sealed_capacity` bytes and pass what `compress_some` gives to
    `seal_some` until that says that all is done; only then are there a layout, columns and payloads.
    """

    __slots__ = ("_compressor", "_lengths", "_packed")

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
        level: int,
    ) -> None:
        super().__init__(
            stripe, salt, key_version, cipher, buffer, sector_size=sector_size, sectors=sectors
        )
        self._compressor = FrameCompressor(level)
        self._lengths: list[int] = []  # of the frames that are done
        self._packed: StripeBuilder | None = None  # takes the stored bytes

    @property
    def uncompressed(self) -> bool:
        """Whether no buffer has been lent yet."""
        return self._packed is None

    def append(self, inode: int, offset: int, data: memoryview) -> None:
        """Take all of `data`, which must fit into `room`."""
        start = self.length
        self._refer(inode, offset, len(data))
        self._view[start : self.length] = data

    def close(self, geometry: Geometry) -> StripeLayout:
        """Nothing can be appended any more. The layout is the one without compression."""
        self._end()
        return StripeLayout(self.length, geometry, self.sector_size)

    def sealed_capacity(self, geometry: Geometry) -> int:
        """Bytes of the buffer that compression needs."""
        return buffer_capacity(geometry.data, -(-self.length // self.sector_size), self.sector_size)

    def lend(self, buffer: bytearray) -> None:
        """Where the sealed bytes go."""
        assert self.closed
        assert self._packed is None
        self._packed = StripeBuilder(
            self.stripe,
            self.salt,
            self.key_version,
            self._cipher,
            buffer,
            sector_size=self.sector_size,
            sectors=-(-self.length // self.sector_size),
        )

    def compress_some(self) -> list[bytes | None]:
        """The next few frames, None for one that is to be kept. For a worker thread."""
        view, length = self._view, self.length
        first = len(self._lengths) * FRAME_SIZE
        return [
            self._compressor.compress(view[start : min(start + FRAME_SIZE, length)])
            for start in range(first, length, FRAME_SIZE)[:FRAMES_PER_STEP]
        ]

    def seal_some(self, frames: list[bytes | None]) -> bool:
        """Seal what `compress_some` gave; True when no frame is left."""
        assert self._packed is not None
        for packed in frames:
            start = len(self._lengths) * FRAME_SIZE
            plaintext = self._view[start : min(start + FRAME_SIZE, self.length)]
            stored = plaintext if packed is None else memoryview(packed)
            self._packed.append(0, self._packed.length, stored)
            self._lengths.append(0 if packed is None else len(packed))
        return len(self._lengths) * FRAME_SIZE >= self.length

    def finish(self, geometry: Geometry) -> tuple[StripeLayout, StripeFrames | None]:
        """The layout of what is stored, and how the plaintext lies in it."""
        assert self._packed is not None
        frames = frames_of(self._lengths, self.length)
        layout = self._packed.close(geometry)
        assert layout.length == (self.length if frames is None else frames.stored_length)
        return layout, frames

    def columns(self, layout: StripeLayout) -> list[memoryview]:
        """The k data shards, each padded to the shard length, as views of the lent buffer."""
        assert self._packed is not None
        return self._packed.columns(layout)

    def payload(self, layout: StripeLayout, shard: int) -> memoryview:
        """What is stored of data shard `shard`."""
        assert self._packed is not None
        return self._packed.payload(layout, shard)

    def read(self, offset: int, length: int) -> bytes:
        """Plaintext [offset, offset+length), which must have been appended."""
        assert offset >= 0
        assert 0 < length <= self.length - offset
        return bytes(self._view[offset : offset + length])

    def release(self) -> list[bytearray]:
        """Let go of both buffers."""
        buffers = super().release()
        if self._packed is not None:
            buffers += self._packed.release()
        return buffers

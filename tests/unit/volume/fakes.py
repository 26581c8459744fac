"""Stand-ins for what a volume is built on: cipher, hasher, log and data store."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import trio

from dwfs.errors import AuthenticationError, DwfsError, PosixError
from dwfs.types import (
    BackReference,
    DiskId,
    Fragment,
    Geometry,
    LogSequence,
    StripeData,
    StripeId,
    StripeSeal,
    VolumeId,
)
from dwfs.volume import EmbeddedReplicator, StateStore, Volume, VolumeState

STREAM = VolumeId(b"v" * 16)
GEOMETRY = Geometry(2, 1)
PLACEMENT = tuple(DiskId(bytes([number]) * 16) for number in range(1, 4))


class FakeCipher:
    """Seals nothing, but notices a value under another key."""

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        return zlib.crc32(aad + plaintext).to_bytes(4, "big") + plaintext

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        if zlib.crc32(aad + sealed[4:]).to_bytes(4, "big") != sealed[:4]:
            raise AuthenticationError("moved or damaged")
        return sealed[4:]


class FakeNames:
    """Few different hashes, so that buckets hold several names."""

    def __init__(self, hashes: int = 2**40) -> None:
        self.hashes = hashes

    def _number(self, *parts: object) -> int:
        return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")

    def dentry(self, parent: int, name: bytes) -> int:
        return 16 + 8 * (self._number(parent, name) % self.hashes)

    def node(self, inode: int, index: int) -> bytes:
        return self._number("node", inode, index).to_bytes(16, "big")

    def xattr(self, inode: int, name: bytes) -> bytes:
        return (self._number("xattr", inode, name) % min(self.hashes, 2**40)).to_bytes(8, "big")


class FakeLog:
    """Keeps payloads in a list; fails or dawdles when the dice say so."""

    def __init__(self, dice: random.Random | None = None) -> None:
        self.records: list[bytes] = []
        self.dice = dice
        self.faults = True  # whether the dice make it fail, too
        self.failing = False
        self.blocked: trio.Event | None = None
        self.next = 1

    async def append(
        self, stream: VolumeId, payload: bytes, first: LogSequence, last: LogSequence
    ) -> None:
        assert stream == STREAM
        assert first == self.next, "commands are contiguous"
        if self.dice is not None:
            for _ in range(self.dice.randrange(1, 5)):
                await trio.lowlevel.checkpoint()
            if self.faults and self.dice.random() < 0.15:
                raise DwfsError("the log disk said no")
        if self.blocked is not None:
            await self.blocked.wait()
        if self.failing:
            raise DwfsError("the log disk said no")
        self.records.append(payload)
        self.next = last + 1


class FakeDataStore:
    """Stripes in memory; a settled stripe is durable, all else is lost in a crash."""

    def __init__(self, seed: int = 0, stripe_size: int = 2**20) -> None:
        self.dice = random.Random(seed)
        self.failing = False
        self.erratic = False
        self.durable: dict[StripeId, bytes] = {}
        self.dropped: list[StripeId] = []
        self._size = stripe_size
        self._buffers: dict[StripeId, bytearray] = {}
        self._references: dict[StripeId, list[BackReference]] = {}
        self._logged: dict[StripeId, int] = {}
        self._open: StripeId | None = None
        self._closed: list[StripeId] = []

    async def admit(self, length: int) -> None:
        """Always."""

    def append(self, inode: int, offset: int, data: bytes | memoryview) -> list[Fragment]:
        if self._open is None:
            self._open = StripeId(self.dice.randbytes(16))
            self._buffers[self._open] = bytearray()
            self._references[self._open] = []
            self._logged[self._open] = 0
        stripe, buffer = self._open, self._buffers[self._open]
        fragment = Fragment(stripe, len(buffer), len(data))
        buffer += data
        if len(buffer) >= self._size:
            self.rotate()
        return [fragment]

    def read_now(self, stripe: StripeId, offset: int, length: int) -> bytes | None:
        content = self._buffers.get(stripe) or self.durable.get(stripe)
        return None if content is None else bytes(content[offset : offset + length])

    async def read(self, stripe: StripeId, offset: int, length: int) -> bytes:
        content = self.read_now(stripe, offset, length)
        if content is None or len(content) != length:
            raise PosixError(5)
        return content

    def prefetch(self, stripe: StripeId) -> None:
        """Nothing to do."""

    def unlogged_bytes(self) -> int:
        return sum(len(self._buffers[s]) - logged for s, logged in self._logged.items())

    def take_unlogged(self) -> list[StripeData]:
        pieces = []
        for stripe, logged in self._logged.items():
            content = self._buffers[stripe]
            if len(content) > logged:
                pieces.append(StripeData(stripe, logged, bytes(content[logged:])))
                self._logged[stripe] = len(content)
        return pieces

    def rotate(self) -> None:
        if self._open is not None:
            self._closed.append(self._open)
            self._open = None

    async def settle(self) -> list[StripeSeal]:
        closed = list(self._closed)
        if self.erratic:
            for _ in range(self.dice.randrange(3)):
                await trio.lowlevel.checkpoint()
        if self.failing or (self.erratic and self.dice.random() < 0.1):
            raise PosixError(5)
        return self._seal(closed)

    def settled(self) -> list[StripeSeal]:
        if self.erratic and self._closed and self.dice.random() < 0.3:
            return self._seal(self._closed[:1])
        return []

    def _seal(self, stripes: list[StripeId]) -> list[StripeSeal]:
        seals = []
        for stripe in stripes:
            if stripe not in self._closed:
                continue  # another call was faster
            self._closed.remove(stripe)
            self._logged.pop(stripe, None)
            self.durable[stripe] = bytes(self._buffers[stripe])
            seals.append(
                StripeSeal(
                    stripe,
                    bytes(24),
                    1,
                    GEOMETRY,
                    len(self.durable[stripe]),
                    16384,
                    PLACEMENT,
                    tuple(self._references.get(stripe, ())),
                )
            )
        return seals

    def committed(self, seals: Sequence[StripeSeal]) -> None:
        for seal in seals:
            self._buffers.pop(seal.stripe)

    def restore(self, data: Sequence[StripeData]) -> None:
        for piece in data:
            self._buffers[piece.stripe] = bytearray(piece.data)
            self._closed.append(piece.stripe)

    async def drop(self, stripes: Sequence[StripeId]) -> None:
        self.dropped += stripes
        for stripe in stripes:
            self.durable.pop(stripe, None)


class Bench:
    """A volume on fakes, with a root directory made by hand where `make_root` is true."""

    def __init__(self, directory: Path, hashes: int = 2**40, make_root: bool = True) -> None:
        self.path = directory / "state.mdb"
        self.names = FakeNames(hashes)
        self.store_cipher = FakeCipher()
        self.log = FakeLog()
        self.data = FakeDataStore()
        self.open()
        if make_root:
            trio.run(self.volume.create_root, 0o755, 0, 0, 1)

    def open(self) -> None:
        """Open the store that is there; the log goes on after what is committed."""
        self.open_store()
        self.open_volume()

    def open_store(self) -> None:
        """The first half of `open`."""
        self.store = StateStore(self.path, self.store_cipher, self.names, 2**30)

    def open_volume(self) -> None:
        """The second half of `open`."""
        self.state = VolumeState(self.store)
        self.replicator = EmbeddedReplicator(self.state, self.log, self.data, STREAM)
        self.volume = Volume(self.state, self.replicator, self.data)

    def open_volume_again(self, inlined: dict[StripeId, LogSequence]) -> None:
        """After a recovery: go on where the log ends."""
        self.replicator = EmbeddedReplicator(self.state, self.log, self.data, STREAM)
        self.replicator.resume(inlined)
        self.volume = Volume(self.state, self.replicator, self.data)

    def reopen(self) -> None:
        """Commit, close, open."""
        trio.run(self.volume.commit)
        self.store.close()
        self.open()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

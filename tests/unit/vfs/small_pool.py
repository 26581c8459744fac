"""A filesystem for tests: the real `Filesystem` and `Volume`, data in memory, a log that forgets."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from dwfs.crypto import RootKeys, SecretBytes
from dwfs.errors import PosixError
from dwfs.types import (
    ROOT_INODE,
    Fragment,
    InodeNumber,
    LogSequence,
    PoolId,
    StripeData,
    StripeId,
    StripeSeal,
    VolumeId,
)
from dwfs.vfs import SYSTEM, Caller, Filesystem, FilesystemOptions, Space
from dwfs.volume.records import Inode
from dwfs.volume.replicator import EmbeddedReplicator
from dwfs.volume.state import VolumeState
from dwfs.volume.store import StateStore
from dwfs.volume.volume import Volume

STRIPE_SIZE = 64 * 1024  # small, so that files span several
START_NS = 1_700_000_000_000_000_000


class SteppedClock:
    """Time that advances a microsecond whenever somebody looks."""

    def __init__(self) -> None:
        self.wall = START_NS

    def now(self) -> float:
        return self.wall / 1e9

    def wall_ns(self) -> int:
        self.wall += 1000
        return self.wall


class MemoryData:
    """A `DataStore` whose stripes are never sealed: `barrier` logs nothing of them.

    `cold` stripes can't be read without waiting, `lost` ones not at all.
    """

    def __init__(self) -> None:
        self.stripes: dict[StripeId, bytearray] = {}
        self.cold: set[StripeId] = set()
        self.lost: set[StripeId] = set()
        self.prefetched: list[StripeId] = []
        self.full = False
        self._open = StripeId(bytes(16))

    async def admit(self, length: int) -> None:
        if self.full:
            raise PosixError(errno.ENOSPC)

    def append(self, inode: int, offset: int, data: bytes | memoryview) -> list[Fragment]:
        fragments = []
        view = memoryview(data)
        while view:
            stripe = self.stripes.get(self._open)
            if stripe is None or len(stripe) == STRIPE_SIZE:
                self._open = StripeId((len(self.stripes) + 1).to_bytes(16, "big"))
                stripe = self.stripes[self._open] = bytearray()
            piece = view[: STRIPE_SIZE - len(stripe)]
            fragments.append(Fragment(self._open, len(stripe), len(piece)))
            stripe += piece
            view = view[len(piece) :]
        return fragments

    def read_now(self, stripe: StripeId, offset: int, length: int) -> bytes | None:
        if stripe in self.cold or stripe in self.lost:
            return None
        return bytes(self.stripes[stripe][offset : offset + length])

    async def read(self, stripe: StripeId, offset: int, length: int) -> bytes:
        if stripe in self.lost:
            raise PosixError(errno.EIO)
        return bytes(self.stripes[stripe][offset : offset + length])

    def prefetch(self, stripe: StripeId) -> None:
        self.prefetched.append(stripe)

    def unlogged_bytes(self) -> int:
        return 0

    def take_unlogged(self) -> list[StripeData]:
        return []

    def rotate(self) -> None:
        return None

    async def settle(self) -> list[StripeSeal]:
        return []

    def settled(self) -> list[StripeSeal]:
        return []

    def committed(self, seals: Sequence[StripeSeal]) -> None:
        return None

    def restore(self, data: Sequence[StripeData]) -> None:
        return None

    async def drop(self, stripes: Sequence[StripeId]) -> None:
        return None


class CountingLog:
    """A log that keeps nothing but the number of its records."""

    def __init__(self) -> None:
        self.records = 0

    async def append(
        self, stream: VolumeId, payload: bytes, first: LogSequence, last: LogSequence
    ) -> None:
        self.records += 1


class SmallPool:
    """The filesystem and its parts, with shorthands for what tests do all the time."""

    def __init__(self, directory: Path, options: FilesystemOptions) -> None:
        self._keys = RootKeys(SecretBytes.random(32), PoolId(bytes(16)))
        keys = self._keys.volume(VolumeId(bytes(16)), 1)
        self._store = StateStore(directory / "state.mdb", keys.values, keys.names, 1 << 30)
        self.state = VolumeState(self._store)
        self.log = CountingLog()
        self.data = MemoryData()
        self.clock = SteppedClock()
        self.space = Space(1 << 30, 1 << 29)
        self._options = options
        replicator = EmbeddedReplicator(self.state, self.log, self.data, VolumeId(bytes(16)))
        self.volume = Volume(self.state, replicator, self.data)

    async def start(self) -> None:
        """Make the root and the filesystem."""
        await self.volume.create_root(0o755, 0, 0, START_NS)
        self.fs = self.remount()

    def remount(self) -> Filesystem:
        """A new session on the same volume."""
        self.fs = Filesystem(self.volume, self.data, self.clock, lambda: self.space, self._options)
        return self.fs

    async def file(
        self, name: bytes, content: bytes = b"", mode: int = 0o644, caller: Caller = SYSTEM
    ) -> InodeNumber:
        """Make a file in the root, with that content, closed."""
        handle, inode = await self.fs.create(ROOT_INODE, name, mode, 1, caller)
        number = inode.number
        if content:
            await self.fs.write(handle.number, 0, content)
        self.fs.release(handle.number)
        return number

    async def open(self, number: InodeNumber, flags: int = 2, caller: Caller = SYSTEM) -> int:
        """A handle's number."""
        return (await self.fs.open(number, flags, caller)).number

    async def content(self, number: InodeNumber) -> bytes:
        """All bytes of a file, read past its end."""
        return await self.fs.read_inode(number, 0, self.inode(number).size + 100)

    def inode(self, number: InodeNumber) -> Inode:
        """The state's record."""
        return self.fs.getattr(number)

    def names(self, number: InodeNumber = ROOT_INODE) -> set[bytes]:
        """What a listing of the directory shows."""
        handle = self.fs.opendir(number)
        found = [entry.name for entry, _ in self.fs.directory_entries(handle, 0)]
        self.fs.releasedir(handle)
        assert len(found) == len(set(found))
        return set(found) - {b".", b".."}

    def close(self) -> None:
        """Give everything back."""
        self._store.close()
        self._keys.wipe()


@contextlib.asynccontextmanager
async def small_pool(
    directory: Path, options: FilesystemOptions | None = None
) -> AsyncIterator[SmallPool]:
    """A fresh pool below `directory`; its state is consistent when the test is done with it."""
    pool = SmallPool(directory, options or FilesystemOptions())
    try:
        await pool.start()
        yield pool
        assert list(pool.volume.check()) == []
    finally:
        pool.close()

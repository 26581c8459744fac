"""An in-memory `ShardStore` with faults on demand, for the tests of layers above the disk.

It passes the port's contract suite (`shard_store_contract.py`). Durability is modelled too: `crash`
forgets everything since the last `sync` that returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from dwfs.errors import DiskFullError, MediumError, ShardDamagedError, ShardMissingError
from dwfs.types import DiskId, DiskSpace, ShardKey

_Shard = tuple[bytes, bytes]  # (header, payload)


class MemoryShardStore:
    """One disk in memory.

    Hooks: `fail_reads`, `fail_writes`, `fail_syncs` make the operations raise MediumError while True;
    `corrupt(key)` flips a bit of the payload; `lose(key)` drops a shard behind the store's back;
    `cached` says whether `read_cached` answers; `before` is awaited with (operation, key) first, so
    that a test can delay or fail a single operation.
    """

    def __init__(self, disk: DiskId, size_bytes: int = 1 << 40) -> None:
        self.disk = disk
        self.fail_reads = False
        self.fail_writes = False
        self.fail_syncs = False
        self.cached = True
        self.size_bytes = size_bytes
        self.puts = 0
        self.reads = 0
        self.syncs = 0
        self.before: Callable[[str, ShardKey | None], object] | None = None
        self._shards: dict[ShardKey, _Shard] = {}
        self._durable: dict[ShardKey, _Shard] = {}
        self._damaged: set[ShardKey] = set()

    # --- faults ------------------------------------------------------------------------------

    def corrupt(self, key: ShardKey, position: int = 0) -> None:
        """Flip one bit of the payload: bit rot. An empty payload is damaged in its header."""
        header, payload = self._shards[key]
        if payload:
            rotten = bytearray(payload)
            rotten[position] ^= 0x10
            self._shards[key] = (header, bytes(rotten))
        self._damaged.add(key)

    def lose(self, key: ShardKey) -> None:
        """Drop a shard without anyone having asked for it."""
        self._shards.pop(key)
        self._durable.pop(key, None)

    def crash(self) -> None:
        """Power loss: only what was synced remains."""
        self._shards = dict(self._durable)
        self._damaged &= set(self._shards)

    # --- ShardStore --------------------------------------------------------------------------

    async def put(self, key: ShardKey, header: bytes, payload: memoryview) -> None:
        await self._begin("put", key, failing=self.fail_writes)
        if len(payload) > self.space().available_bytes:
            raise DiskFullError(self.disk, "put", "ENOSPC: No space left on device")
        self.puts += 1
        self._shards[key] = (bytes(header), bytes(payload))
        self._damaged.discard(key)

    def has(self, key: ShardKey) -> bool:
        return key in self._shards

    def length(self, key: ShardKey) -> int:
        return len(self._find(key)[1])

    def read_cached(self, key: ShardKey, offset: int, length: int) -> bytes | None:
        if not self.cached or self.fail_reads or key not in self._shards:
            return None
        return self._shards[key][1][offset : offset + length]

    async def read(self, key: ShardKey, offset: int, length: int) -> bytes:
        await self._begin("read", key, failing=self.fail_reads)
        self.reads += 1
        return self._find(key)[1][offset : offset + length]

    async def read_verified(self, key: ShardKey) -> tuple[bytes, bytes]:
        await self._begin("read", key, failing=self.fail_reads)
        self.reads += 1
        shard = self._find(key)
        if key in self._damaged:
            raise ShardDamagedError(self.disk, "verify", "the payload's checksum is wrong")
        return shard

    async def delete(self, keys: Sequence[ShardKey]) -> None:
        await self._begin("delete", None, failing=self.fail_writes)
        for key in keys:
            self._shards.pop(key, None)
            self._damaged.discard(key)

    async def sync(self) -> None:
        covered = dict(self._shards)
        await self._begin("sync", None, failing=self.fail_syncs)
        self.syncs += 1
        self._durable = covered

    def keys(self, after: ShardKey | None, limit: int) -> list[ShardKey]:
        floor = (after.stripe, after.number) if after is not None else None
        ordered = sorted((key.stripe, key.number, key) for key in self._shards)
        return [
            key for stripe, number, key in ordered if floor is None or (stripe, number) > floor
        ][:limit]

    def space(self) -> DiskSpace:
        used = sum(len(header) + len(payload) for header, payload in self._shards.values())
        return DiskSpace(self.size_bytes, max(0, self.size_bytes - used), used)

    # --- inner -------------------------------------------------------------------------------

    async def _begin(self, operation: str, key: ShardKey | None, *, failing: bool) -> None:
        if self.before is not None:
            result = self.before(operation, key)
            if hasattr(result, "__await__"):
                await result
        await trio.lowlevel.checkpoint()
        if failing:
            raise MediumError(self.disk, operation, "EIO: Input/output error")

    def _find(self, key: ShardKey) -> _Shard:
        shard = self._shards.get(key)
        if shard is None:
            raise ShardMissingError(self.disk, "find", "no such shard")
        return shard

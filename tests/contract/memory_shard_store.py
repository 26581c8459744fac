"""An in-memory `ShardStore` with faults on demand, for the tests of layers above the disk.

It passes the port's contract suite (`shard_store_contract.py`). Durability is modelled too: `crash`
forgets everything since the last `sync` that returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from dwfs.errors import DiskFullError, MediumError, ShardDamagedError, ShardMissingError
from dwfs.ports import ScrubFinding, ScrubPiece, ShardFault
from dwfs.types import DiskId, DiskPosition, DiskSpace, ShardKey

_Shard = tuple[bytes, bytes]  # (header, payload)


class MemoryShardStore:
    """One disk in memory.

    Hooks: `fail_reads`, `fail_writes`, `fail_syncs` make the operations raise MediumError while True;
    `corrupt(key)` flips a bit of the payload; `lose(key)` drops a shard behind the store's back;
    `leave_stray` and `leave_duplicate` put records on the disk that the index doesn't know;
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
        self._damaged: dict[ShardKey, ShardFault] = {}
        # In the order in which a scrub meets them: live records, and those no index knows.
        self._places: dict[ShardKey, DiskPosition] = {}
        self._debris: dict[DiskPosition, tuple[ShardFault, ShardKey, _Shard]] = {}
        self._records = 0

    # --- faults ------------------------------------------------------------------------------

    def corrupt(
        self, key: ShardKey, position: int = 0, fault: ShardFault = ShardFault.ROTTEN
    ) -> None:
        """Flip one bit of the payload: bit rot. An empty payload is damaged in its header.

        A scrub calls it `fault`.
        """
        header, payload = self._shards[key]
        if payload:
            rotten = bytearray(payload)
            rotten[position] ^= 0x10
            self._shards[key] = (header, bytes(rotten))
        self._damaged[key] = fault

    def lose(self, key: ShardKey) -> None:
        """Drop a shard without anyone having asked for it."""
        self._forget(key)
        self._durable.pop(key, None)

    def leave_stray(self, key: ShardKey, header: bytes, payload: bytes) -> DiskPosition:
        """A whole record that the index doesn't have."""
        place = self._next_place()
        self._debris[place] = (ShardFault.STRAY, key, (header, payload))
        return place

    def leave_duplicate(self, key: ShardKey) -> DiskPosition:
        """An older record of a live shard."""
        place = self._next_place()
        self._debris[place] = (ShardFault.DUPLICATE, key, self._shards[key])
        return place

    @property
    def debris(self) -> int:
        """Records that no index knows."""
        return len(self._debris)

    def crash(self) -> None:
        """Power loss: only what was synced remains."""
        self._shards = dict(self._durable)
        self._damaged = {key: fault for key, fault in self._damaged.items() if key in self._shards}
        self._places = {key: self._places.get(key) or self._next_place() for key in self._shards}

    # --- ShardStore --------------------------------------------------------------------------

    async def put(self, key: ShardKey, header: bytes, payload: memoryview) -> None:
        await self._begin("put", key, failing=self.fail_writes)
        if len(payload) > self.space().available_bytes:
            raise DiskFullError(self.disk, "put", "ENOSPC: No space left on device")
        self.puts += 1
        self._shards[key] = (bytes(header), bytes(payload))
        self._damaged.pop(key, None)
        self._places[key] = self._next_place()

    def has(self, key: ShardKey) -> bool:
        return key in self._shards

    def length(self, key: ShardKey) -> int:
        return len(self._find(key)[1])

    def read_cached(
        self, key: ShardKey, offset: int, length: int, *, patient: bool = True
    ) -> bytes | None:
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
            if key in self._shards:
                self._forget(key)

    async def sync(self) -> None:
        covered = dict(self._shards)
        await self._begin("sync", None, failing=self.fail_syncs)
        self.syncs += 1
        self._durable = covered

    async def read_back(self, key: ShardKey) -> tuple[bytes, bytes]:
        await self._begin("read_back", key, failing=self.fail_reads)
        shard = self._find(key)
        if key in self._damaged:
            raise ShardDamagedError(self.disk, "verify", "the payload's checksum is wrong")
        return shard

    async def scrub(self, start: DiskPosition, size_bytes: int) -> ScrubPiece:
        await self._begin("scrub", None, failing=self.fail_reads)
        findings: list[ScrubFinding] = []
        looked = read = 0
        live = {place: key for key, place in self._places.items()}
        left = sorted(place for place in {*live, *self._debris} if place >= start)
        while left and read < size_bytes:
            place = left.pop(0)
            looked += 1
            if place in self._debris:
                fault, key, shard = self._debris[place]
                findings.append(ScrubFinding(fault, key, place, "left in memory"))
            else:
                key = live[place]
                shard = self._shards[key]
                if key in self._damaged:
                    findings.append(ScrubFinding(self._damaged[key], key, place, "as told"))
            read += len(shard[0]) + len(shard[1]) + 1
        return ScrubPiece(tuple(findings), looked, read, left[0] if left else None)

    async def erase(self, finding: ScrubFinding) -> None:
        await self._begin("erase", finding.key, failing=self.fail_writes)
        self._debris.pop(finding.position, None)

    async def adopt(self, finding: ScrubFinding) -> None:
        await self._begin("adopt", finding.key, failing=self.fail_writes)
        if finding.key in self._shards or finding.position not in self._debris:
            return
        self._shards[finding.key] = self._debris.pop(finding.position)[2]
        self._places[finding.key] = finding.position

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

    def _next_place(self) -> DiskPosition:
        self._records += 1
        return DiskPosition(self._records // 1_000, self._records % 1_000)

    def _forget(self, key: ShardKey) -> None:
        del self._shards[key]
        del self._places[key]
        self._damaged.pop(key, None)

    def _find(self, key: ShardKey) -> _Shard:
        shard = self._shards.get(key)
        if shard is None:
            raise ShardMissingError(self.disk, "find", "no such shard")
        return shard

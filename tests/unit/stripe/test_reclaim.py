"""Dropping dead stripes, emptying sparse ones, sweeping orphans."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.limits import KIB, MIB
from dwfs.stripe import Cleaner, LiveRange, ReclaimSignal, StripeStore, pace_for, sweep_disk
from dwfs.types import Fragment, ShardKey, StripeId
from tests.unit.stripe.stripe_bench import Bench, Disks, bench


class TrioClock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ns(self) -> int:
        return 0


class Files:
    """One fragment a file; plays volume and log."""

    def __init__(self, b: Bench) -> None:
        self.bench = b
        self.files: dict[int, Fragment] = {}
        self.doomed: set[StripeId] = set()

    def write(self, inode: int, data: bytes) -> None:
        (self.files[inode],) = self.bench.store.append(inode, 0, data)

    def live(self, stripe: StripeId) -> int:
        return sum(f.length for f in self.files.values() if f.stripe == stripe)

    def dead_stripes(self, limit: int) -> list[StripeId]:
        return [s for s in self.bench.catalog.seals if not self.live(s)][:limit]

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        seals = self.bench.catalog.seals
        return [s for s in seals if 0 < self.live(s) <= live_fraction * seals[s].length][:limit]

    def live_ranges(self, stripe: StripeId) -> list[LiveRange]:
        return [
            LiveRange(inode, 0, f.length, f.offset)
            for inode, f in self.files.items()
            if f.stripe == stripe
        ]

    async def relocate(
        self,
        inode: int,
        offset: int,
        length: int,
        stripe: StripeId,
        stripe_offset: int,
        fragments: Sequence[Fragment],
    ) -> None:
        if self.files[inode].stripe == stripe:
            (self.files[inode],) = fragments

    async def drop_stripes(self, stripes: Sequence[StripeId]) -> None:
        await self.bench.commit()
        for stripe in stripes:
            del self.bench.catalog.seals[stripe]


def cleaner_for(b: Bench, files: Files, signal: ReclaimSignal) -> Cleaner:
    store: StripeStore = b.store
    return Cleaner(files, store, signal, TrioClock())


async def test_sparse_stripes_are_emptied_and_dropped() -> None:
    async with bench() as b:
        files = Files(b)
        for inode in range(10):
            files.write(inode, bytes([inode]) * 50_000)
        (seal,) = await b.commit()
        for inode in range(8):
            del files.files[inode]
        cleaner = cleaner_for(b, files, ReclaimSignal())
        await cleaner.run_once()
        assert cleaner.moved_bytes == 100_000
        assert seal.stripe not in b.catalog.seals
        assert not any(disk.has(ShardKey(seal.stripe, 0)) for disk in b.disks.disks)
        for inode, fragment in files.files.items():
            read = await b.store.read(fragment.stripe, fragment.offset, fragment.length)
            assert read == bytes([inode]) * 50_000


async def test_full_pool_is_reclaimed_for_the_writer_that_waits() -> None:
    signal = ReclaimSignal()
    async with bench(disks=Disks(6, size=20 * MIB), reclaim=signal) as b:
        files = Files(b)

        async def fill() -> None:
            for inode in range(1_000):
                await b.store.admit(256 * KIB)
                files.write(inode, bytes(256 * KIB))

        with pytest.raises(PosixError):
            await fill()
        await b.commit()
        files.files.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cleaner_for(b, files, signal).run)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                await b.store.admit(256 * KIB)
            nursery.cancel_scope.cancel()


async def test_request_without_a_cleaner_returns_at_once() -> None:
    with trio.fail_after(1):
        assert not await ReclaimSignal().request()


def test_pace_rises_as_space_falls() -> None:
    paces = [pace_for(free) for free in (0.0, 0.07, 0.2, 0.5, 1.0)]
    for fuller, emptier in pairwise(paces):
        assert fuller.live_fraction >= emptier.live_fraction
        assert fuller.duty >= emptier.duty
    assert all(0 < pace.duty < 1 for pace in paces)


async def test_sweep_deletes_orphans_and_nothing_else() -> None:
    async with bench(disks=7) as b:
        b.store.append(1, 0, bytes(100_000))
        (seal,) = await b.commit()
        b.store.append(1, 0, bytes(100_000))
        b.store.rotate()
        (pending,) = await b.store.settle()
        spare = next(d for d in b.disks.disks if d.disk not in seal.placement)
        home = b.disks.get(seal.placement[0])
        assert home is not None
        moved, unknown = ShardKey(seal.stripe, 0), ShardKey(StripeId(b"u" * 16), 1)
        spare.shards[moved] = spare.shards[unknown] = home.shards[moved]
        for disk in b.disks.disks:
            await sweep_disk(disk, b.catalog.seal_of, b.store.is_in_memory, pause_seconds=0)
        assert moved not in spare.shards
        assert unknown not in spare.shards
        for known in (seal, pending):
            for number, place in enumerate(known.placement):
                if place:
                    store = b.disks.get(place)
                    assert store is not None
                    assert store.has(ShardKey(known.stripe, number))

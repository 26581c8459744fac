"""Dropping dead stripes, emptying sparse ones, sweeping orphans."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from errno import EIO, ENOSPC
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dwfs.errors import PosixError
from dwfs.limits import KIB, MIB
from dwfs.stripe import Cleaner, LiveRange, ReclaimSignal, StripeStore, pace_for, sweep_disk
from dwfs.stripe.reclaim import CLEAN_BATCH
from dwfs.types import Fragment, ShardKey, StripeId
from tests.unit.stripe.stripe_bench import Bench, Disks, bench


class TrioClock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ns(self) -> int:
        return 0


class Files:
    """Small files; plays volume and log."""

    def __init__(self, b: Bench) -> None:
        self.bench = b
        self.files: dict[int, list[Fragment]] = {}
        self.alive: Counter[StripeId] = Counter()
        self.fail_barriers = 0

    def write(self, inode: int, data: bytes) -> None:
        self.point(inode, self.bench.store.append(inode, 0, data))

    def point(self, inode: int, fragments: Sequence[Fragment]) -> None:
        self.remove(inode)
        self.files[inode] = list(fragments)
        for fragment in fragments:
            self.alive[fragment.stripe] += fragment.length

    def remove(self, inode: int) -> None:
        for fragment in self.files.pop(inode, []):
            self.alive[fragment.stripe] -= fragment.length

    async def content(self, inode: int) -> bytes:
        parts = [
            await self.bench.store.read(f.stripe, f.offset, f.length) for f in self.files[inode]
        ]
        return b"".join(parts)

    async def drop_dead(self, limit: int) -> int:
        dead = [s for s in self.bench.catalog.known if not self.alive[s]][:limit]
        if dead:
            if self.fail_barriers:
                self.fail_barriers -= 1
                raise PosixError(EIO, "barrier")
            await self.bench.commit()
            for stripe in dead:
                del self.bench.catalog.known[stripe]
            await self.bench.store.drop(dead)
        return len(dead)

    async def settle(self) -> None:
        await self.bench.commit()

    def sparse_stripes(self, live_fraction: float, limit: int) -> list[StripeId]:
        known = self.bench.catalog.known
        found = [(self.alive[s] / seal.length, s) for s, seal in known.items() if self.alive[s]]
        return [s for share, s in sorted(found) if share <= live_fraction][:limit]

    async def live_ranges(self, stripe: StripeId) -> list[LiveRange]:
        ranges = []
        for inode, fragments in self.files.items():
            offset = 0
            for fragment in fragments:
                if fragment.stripe == stripe:
                    ranges.append(LiveRange(inode, offset, fragment.length, fragment.offset))
                offset += fragment.length
        return ranges

    async def relocate(
        self,
        inode: int,
        offset: int,
        length: int,
        stripe: StripeId,
        stripe_offset: int,
        fragments: Sequence[Fragment],
    ) -> None:
        kept: list[Fragment] = []
        for fragment in self.files.get(inode, []):
            inside = stripe_offset - fragment.offset
            if fragment.stripe != stripe or not 0 <= inside < fragment.length:
                kept.append(fragment)
                continue
            kept += [Fragment(stripe, fragment.offset, inside)] if inside else []
            kept += fragments
            rest = fragment.length - inside - length
            kept += [Fragment(stripe, stripe_offset + length, rest)] if rest else []
        if inode in self.files:
            self.point(inode, kept)


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
            files.remove(inode)
        cleaner = cleaner_for(b, files, ReclaimSignal())
        await cleaner.run_once()
        assert cleaner.moved_bytes == 100_000
        assert seal.stripe not in b.catalog.known
        assert not any(disk.has(ShardKey(seal.stripe, 0)) for disk in b.disks.disks)
        for inode in files.files:
            assert await files.content(inode) == bytes([inode]) * 50_000


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
        for inode in list(files.files):
            files.remove(inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cleaner_for(b, files, signal).run)
            await wait_all_tasks_blocked()
            with trio.fail_after(5):
                await b.store.admit(256 * KIB)
            nursery.cancel_scope.cancel()


async def overwrite_at_random(
    files: Files, blocks: int, size: int, rounds: int, seed: int
) -> dict[int, int]:
    """Fill `blocks` files, then overwrite at random; returns the last version of each."""
    draw = random.Random(seed)
    versions: dict[int, int] = {}
    for number in range(blocks + rounds):
        inode = number if number < blocks else draw.randrange(blocks)
        await files.bench.store.admit(size)
        versions[inode] = number
        files.write(inode, block(inode, number, size))
        if number % 200 == 199:
            await files.bench.commit()
    return versions


def block(inode: int, version: int, size: int) -> bytes:
    return (inode.to_bytes(4, "little") + version.to_bytes(4, "little")) * (size // 8)


@pytest.mark.parametrize(
    ("data", "parity", "disks", "share"),
    [(4, 2, 6, 0.90), (4, 2, 6, 0.97), (4, 2, 7, 0.80), (2, 1, 4, 0.75), (1, 1, 2, 0.90)],
)
async def test_random_overwrites_of_a_nearly_full_pool_never_see_enospc(
    data: int, parity: int, disks: int, share: float, seed: int
) -> None:
    # A disk holds but 10 to 20 shards here, so where they lie unevenly a tenth or more may be stranded.
    size = 64 * KIB
    signal = ReclaimSignal()
    async with bench(data, parity, Disks(disks, size=36 * MIB), reclaim=signal) as b:
        files = Files(b)
        blocks = int(b.store.capacity_bytes() * share) // size
        cleaner = cleaner_for(b, files, signal)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cleaner.run)
            await wait_all_tasks_blocked()
            with trio.fail_after(60):
                versions = await overwrite_at_random(files, blocks, size, blocks // 2, seed)
            nursery.cancel_scope.cancel()
        assert cleaner.failed_rounds == 0
        for inode, version in versions.items():
            assert await files.content(inode) == block(inode, version, size)
        for seal in await b.commit():
            assert all(seal.placement)


async def test_really_full_pool_says_so_soon_and_can_be_emptied() -> None:
    size = 256 * KIB
    signal = ReclaimSignal()
    async with bench(disks=Disks(6, size=24 * MIB), reclaim=signal) as b:
        files = Files(b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cleaner_for(b, files, signal).run)
            await wait_all_tasks_blocked()

            async def fill() -> None:
                for inode in range(1_000):
                    await b.store.admit(size)
                    files.write(inode, block(inode, 1, size))

            with trio.fail_after(10), pytest.raises(PosixError) as caught:
                await fill()
            assert caught.value.errno == ENOSPC
            kept = max(files.files)
            for inode in range(kept):
                files.remove(inode)
            with trio.fail_after(10):
                await b.store.admit(20 * MIB)
            nursery.cancel_scope.cancel()
        assert await files.content(kept) == block(kept, 1, size)


async def test_stripe_beyond_redundancy_does_not_stop_reclaim_of_others() -> None:
    async with bench(2, 1, 3) as b:
        files = Files(b)
        for stripe in range(CLEAN_BATCH + 4):
            for inode in range(10):
                files.write(100 * stripe + inode, bytes([inode]) * 50_000)
            (seal,) = await b.commit()
            for inode in range(8):
                files.remove(100 * stripe + inode)
            if stripe < CLEAN_BATCH:
                for disk in b.disks.disks:
                    for key in [key for key in disk.shards if key.stripe == seal.stripe]:
                        disk.shards[key] = (disk.shards[key][0], bytearray(b"?"))
        cleaner = cleaner_for(b, files, ReclaimSignal())
        for _ in range(4):
            await cleaner.run_once()
        assert cleaner.dropped_stripes == 4
        assert cleaner.failed_rounds == 0


async def test_round_whose_barrier_fails_is_made_up_for() -> None:
    async with bench() as b:
        files = Files(b)
        files.write(1, bytes(50_000))
        await b.commit()
        files.remove(1)
        files.fail_barriers = 1
        cleaner = cleaner_for(b, files, ReclaimSignal())
        with pytest.raises(PosixError):
            await cleaner.run_once()
        assert await cleaner.run_once() == 1
        assert not any(disk.shards for disk in b.disks.disks)


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


@pytest.mark.parametrize("now", ["off", "zstd-1", "zstd"])
async def test_cleaning_compressed_stripes_never_takes_more_than_it_gives(now: str) -> None:
    """Also when the volume is not compressed any more: what was compressed stays so."""
    choice = random.Random(4)
    words = [b"%d " % choice.randrange(10**6) for _ in range(2_000)]
    async with bench() as b:
        files = Files(b)
        b.store.set_compression("zstd")
        contents = {}
        for inode in range(400):
            contents[inode] = b"".join(choice.choices(words, k=6_000))
            files.write(inode, contents[inode])
        await b.commit()
        b.store.set_compression(now)
        for inode in choice.sample(range(400), 240):
            files.remove(inode)
        before = b.disks.disks[0].space().used_bytes
        for _ in range(20):
            await cleaner_for(b, files, ReclaimSignal()).run_once(hurry=True)
            await b.commit()
            assert b.disks.disks[0].space().used_bytes < before + MIB  # a batch is copied first
        assert b.disks.disks[0].space().used_bytes < 0.55 * before
        assert all(seal.frames is not None for seal in b.catalog.known.values())
        for inode in files.files:
            assert await files.content(inode) == contents[inode]


async def test_moved_data_is_compressed_only_if_it_was() -> None:
    async with bench() as b:
        (plain,) = b.store.append(1, 0, bytes(50_000))
        b.store.set_compression("zstd")
        (packed,) = b.store.append(2, 0, bytes(50_000))
        b.store.set_compression("off")
        await b.commit()
        (first,) = b.store.append_moved(plain.stripe, 1, 0, bytes(50_000))
        (second,) = b.store.append_moved(packed.stripe, 2, 0, bytes(50_000))
        (third,) = b.store.append(3, 0, bytes(50_000))
        assert first.stripe == third.stripe != second.stripe
        assert b.store.unlogged_bytes() == 150_000
        assert len(b.store.take_unlogged()) == 2
        await b.commit()
        assert b.catalog.known[first.stripe].frames is None
        assert b.catalog.known[second.stripe].frames is not None

"""Compressed stripes: what is written, what a read costs, what damage and failures do."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from errno import EIO
from typing import TypeVar, TypeVarTuple

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dwfs.errors import PosixError
from dwfs.limits import (
    FRAME_CACHE_ENTRIES,
    FRAME_SIZE,
    FRAMES_PER_STEP,
    KIB,
    SEALED_SECTOR_SIZE,
    SECTOR_SIZE,
    STRIPE_SIZE_MAX,
)
from dwfs.ports import ShardFault
from dwfs.stripe import MendRequest, Outcome, decode_header, encode_header, layout_of
from dwfs.types import ShardKey, StripeSeal
from tests.unit.stripe.mending_bench import mending
from tests.unit.stripe.stripe_bench import POOL, VOLUME, Bench, FaultyDisk, TrioThreads, bench

ArgumentsT = TypeVarTuple("ArgumentsT")
ResultT = TypeVar("ResultT")
WORDS = [random.Random(n).randbytes(2 + n % 7).hex().encode() for n in range(3000)]
TEXT = b" ".join(random.Random(1).choices(WORDS, k=300_000))[:2_000_000]
NOISE = random.Random(2).randbytes(2_000_000)


async def stored(b: Bench, data: bytes = TEXT, setting: str = "zstd") -> StripeSeal:
    b.store.set_compression(setting)
    b.store.append(1, 0, data)
    (seal,) = await b.commit()
    return seal


def home(b: Bench, seal: StripeSeal, shard: int) -> FaultyDisk:
    disk = b.disks.get(seal.placement[shard])
    assert disk is not None
    return disk


def payload_bytes(b: Bench) -> int:
    return sum(len(payload) for disk in b.disks.disks for _, payload in disk.shards.values())


async def test_text_takes_less_room_and_reads_the_same() -> None:
    async with bench() as b:
        seal = await stored(b)
        assert seal.length == len(TEXT)
        assert seal.frames is not None
        assert seal.stored_length < 0.7 * len(TEXT)
        assert payload_bytes(b) == layout_of(seal).stored_bytes() < 1.1 * len(TEXT)
        assert await b.store.read(seal.stripe, 0, len(TEXT)) == TEXT


async def test_higher_levels_take_less() -> None:
    async with bench() as b:
        lengths = [(await stored(b, TEXT, f"zstd-{level}")).stored_length for level in (1, 6, 19)]
    assert lengths == sorted(lengths, reverse=True)


async def test_noise_is_stored_as_without_compression() -> None:
    async with bench() as b:
        seal = await stored(b, NOISE)
        assert seal.frames is None
        assert seal.stored_length == len(NOISE)
        header = home(b, seal, 0).shards[ShardKey(seal.stripe, 0)][0]
        plain = msgspec.structs.replace(seal, frames=None)
        assert header == encode_header(POOL, VOLUME, plain, 0)
        assert await b.store.read(seal.stripe, 0, len(NOISE)) == NOISE


async def test_off_is_the_default_and_writes_what_it_always_wrote() -> None:
    async with bench() as b:
        b.store.append(1, 0, TEXT)
        (seal,) = await b.commit()
        assert seal.frames is None
        raw = home(b, seal, 0).shards[ShardKey(seal.stripe, 0)][0]
        assert len(msgspec.msgpack.decode(raw)) == 9  # format 1, as before there was compression
        known = decode_header(raw)
        assert known is not None
        assert (known.format, known.stored_length) == (1, None)


async def test_header_tells_both_lengths_but_nothing_of_the_frames() -> None:
    async with bench() as b:
        seal = await stored(b)
        header = home(b, seal, 5).shards[ShardKey(seal.stripe, 5)][0]
        known = decode_header(header)
        assert known is not None
        assert (known.format, known.length) == (2, len(TEXT))
        assert known.stored_length == seal.stored_length
        assert seal.frames is not None
        assert seal.frames.lengths[:8] not in header
        for number, fields in ((1, 10), (2, 9)):
            mixed = [number, *msgspec.msgpack.decode(header)[1:fields]]
            assert decode_header(msgspec.msgpack.encode(mixed)) is None


async def test_a_change_counts_for_what_comes_after_it() -> None:
    async with bench() as b:
        b.store.set_compression("zstd")
        (first,) = b.store.append(1, 0, TEXT[:1000])
        b.store.set_compression("zstd-3")  # the same
        (second,) = b.store.append(1, 1000, TEXT[1000:2000])
        b.store.set_compression("off")
        (third,) = b.store.append(1, 2000, TEXT[2000:3000])
        assert first.stripe == second.stripe != third.stripe
        await b.commit()
        assert b.catalog.known[first.stripe].frames is not None
        assert b.catalog.known[third.stripe].frames is None
        with pytest.raises(ValueError, match="zstd-40"):
            b.store.set_compression("zstd-40")
        (fourth,) = b.store.append(1, 3000, TEXT[:1000])
        await b.commit()
        assert b.catalog.known[fourth.stripe].frames is None


async def test_small_read_reads_no_more_than_the_sectors_of_its_frame() -> None:
    async with bench() as b:
        seal = await stored(b)
        asked: list[int] = []
        for disk in b.disks.disks:
            disk.cached = False
            spy_on(disk, asked)
        for offset in (0, 700_001, 1_999_980):
            asked.clear()
            assert await b.store.read(seal.stripe, offset, 10) == TEXT[offset : offset + 10]
            assert 0 < sum(asked) <= (FRAME_SIZE // SECTOR_SIZE + 1) * SEALED_SECTOR_SIZE
            asked.clear()
            # The rest of the frame needs no disk.
            end = min(-(-(offset + 10) // FRAME_SIZE) * FRAME_SIZE, len(TEXT))
            assert b.store.read_now(seal.stripe, offset, end - offset) == TEXT[offset:end]
            assert not asked


def spy_on(disk: FaultyDisk, asked: list[int]) -> None:
    real = disk.read

    async def read(key: ShardKey, offset: int, length: int) -> bytes:
        asked.append(length)
        return await real(key, offset, length)

    disk.read = read  # type: ignore[method-assign]  # counts bytes


async def test_kept_frames_are_bounded_and_forgotten() -> None:
    async with bench() as b:
        b.store.set_compression("zstd-1")
        for number in range(3):
            b.store.append(1, number * STRIPE_SIZE_MAX, (TEXT * 3)[:STRIPE_SIZE_MAX])
            await b.commit()
        for stripe in b.catalog.known:
            for offset in range(0, STRIPE_SIZE_MAX, FRAME_SIZE):
                assert b.store.read_now(stripe, offset, 10) is not None
        kept = b.store._reader._expander._kept  # the bound is on memory, which nothing else shows
        assert len(kept) == FRAME_CACHE_ENTRIES
        last = next(reversed(kept))[0]
        b.store.forget(last)
        assert last not in {stripe for stripe, _ in kept}
        b.store.release_idle()
        assert not kept


async def test_frames_of_more_than_one_go_to_a_thread() -> None:
    calls: list[str] = []

    class Counting(TrioThreads):
        async def run(
            self, function: Callable[[*ArgumentsT], ResultT], /, *arguments: *ArgumentsT
        ) -> ResultT:
            calls.append(function.__name__)
            return await super().run(function, *arguments)

    async with bench(threads=Counting()) as b:
        seal = await stored(b)
        assert calls.count("compress_some") == -(-len(TEXT) // (FRAMES_PER_STEP * FRAME_SIZE))
        calls.clear()
        assert b.store.read_now(seal.stripe, 5, 10) == TEXT[5:15]
        assert await b.store.read(seal.stripe, 900_000, 10) == TEXT[900_000:900_010]
        assert not calls
        size = 128 * KIB
        assert b.store.read_now(seal.stripe, size, size) is None
        assert await b.store.read(seal.stripe, size, size) == TEXT[size : 2 * size]
        assert calls == ["expand"]


async def test_bytes_are_readable_and_loggable_while_they_are_compressed() -> None:
    gate = threading.Event()

    class Slow(TrioThreads):
        async def run(
            self, function: Callable[[*ArgumentsT], ResultT], /, *arguments: *ArgumentsT
        ) -> ResultT:
            await trio.to_thread.run_sync(gate.wait)
            return await super().run(function, *arguments)

    async with bench(threads=Slow()) as b:
        b.store.set_compression("zstd")
        (fragment,) = b.store.append(1, 0, TEXT[:200_000])
        b.store.rotate()
        await wait_all_tasks_blocked(0.05)
        assert b.store.read_now(fragment.stripe, 99, 1000) == TEXT[99:1099]
        (piece,) = b.store.take_unlogged()
        assert piece.data == TEXT[:200_000]
        gate.set()
        (seal,) = await b.commit()
        assert seal.frames is not None
        assert await b.store.read(seal.stripe, 0, 200_000) == TEXT[:200_000]


async def test_a_stripe_whose_disks_fail_is_written_again_as_it_was() -> None:
    """Its sectors are sealed once: the cipher would refuse a second time."""
    async with bench(disks=7) as b:
        b.store.set_compression("zstd")
        for disk in b.disks.disks[:4]:
            disk.fail_puts = True
        b.store.append(1, 0, TEXT)
        with pytest.raises(PosixError):
            await b.commit()
        for disk in b.disks.disks:
            disk.fail_puts = False
        b.disks.disks[5].fail_syncs = 1
        (seal,) = await b.commit()
        assert seal.frames is not None
        assert await b.store.read(seal.stripe, 0, len(TEXT)) == TEXT


async def test_damage_of_a_compressed_sector_is_rebuilt_and_reported() -> None:
    async with bench() as b:
        seal = await stored(b)
        home(b, seal, 1).damage(ShardKey(seal.stripe, 1), 3 * SEALED_SECTOR_SIZE + 17)
        assert await b.store.read(seal.stripe, 0, len(TEXT)) == TEXT
        assert [(d.shard, d.fault) for d in b.damage] == [(1, ShardFault.ROTTEN)]


async def test_beyond_parity_frames_that_are_whole_are_still_read() -> None:
    async with bench() as b:
        seal = await stored(b)
        for shard in (1, 4, 5):
            home(b, seal, shard).dead = True
        assert await b.store.read(seal.stripe, 0, 9000) == TEXT[:9000]
        with pytest.raises(PosixError) as caught:
            await b.store.read(seal.stripe, 0, len(TEXT))
        assert caught.value.errno == EIO


async def test_prefetched_compressed_stripe_is_served_without_disks() -> None:
    async with bench() as b:
        seal = await stored(b)
        for disk in b.disks.disks:
            disk.cached = False
        b.store.prefetch(seal.stripe)
        await wait_all_tasks_blocked(0.05)
        for disk in b.disks.disks:
            disk.dead = True
        for offset in range(0, len(TEXT), 131_072):
            wanted = TEXT[offset : offset + 131_072]
            assert await b.store.read(seal.stripe, offset, len(wanted)) == wanted


@pytest.mark.parametrize("change", ["codec", "lengths"])
async def test_frames_that_do_not_expand_give_eio_and_never_other_bytes(change: str) -> None:
    async with bench() as b:
        seal = await stored(b)
        assert seal.frames is not None
        if change == "codec":
            frames = msgspec.structs.replace(seal.frames, codec=99)
        else:
            # Two frames' lengths changed places.
            table = seal.frames.lengths
            frames = msgspec.structs.replace(
                seal.frames, lengths=table[2:4] + table[:2] + table[4:]
            )
            assert frames != seal.frames
        b.catalog.known[seal.stripe] = msgspec.structs.replace(seal, frames=frames)
        assert b.store.read_now(seal.stripe, 10, 10) is None
        for length in (10, 2 * FRAME_SIZE):
            with pytest.raises(PosixError) as caught:
                await b.store.read(seal.stripe, 10, length)
            assert caught.value.errno == EIO


async def test_reading_beyond_a_compressed_stripe_gives_eio() -> None:
    async with bench() as b:
        seal = await stored(b)
        for offset, length in ((len(TEXT), 1), (len(TEXT) - 1, 2), (-1, 1), (0, 0)):
            assert b.store.read_now(seal.stripe, offset, length) is None
            with pytest.raises(PosixError):
                await b.store.read(seal.stripe, offset, length)
        with pytest.raises(PosixError):
            await b.store.read_stored(seal.stripe, 0, seal.stored_length + 1)


async def test_mending_a_compressed_stripe_yields_the_very_same_shards() -> None:
    """By copying, by rebuilding, and, beyond parity, by sealing what was sealed once more."""
    async with mending(4, 1, 6) as m:
        m.store.set_compression("zstd")
        seal = await m.write_bytes(TEXT)
        assert seal.frames is not None
        keys = [ShardKey(seal.stripe, number) for number in range(5)]
        before = {}
        for key in keys:
            before[key] = await m.home(seal.stripe, key.number).read_verified(key)
        for number in range(4):
            # Different columns: every one can be rebuilt, but no whole shard is left.
            store = m.home(seal.stripe, number)
            store.corrupt(ShardKey(seal.stripe, number), number * SEALED_SECTOR_SIZE + 1)
        assert await m.store.read(seal.stripe, 0, len(TEXT)) == TEXT
        report = await m.mover.mend([MendRequest(seal.stripe, frozenset(range(4)))])
        assert report.outcomes == {seal.stripe: Outcome.WHOLE}
        for key in keys:
            assert await m.home(seal.stripe, key.number).read_verified(key) == before[key]
        await m.check_whole(seal.stripe)

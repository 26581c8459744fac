"""A disk that is late is overtaken by the others, and nobody pays for it when it isn't."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EIO
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from dwfs.errors import PosixError
from dwfs.stripe.hedge import HEDGES_MAX, Answer, HedgedReads
from dwfs.types import ShardKey, StripeSeal
from tests.unit.stripe.stripe_bench import Bench, FaultyDisk, InlineThreads, bench

DATA = random.Random(7).randbytes(2_000_000)
PATIENCE_SECONDS = 0.05


async def stored(b: Bench) -> StripeSeal:
    b.store.append(1, 0, DATA)
    (seal,) = await b.commit()
    for disk in b.disks.disks:
        disk.cached = False
        b.disks.patience[disk.disk] = PATIENCE_SECONDS
    return seal


def home(b: Bench, seal: StripeSeal, shard: int) -> FaultyDisk:
    disk = b.disks.get(seal.placement[shard])
    assert disk is not None
    return disk


@asynccontextmanager
async def hanging(disk: FaultyDisk, seconds: float) -> AsyncIterator[None]:
    """The disk answers nothing for so long."""
    disk.hung = answers = trio.Event()

    async def answer_after_a_while() -> None:
        await trio.sleep(seconds)
        answers.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_after_a_while)
        yield


async def test_hung_disk_does_not_hold_up_a_read(autojump_clock: MockClock) -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        home(b, seal, 0).hung = trio.Event()
        started = trio.current_time()
        assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]
        assert PATIENCE_SECONDS <= trio.current_time() - started < 4 * PATIENCE_SECONDS
        assert b.store.counters().hedged == 1
        assert not b.damage
        assert not b.disks.failures


async def test_as_many_hung_disks_as_parity_do_not_hold_up_reads(
    autojump_clock: MockClock,
) -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        for shard in (0, 2):
            home(b, seal, shard).hung = trio.Event()
        started = trio.current_time()
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA
        assert trio.current_time() - started < 1.0


async def test_hung_disk_does_not_hold_up_read_ahead(autojump_clock: MockClock) -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        home(b, seal, 1).hung = trio.Event()
        b.store.prefetch(seal.stripe)
        started = trio.current_time()
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA
        assert trio.current_time() - started < 1.0
        assert not b.store.counters().rebuilt  # it was all in the read-ahead cache


async def test_late_disk_still_wins_when_the_others_cannot(autojump_clock: MockClock) -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        for shard in (1, 2, 4):
            home(b, seal, shard).dead = True
        async with hanging(home(b, seal, 0), 5):
            assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]


async def test_late_disk_still_wins_when_the_others_lie(autojump_clock: MockClock) -> None:
    async with bench(4, 1, 5, threads=InlineThreads()) as b:
        seal = await stored(b)
        home(b, seal, 3).damage(ShardKey(seal.stripe, 3), 100)
        async with hanging(home(b, seal, 0), 2):
            assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]


async def test_disk_that_never_answers_ends_in_eio_only_beyond_parity(
    autojump_clock: MockClock,
) -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        for shard in (0, 1, 4):
            home(b, seal, shard).hung = trio.Event()
            home(b, seal, shard).deadline_seconds = 12.0
        with trio.fail_after(60), pytest.raises(PosixError) as caught:
            await b.store.read(seal.stripe, 0, 4096)
        assert caught.value.errno == EIO
        assert set(b.disks.failures) == {seal.placement[shard] for shard in (0, 1, 4)}


async def test_suspect_disk_is_asked_last(autojump_clock: MockClock) -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        suspect = home(b, seal, 0)
        b.disks.patience[suspect.disk] = 0.0
        assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]
        b.store.prefetch(seal.stripe)
        assert await b.store.read(seal.stripe, 0, len(DATA)) == DATA
        assert suspect.reads == 0
        b.store.forget(seal.stripe)
        for shard in (1, 4, 5):
            home(b, seal, shard).dead = True
        assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]
        assert suspect.reads > 0


async def test_reads_in_time_start_no_hedge() -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        for offset in range(0, 1_000_000, 50_000):
            assert await b.store.read(seal.stripe, offset, 1000) == DATA[offset : offset + 1000]
        assert b.store.counters().hedged == 0
        assert b.store.counters().rebuilt == 0


async def test_loser_does_not_touch_the_readers_buffer(autojump_clock: MockClock) -> None:
    """Neither after the winner has filled it, nor after the reader has given it back."""
    accepted: list[bytes] = []

    def accept(raw: bytes) -> bool:
        accepted.append(raw)
        return True

    async def stubborn(seconds: float, raw: bytes) -> bytes:
        # As a job in a worker thread: it can't be broken off, and answers although it has lost.
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        return raw

    async with trio.open_nursery() as nursery:
        hedges = HedgedReads(nursery)
        for direct_seconds, others_seconds, winner in ((5.0, 0.1, b"o"), (0.2, 5.0, b"d")):
            accepted.clear()
            answer = await hedges.race(
                0.05,
                stubborn(direct_seconds, b"d"),
                partial(stubborn, others_seconds, b"o"),
                accept,
            )
            assert answer is Answer.ACCEPTED
            await trio.sleep(10)
            assert accepted == [winner]
        assert hedges.may_hedge()
        assert (hedges.started, hedges.won) == (2, 1)


async def test_hedges_are_bounded(autojump_clock: MockClock) -> None:
    """When everything is slow, asking more would make it slower."""
    asked = 0

    async def others() -> bytes | None:
        nonlocal asked
        asked += 1
        await trio.sleep(100)
        return None

    async def read(hedges: HedgedReads) -> None:
        await hedges.race(0.05, direct(), others, lambda raw: True)

    async def direct() -> bytes | None:
        await trio.sleep(10)
        return b"d"

    async with trio.open_nursery() as nursery:
        hedges = HedgedReads(nursery)
        async with trio.open_nursery() as readers:
            for _ in range(3 * HEDGES_MAX):
                readers.start_soon(read, hedges)
        assert asked == HEDGES_MAX


async def test_cancelled_reader_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with bench(threads=InlineThreads()) as b:
        seal = await stored(b)
        for disk in b.disks.disks:
            disk.hung = trio.Event()
        with trio.move_on_after(1.0) as scope:
            await b.store.read(seal.stripe, 0, 4096)
        assert scope.cancelled_caught
        for disk in b.disks.disks:
            assert disk.hung is not None
            disk.hung.set()
            disk.hung = None
        assert await b.store.read(seal.stripe, 0, 4096) == DATA[:4096]

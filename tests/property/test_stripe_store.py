"""Whatever is appended is read back, whatever happens to up to m disks."""

from __future__ import annotations

import random

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dwfs.errors import PosixError
from dwfs.limits import LOG_INLINE_MAX
from dwfs.types import Fragment, StripeData, StripeId, StripeSeal
from tests.unit.stripe.stripe_bench import Bench, bench

steps = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 300_000)),
    st.tuples(st.just("append"), st.integers(1, 20_000)),
    st.tuples(st.just("rotate"), st.just(0)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("log"), st.just(0)),
    st.tuples(st.just("lose"), st.integers(0, 6)),
    st.tuples(st.just("sync fails"), st.integers(0, 6)),
    st.tuples(st.just("prefetch"), st.integers(0, 1_000)),
    st.tuples(st.just("cold"), st.integers(0, 6)),
    st.tuples(st.just("read"), st.integers(0, 1_000_000)),
)


class Model:
    """What was appended, and what the log holds of it."""

    def __init__(self, b: Bench) -> None:
        self.bench = b
        self.content: dict[StripeId, bytearray] = {}
        self.fragments: list[Fragment] = []
        self.logged: dict[StripeId, int] = {}
        self.sealed: set[StripeId] = set()
        self.faulty: set[int] = set()  # disks that were lost or failed a sync

    def append(self, size: int) -> None:
        data = random.Random(size).randbytes(size)
        done = 0
        for fragment in self.bench.store.append(1, 0, data):
            whole = self.content.setdefault(fragment.stripe, bytearray())
            assert fragment.offset == len(whole)
            whole += data[done : done + fragment.length]
            done += fragment.length
            self.fragments.append(fragment)
        assert done == size

    def record(self, taken: list[StripeData], seals: list[StripeSeal]) -> None:
        for piece in taken:
            have = self.logged.get(piece.stripe, 0)
            assert piece.offset == have
            end = have + len(piece.data)
            assert self.content[piece.stripe][have:end] == piece.data
            self.logged[piece.stripe] = end
        for seal in seals:
            assert seal.stripe not in self.sealed
            assert seal.length == len(self.content[seal.stripe])
            self.sealed.add(seal.stripe)
            self.bench.catalog.known[seal.stripe] = seal
        self.bench.store.committed(seals)

    def check_log_is_complete(self) -> None:
        for stripe, whole in self.content.items():
            assert stripe in self.sealed or self.logged.get(stripe, 0) == len(whole)

    async def step(self, kind: str, value: int) -> None:
        store, disks = self.bench.store, self.bench.disks.disks
        if kind == "append":
            self.append(value)
        elif kind == "rotate":
            store.rotate()
        elif kind == "settle":
            store.rotate()
            self.record([], await self.settle())
            assert store.unlogged_bytes() == 0
            self.check_log_is_complete()
        elif kind == "log" and store.unlogged_bytes() <= LOG_INLINE_MAX:
            self.record(store.take_unlogged(), store.settled())
            self.check_log_is_complete()
        elif kind in ("lose", "sync fails"):
            if len(self.faulty | {value}) > 2:
                return  # beyond what parity promises
            self.faulty.add(value)
            if kind == "lose":
                disks[value].dead = True
            else:
                disks[value].fail_syncs = 1
        elif kind == "cold":
            disks[value].cached = False
        elif self.fragments and kind in ("read", "prefetch"):
            fragment = self.fragments[value % len(self.fragments)]
            if kind == "prefetch":
                store.prefetch(fragment.stripe)
            await self.read(fragment, value % fragment.length)

    async def settle(self) -> list[StripeSeal]:
        """More disks than the parity may fail a sync at once; the next call must get by."""
        try:
            return await self.bench.store.settle()
        except PosixError:
            return await self.bench.store.settle()

    async def read(self, fragment: Fragment, skip: int = 0) -> None:
        start, length = fragment.offset + skip, fragment.length - skip
        wanted = self.content[fragment.stripe][start : start + length]
        now = self.bench.store.read_now(fragment.stripe, start, length)
        assert now is None or now == wanted
        assert await self.bench.store.read(fragment.stripe, start, length) == wanted


@settings(max_examples=250, deadline=None)
@given(st.lists(steps, max_size=30), st.integers(0, 2**32))
def test_appended_bytes_survive_any_two_disks(script: list[tuple[str, int]], seed: int) -> None:
    async def play() -> None:
        with trio.fail_after(60):
            async with bench(4, 2, 7, seed=seed) as b:
                model = Model(b)
                for kind, value in script:
                    await model.step(kind, value)
                await model.step("settle", 0)
                for fragment in model.fragments:
                    await model.read(fragment)

    trio.run(play)

"""Compressed stripes give back what was written, whatever it was and whatever happens to the disks."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dwfs.codec import expand_frame
from dwfs.limits import FRAME_SIZE, KIB
from dwfs.stripe import layout_of
from dwfs.stripe.frames import FrameMap, frames_of
from dwfs.types import Fragment, ShardKey, StripeData, StripeId
from tests.property.test_stripe_store import Model
from tests.unit.stripe.stripe_bench import Bench, bench

WORDS = [bytes(random.Random(n).choices(b"abcdefghijklmnop ", k=3 + n % 9)) for n in range(500)]


def text(size: int, seed: int) -> bytes:
    words = random.Random(seed).choices(WORDS, k=size // 3 + 1)
    return b" ".join(words)[:size].ljust(size, b"x")


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def mixture(size: int, seed: int) -> bytes:
    """Pieces of text, noise and zeros that care for no boundary."""
    chance = random.Random(seed)
    parts = []
    while size > 0:
        piece = min(size, chance.choice([10, 500, 5_000, 40_000, FRAME_SIZE, 150_000]))
        kind: Callable[[int, int], bytes] = chance.choice([text, noise, lambda n, _: bytes(n)])
        parts.append(kind(piece, seed + size))
        size -= piece
    return b"".join(parts)


CONTENTS: dict[str, Callable[[int, int], bytes]] = {
    "text": text,
    "noise": noise,
    "zeros": lambda size, _: bytes(size),
    "mixture": mixture,
}
sizes = st.one_of(
    st.integers(100_000, 900_000),
    st.integers(1, 20_000),
    st.sampled_from([FRAME_SIZE - 1, FRAME_SIZE, FRAME_SIZE + 1, 3 * FRAME_SIZE]),
)
steps = st.one_of(
    *(st.tuples(st.just(kind), sizes) for kind in CONTENTS),
    st.tuples(st.just("compress"), st.sampled_from([0, 1, 3, 9])),
    st.tuples(st.just("rotate"), st.just(0)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("log"), st.just(0)),
    st.tuples(st.just("lose"), st.integers(0, 6)),
    st.tuples(st.just("sync fails"), st.integers(0, 6)),
    st.tuples(st.just("rot"), st.integers(0, 6)),
    st.tuples(st.just("prefetch"), st.integers(0, 1_000)),
    st.tuples(st.just("cold"), st.integers(0, 6)),
    st.tuples(st.just("forget"), st.just(0)),
    st.tuples(st.just("move"), st.integers(0, 1_000_000)),
    st.tuples(st.just("read"), st.integers(0, 1_000_000)),
)


class CompressingModel(Model):
    """As the model of the store, with other content, compression, and rot on faulty disks."""

    def __init__(self, b: Bench, seed: int) -> None:
        super().__init__(b)
        self.chance = random.Random(seed)

    def take(self, fragments: list[Fragment], data: bytes) -> None:
        """Note where appended bytes went."""
        done = 0
        for fragment in fragments:
            whole = self.content.setdefault(fragment.stripe, bytearray())
            assert fragment.offset == len(whole)
            whole += data[done : done + fragment.length]
            done += fragment.length
            self.fragments.append(fragment)
        assert done == len(data)

    async def step(self, kind: str, value: int) -> None:
        if kind in CONTENTS:
            data = CONTENTS[kind](value, self.chance.getrandbits(30))
            self.take(self.bench.store.append(1, 0, data), data)
        elif kind == "compress":
            self.bench.store.set_compression(f"zstd-{value}" if value else "off")
        elif kind == "forget":
            for stripe in self.content:
                self.bench.store.forget(stripe)
            self.bench.store.release_idle()
        elif kind == "move":
            if self.fragments:
                source, offset, length = msgspec.structs.astuple(self.chance.choice(self.fragments))
                data = await self.bench.store.read(source, offset, length)
                assert data == self.content[source][offset : offset + length]
                self.take(self.bench.store.append_moved(source, 1, 0, data), data)
        elif kind == "rot":
            if len(self.faulty | {value}) <= 2:
                self.faulty.add(value)
                self.rot(value)
        else:
            await super().step(kind, value)
            await trio.lowlevel.checkpoint()

    def rot(self, number: int) -> None:
        """Flip bytes here and there in whatever the disk holds."""
        disk = self.bench.disks.disks[number]
        for key in sorted(disk.shards, key=lambda key: (key.stripe, key.number)):
            for _ in range(self.chance.randrange(3)):
                disk.damage(key, self.chance.randrange(len(disk.shards[key][1])))

    async def read_anywhere(self) -> None:
        for stripe, whole in self.content.items():
            for _ in range(3):
                start = self.chance.randrange(len(whole))
                length = 1 + min(
                    self.chance.randrange(len(whole) - start),
                    self.chance.choice([1, 4 * KIB, 100_000, 1_000_000]),
                )
                wanted = whole[start : start + length]
                now = self.bench.store.read_now(stripe, start, length)
                assert now is None or now == wanted
                assert await self.bench.store.read(stripe, start, length) == wanted


@settings(max_examples=200, deadline=None)
@given(
    st.lists(steps, min_size=3, max_size=30),
    st.booleans(),
    st.lists(st.integers(0, 6), max_size=2),
    st.integers(0, 2**32),
)
@example([("text", 600_000), ("settle", 0), ("rot", 0), ("lose", 1)], True, [], 0)
@example([("text", 9_000), ("compress", 3), ("text", 200_000), ("compress", 0)], False, [3, 4], 1)
def test_reads_equal_the_plaintext(
    script: list[tuple[str, int]], compressed: bool, rotten: list[int], seed: int
) -> None:
    async def play() -> None:
        with trio.fail_after(60):
            async with bench(4, 2, 7, seed=seed) as b:
                model = CompressingModel(b, seed)
                await model.step("compress", 3 if compressed else 0)
                for kind, value in script:
                    await model.step(kind, value)
                await model.step("settle", 0)
                for number in rotten:
                    await model.step("rot", number)
                await model.step("forget", 0)
                for fragment in model.fragments:
                    await model.read(fragment)
                await model.read_anywhere()
                check_seals(model)

    trio.run(play)


def check_seals(model: CompressingModel) -> None:
    """Lengths stay those of the plaintext, and nothing takes more than it would uncompressed."""
    for stripe, whole in model.content.items():
        seal = model.bench.catalog.known[stripe]
        assert seal.length == len(whole)
        assert layout_of(seal).length == seal.stored_length
        assert (seal.stored_length < seal.length) == (seal.frames is not None)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(CONTENTS)), sizes), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_restored_stripes_may_be_compressed_or_not(
    pieces: list[tuple[str, int]], before: bool, after: bool, seed: int
) -> None:
    """What the log gives back after a crash is sealed anew, under another salt and setting."""

    async def play() -> None:
        logged: list[StripeData] = []
        async with bench(4, 2, 6, seed=seed) as b:
            b.store.set_compression("zstd" if before else "off")
            content: dict[StripeId, bytearray] = {}
            for number, (kind, size) in enumerate(pieces):
                data = CONTENTS[kind](min(size, 200 * KIB), seed + number)
                for fragment in b.store.append(1, 0, data):
                    content.setdefault(fragment.stripe, bytearray()).extend(data)
                logged += b.store.take_unlogged()
        async with bench(4, 2, 6, seed=seed + 1) as b:
            b.store.set_compression("zstd" if after else "off")
            b.store.restore(logged)
            for stripe, whole in content.items():
                assert b.store.read_now(stripe, 0, len(whole)) == bytes(whole)
            for seal in await b.commit():
                assert after or seal.frames is None
            for stripe, whole in content.items():
                assert await b.store.read(stripe, 0, len(whole)) == whole

    trio.run(play)


@given(
    st.integers(1, 40 * FRAME_SIZE),
    st.data(),
)
def test_frame_map_agrees_with_really_laying_frames_end_to_end(
    length: int, data: st.DataObject
) -> None:
    count = -(-length // FRAME_SIZE)
    plain = [min(FRAME_SIZE, length - number * FRAME_SIZE) for number in range(count)]
    lengths = [data.draw(st.integers(0, min(size - 1, 61_440)), label="stored") for size in plain]
    frames = frames_of(lengths, length)
    if not any(lengths):
        assert frames is None
        return
    assert frames is not None
    known = FrameMap(frames, length)
    position = 0
    for number, (size, stored) in enumerate(zip(plain, lengths, strict=True)):
        cut = known.cut(number)
        assert cut == (position, stored or size, size, stored > 0)
        position += stored or size
    assert known.stored_length == frames.stored_length == position


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(0, 2**32))
def test_what_lies_on_the_disks_is_the_frames_end_to_end(size: int, seed: int) -> None:
    """A dumb reader, which knows only the documented format, gets the plaintext."""

    async def play() -> None:
        async with bench(3, 1, 4, seed=seed) as b:
            b.store.set_compression("zstd-1")
            data = mixture(size, seed)
            b.store.append(1, 0, data)
            (seal,) = await b.commit()
            cipher = b.cipher_of(seal.stripe, seal.salt, seal.key_version)
            layout = layout_of(seal)
            sealed = b""
            for shard in range(seal.geometry.data):
                if seal.placement[shard]:
                    disk = b.disks.get(seal.placement[shard])
                    assert disk is not None
                    sealed += disk.shards[ShardKey(seal.stripe, shard)][1]
            stored = b"".join(
                cipher.open_sector(
                    number, memoryview(sealed)[number * layout.sealed_size :][: layout.sealed_size]
                )
                for number in range(layout.sectors)
            )
            if seal.frames is None:
                assert stored == data
                return
            plain, position = b"", 0
            table = seal.frames.lengths
            for number in range(len(table) // 2):
                expected = min(FRAME_SIZE, seal.length - number * FRAME_SIZE)
                length = int.from_bytes(table[2 * number : 2 * number + 2], "little")
                piece = stored[position : position + (length or expected)]
                plain += expand_frame(piece, expected) if length else piece
                position += len(piece)
            assert position == len(stored)
            assert plain == data

    trio.run(play)

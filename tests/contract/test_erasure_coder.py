"""The contract of the `ErasureCoder` port; every implementation makes zfec's bytes."""

from __future__ import annotations

import random

import pytest

from dwfs.erasure import make_coder
from dwfs.erasure.isal_coder import IsalCoder
from dwfs.erasure.isal_library import IsalLibrary, candidate_paths
from dwfs.erasure.zfec_coder import ZfecCoder
from dwfs.errors import UsageError
from dwfs.ports import ErasureCoder
from dwfs.types import Geometry

GEOMETRIES = [(1, 0), (1, 1), (1, 2), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (16, 8), (4, 0)]
LENGTHS = [1, 15, 16, 17, 31, 33, 63, 4_096, 16_400, 1_000_003]


def libraries() -> list[IsalLibrary]:
    found = []
    for path in candidate_paths():
        try:
            found.append(IsalLibrary(path))
        except OSError:
            continue
    return found


LIBRARIES = libraries()
COUNT = 1 + len(LIBRARIES)


def coder_of(choice: int, geometry: Geometry) -> ErasureCoder:
    return ZfecCoder(geometry) if choice == 0 else IsalCoder(geometry, LIBRARIES[choice - 1])


def encode(coder: ErasureCoder, data: list[bytes]) -> list[bytes]:
    length = len(data[0])
    parity = [bytearray(length) for _ in range(coder.geometry.parity)]
    coder.encode([memoryview(shard) for shard in data], [memoryview(shard) for shard in parity])
    return [bytes(shard) for shard in parity]


@pytest.mark.parametrize("choice", range(COUNT))
@pytest.mark.parametrize(("k", "m"), GEOMETRIES)
def test_parity_is_zfecs_and_any_k_shards_suffice(choice: int, k: int, m: int) -> None:
    geometry = Geometry(k, m)
    coder = coder_of(choice, geometry)
    seed = k * 100 + m
    print("seed", seed)
    chance = random.Random(seed)
    for length in LENGTHS:
        if length > 20_000 and k > 5:
            continue
        data = [chance.randbytes(length) for _ in range(k)]
        parity = encode(coder, data)
        assert parity == encode(ZfecCoder(geometry), data)
        shards = [*data, *parity]
        for _ in range(4):
            present = chance.sample(range(k + m), chance.randint(k, k + m))
            views = {number: memoryview(shards[number]) for number in present}
            wanted = chance.sample(range(k + m), chance.randint(1, k + m))
            assert coder.decode(views, wanted, length) == [shards[number] for number in wanted]
            assert all(isinstance(shard, bytes) for shard in coder.decode(views, wanted, length))


@pytest.mark.parametrize("choice", range(COUNT))
def test_bad_calls_are_refused(choice: int) -> None:
    coder = coder_of(choice, Geometry(3, 2))
    three = {number: memoryview(bytes(8)) for number in range(3)}
    two = {0: three[0], 1: three[1]}
    with pytest.raises(ValueError):
        coder.decode(two, [2], 8)
    with pytest.raises(ValueError):
        coder.decode(three, [3], 9)
    with pytest.raises(ValueError):
        coder.encode(list(two.values()), [memoryview(bytearray(8))] * 2)
    with pytest.raises(ValueError):
        coder.encode(list(three.values()), [memoryview(bytearray(7))] * 2)
    with pytest.raises((BufferError, TypeError)):
        coder.encode(list(three.values()), [memoryview(bytes(8))] * 2)


@pytest.mark.parametrize("choice", range(COUNT))
def test_empty_shards_are_fine(choice: int) -> None:
    coder = coder_of(choice, Geometry(2, 1))
    empty = memoryview(b"")
    coder.encode([empty, empty], [memoryview(bytearray())])
    assert coder.decode({0: empty, 2: empty}, [1], 0) == [b""]


@pytest.mark.parametrize("choice", range(1, COUNT))
def test_buffers_are_given_back(choice: int) -> None:
    coder = coder_of(choice, Geometry(2, 1))
    data = [bytearray(100), bytearray(100)]
    parity = bytearray(100)
    coder.encode([memoryview(shard) for shard in data], [memoryview(parity)])
    parity.extend(b"x")  # BufferError if an export were still held
    data[0].clear()


def test_known_bytes_never_change() -> None:
    data = [bytes(range(index, index + 8)) for index in (0, 50, 100, 150)]
    parity = encode(make_coder(Geometry(4, 2)), data)
    assert [shard.hex() for shard in parity] == [KNOWN_5, KNOWN_6]


def test_impossible_geometries_are_the_users_error() -> None:
    for k, m in ((0, 1), (17, 1), (4, 9), (4, -1)):
        with pytest.raises(UsageError):
            make_coder(Geometry(k, m))


KNOWN_5 = "9e9fc9c837362a2b"
KNOWN_6 = "b9b8f7f69293cacb"

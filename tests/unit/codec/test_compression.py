"""Frames of user data: what is compressed, and what expanding refuses."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import zstandard

from dwfs.codec import FrameCompressor, compression_level, expand_frame
from dwfs.errors import ExpansionError
from dwfs.limits import FRAME_GAIN_MIN, FRAME_SIZE, MIB

TEXT = (b"the quick brown fox jumps over the lazy dog %d\n" * 2000)[:FRAME_SIZE]
NOISE = random.Random(3).randbytes(FRAME_SIZE)


@pytest.mark.parametrize(
    ("setting", "level"),
    [("off", None), ("zstd", 3), ("zstd-1", 1), ("zstd-9", 9), ("zstd-19", 19)],
)
def test_settings_name_a_level(setting: str, level: int | None) -> None:
    assert compression_level(setting) == level


@pytest.mark.parametrize(
    "setting",
    ["", "on", "zstd-", "zstd-0", "zstd-20", "zstd-03", "zstd--3", "ZSTD", "zstd-3 ", "lz4"],
)
def test_other_settings_are_refused_with_what_would_do(setting: str) -> None:
    with pytest.raises(ValueError, match="use off, zstd, or zstd-1 to zstd-19"):
        compression_level(setting)


@pytest.mark.parametrize("length", [1, 100, 4096, FRAME_SIZE])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_a_frame_comes_back(length: int, level: int) -> None:
    plaintext = TEXT[:length]
    packed = FrameCompressor(level).compress(memoryview(plaintext))
    if length < 100:
        assert packed is None
    else:
        assert packed is not None
        assert len(packed) <= length * (1 - FRAME_GAIN_MIN)
        assert expand_frame(packed, length) == plaintext


def test_noise_is_kept_and_soon_not_even_tried() -> None:
    compressor = FrameCompressor(3)
    tried: list[int] = []
    real = compressor._compressor

    class Spy:
        def compress(self, data: memoryview) -> bytes:
            tried.append(len(kept))
            return real.compress(data)

    compressor._compressor = Spy()  # type: ignore[assignment]  # counts what costs time
    kept: list[bytes | None] = []
    while len(kept) < 64:
        kept.append(compressor.compress(memoryview(NOISE)))
    assert kept == [None] * 64
    assert tried == [0, 1, 2, 3, 11, 19, 27, 35, 43, 51, 59]
    # The next probe finds out that what comes now is worth it.
    shrunk = [compressor.compress(memoryview(TEXT)) is not None for _ in range(16)]
    assert shrunk == [False] * 3 + [True] * 13


def test_expanding_never_makes_more_than_is_expected() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(256 * MIB))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * MIB))
    tracemalloc.start()
    try:
        for packed in (bomb, unsized):
            with pytest.raises(ExpansionError):
                expand_frame(packed, FRAME_SIZE)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_what_is_no_frame_is_refused() -> None:
    packed = FrameCompressor(3).compress(memoryview(TEXT))
    assert packed is not None
    for wrong in (
        b"",
        b"\0" * 40,
        NOISE,
        packed[:-1],
        packed[: len(packed) // 2],
        packed + b"\0",
        packed + packed,
        packed[:20] + bytes(len(packed) - 20),
    ):
        with pytest.raises(ExpansionError):
            expand_frame(wrong, FRAME_SIZE)
    for length in (FRAME_SIZE - 1, FRAME_SIZE + 1, 1):
        with pytest.raises(ExpansionError):
            expand_frame(packed, length)

"""Compression of user data, frame by frame: zstd (RFC 8878).

Every frame stands alone, so that any can be expanded without the others, and carries the length of
its content, which is compared with what the caller expects before a byte is expanded: neither
length nor window of a frame is trusted.

`zstandard` (0.25, its C backend) compresses and expands without the GIL: a Python thread that ran
beside it was never held up for longer than the scheduler of a loaded machine does (12 ms, while
8 MiB were compressed at level 9 in 0.8 s; 29 ms, while 200 MiB were expanded in 0.4 s). Its objects
must not be used by two threads at once; making one takes 2 µs, so everybody makes their own.
"""

from __future__ import annotations

import re
from typing import Final

import zstandard

from dwfs.errors import ExpansionError
from dwfs.limits import FRAME_GAIN_MIN

COMPRESSION_OFF: Final = "off"
CODEC_ZSTD: Final = 1  # in StripeFrames.codec

LEVEL_DEFAULT: Final = 3
LEVEL_MAX: Final = 19  # those above need more memory than they are worth in frames of 64 KiB
HOPELESS_AFTER: Final = 4  # frames in a row that did not shrink
PROBE_EVERY: Final = 8  # of the frames after those: media files have compressible parts, too
WINDOW_MIN: Final = 1024  # zstd's own

_SETTING: Final = re.compile(r"zstd(?:-([1-9][0-9]?))?")


def compression_level(setting: str) -> int | None:
    """The zstd level that a volume's `compression` means; None for "off". Raises ValueError."""
    if setting == COMPRESSION_OFF:
        return None
    match = _SETTING.fullmatch(setting)
    level = 0 if match is None else int(match[1] or LEVEL_DEFAULT)
    if not 1 <= level <= LEVEL_MAX:
        raise ValueError(
            f"{setting!r} is no compression: use {COMPRESSION_OFF}, zstd, or zstd-1 to zstd-{LEVEL_MAX}"
        )
    return level


class FrameCompressor:
    """Compresses the frames of one stripe in turn; gives up on what does not shrink.

    Data that has been compressed or encrypted before costs as much time as any other and yields
    nothing. After a few such frames only every eighth is tried until one shrinks again.
    """

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=level,
            write_checksum=False,  # what is read back is authentic
            write_content_size=True,
        )
        self._failures = 0  # in a row; frames that were not tried count

    def compress(self, plaintext: memoryview) -> bytes | None:
        """The compressed frame, or None if it is better kept as it is."""
        failures = self._failures
        if failures >= HOPELESS_AFTER and (failures - HOPELESS_AFTER + 1) % PROBE_EVERY:
            self._failures += 1
            return None
        packed: bytes = self._compressor.compress(plaintext)
        if len(packed) > len(plaintext) * (1 - FRAME_GAIN_MIN):
            self._failures += 1
            return None
        self._failures = 0
        return packed


def expand_frame(packed: bytes | memoryview, length: int) -> bytes:
    """The plaintext, `length` bytes. Raises ExpansionError; never takes more memory than that."""
    try:
        if zstandard.get_frame_parameters(packed).content_size != length:
            raise ExpansionError("a compressed frame tells another length than its seal")
        expander = zstandard.ZstdDecompressor(max_window_size=max(length, WINDOW_MIN))
        plaintext: bytes = expander.decompress(
            packed, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ExpansionError(f"a compressed frame does not expand: {error}") from error
    if len(plaintext) != length:
        raise ExpansionError("a compressed frame is shorter than its seal tells")
    return plaintext

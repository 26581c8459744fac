"""Framing pieces that several on-disk formats share, and compression."""

from dwfs.codec.checksum import CHECKSUM_SIZE, checksum
from dwfs.codec.compression import (
    CODEC_ZSTD,
    COMPRESSION_OFF,
    LEVEL_DEFAULT,
    FrameCompressor,
    compression_level,
    expand_frame,
)

__all__ = [
    "CHECKSUM_SIZE",
    "CODEC_ZSTD",
    "COMPRESSION_OFF",
    "LEVEL_DEFAULT",
    "FrameCompressor",
    "checksum",
    "compression_level",
    "expand_frame",
]

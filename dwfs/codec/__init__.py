"""Framing pieces that several on-disk formats share."""

from dwfs.codec.checksum import CHECKSUM_SIZE, checksum

__all__ = ["CHECKSUM_SIZE", "checksum"]

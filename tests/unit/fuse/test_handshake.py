"""FUSE_INIT: messages as the kernel and libfuse send them."""

from __future__ import annotations

import struct

import pytest

from dwfs.errors import UnsupportedSystemError
from dwfs.fuse.handshake import (
    CACHE_SYMLINKS,
    DONT_MASK,
    FUSE_INIT,
    HANDLE_KILLPRIV_V2,
    WANTED,
    offered_flags,
    with_flags,
)


def request(opcode: int, flags: int) -> bytes:
    """A header, then major, minor, max_readahead, flags, flags2 and eleven unused words."""
    body = struct.pack("=IIII", 7, 44, 131072, flags) + bytes(48)
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def reply(error: int, flags: int) -> bytes:
    """A header, then major, minor, max_readahead, flags and what follows."""
    body = b"" if error else struct.pack("=IIII", 7, 38, 131072, flags) + b"\xaa" * 48
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


def test_the_offer_is_read() -> None:
    assert offered_flags(request(FUSE_INIT, 0x12345678)) == 0x12345678


@pytest.mark.parametrize("message", [b"", bytes(40), request(1, 0)])
def test_anything_else_is_refused(message: bytes) -> None:
    with pytest.raises(UnsupportedSystemError):
        offered_flags(message)


def test_flags_are_added_and_nothing_else_changes() -> None:
    before = reply(0, 0b101)
    after = with_flags(before, DONT_MASK | HANDLE_KILLPRIV_V2)
    assert after == reply(0, 0b101 | DONT_MASK | HANDLE_KILLPRIV_V2)


def test_a_refusal_is_passed_on() -> None:
    assert with_flags(reply(-71, 0), WANTED) == reply(-71, 0)


def test_the_flags_are_those_of_the_kernel() -> None:
    # include/uapi/linux/fuse.h
    assert (DONT_MASK, CACHE_SYMLINKS, HANDLE_KILLPRIV_V2) == (0x40, 0x800000, 0x10000000)

"""Choosing an implementation: the fastest one that proves itself against zfec, here and now.

A wrong parity shard would only be noticed when a disk dies, so ISA-L is not trusted for its name: each
new coder first encodes and decodes a test vector and must give zfec's bytes. On any difference the
reason is logged and zfec is used. The vector's lengths exercise both the vector code and its tails.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final, Literal

from dwfs import limits
from dwfs.erasure.isal_coder import IsalCoder
from dwfs.erasure.isal_library import IsalLibrary, candidate_paths, load_library
from dwfs.erasure.zfec_coder import ZfecCoder
from dwfs.errors import UnsupportedSystemError, UsageError
from dwfs.ports import ErasureCoder
from dwfs.types import Geometry

CoderChoice = Literal["auto", "isa-l", "zfec"]

_log = logging.getLogger(__name__)
_SELF_TEST_LENGTHS: Final = (1, 15, 33, 259, 4096 + 65)


def make_coder(geometry: Geometry, prefer: CoderChoice = "auto") -> ErasureCoder:
    """A coder for `geometry`.

    Raises UsageError for an impossible geometry, UnsupportedSystemError if `prefer` is "isa-l" and
    no working ISA-L is to be had.
    """
    _check_geometry(geometry)
    reference = ZfecCoder(geometry)
    if prefer == "zfec":
        return reference
    library = load_library(candidate_paths())
    if library is not None:
        coder = IsalCoder(geometry, library)
        if self_test(coder, reference):
            return coder
        _log.warning(
            "%s disagrees with zfec for %d+%d shards; using zfec, which is slower",
            library.path,
            geometry.data,
            geometry.parity,
        )
    if prefer == "isa-l":
        raise UnsupportedSystemError(
            "no working ISA-L library was found: install libisal2, or choose zfec"
        )
    return reference


def describe() -> str:
    """Which implementation `make_coder` picks, for `dwfs status` and the log."""
    library: IsalLibrary | None = load_library(candidate_paths())
    return f"ISA-L ({library.path})" if library is not None else "zfec (no ISA-L library found)"


def self_test(coder: ErasureCoder, reference: ErasureCoder) -> bool:
    """Whether `coder` makes the reference's parity and rebuilds shards from the worst erasure."""
    geometry = coder.geometry
    for length in _SELF_TEST_LENGTHS:
        stream = hashlib.shake_128(b"dwfs erasure self-test").digest(geometry.data * length)
        data = [
            memoryview(stream)[index * length : (index + 1) * length]
            for index in range(geometry.data)
        ]
        expected = [bytearray(length) for _ in range(geometry.parity)]
        parity = [bytearray(length) for _ in range(geometry.parity)]
        reference.encode(data, [memoryview(buffer) for buffer in expected])
        coder.encode(data, [memoryview(buffer) for buffer in parity])
        if parity != expected:
            return False
        shards = dict(enumerate([*data, *(memoryview(buffer) for buffer in parity)]))
        lost = list(range(min(geometry.parity, geometry.data)))
        present = {number: view for number, view in shards.items() if number not in lost}
        if coder.decode(present, lost, length) != [bytes(shards[number]) for number in lost]:
            return False
    return True


def _check_geometry(geometry: Geometry) -> None:
    if not 1 <= geometry.data <= limits.DATA_SHARDS_MAX:
        raise UsageError(
            f"{geometry.data} data shards: choose between 1 and {limits.DATA_SHARDS_MAX}"
        )
    if not 0 <= geometry.parity <= limits.PARITY_SHARDS_MAX:
        raise UsageError(
            f"{geometry.parity} parity shards: choose between 0 and {limits.PARITY_SHARDS_MAX}"
        )

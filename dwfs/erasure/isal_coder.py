"""The fast coder: ISA-L's vector code over zfec's matrix.

Encoding multiplies the parity rows of the generator with the data. Decoding inverts the k rows of the
shards that are at hand, and multiplies out only the shards that are wanted, data or parity alike, in
one pass over the sources. Expanded tables of recent erasure patterns are kept, because a failed disk
makes the same pattern come back for every stripe.

Thread safety: coders are shared by worker threads. The only mutable state is the cache of tables;
its entries are immutable once made, single dict operations are atomic under the GIL, and two threads
that miss at once merely make the same table twice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

from dwfs import limits
from dwfs.erasure.field import invert, row_times_matrix
from dwfs.erasure.isal_library import Addresses, IsalLibrary, Tables
from dwfs.erasure.zfec_coder import check_shapes, choose_sources, generator_matrix
from dwfs.types import Geometry

_Pattern = tuple[tuple[int, ...], tuple[int, ...]]  # (sources, wanted)

_new_bytes = ctypes.pythonapi["PyBytes_FromStringAndSize"]
_new_bytes.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
_new_bytes.restype = ctypes.py_object


class IsalCoder:
    """`ErasureCoder` by ISA-L; byte-identical to `ZfecCoder`."""

    def __init__(self, geometry: Geometry, library: IsalLibrary) -> None:
        self.geometry = geometry
        self._library = library
        self._generator = generator_matrix(geometry)
        parity_rows = self._generator[geometry.data :]
        self._encode_tables = library.tables(parity_rows) if parity_rows else None
        self._decode_tables: dict[_Pattern, Tables] = {}

    def encode(self, data: Sequence[memoryview], parity: Sequence[memoryview]) -> None:
        """Fill `parity` (m writable views) from `data` (k views), in place and without copies."""
        check_shapes(self.geometry, data, parity)
        length = data[0].nbytes
        if self._encode_tables is None or not length:
            return
        with (
            Addresses(data, writable=False) as sources,
            Addresses(parity, writable=True) as targets,
        ):
            self._library.multiply(self._encode_tables, length, sources, targets)

    def decode(
        self, present: dict[int, memoryview], wanted: Sequence[int], length: int
    ) -> list[bytes]:
        """Rebuild shards `wanted` from any k of `present`; ValueError if there are fewer."""
        numbers = choose_sources(self.geometry, present, length)
        if not length:
            return [b""] * len(wanted)
        missing = tuple(number for number in wanted if number not in present)
        rebuilt: dict[int, bytes] = {}
        if missing:
            tables = self._tables_for((numbers, missing))
            rebuilt = {number: _uninitialised_bytes(length) for number in missing}
            views = [present[number] for number in numbers]
            # Writing into these bytes objects is sound: nothing else has seen them yet, and their
            # hash has not been taken. It saves a copy of every rebuilt shard under the GIL.
            with (
                Addresses(views, writable=False) as sources,
                Addresses(rebuilt.values(), writable=False) as targets,
            ):
                self._library.multiply(tables, length, sources, targets)
        return [
            rebuilt[number] if number in rebuilt else bytes(present[number]) for number in wanted
        ]

    def _tables_for(self, pattern: _Pattern) -> Tables:
        tables = self._decode_tables.get(pattern)
        if tables is None:
            sources, wanted = pattern
            recover = invert(tuple(self._generator[number] for number in sources))
            rows = tuple(row_times_matrix(self._generator[number], recover) for number in wanted)
            tables = self._library.tables(rows)
            if len(self._decode_tables) >= limits.ERASURE_TABLES_MAX:
                self._decode_tables.clear()  # rare, and cheap to refill: some 100 us a pattern
            self._decode_tables[pattern] = tables
        return tables


def _uninitialised_bytes(length: int) -> bytes:
    """A new bytes object to be filled by native code; `length` > 0 (the empty one is shared)."""
    assert length > 0
    return cast(bytes, _new_bytes(None, length))

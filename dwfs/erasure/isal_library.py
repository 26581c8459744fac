"""Finding ISA-L and calling it: the only module that touches its C interface.

Two copies are looked for: the system's `libisal.so.2` (Debian: libisal2), then the one that the
`pyeclib` wheel bundles, which is found by path, since importing pyeclib would load a second, unrelated
C library. ctypes releases the GIL around every call of a `CDLL`.

Buffers reach C by address. `Addresses` asks the interpreter's buffer protocol for it, so that a
read-only buffer needs no copy, and holds the export until it is closed: a bytearray cannot be resized
and a buffer cannot be freed while native code works in it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final

SYSTEM_LIBRARY: Final = "libisal.so.2"
TABLE_BYTES_PER_COEFFICIENT: Final = 32  # ISA-L: two 16-byte nibble tables

_BUFFER_SIMPLE: Final = 0  # PyBUF_SIMPLE: contiguous bytes, read-only allowed
_BUFFER_WRITABLE: Final = 1  # PyBUF_WRITABLE: raises BufferError for a read-only object


class _PyBuffer(ctypes.Structure):
    """`Py_buffer` of CPython's stable interface (PEP 3118)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi["PyObject_GetBuffer"]
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi["PyBuffer_Release"]
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None


class Addresses:
    """The addresses of some buffers as a C array of pointers; a context manager."""

    def __init__(
        self, buffers: Iterable[bytes | bytearray | memoryview], *, writable: bool
    ) -> None:
        """Raises BufferError for a strided buffer, or a read-only one where `writable`."""
        self._held: list[_PyBuffer] = []
        flags = _BUFFER_WRITABLE if writable else _BUFFER_SIMPLE
        try:
            for buffer in buffers:
                view = _PyBuffer()
                # A failing call leaves its exception set, which pythonapi (a PyDLL) raises here.
                _get_buffer(buffer, ctypes.byref(view), flags)
                self._held.append(view)
        except BaseException:  # whatever it was, no buffer stays locked
            self.close()
            raise
        self.pointers = (ctypes.c_void_p * len(self._held))(*(view.buf for view in self._held))

    def close(self) -> None:
        """Give the buffers back. May be called again."""
        while self._held:
            _release_buffer(ctypes.byref(self._held.pop()))

    def __enter__(self) -> Addresses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Tables:
    """A coefficient matrix in ISA-L's expanded form; specific to this CPU, never stored."""

    def __init__(self, inputs: int, outputs: int, raw: ctypes.Array[ctypes.c_char]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.raw = raw


class IsalLibrary:
    """The two calls of ISA-L that we need, with Python types."""

    def __init__(self, path: str) -> None:
        """Raises OSError if the library can't be loaded, AttributeError if it lacks a function."""
        self.path = path
        library = ctypes.CDLL(path)
        self._init_tables = library.ec_init_tables
        self._init_tables.argtypes = (
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_void_p,
        )
        self._init_tables.restype = None
        self._encode_data = library.ec_encode_data
        self._encode_data.argtypes = (
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._encode_data.restype = None

    def tables(self, rows: tuple[tuple[int, ...], ...]) -> Tables:
        """Expand a matrix of `outputs` rows by `inputs` columns."""
        outputs, inputs = len(rows), len(rows[0])
        flat = bytes(value for row in rows for value in row)
        raw = ctypes.create_string_buffer(TABLE_BYTES_PER_COEFFICIENT * inputs * outputs)
        self._init_tables(inputs, outputs, flat, ctypes.addressof(raw))
        return Tables(inputs, outputs, raw)

    def multiply(self, tables: Tables, length: int, sources: Addresses, targets: Addresses) -> None:
        """targets = matrix · sources, for `length` bytes of each. The GIL is released."""
        assert len(sources.pointers) == tables.inputs
        assert len(targets.pointers) == tables.outputs
        self._encode_data(
            length,
            tables.inputs,
            tables.outputs,
            ctypes.addressof(tables.raw),
            ctypes.addressof(sources.pointers),
            ctypes.addressof(targets.pointers),
        )


def candidate_paths() -> list[str]:
    """Where ISA-L may be, best first. The system's copy gets security updates, so it leads."""
    paths = [SYSTEM_LIBRARY]
    package = importlib.util.find_spec("pyeclib")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent.with_name("pyeclib.libs")
        paths += sorted(str(path) for path in bundled.glob("libisal*.so*"))
    return paths


def load_library(paths: Iterable[str]) -> IsalLibrary | None:
    """The first library of `paths` that loads, or None."""
    for path in paths:
        try:
            return IsalLibrary(path)
        except (OSError, AttributeError):
            continue
    return None

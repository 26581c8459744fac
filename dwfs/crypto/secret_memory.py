"""Memory for key bytes: locked against swap, left out of core dumps, zeroed when done with.

Python's own objects are the wrong place for a key: they are copied at will and freed without
being cleared. A `SecretBytes` is a private anonymous mapping of its own instead. Native code reads
and writes it through a memoryview, so that a key can be derived, used and wiped without ever
becoming a Python `bytes`.

Safety argument: the buffer protocol forbids unmapping while a view is exported, so a view that
outlives `wipe()` sees zeros, never freed memory. Whoever keeps views for longer than one call
(`VolumeKeys`) releases them on wiping, because a key of zeros would be worse than an error.
"""

from __future__ import annotations

import ctypes
import hmac
import mmap
import os
import resource
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from dwfs.errors import UnsupportedSystemError

BytesLike = bytes | bytearray | memoryview

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.getrandom.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
_LIBC.getrandom.restype = ctypes.c_ssize_t
_LIBC.prctl.argtypes = (
    ctypes.c_int,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
)

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


class SecretBytes:
    """`size` bytes of native memory for a secret; zeroed at first.

    `locked` tells whether the kernel agreed to keep it out of swap: RLIMIT_MEMLOCK may forbid it,
    which is reported rather than fatal, since a pool that can't be opened helps nobody.

    Invariant: after `wipe()` the bytes are zero and `view()` raises ValueError.
    """

    __slots__ = ("__weakref__", "_address", "_mapping", "_size", "locked")

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError("a secret has at least one byte")
        self._size = size
        self._mapping: mmap.mmap | None = mmap.mmap(
            -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self._mapping.madvise(mmap.MADV_DONTDUMP)
        # The temporary exports the mapping's buffer only until the end of the statement.
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.locked: bool = _LIBC.mlock(self._address, size) == 0

    @classmethod
    def random(cls, size: int) -> SecretBytes:
        """`size` bytes from the kernel's generator, written straight into the secret memory."""
        secret = cls(size)
        filled = 0
        while filled < size:
            count = _LIBC.getrandom(secret._address + filled, size - filled, 0)
            if count < 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
            filled += count
        return secret

    @classmethod
    def copy_of(cls, data: BytesLike) -> SecretBytes:
        """A copy of `data`. Wiping the original, where it can be, is the caller's business."""
        secret = cls(len(data))
        with secret.view() as view:
            view[:] = data
        return secret

    @property
    def address(self) -> int:
        """Where the bytes are mapped; meaningless after `wipe()`."""
        return self._address

    @property
    def wiped(self) -> bool:
        """Whether `wipe()` was called."""
        return self._mapping is None

    def view(self) -> memoryview:
        """A writable view of the bytes. Raises ValueError after `wipe()`."""
        if self._mapping is None:
            raise ValueError("the secret was wiped")
        return memoryview(self._mapping)[: self._size]

    def equals(self, other: SecretBytes) -> bool:
        """Compare in time that does not depend on the contents."""
        with self.view() as mine, other.view() as theirs:
            return hmac.compare_digest(mine, theirs)

    def wipe(self, _memset: Callable[[int, int, int], object] = ctypes.memset) -> None:
        """Zero the bytes now; unmap them now or when the last view is gone. May be repeated."""
        # `_memset` is bound early: at interpreter exit the module's globals go before we do.
        mapping, self._mapping = self._mapping, None
        if mapping is None:
            return
        _memset(self._address, 0, self._size)
        try:
            mapping.close()
        except BufferError:
            pass  # a view is alive: it sees zeros, and the mapping goes when it goes

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> SecretBytes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wipe()

    def __del__(self) -> None:
        # Without the attribute, __init__ failed before there was anything to wipe.
        if getattr(self, "_mapping", None) is not None:
            self.wipe()

    def __repr__(self) -> str:
        return f"<SecretBytes of {self._size} bytes{', wiped' if self.wiped else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def harden_process() -> None:
    """Forbid core dumps and tracing by the same user; allow as much locked memory as we may.

    For the composition root, before the first key exists. /proc/self then belongs to root, as it
    does for any non-dumpable process. Raises UnsupportedSystemError if the kernel refuses.
    """
    if _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        cause = os.strerror(ctypes.get_errno())
        raise UnsupportedSystemError(
            f"cannot forbid core dumps of key material: {cause}; check the container's seccomp rules"
        )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))

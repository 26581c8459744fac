"""Tuning of the C library's allocator for a process that handles 1 MiB buffers all day.

glibc serves an allocation above `M_MMAP_THRESHOLD` (128 KiB at first) with a fresh `mmap`, and each
of its pages faults once: a new 1 MiB bytes object costs 256 page faults, more than encrypting it.
With a threshold above our buffers they come from the heap, whose pages are already there.

Memory stays bounded: what the heap keeps is at most the peak of live buffers (which `limits.py`
bounds) plus `TRIM_THRESHOLD` at the top, and `M_ARENA_MAX` stops every worker thread from keeping
such a heap of its own, of which `malloc_trim` never gives back the top. It only keeps threads from
getting one that have not begun yet.
"""

from __future__ import annotations

import ctypes
from typing import Final

from dwfs.limits import FUSE_WRITE_SIZE_MAX, MIB, STRIPE_SIZE_MAX

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

MMAP_THRESHOLD: Final = 3 * MIB  # over a request's buffer, under a stripe's
TRIM_THRESHOLD: Final = 32 * MIB  # free bytes at the heap's top that are kept for the next request
ARENAS_MAX: Final = 1  # Python allocates under its own lock: a second would not be faster

assert FUSE_WRITE_SIZE_MAX < MMAP_THRESHOLD < STRIPE_SIZE_MAX


def keep_buffers_in_heap() -> bool:
    """Set the thresholds. True if the C library took them; False where it has no `mallopt`."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_MMAP_THRESHOLD, MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (_M_ARENA_MAX, ARENAS_MAX),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def release_free_memory() -> None:
    """Give the heap's free pages back to the system: for when a session has gone idle."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return

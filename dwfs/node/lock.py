"""The lock that keeps a pool from having two owners.

An flock on a file in the runtime directory. The kernel drops it when the owner dies, however it
dies, so a lock is never stale; the pid inside is for people only. The file of a pool is never removed: a
removed lock file could be locked by two processes that opened it before and after.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from dwfs.config import Directories
from dwfs.errors import PoolBusyError


class PoolLock:
    """Ownership of one pool on this machine. Use as a context manager, or `release()` it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, directories: Directories, pool: str) -> PoolLock:
        """Become the pool's owner. Raises PoolBusyError, which names the owner's pid."""
        make_private(directories.runtime_directory(pool))
        path = directories.lock_file(pool)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = _read_pid(descriptor)
            os.close(descriptor)
            by = f"process {owner}" if owner else "another process"
            raise PoolBusyError(
                f"pool {pool!r} is already open in {by}; unmount it first, or wait"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Give the pool up. Does nothing the second time."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> PoolLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def owner_of(directories: Directories, pool: str) -> int | None:
    """The pid of the process that owns the pool now, 0 if it can't be named, None if unowned."""
    try:
        descriptor = os.open(directories.lock_file(pool), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # A shared lock, held for an instant: two askers don't take each other for an owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_pid(descriptor) or 0
    else:
        return None
    finally:
        os.close(descriptor)


def wait_until_unowned(directories: Directories, pool: str, timeout_seconds: float) -> bool:
    """Wait for the pool's owner to finish. False if it still owns the pool at the end."""
    deadline = time.monotonic() + timeout_seconds
    while owner_of(directories, pool) is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def make_private(directory: Path) -> None:
    """Create `directory` (and its parents); only the owner may enter it."""
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    directory.mkdir(exist_ok=True, mode=0o700)


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0

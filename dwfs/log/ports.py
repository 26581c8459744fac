"""What the log needs from others: ciphers, worker threads and disks, as `Protocol`s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, TypeVarTuple

import msgspec

from dwfs.types import DiskId

ResultT = TypeVar("ResultT")
ArgumentTs = TypeVarTuple("ArgumentTs")

UNKNOWN_SPACE = 2**63 - 1


class RecordCipher(Protocol):
    """Seals one stream's payloads. `dwfs.crypto.RecordCipher` is one. Must be usable in any thread."""

    def seal(self, payload: bytes, aad: bytes, /) -> bytes:
        """Ciphertext that opens only with the same key and `aad`."""

    def open(self, sealed: bytes, aad: bytes, /) -> bytes:
        """The payload. Raises `AuthenticationError`."""


class Executor(Protocol):
    """A named worker thread. `dwfs.disk.executor.DiskExecutor` is one."""

    async def run(
        self, function: Callable[[*ArgumentTs], ResultT], *arguments: *ArgumentTs
    ) -> ResultT:
        """Run in the thread and wait for its end; not cancellable once begun."""

    def post(self, function: Callable[[*ArgumentTs], None], *arguments: *ArgumentTs) -> None:
        """Run in the thread some time, in turn; nobody waits. It must not raise."""

    def expire(self, now: float, deadline_seconds: float) -> object:
        """Give up every call that is queued or running since longer: its caller gets ETIMEDOUT.

        What such a call still does or returns goes unheard.
        """

    def abandon(self) -> object:
        """Take no more calls and wait for none; what was posted is done when the thread can."""

    def close(self) -> object:
        """Join the thread."""


class LogDisk(msgspec.Struct, frozen=True):
    """A disk that may hold copies of log files: they go to `directory`/log."""

    disk: DiskId
    directory: Path
    available_bytes: int = UNKNOWN_SPACE


ExecutorFactory = Callable[[str], Executor]
DiskList = Callable[[], Sequence[LogDisk]]  # the disks that can be written now
FailureReport = Callable[[DiskId, OSError], None]

"""What tests of the log share: ciphers, an executor without threads, and a builder of logs."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple, cast

import outcome
import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dwfs import limits
from dwfs.errors import AuthenticationError
from dwfs.log import LogDisk, LogInventory, LogSettings, Medium, MirroredLog
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId
from tests.sim.log_medium import SimulatedMedium

ResultT = TypeVar("ResultT")
ArgumentTs = TypeVarTuple("ArgumentTs")

AnyMedium = Medium | SimulatedMedium  # the log needs no more than the latter has

POOL = PoolId(b"P" * 16)
VOLUMES = [VolumeId(bytes([65 + index]) * 16) for index in range(3)]


class GcmCipher:
    """AES-256-GCM with a fixed test key."""

    def __init__(self, key: bytes = bytes(32)) -> None:
        self._cipher = AESGCM(key)

    def seal(self, payload: bytes, aad: bytes, /) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, payload, aad)

    def open(self, sealed: bytes, aad: bytes, /) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], aad)
        except (InvalidTag, ValueError) as error:
            raise AuthenticationError("does not open") from error


class SimulatedExecutor:
    """Runs calls at once, on the loop; those that nobody waits for, some time later, in turn.

    A call that hangs (see `SimulatedMedium`) leaves it stalled, as `DiskExecutor`.
    """

    def __init__(self, rig: LogRig) -> None:
        self._rig = rig
        self._posted: list[Callable[[], None]] = []
        self._waiter: trio.Event | None = None
        self._given_up = False
        self._busy = False
        self.abandoned = False
        self.closed = False

    async def run(
        self, function: Callable[[*ArgumentTs], ResultT], *arguments: *ArgumentTs
    ) -> ResultT:
        assert not self.closed
        assert not self.abandoned
        await trio.lowlevel.checkpoint()
        if self._busy:
            raise OSError(errno.ETIMEDOUT, "stalled")
        self.drain()
        results: list[outcome.Outcome[ResultT]] = []
        waiter = self._waiter = trio.Event()

        def call() -> None:
            results.append(outcome.capture(lambda: function(*arguments)))
            self._busy = False
            waiter.set()

        self._given_up = False
        self._call(call)
        with trio.CancelScope(shield=True):
            await waiter.wait()
        self._waiter = None
        if self._given_up:
            raise OSError(errno.ETIMEDOUT, "given up")
        result = results[0].unwrap()
        self._rig.run_something_posted()
        return result

    def post(self, function: Callable[[*ArgumentTs], None], *arguments: *ArgumentTs) -> None:
        self._posted.append(lambda: function(*arguments))

    def expire(self, now: float, deadline_seconds: float) -> int:
        if self._waiter is None or self._waiter.is_set():
            return 0
        self._given_up = True
        self._waiter.set()
        return 1

    def drain(self) -> None:
        """Make all posted calls, up to one that hangs."""
        while self._posted and not self._busy:
            self.run_posted()

    def run_posted(self) -> None:
        """Make the oldest posted call."""
        call = self._posted.pop(0)

        def and_then() -> None:
            call()
            self._busy = False

        self._call(and_then)

    @property
    def has_posted(self) -> bool:
        return bool(self._posted) and not self._busy

    def abandon(self) -> None:
        self.abandoned = True

    def close(self) -> None:
        assert not self._busy
        self.drain()
        self.closed = True

    def _call(self, call: Callable[[], None]) -> None:
        self._busy = True
        medium = self._rig.medium
        if isinstance(medium, SimulatedMedium):
            medium.call(call)
        else:
            call()


def disk_id(number: int) -> DiskId:
    """The id of the numbered test disk."""
    return DiskId(bytes([number + 1]) * 16)


class LogRig:
    """Disks under one root, and the log on them."""

    def __init__(
        self, root: Path, disks: int, copies: int, medium: AnyMedium, file_size: int = 1 << 20
    ) -> None:
        self.root = root
        self.copies = copies
        self.medium = medium
        self.file_size = file_size
        self.preallocation_size = limits.LOG_PREALLOCATION_SIZE
        self.deadline_seconds = 2.0
        self.random = random.Random(len(root.parts))
        self.executors: list[SimulatedExecutor] = []
        self.leaving: list[int] = []  # readable, but taking nothing
        self.present = list(range(disks))
        self.failed: list[tuple[DiskId, OSError]] = []
        self.ciphers = {volume: GcmCipher(volume * 2) for volume in VOLUMES}

    def directory(self, number: int) -> Path:
        return self.root / f"d{number}"

    def disks(self) -> list[LogDisk]:
        return self._disks(self.present)

    def _disks(self, numbers: list[int]) -> list[LogDisk]:
        return [LogDisk(disk_id(number), self.directory(number)) for number in numbers]

    def settings(self) -> LogSettings:
        return LogSettings(
            pool=POOL,
            copies=self.copies,
            header_cipher=GcmCipher(),
            disks=self.disks,
            make_executor=self._make_executor,
            on_disk_failed=lambda disk, error: self.failed.append((disk, error)),
            random_bytes=self.random.randbytes,
            medium=cast(Medium, self.medium),
            file_size=self.file_size,
            preallocation_size=self.preallocation_size,
            readable=lambda: self._disks([*self.present, *self.leaving]),
            deadline_seconds=self.deadline_seconds,
            stopwatch=lambda: 0.0,
        )

    def _make_executor(self, _name: str) -> SimulatedExecutor:
        executor = SimulatedExecutor(self)
        self.executors.append(executor)
        return executor

    def run_something_posted(self) -> None:
        """One posted call of any thread, perhaps."""
        ready = [one for one in self.executors if one.has_posted]
        if ready and self.random.random() < 0.6:
            self.random.choice(ready).run_posted()

    def run_everything_posted(self) -> None:
        """All that was posted so far."""
        for one in self.executors:
            one.drain()

    def inventory(self) -> LogInventory:
        directories = {disk.disk: disk.directory for disk in self.disks()}
        return MirroredLog.recover(directories, POOL, GcmCipher(), cast(Medium, self.medium))

    def replay(
        self,
        replay_from: dict[VolumeId, LogSequence] | None = None,
        volumes: list[VolumeId] | None = None,
    ) -> list[tuple[VolumeId, int, int, bytes]]:
        ciphers = {volume: self.ciphers[volume] for volume in volumes or VOLUMES}
        return [
            (record.stream, record.first, record.last, record.payload)
            for record in self.inventory().replay(ciphers, replay_from or {})
        ]

    async def open(self, starts: dict[VolumeId, int] | None = None) -> MirroredLog:
        self.executors.clear()  # of a log that crashed
        inventory = self.inventory()
        streams = {}
        for volume in VOLUMES:
            tail = inventory.tails.get(volume)
            known = tail.sequence if tail is not None else LogSequence(1)
            sequence = LogSequence(max(known, (starts or {}).get(volume, 1)))
            streams[volume] = (self.ciphers[volume], sequence)
        return await MirroredLog.open(self.settings(), inventory, streams)

"""What tests of the log share: ciphers, an executor without threads, and a builder of logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dwfs import limits
from dwfs.errors import AuthenticationError
from dwfs.log import LogDisk, LogInventory, LogSettings, Medium, MirroredLog
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId

ResultT = TypeVar("ResultT")
ArgumentTs = TypeVarTuple("ArgumentTs")

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


class InlineExecutor:
    """Runs calls at once, on the loop; those that nobody waits for, after one of the next."""

    def __init__(self, posted: list[Callable[[], None]]) -> None:
        self.closed = False
        self._posted = posted

    async def run(
        self, function: Callable[[*ArgumentTs], ResultT], *arguments: *ArgumentTs
    ) -> ResultT:
        await trio.lowlevel.checkpoint()
        result = function(*arguments)
        if self._posted and len(arguments) % 2:
            self._posted.pop()()
        return result

    def post(self, function: Callable[[*ArgumentTs], None], *arguments: *ArgumentTs) -> None:
        self._posted.append(lambda: function(*arguments))

    def close(self) -> None:
        self.closed = True


def disk_id(number: int) -> DiskId:
    """The id of the numbered test disk."""
    return DiskId(bytes([number + 1]) * 16)


class LogRig:
    """Disks under one root, and the log on them."""

    def __init__(
        self, root: Path, disks: int, copies: int, medium: Medium, file_size: int = 1 << 20
    ) -> None:
        self.root = root
        self.copies = copies
        self.medium = medium
        self.file_size = file_size
        self.preallocation_size = limits.LOG_PREALLOCATION_SIZE
        self.posted: list[Callable[[], None]] = []
        self.present = list(range(disks))
        self.failed: list[tuple[DiskId, OSError]] = []
        self.ciphers = {volume: GcmCipher(volume * 2) for volume in VOLUMES}

    def directory(self, number: int) -> Path:
        return self.root / f"d{number}"

    def disks(self) -> list[LogDisk]:
        return [LogDisk(disk_id(number), self.directory(number)) for number in self.present]

    def settings(self) -> LogSettings:
        return LogSettings(
            pool=POOL,
            copies=self.copies,
            header_cipher=GcmCipher(),
            disks=self.disks,
            make_executor=lambda _name: InlineExecutor(self.posted),
            on_disk_failed=lambda disk, error: self.failed.append((disk, error)),
            random_bytes=os.urandom,
            medium=self.medium,
            file_size=self.file_size,
            preallocation_size=self.preallocation_size,
        )

    def inventory(self) -> LogInventory:
        directories = {disk.disk: disk.directory for disk in self.disks()}
        return MirroredLog.recover(directories, POOL, GcmCipher(), self.medium)

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
        self.posted.clear()  # of a log that crashed
        inventory = self.inventory()
        streams = {}
        for volume in VOLUMES:
            tail = inventory.tails.get(volume)
            known = tail.sequence if tail is not None else LogSequence(1)
            sequence = LogSequence(max(known, (starts or {}).get(volume, 1)))
            streams[volume] = (self.ciphers[volume], sequence)
        return await MirroredLog.open(self.settings(), inventory, streams)

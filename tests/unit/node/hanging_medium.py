"""The operating system's files, with disks that hang or fail on command."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from dwfs.disk import Buffer, MediumSpace, PosixMedium
from dwfs.node.system import SystemPlatform


class HangingMedium(PosixMedium):
    """Blocks every operation below a directory that was told to hang, until it is released."""

    def __init__(self) -> None:
        self._hung: dict[Path, threading.Event] = {}
        self._broken: dict[Path, int] = {}
        self._paths: dict[int, Path] = {}

    def hang(self, directory: Path) -> None:
        """Answer nothing that concerns the directory any more."""
        self._hung[directory] = threading.Event()

    def release(self, directory: Path) -> None:
        """Answer again, also what is waiting."""
        self._hung.pop(directory).set()

    def release_all(self) -> None:
        """Let nothing hang any more."""
        for directory in list(self._hung):
            self.release(directory)

    def break_writes(self, directory: Path, number: int = errno.EIO) -> None:
        """Fail every write and sync below the directory."""
        self._broken[directory] = number

    def mend(self, directory: Path) -> None:
        """Let writes succeed again."""
        self._broken.pop(directory)

    def _pass(self, place: int | Path, *, writes: bool = False) -> None:
        path = self._paths.get(place) if isinstance(place, int) else place
        if path is None:
            return
        for directory, released in list(self._hung.items()):
            if path.is_relative_to(directory):
                released.wait()
        for directory, number in list(self._broken.items()):
            if writes and path.is_relative_to(directory):
                raise OSError(number, os.strerror(number))

    def names(self, directory: Path) -> list[str]:
        self._pass(directory)
        return super().names(directory)

    def is_directory(self, path: Path) -> bool:
        self._pass(path)
        return super().is_directory(path)

    def create(self, path: Path, *, replace: bool = False) -> int:
        self._pass(path, writes=True)
        handle = super().create(path, replace=replace)
        self._paths[handle] = path
        return handle

    def open(self, path: Path, *, write: bool = False) -> int:
        self._pass(path)
        handle = super().open(path, write=write)
        self._paths[handle] = path
        return handle

    def read(self, handle: int, offset: int, length: int) -> bytes:
        self._pass(handle)
        return super().read(handle, offset, length)

    def read_cached(
        self, handle: int, offset: int, length: int, patience_seconds: float = 0.0
    ) -> bytes | None:
        path = self._paths.get(handle)
        if path is not None and any(path.is_relative_to(one) for one in list(self._hung)):
            return None
        return super().read_cached(handle, offset, length, patience_seconds)

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        self._pass(handle, writes=True)
        super().write(handle, offset, buffers)

    def sync(self, handle: int) -> None:
        self._pass(handle, writes=True)
        super().sync(handle)

    def sync_directory(self, directory: Path) -> None:
        self._pass(directory, writes=True)
        super().sync_directory(directory)

    def remove(self, path: Path) -> None:
        self._pass(path, writes=True)
        super().remove(path)

    def rename(self, source: Path, target: Path) -> None:
        self._pass(source, writes=True)
        super().rename(source, target)

    def space(self, directory: Path) -> MediumSpace:
        self._pass(directory)
        return super().space(directory)


class HangingPlatform(SystemPlatform):
    """The machine, with disks that hang."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging = HangingMedium()
        self.medium = self.hanging

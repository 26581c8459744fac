"""A real medium whose operations hang or fail on command, for tests of disks in trouble."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from dwfs.disk.medium import Buffer, PosixMedium


class HangingMedium(PosixMedium):
    """`hang("write")` has the next calls of that operation wait for `let_go()`; `fail` has them raise.

    `open_handles` says which handles are open, so that a test sees what is closed, and when.
    """

    def __init__(self) -> None:
        self.open_handles: set[int] = set()
        self.hanging: set[str] = set()
        self.failing: dict[str, int] = {}  # operation → errno
        self.hung = threading.Event()  # a call hangs now
        self._go_on = threading.Event()

    def hang(self, *operations: str) -> None:
        """From now on these operations do not come back."""
        self._go_on.clear()
        self.hung.clear()
        self.hanging.update(operations)

    def let_go(self) -> None:
        """What hangs is done after all, and nothing hangs any more."""
        self.hanging.clear()
        self._go_on.set()

    def _meet(self, operation: str) -> None:
        if operation in self.hanging:
            self.hung.set()
            assert self._go_on.wait(20), "a test forgot to let go"
        if operation in self.failing:
            number = self.failing[operation]
            raise OSError(number, os.strerror(number))

    def create(self, path: Path, *, replace: bool = False) -> int:
        self._meet("create")
        handle = super().create(path, replace=replace)
        self.open_handles.add(handle)
        return handle

    def open(self, path: Path, *, write: bool = False) -> int:
        self._meet("open")
        handle = super().open(path, write=write)
        self.open_handles.add(handle)
        return handle

    def close(self, handle: int) -> None:
        self.open_handles.discard(handle)
        super().close(handle)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        self._meet("read")
        return super().read(handle, offset, length)

    def read_cached(
        self, handle: int, offset: int, length: int, patience_seconds: float = 0.0
    ) -> bytes | None:
        return None

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        self._meet("write")
        super().write(handle, offset, buffers)

    def punch(self, handle: int, start: int, end: int) -> bool:
        self._meet("punch")
        if "holes" in self.failing:
            return False
        return super().punch(handle, start, end)

    def sync(self, handle: int) -> None:
        self._meet("sync")
        super().sync(handle)

    def names(self, directory: Path) -> list[str]:
        self._meet("names")
        return super().names(directory)

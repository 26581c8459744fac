"""The process that works on a mount until the mount dies under it, and records what it did.

    python crash_workload.py DIRECTORY HISTORY SEED

HISTORY, outside the mount, gets one JSON line before each operation, `["op", kind, …]`, and one
after, `["ok", seconds]`. Its last line is `["end", errno]` when an operation failed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integration.crash_model import PAGE, OrderedModel, page

FILES_MAX = 60
BUFFERED_FILES = 4
BUFFERED_BLOCKS = 300
WEIGHTS = {
    "create": 14, "write": 30, "truncate": 4, "link": 5, "rename": 10, "unlink": 8, "mkdir": 3,
    "rmdir": 2, "symlink": 2, "setxattr": 4, "fsync": 3, "bwrite": 30, "bsync": 2, "append": 8,
    "jsync": 2,
}  # fmt: skip


class Workload:
    """Chooses operations that are valid in its model, records and performs them."""

    def __init__(self, directory: Path, history: Path, seed: int) -> None:
        self._ordered = directory / "ordered"
        self._buffered = directory / "buffered"
        self._history = os.open(history, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._choice = random.Random(seed)
        self._model = OrderedModel()
        self._number = 0
        self._buffer = mmap.mmap(-1, PAGE)  # O_DIRECT wants aligned memory
        for path in (directory, self._ordered, self._buffered):
            path.mkdir()
        for name in [f"b{number}" for number in range(BUFFERED_FILES)] + ["journal"]:
            descriptor = os.open(self._buffered / name, os.O_CREAT | os.O_WRONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        self._files = {
            name: os.open(self._buffered / name, os.O_WRONLY) for name in os.listdir(self._buffered)
        }

    def run(self) -> None:
        """Work until an operation fails."""
        self._record(["ready"])
        while True:
            kind = self._choice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            arguments = self._arguments(kind)
            if arguments is None:
                continue
            self._number += 1
            self._record(["op", kind, *arguments])
            try:
                perform: Callable[..., None] = getattr(self, f"_{kind}")
                perform(*arguments)
            except OSError as error:
                self._record(["end", error.errno])
                return
            self._model.apply(self._number, [kind, *arguments])
            self._record(["ok", time.monotonic()])

    def _record(self, line: list[Any]) -> None:  # Any: JSON
        os.write(self._history, json.dumps(line).encode() + b"\n")

    def _arguments(self, kind: str) -> list[Any] | None:  # Any: JSON
        """Arguments for an operation of that kind, or None if it makes no sense now."""
        choice, files, folders = self._choice, self._model.files, self._model.folders
        fresh = f"{choice.choice(['', *(f'{name}/' for name in sorted(folders))])}n{self._number}"
        old = choice.choice(sorted(files)) if files else None
        empty = [
            name
            for name in sorted(folders)
            if not any(f.startswith(name + "/") for f in (*files, *self._model.symlinks))
        ]
        match kind:
            case "create" if len(files) < FILES_MAX:
                return [fresh]
            case "symlink" if len(self._model.symlinks) < FILES_MAX:
                return [fresh, f"to-{self._number}"]
            case "mkdir" if len(folders) < 8:
                return [f"d{self._number}"]
            case "rmdir" if empty:
                return [choice.choice(empty)]
            case "bwrite":
                return [f"b{choice.randrange(BUFFERED_FILES)}", choice.randrange(BUFFERED_BLOCKS)]
            case "bsync":
                return [f"b{choice.randrange(BUFFERED_FILES)}"]
            case "append":
                return [f"line {self._number} " + "x" * choice.randrange(200) + "\n"]
            case "jsync":
                return []
        return self._arguments_for(kind, old, fresh) if old else None

    def _arguments_for(self, kind: str, old: str, fresh: str) -> list[Any] | None:  # Any: JSON
        """Arguments for an operation on a file that is there."""
        choice = self._choice
        match kind:
            case "write":
                return [old, choice.randrange(20)]
            case "truncate":
                return [old, choice.randrange(20)]
            case "link" if len(self._model.files) < FILES_MAX:
                return [old, fresh]
            case "rename":
                return [old, choice.choice([fresh, choice.choice(sorted(self._model.files))])]
            case "unlink" | "fsync":
                return [old]
            case "setxattr":
                return [old, f"a{choice.randrange(3)}", f"value {self._number}"]
        return None

    def _create(self, path: str) -> None:
        os.close(os.open(self._ordered / path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    def _write(self, path: str, block: int) -> None:
        self._buffer[:] = page(self._model.files[path].token, self._number)
        descriptor = os.open(self._ordered / path, os.O_WRONLY | os.O_DIRECT)
        try:
            os.pwrite(descriptor, self._buffer, block * PAGE)
        finally:
            os.close(descriptor)

    def _truncate(self, path: str, blocks: int) -> None:
        os.truncate(self._ordered / path, blocks * PAGE)

    def _link(self, old: str, new: str) -> None:
        os.link(self._ordered / old, self._ordered / new)

    def _rename(self, old: str, new: str) -> None:
        os.rename(self._ordered / old, self._ordered / new)

    def _unlink(self, path: str) -> None:
        os.unlink(self._ordered / path)

    def _mkdir(self, path: str) -> None:
        os.mkdir(self._ordered / path)

    def _rmdir(self, path: str) -> None:
        os.rmdir(self._ordered / path)

    def _symlink(self, path: str, target: str) -> None:
        os.symlink(target, self._ordered / path)

    def _setxattr(self, path: str, name: str, value: str) -> None:
        os.setxattr(self._ordered / path, f"user.{name}", value.encode())

    def _fsync(self, path: str) -> None:
        descriptor = os.open(self._ordered / path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _bwrite(self, name: str, block: int) -> None:
        os.pwrite(self._files[name], page(f"{name}/{block}", self._number), block * PAGE)

    def _bsync(self, name: str) -> None:
        os.fdatasync(self._files[name])

    def _append(self, line: str) -> None:
        os.write(self._files["journal"], line.encode())

    def _jsync(self) -> None:
        os.fdatasync(self._files["journal"])


if __name__ == "__main__":
    Workload(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).run()

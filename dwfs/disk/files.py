"""Open descriptors of one disk's segments: bounded, shared, and never closed under a worker.

A descriptor that is closed while a worker reads from it may be reused for another file, and the worker
would return that file's bytes. So every user holds a descriptor by `acquire`/`release` (or `hold`),
and the least recently used ones are closed only when nobody does. All calls are made on the loop
thread; only `os.open` of a segment not yet open goes to a worker.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from dwfs import limits
from dwfs.disk.executor import DiskExecutor
from dwfs.disk.segment import segment_path
from dwfs.disk.transfer import open_segment


class SegmentFile:
    """An open segment. `users` counts those who rely on the descriptor."""

    __slots__ = ("descriptor", "forgotten", "number", "users")

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self.descriptor = descriptor
        self.users = 0
        self.forgotten = False  # no longer in the table: closed by its last user


class SegmentFiles:
    """The table of open segments, most recently used last."""

    def __init__(self, directory: Path, executor: DiskExecutor) -> None:
        self._directory = directory
        self._executor = executor
        self._open: OrderedDict[int, SegmentFile] = OrderedDict()

    def peek(self, number: int) -> SegmentFile | None:
        """The segment if it is open; for use until the next await only."""
        file = self._open.get(number)
        if file is not None:
            self._open.move_to_end(number)
        return file

    async def acquire(self, number: int) -> SegmentFile:
        """Hold the segment open for reading; opens it if need be. Raises OSError."""
        file = self.peek(number)
        if file is None:
            path = segment_path(self._directory, number)
            descriptor = await self._executor.run(open_segment, path)
            file = self.peek(number)
            if file is not None:  # another task opened it while we did
                os.close(descriptor)
            else:
                file = self._insert(SegmentFile(number, descriptor))
        file.users += 1
        return file

    def adopt(self, number: int, descriptor: int) -> SegmentFile:
        """Enter a descriptor that was opened for writing; its caller holds it."""
        assert number not in self._open
        file = SegmentFile(number, descriptor)
        file.users = 1
        return self._insert(file)

    def release(self, file: SegmentFile) -> None:
        """Undo one `acquire`, `adopt` or `users += 1`."""
        assert file.users > 0
        file.users -= 1
        if file.forgotten and not file.users:
            os.close(file.descriptor)
        elif not file.users:
            self._trim()

    def forget(self, number: int) -> None:
        """The segment is about to be unlinked: close it when its last user is done."""
        file = self._open.pop(number, None)
        if file is not None:
            self._drop(file)

    def close(self) -> None:
        """Close all; descriptors in use are closed by their last user."""
        while self._open:
            self._drop(self._open.popitem()[1])

    def _insert(self, file: SegmentFile) -> SegmentFile:
        file.users += 1  # not to be trimmed itself
        self._open[file.number] = file
        self._trim()
        file.users -= 1
        return file

    def _trim(self) -> None:
        excess = len(self._open) - limits.OPEN_SEGMENTS_MAX
        if excess > 0:
            idle = [file for file in self._open.values() if not file.users][:excess]
            for file in idle:
                del self._open[file.number]
                self._drop(file)

    def _drop(self, file: SegmentFile) -> None:
        file.forgotten = True
        if not file.users:
            os.close(file.descriptor)

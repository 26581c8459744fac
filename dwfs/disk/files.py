"""Open handles of one disk's segments: bounded, shared, and never closed under a worker.

A handle that is closed while a worker reads from it may be reused for another file, and the worker
would return that file's bytes, or write into it. So every user holds a segment by `acquire`/`release`
or `hold`/`release`, and the least recently used ones are closed only when nobody does. A call that
was given up uses its segment until it has really ended (`DiskAccess.run`, `afterwards`). All calls are made
on the loop thread; only the opening of a segment not yet open goes to a worker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from dwfs import limits
from dwfs.disk.access import DiskAccess
from dwfs.disk.segment import segment_path
from dwfs.disk.transfer import open_segment


class SegmentFile:
    """An open segment. `users` counts those who rely on the handle."""

    __slots__ = ("forgotten", "handle", "number", "users")

    def __init__(self, number: int, handle: int) -> None:
        self.number = number
        self.handle = handle
        self.users = 0
        self.forgotten = False  # no longer in the table: closed by its last user


class SegmentFiles:
    """The table of open segments, most recently used last."""

    def __init__(self, directory: Path, access: DiskAccess) -> None:
        self._directory = directory
        self._access = access
        self._medium = access.medium
        self._open: OrderedDict[int, SegmentFile] = OrderedDict()

    def peek(self, number: int) -> SegmentFile | None:
        """The segment if it is open; for use until the next await only."""
        file = self._open.get(number)
        if file is not None:
            self._open.move_to_end(number)
        return file

    async def acquire(self, number: int) -> SegmentFile:
        """Hold the segment open for reading; opens it if need be. Raises OSError, MediumError."""
        file = self.peek(number)
        if file is None:
            path = segment_path(self._directory, number)
            handle = await self._access.run_raw(
                open_segment, self._medium, path, discard=self._medium.close, abandonable=True
            )
            file = self.peek(number)
            if file is not None:  # another task opened it while we did
                self._medium.close(handle)
            else:
                file = self._insert(SegmentFile(number, handle))
        file.users += 1
        return file

    def adopt(self, number: int, handle: int) -> SegmentFile:
        """Enter a handle that was opened for writing; its caller holds it."""
        assert number not in self._open
        file = SegmentFile(number, handle)
        file.users = 1
        return self._insert(file)

    def hold(self, files: Sequence[SegmentFile]) -> Callable[[], None]:
        """Hold files open a second time; returns what releases them."""
        for file in files:
            file.users += 1

        def release() -> None:
            for file in files:
                self.release(file)

        return release

    def release(self, file: SegmentFile) -> None:
        """Undo one `acquire` or `adopt`."""
        assert file.users > 0
        file.users -= 1
        if file.forgotten and not file.users:
            self._close(file)
        elif not file.users:
            self._trim()

    def forget(self, number: int) -> None:
        """The segment is about to be unlinked: close it when its last user is done."""
        file = self._open.pop(number, None)
        if file is not None:
            self._drop(file)

    def close(self) -> None:
        """Close all; handles in use are closed by their last user."""
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
            self._close(file)

    def _close(self, file: SegmentFile) -> None:
        if self._access.retired:
            # The disk is in trouble, and closing may wait for it: not on the loop.
            self._access.executor.post(self._medium.close, file.handle)
        else:
            self._medium.close(file.handle)

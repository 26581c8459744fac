"""What the pool is doing just now: the `work` list of `dwfs status`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from dwfs.node.status import WorkStatus


class WorkBoard:
    """Activities put themselves up here while they run."""

    def __init__(self) -> None:
        self._numbers = count()
        self._current: dict[int, WorkStatus] = {}

    @contextmanager
    def doing(self, kind: str, detail: str, total: int | None = None) -> Iterator[int]:
        """Show the activity for the length of the block; gives a number for `progress`."""
        number = next(self._numbers)
        self._current[number] = WorkStatus(kind, detail, None if total is None else 0, total)
        try:
            yield number
        finally:
            del self._current[number]

    def progress(self, number: int, done: int, total: int | None) -> None:
        """Tell how far the activity is."""
        shown = self._current[number]
        self._current[number] = WorkStatus(shown.kind, shown.detail, done, total)

    def current(self) -> list[WorkStatus]:
        """All activities, oldest first."""
        return list(self._current.values())

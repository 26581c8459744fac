"""Whether to wait a moment for a small read instead of waking a thread: a decision learned by trying.

Pure bookkeeping; `Medium.read_cached` does the waiting.
"""

from __future__ import annotations

from typing import Final

LATE_FORGIVEN: Final = 3
LATE_MAX: Final = 8  # 256 reads of a slow disk between two trials: a fraction of a ms in seconds


class Patience:
    """Whether patience pays on this disk: it does on flash, not if a head moves.

    A read that came too late now and then is forgiven. After several in a row ever more reads are
    not given the chance, until the trials cost nothing; one success ends that.
    """

    __slots__ = ("_late", "_skipped")

    def __init__(self) -> None:
        self._late = 0  # reads in a row that did not arrive
        self._skipped = 0

    def worthwhile(self) -> bool:
        """Whether to be patient with the next read."""
        if self._late >= LATE_FORGIVEN and self._skipped < 1 << self._late:
            self._skipped += 1
            return False
        return True

    def learn(self, *, arrived: bool) -> None:
        """What came of being patient."""
        self._skipped = 0
        self._late = 0 if arrived else min(self._late + 1, LATE_MAX)

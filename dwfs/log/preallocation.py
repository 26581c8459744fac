"""The zeroed region ahead of a log file's records.

A sync after an append has to commit the file's new length and blocks to the filesystem's journal. A
sync after an overwrite of blocks that were written before writes the data alone and takes half the
time or less. So zeros are written ahead, durably, in the background, and records overwrite them.

Nothing rests on it but speed: a record that runs past the region is an append like any other, and
a disk that takes no zeros gets none. The reader takes zeros for the end of the chain.

Safety. The filler must never put zeros over a record. Every writer claims the bytes up to its
record's end before it writes; the filler writes under the same lock, small pieces, and only behind
what is claimed. Each copy has its own lock, so a disk that hangs under the filler holds up only its
own writer. The filler has handles of its own, as the writer may close its handles at any time, and
their numbers may then mean other files. After `seal` it writes nothing, so the tail stays cut off.

One filler takes the copies in turn: filling all at once made appends wait longer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dwfs import limits
from dwfs.disk.medium import Medium
from dwfs.types import DiskId

RECORD_SIZE_MAX: Final = 64 * limits.KIB  # larger records gain little, and may not ask for more
SPACE_SHARE: Final = 32  # of a disk's free space, one step takes at most the 32nd part
_STEP_MIN: Final = 64 * limits.KIB
_PIECE_SIZE: Final = 128 * limits.KIB  # zeros written while a record may wait for the lock
_ZEROS: Final = bytes(_PIECE_SIZE)


class _Copy:
    """One disk's copy: what its writer and its filler share."""

    def __init__(self, path: Path, claimed: int) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.claimed = claimed  # what is before it belongs to the writer


class Preallocation:
    """The region of one file, shared by the loop, the writers and the filler."""

    def __init__(self, paths: Mapping[DiskId, Path], begin: int, end_max: int) -> None:
        self._copies = {disk: _Copy(path, begin) for disk, path in paths.items()}
        self._end_max = end_max
        self._ready = begin  # what is before it is records and durable zeros
        self._busy = False
        self._closed = False

    @property
    def ready(self) -> int:
        """Where the zeros end."""
        return self._ready

    def is_short(self, position: int, step: int) -> bool:
        """On the loop: whether it is time to `plan`, now that records end at `position`."""
        return self._ready - position < step // 2 and not self._busy and not self._closed

    def plan(self, position: int, step: int) -> int:
        """On the loop: the end to `fill` to; 0 for none. Who gets an end must have it filled."""
        begin = max(self._ready, position)
        end = min(begin + step, self._end_max)
        if end <= begin or step < min(_STEP_MIN, self._end_max):
            self._closed = True  # the file's end, or not enough room
            return 0
        self._busy = True
        return end

    def claim(self, disk: DiskId, end: int) -> None:
        """Before anything is written to the copy up to `end`. Blocks while its filler writes."""
        copy = self._copies[disk]
        with copy.lock:
            copy.claimed = max(copy.claimed, end)

    def fill(self, medium: Medium, disks: Sequence[DiskId], end: int) -> None:
        """Write zeros up to `end` on those copies, durably. Blocks; a failure ends the matter."""
        try:
            for disk in disks:
                if self._closed:
                    return
                copy = self._copies[disk]
                handle = medium.open(copy.path, write=True)
                try:
                    self._fill_copy(medium, handle, copy, end)
                finally:
                    medium.close(handle)
        except OSError:
            self._closed = True  # no room, or a disk that fails: the records' writes will tell
        else:
            self._ready = end
        finally:
            self._busy = False

    def _fill_copy(self, medium: Medium, handle: int, copy: _Copy, end: int) -> None:
        for piece in range(copy.claimed, end, _PIECE_SIZE):
            piece_end = min(piece + _PIECE_SIZE, end)
            with copy.lock:
                if self._closed:
                    return
                start = max(piece, copy.claimed)
                if start < piece_end:
                    medium.write(handle, start, (memoryview(_ZEROS)[: piece_end - start],))
        # Once: one record's sync has to wait for all zeros, but then there is only one commit of the
        # file's length. With a sync every 512 KiB, appends took 10-50 % longer on average.
        medium.sync(handle)

    def close(self) -> None:
        """On the loop: no more zeros. Doesn't wait for the one that is being written."""
        self._closed = True

    def seal(self, disk: DiskId) -> None:
        """In a worker, after `close`: wait for that one. From now on the copy gets no zeros."""
        assert self._closed
        with self._copies[disk].lock:
            pass

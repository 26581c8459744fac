"""What a blocking job is busy with, and the word that nobody waits for it any more.

A disk may hang in the middle of a system call, and nothing in user space ends that call. So the job
notes in its `Watch` which disk it turns to, before each operation; the loop looks at the note now
and then (`dwfs.log.lanes`), and when it stays the same for too long it knows which disk hangs and
gives the job up. The thread comes back some day, perhaps; then the next `enter` ends the job, so that
it writes, renames and removes nothing that the log decided on long ago.

Safety. The one operation in which the thread hung still has its effect, at any later time. It's
always one of these: bytes of the record that was being written (the log repeats it under the same
identity elsewhere, so it counts once), zeros where none of its records are, a new file or copy with
nothing that counts, the removal of what nobody needs, the closing of a handle. None harms.
`finish` and `give_up` exclude each other: either the job's result is delivered, or the job knows that
it isn't and gives its handles back itself.
"""

from __future__ import annotations

import threading

from dwfs.types import DiskId


class GivenUpError(Exception):
    """The job's caller has gone on without it; raised in the worker only, to end it there."""


class Watch:
    """One job's note. `enter` and `finish` are the worker's, the rest is the loop's."""

    __slots__ = ("_finished", "_lock", "disk", "given_up", "steps")

    def __init__(self, disk: DiskId | None = None) -> None:
        self.disk = disk  # that is used now
        self.steps = 0  # grows with every operation
        self.given_up = False
        self._finished = False
        self._lock = threading.Lock()

    def enter(self, disk: DiskId) -> None:
        """Before an operation on the disk. Raises GivenUpError when nobody waits any more."""
        if self.given_up:
            raise GivenUpError
        self.disk = disk
        self.steps += 1

    def finish(self) -> bool:
        """After the last operation: whether the result still has a receiver."""
        with self._lock:
            self._finished = not self.given_up
            return self._finished

    def give_up(self) -> bool:
        """Wait no longer. False if the job has just finished: its result is on the way."""
        with self._lock:
            self.given_up = not self._finished
            return self.given_up

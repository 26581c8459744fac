"""`Receiver`: makes a volume what a stream says.

Records become commands, data goes to the data store and is mapped by `WriteExtents`, as any write. Every
so many MiB a mark is set and everything made durable; whatever happens, the volume then knows from which
frame on the stream is still to be applied. All records are idempotent, so what was applied after the
last mark, and may be durable or not, does no harm when it comes again.

A stream that is resumed comes from its beginning. Frames before the mark are opened, and their digest is
compared with the one in the mark: it must be the same stream, or the same made anew.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Final, NoReturn

import trio

from dwfs.errors import DamageError, DwfsError, NoSpaceError, PoolBusyError, PosixError, UsageError
from dwfs.limits import RECEIVE_MARK_SIZE
from dwfs.ports import DataStore
from dwfs.send.format import Frame, Header, decode_records, decode_totals
from dwfs.types import Extent
from dwfs.volume import Volume
from dwfs.volume.commands import (
    AbortReceive,
    BeginReceive,
    FinishReceive,
    MarkReceived,
    ReceiveRecords,
    WriteExtents,
)
from dwfs.volume.records import Snapshot
from dwfs.volume.transfer import RECEIVING_NAME, DataRecord, StateRecord, Totals

RECORDS_MAX: Final = 128  # in one command: some milliseconds
_PAGE: Final = 4096  # stored records that are looked at in one go
_DIGEST_SIZE: Final = 32

Progress = Callable[[int, int | None], Awaitable[None]]


class Receiver:
    """Takes one stream in. `begin`, `take` each frame, `finish`; nothing else changes the volume."""

    def __init__(
        self, volume: Volume, data: DataStore, pool: str, mark_size: int = RECEIVE_MARK_SIZE
    ) -> None:
        """`pool`: what the operator calls it; `mark_size`: bytes after which a mark is set."""
        self._volume = volume
        self._data = data
        self._pool = pool
        self._mark_size = mark_size
        self._resume_at = 0
        self._resume_digest = b""
        self._digest = b""
        self._unmarked = 0
        self._next = 0  # the frame after the last that was applied
        self._next_digest = b""  # of all before it
        self._records = 0
        self._data_bytes = 0
        self._totals: Totals | None = None
        self._name = ""

    @property
    def resumes_at(self) -> int:
        """The first frame that is not in the volume already."""
        return self._resume_at

    async def begin(self, header: Header, time_ns: int) -> None:
        """Check that the stream can be received here, and say that it is.

        Raises UsageError or PoolBusyError with nothing changed.
        """
        volume = self._volume
        unfinished = volume.receive_state.unfinished
        self._name = header.snapshot.name
        if unfinished is not None:
            if unfinished.aborting:
                raise PoolBusyError(
                    f"a receive into pool {self._pool} is being aborted: end that first with "
                    f"'dwfs receive --abort {self._pool}'"
                )
            if (unfinished.origin, unfinished.base) != (header.snapshot, header.base):
                raise PoolBusyError(
                    f"pool {self._pool} is in the middle of receiving @{unfinished.origin.name}, and "
                    f"this is another stream: pipe that one in again, or 'dwfs receive --abort "
                    f"{self._pool}' first"
                )
            self._resume_at = unfinished.next_frame
            self._resume_digest = unfinished.digest
            return
        if volume.find_received(header.snapshot) is not None:
            raise UsageError(
                f"pool {self._pool} has received @{self._name} already: there is nothing to do"
            )
        if header.base is not None:
            await self._check_base(header)
        elif not volume.is_empty:
            raise UsageError(
                f"pool {self._pool} is not empty, and this is a full stream: receive it into a pool "
                "that was just made"
            )
        try:
            await volume.propose(BeginReceive(header.snapshot, header.base, time_ns))
        except PosixError as error:
            self._explain(error)
        await volume.barrier()

    async def _check_base(self, header: Header) -> None:
        assert header.base is not None
        base = self._volume.find_received(header.base)
        if base is None:
            raise UsageError(
                f"pool {self._pool} has no copy of the snapshot @{header.base.name} from which this "
                "stream starts: receive a full stream, or one that starts from a snapshot that is there"
            )
        start, changed = b"", False
        while True:
            changed, start = self._volume.has_changed(base, start, _PAGE)
            if changed or not start:
                break
            await trio.lowlevel.checkpoint()
        if changed:
            raise UsageError(
                f"pool {self._pool} has changed since @{base.name}, from which this stream starts: go "
                f"back to it first with 'dwfs snapshot rollback {self._pool}@{base.name}'"
            )

    async def take(self, frame: Frame) -> None:
        """Apply a frame. Raises UsageError, NoSpaceError, DamageError, PosixError."""
        number, last, content = frame
        if not last:
            self._digest = blake2b(
                self._digest + content, digest_size=_DIGEST_SIZE, person=b"dwfs receive"
            ).digest()
        skipped = number < self._resume_at
        if number + 1 == self._resume_at and self._digest != self._resume_digest:
            raise UsageError(
                f"this stream differs from the one that pool {self._pool} has received a part of: pipe "
                f"the same file in again, or begin anew after 'dwfs receive --abort {self._pool}'"
            )
        if last:
            if skipped:
                raise DamageError("the stream ends before the part that was received already")
            self._totals = decode_totals(content)
            return
        batch: list[StateRecord] = []
        for record in decode_records(content):
            if isinstance(record, DataRecord):
                self._data_bytes += len(record.data)
                if not skipped:
                    await self._apply(batch)
                    batch = []
                    await self._store(record)
                continue
            self._records += 1
            batch.append(record)
            if not skipped and len(batch) == RECORDS_MAX:
                await self._apply(batch)
                batch = []
        if not skipped:
            await self._apply(batch)
            self._unmarked += len(content)
            self._next, self._next_digest = number + 1, self._digest
            if self._unmarked >= self._mark_size:
                await self._mark()
        await trio.lowlevel.checkpoint()

    async def pause(self) -> None:
        """Whatever has happened: remember how far it is. Not after `finish`, where it does nothing."""
        unfinished = self._volume.receive_state.unfinished
        if self._unmarked and unfinished is not None and not self._volume.frozen:
            try:
                await self._mark()
            except (DwfsError, PosixError):
                pass  # an earlier mark is good, too

    async def finish(self) -> Snapshot:
        """The last frame was taken and nothing follows it: take the snapshot. Durable on return."""
        totals = self._totals
        assert totals is not None, "the stream was complete"
        if (totals.records, totals.data_bytes) != (self._records, self._data_bytes):
            raise DamageError(
                "the stream does not hold what its end says: it was made by a faulty program"
            )
        try:
            await self._volume.propose(FinishReceive(totals))
        except PosixError as error:
            if error.errno == errno.EIO and not self._volume.frozen:
                raise DamageError(
                    f"what pool {self._pool} has now is not what was sent; give it up with 'dwfs "
                    f"receive --abort {self._pool}' and receive again"
                ) from None
            self._explain(error)
        await self._volume.barrier()
        return self._volume.snapshot(self._name)

    async def _apply(self, batch: list[StateRecord]) -> None:
        if not batch:
            return
        try:
            await self._volume.propose(ReceiveRecords(tuple(batch)))
        except PosixError as error:
            self._explain(error)

    async def _store(self, record: DataRecord) -> None:
        length = len(record.data)
        if not length or record.offset < 0:
            raise DamageError("the stream has data that can't be: it was made by a faulty program")
        try:
            if not self._volume.surely_fits(length):
                fitting = self._volume.next_fitting(record.number, record.offset, length)
                if fitting != (record.offset, length):
                    raise PosixError(errno.EDQUOT)
            await self._data.admit(length)
            fragments = self._data.append(record.number, record.offset, record.data)
            extents, offset = [], record.offset
            for fragment in fragments:
                extents.append(Extent(offset, fragment.length, fragment.stripe, fragment.offset))
                offset += fragment.length
            # No await in between: bytes that nothing refers to may be taken for dead.
            await self._volume.propose(WriteExtents(record.number, tuple(extents), None, None))
        except PosixError as error:
            self._explain(error)

    async def _mark(self) -> None:
        await self._volume.propose(MarkReceived(self._next, self._next_digest))
        try:
            await self._volume.barrier()
        except PosixError as error:
            self._explain(error)
        self._unmarked = 0

    def _explain(self, error: PosixError) -> NoReturn:
        """Raise what the operator should read in the place of an errno."""
        again = "make room and pipe the stream in again: it goes on where it was"
        match error.errno:
            case errno.ENOSPC if len(self._volume.snapshots()) < 2:
                raise NoSpaceError(f"pool {self._pool} is full; {again}") from None
            case errno.ENOSPC:
                raise NoSpaceError(
                    f"pool {self._pool} is full, or has as many snapshots as it can; {again}"
                ) from None
            case errno.EDQUOT:
                raise NoSpaceError(
                    f"the quota of pool {self._pool} is used up; raise it with 'dwfs volume set "
                    f"{self._pool}' and pipe the stream in again: it goes on where it was"
                ) from None
            case errno.EEXIST:
                raise UsageError(
                    f"pool {self._pool} has a snapshot @{self._name} already, and it is not the one "
                    "that this stream brings"
                ) from None
            case errno.EINVAL | errno.ENOENT | errno.EISDIR | errno.EFBIG:
                raise DamageError(
                    f"the stream has something that can't be ({error}): it was made by a faulty program"
                ) from None
            case _:
                raise error


def unfinished_receive(volume: Volume, pool: str) -> PoolBusyError | None:
    """What to raise if the volume is in the middle of a receive, and so of no use to anybody."""
    unfinished = volume.receive_state.unfinished
    if unfinished is None:
        return None
    if unfinished.aborting:
        return PoolBusyError(
            f"the receive of @{unfinished.origin.name} into pool {pool} is being given up: end that with "
            f"'dwfs receive --abort {pool}'"
        )
    return PoolBusyError(
        f"pool {pool} has received only a part of @{unfinished.origin.name}: pipe the stream in again "
        f"with 'dwfs receive {pool}' and it goes on where it was, or give it up with 'dwfs receive "
        f"--abort {pool}'"
    )


async def abort_receive(volume: Volume, pool: str, progress: Progress) -> str:
    """Bring the volume back to what it was before an unfinished receive; says what it did.

    May be interrupted and given again. Raises UsageError if there is nothing to abort.
    """
    unfinished = volume.receive_state.unfinished
    if unfinished is None:
        raise UsageError(f"pool {pool} is receiving nothing")
    if not unfinished.aborting:
        await volume.propose(AbortReceive(False))
        await volume.barrier()
    newest = volume.snapshots()[-1]
    await volume.rollback(newest.name, progress)
    await volume.propose(AbortReceive(True))
    await volume.barrier()
    if newest.name == RECEIVING_NAME:
        return f"pool {pool} is empty again"
    return f"pool {pool} is as it was at @{newest.name} again"

"""`dwfs receive`: a pool that nobody has mounted takes in a stream of `dwfs send`.

An interrupted receive leaves the pool in the middle of it, and the state says how far it is. Then it can
not be mounted, because what is in it is neither the one snapshot nor the other.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from dwfs.errors import NoSpaceError, PosixError, UsageError
from dwfs.limits import MIB
from dwfs.node.assembly import Pool
from dwfs.node.backup_directory import read_header
from dwfs.node.control import Progress
from dwfs.node.credential import Credential
from dwfs.node.disk_administration import services_of
from dwfs.node.stream_answers import ReceiveAnswer
from dwfs.send import Receiver, StreamSecret, abort_receive
from dwfs.send.format import Frame, Header, StreamDecoder

_READ_SIZE: Final = MIB

Read = Callable[[int], Awaitable[bytes]]  # up to so many bytes; none: the end


async def receive_stream(
    pool: Pool, credential: Credential | None, read: Read, progress: Progress
) -> ReceiveAnswer:
    """Receive what `read` gives. On any failure what has come in is kept, and the next call goes on.

    Raises FormatError, DamageError, WrongKeyError, UsageError, PoolBusyError, NoSpaceError.
    """
    services_of(pool)  # or the pool can't be written to
    incoming = _Incoming(read)
    header = await incoming.header()
    protector = None if credential is None else credential.protector()
    secret = StreamSecret(pool.foundation.keys.root, protector)
    try:
        run_blocking = pool.foundation.platform.run_blocking
        incoming.decoder.unlock(await run_blocking(partial(secret.key_for, header)))
    finally:
        secret.wipe()
    frame = await incoming.next_frame()  # before anything changes: it may not even open
    receiver = Receiver(pool.volume, pool.stripes, pool.name)
    await receiver.begin(header, pool.foundation.platform.clock.wall_ns())
    skipped = 0
    try:
        while frame is not None:
            await receiver.take(frame)
            if frame.number < receiver.resumes_at:
                skipped = incoming.size
            await progress(
                {
                    "what": "skipping what is there" if frame.number < receiver.resumes_at else "",
                    "done": incoming.size,
                    "total": header.allocated_bytes if header.base is None else None,
                    "unit": "bytes",
                }
            )
            frame = await incoming.next_frame()
        snapshot = await receiver.finish()
    except PosixError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpaceError(
                f"pool {pool.name} is full: make room and pipe the stream in again, it goes on where "
                "it was"
            ) from None
        raise
    finally:
        with trio.CancelScope(shield=True):
            await receiver.pause()
    return ReceiveAnswer(
        pool.name,
        snapshot.name,
        None if header.base is None else header.base.name,
        incoming.size,
        skipped,
        snapshot.inode_count,
        snapshot.allocated_bytes,
    )


async def receive_files(
    pool: Pool, credential: Credential | None, paths: Sequence[Path], progress: Progress
) -> ReceiveAnswer:
    """Receive a chain of streams, the full one first; those that are here already are passed over.

    Raises as `receive_stream`, UsageError if all are here.
    """
    run_blocking = pool.foundation.platform.run_blocking
    answer: ReceiveAnswer | None = None
    for path in paths:
        header = await run_blocking(partial(read_header, path))
        if pool.volume.find_received(header.snapshot) is not None:
            continue
        with path.open("rb", buffering=0) as file:

            async def read(count: int, file: FileIO = file) -> bytes:
                return await run_blocking(partial(file.read, min(count, _READ_SIZE)))

            received = await receive_stream(pool, credential, read, progress)
        before = 0 if answer is None else answer.stream_bytes
        answer = replace(received, stream_bytes=before + received.stream_bytes)
    if answer is None:
        raise UsageError(
            f"pool {pool.name} has received all of that already: there is nothing to do"
        )
    return answer


async def give_up_receive(pool: Pool, progress: Progress) -> str:
    """Bring the pool back to what it was before an unfinished receive; says what it did."""
    services_of(pool)

    async def tell(done: int, total: int | None) -> None:
        await progress({"what": "going back", "done": done, "total": total})

    return await abort_receive(pool.volume, pool.name, tell)


class _Incoming:
    """A stream as it comes in."""

    def __init__(self, read: Read) -> None:
        self.decoder = StreamDecoder()
        self.size = 0  # bytes that have come
        self._read = read

    async def header(self) -> Header:
        """The header, the first thing that comes."""
        while True:
            header = self.decoder.header()
            if header is not None:
                return header
            await self._fetch()

    async def next_frame(self) -> Frame | None:
        """The next frame; None after the last, once nothing follows it."""
        while not self.decoder.complete:
            frame = self.decoder.next_frame()
            if frame is not None:
                return frame
            await self._fetch()
        self.decoder.feed(await self._read(1))  # raises if there is more
        return None

    async def _fetch(self) -> None:
        piece = await self._read(self.decoder.wanted)
        if not piece:
            self.decoder.end()
        self.size += len(piece)
        self.decoder.feed(piece)

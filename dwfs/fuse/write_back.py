"""Bringing in what the kernel still holds: the dirty pages of a mount that is being served.

With the writeback cache the kernel keeps what was written until it sees fit. `close` brings it in, but
not for a file that somebody has open or has mapped. A snapshot should hold that, too.

syncfs(2) has the kernel send all of it, but does not wait until it has arrived: for FUSE the kernel
calls a page written when its request is queued (until 6.15 because it copies the page, since then
because it doesn't trust the server to answer). These requests go through one queue, first in, first out
(`bg_queue` in fs/fuse/dev.c). Closing a directory goes through the same queue. So the directory that
syncfs was called on is closed, and when *that* request comes in, all writes queued before have come in;
those of them that are still being carried out are then waited for.

Our directory is told from others by the process that opens it: a request carries its caller's id. That
is a child of ours, for which a worker thread waits; one that doesn't come back in time is left to
itself.
"""

from __future__ import annotations

from typing import Final

import trio
from pyfuse3 import RequestContext

from dwfs.fuse import mounting
from dwfs.fuse.operations import DwfsOperations

_ARRIVAL_SECONDS: Final = 10.0  # it waits behind the writes; disks that hang take longer


class WriteBack:
    """One session's. `watch` it before it starts; `run` while it serves."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._turn = trio.Lock()
        self._begun = 0
        self._under_way: dict[int, None] = {}  # numbers of the writes being carried out, rising
        self._ended = trio.lowlevel.ParkingLot()
        self._caller = 0  # the process that opens our directory
        self._handle: int | None = None  # our directory's
        self._arrived = trio.Event()  # the request that closes it

    def watch(self, operations: DwfsOperations) -> None:
        """Look at the requests that matter, on their way to their handlers."""
        write, opendir, releasedir = operations.write, operations.opendir, operations.releasedir

        async def counted_write(fh: int, offset: int, buffer: bytes) -> int:
            self._begun += 1
            number = self._begun
            self._under_way[number] = None
            try:
                return await write(fh, offset, buffer)
            finally:
                del self._under_way[number]
                if self._ended:
                    self._ended.unpark_all()

        async def watched_opendir(inode: int, ctx: RequestContext) -> int:
            handle = await opendir(inode, ctx)
            if ctx.pid == self._caller:
                self._handle = handle
            return handle

        async def watched_releasedir(fh: int) -> None:
            if fh == self._handle:
                self._arrived.set()
            await releasedir(fh)

        # On the instance, as the gateway's wrappers are: pyfuse3 looks handlers up there.
        for name, handler in (
            ("write", counted_write),
            ("opendir", watched_opendir),
            ("releasedir", watched_releasedir),
        ):
            setattr(operations, name, handler)

    async def run(self) -> bool:
        """Return when all that was written before the call has reached the filesystem.

        False: it can't be told whether it has. Cancel it when it takes too long; the kernel then goes
        on with it all the same. Raises OSError.
        """
        async with self._turn:
            self._handle, self._arrived = None, trio.Event()
            try:
                await trio.to_thread.run_sync(self._send, abandon_on_cancel=True)
                # Never set in another pid namespace, where our child has another number.
                with trio.move_on_after(_ARRIVAL_SECONDS):
                    await self._arrived.wait()
            finally:
                self._caller, self._handle = 0, None
            last = self._begun
            while self._under_way and next(iter(self._under_way)) <= last:
                await self._ended.park()
            return self._arrived.is_set()

    def _send(self) -> None:
        """In a worker thread, which waits for a child only (see `mounting.write_back`)."""
        mounting.write_back(self._mountpoint, self._expect)

    def _expect(self, caller: int) -> None:
        self._caller = caller

"""File data: reading, writing, holes and copies.

A file is a map from ranges to stripe bytes; what is not mapped reads as zeros. Reading looks the
range up and asks the stripe layer for each piece, first without waiting. Writing appends the bytes
to the open stripe and then proposes the mapping: bytes first, so that the map never points at
nothing.

The cleaner moves data while we read: between the look-up and the read a stripe may be dropped. A
failed read therefore looks again, and only fails if the map still says the same.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, TypeAlias

import trio

from dwfs.errors import PosixError
from dwfs.limits import FILE_SIZE_MAX, FUSE_WRITE_SIZE_MAX, KIB, MIB, STRIPE_SIZE_MAX
from dwfs.ports import Clock, DataStore
from dwfs.types import Extent, Fragment, InodeNumber, StripeId
from dwfs.vfs.attributes import Attributes, without_set_id
from dwfs.vfs.handles import FileHandle, HandleTable
from dwfs.vfs.readers import Reader, Readers
from dwfs.vfs.references import References
from dwfs.volume.commands import PunchHole, WriteExtents
from dwfs.volume.records import Inode
from dwfs.volume.volume import Volume

READ_AHEAD: Final = 6 * STRIPE_SIZE_MAX  # asked for before a sequential reader needs it
READ_AHEAD_AFTER: Final = 128 * KIB  # bytes in sequence that make a reader sequential
READ_REORDER: Final = MIB  # the kernel's parallel read-ahead may overtake itself by so much
READ_AHEAD_STRIPES_MAX: Final = 8  # a scattered file has many; more would flood the read cache
READ_ATTEMPTS: Final = 3  # the cleaner does not move the same bytes more often within one read
READ_PARALLEL: Final = 8  # pieces of one request read at the same time

FALLOC_KEEP_SIZE: Final = 0x01  # linux/falloc.h
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10

Piece: TypeAlias = tuple[int, StripeId, int, int]  # index in the reply, stripe, offset, length


class Content:
    """Reads and writes the bytes of regular files."""

    def __init__(
        self,
        volume: Volume,
        readers: Readers,
        data: DataStore,
        clock: Clock,
        handles: HandleTable,
        attributes: Attributes,
        references: References,
    ) -> None:
        self._volume = volume
        self._readers = readers
        self._data = data
        self._clock = clock
        self._handles = handles
        self._attributes = attributes
        self._references = references

    # --- reading -------------------------------------------------------------------------------

    async def read(self, handle_number: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file.

        Works with a handle that is open for writing only, too: the kernel uses it to fill the rest
        of a page that is written in part.
        """
        handle = self._handles.file(handle_number)
        number = handle.inode
        reader = handle.reader
        inode = reader.inode(number)
        size = inode.size
        if offset + length > size:
            length = size - offset
            if length <= 0:
                return b""
        if offset + length < size or handle.run_bytes:
            self._read_ahead(handle, offset, offset + length, size)
        extents = reader.extents(number, offset, length)
        content: bytes | None = None
        whole = len(extents) == 1 and extents[0].length == length
        if whole:
            extent = extents[0]
            content = self._data.read_now(extent.stripe, extent.stripe_offset, length)
        if content is None:
            content = await self._read_range(reader, number, offset, length, looked=whole)
            inode = reader.inode(number)
        due = self._attributes.access_due(inode)
        if due is not None:
            await self._attributes.touch(number, due)
        return content

    async def read_inode(self, number: InodeNumber, offset: int, length: int) -> bytes:
        """As `read`, without a handle and without a trace."""
        return await self._read_clipped(self._readers.of(number), number, offset, length)

    async def _read_clipped(
        self, reader: Reader, number: InodeNumber, offset: int, length: int
    ) -> bytes:
        length = min(length, reader.inode(number).size - offset)
        return await self._read_range(reader, number, offset, length) if length > 0 else b""

    async def _read_range(
        self, reader: Reader, number: InodeNumber, offset: int, length: int, *, looked: bool = False
    ) -> bytes:
        """Exactly the bytes, zeros in holes. Raises PosixError EIO if any of them is lost.

        `looked`: the caller has just found that they can't be had without waiting.
        """
        for attempt in range(1, READ_ATTEMPTS + 1):
            extents = reader.extents(number, offset, length)
            try:
                return await self._assemble(extents, offset, length, looked and attempt == 1)
            except PosixError as error:
                if error.errno != errno.EIO or attempt == READ_ATTEMPTS:
                    raise
                if reader.extents(number, offset, length) == extents:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _assemble(
        self, extents: list[Extent], offset: int, length: int, looked: bool
    ) -> bytes:
        parts: list[bytes] = []
        missing: list[Piece] = []
        position = offset
        for extent in extents:
            if extent.offset > position:
                parts.append(bytes(extent.offset - position))
            part = None
            if not looked:
                part = self._data.read_now(extent.stripe, extent.stripe_offset, extent.length)
            if part is None:
                missing.append((len(parts), extent.stripe, extent.stripe_offset, extent.length))
                part = b""
            parts.append(part)
            position = extent.offset + extent.length
        if position < offset + length:
            parts.append(bytes(offset + length - position))
        if len(missing) == 1:
            await self._fetch(missing, parts)
        elif missing:
            await self._fetch_in_parallel(missing, parts)
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        assert len(content) == length, "the data store returns what it was asked for"
        return content

    async def _fetch(self, pieces: list[Piece], parts: list[bytes]) -> None:
        for index, stripe, offset, length in pieces:
            parts[index] = await self._data.read(stripe, offset, length)

    async def _fetch_in_parallel(self, missing: list[Piece], parts: list[bytes]) -> None:
        failures: list[PosixError] = []

        async def fetch(share: list[Piece]) -> None:
            # Kept rather than raised: a nursery would wrap it in a group.
            try:
                await self._fetch(share, parts)
            except PosixError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for first in range(min(READ_PARALLEL, len(missing))):
                nursery.start_soon(fetch, missing[first::READ_PARALLEL])
        if failures:
            raise failures[0]

    def _read_ahead(self, handle: FileHandle, offset: int, end: int, size: int) -> None:
        """Have the stripes after a sequential reader's position read in the background."""
        expected = handle.next_offset
        if expected - READ_REORDER <= offset <= expected + READ_REORDER:
            handle.run_bytes += end - offset
        else:
            handle.run_bytes = 0
            handle.prefetched_to = 0
        handle.next_offset = end
        start = max(end, handle.prefetched_to)
        # Ask in steps of half the window: often enough to stay ahead, seldom enough to be free.
        if handle.run_bytes < READ_AHEAD_AFTER or start >= min(end + READ_AHEAD // 2, size):
            return
        stop = min(end + READ_AHEAD, size)
        seen: set[StripeId] = set()
        for extent in handle.reader.extents(handle.inode, start, stop - start):
            if extent.stripe not in seen:
                if len(seen) == READ_AHEAD_STRIPES_MAX:
                    break
                seen.add(extent.stripe)
                self._data.prefetch(extent.stripe)
        handle.prefetched_to = stop

    # --- writing -------------------------------------------------------------------------------

    async def write(
        self, handle_number: int, offset: int, content: bytes | memoryview, *, times: bool = True
    ) -> int:
        """Write all of `content`; returns its length.

        `times`: also set mtime and ctime. False where the kernel keeps them and sends them by itself
        (FUSE with writeback cache). A write through a handle that was opened without privilege
        clears set-user-id.
        """
        handle = self._handles.file(handle_number)
        if not handle.writable:
            raise PosixError(errno.EBADF)
        if handle.append:
            async with self._handles.append_lock(handle.inode):
                offset = self._volume.inode(handle.inode).size
                await self._write_range(handle, offset, content, times=times)
        else:
            await self._write_range(handle, offset, content, times=times)
        if handle.synchronous:
            await self._volume.barrier()
        return len(content)

    async def _write_range(
        self, handle: FileHandle, offset: int, content: bytes | memoryview, *, times: bool
    ) -> None:
        length = len(content)
        if offset < 0:
            raise PosixError(errno.EINVAL)
        if offset + length > FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG)
        if length <= FUSE_WRITE_SIZE_MAX:
            if length:
                await self._write_piece(handle, offset, content, times=times)
            return
        view = memoryview(content)
        for start in range(0, length, FUSE_WRITE_SIZE_MAX):
            piece = view[start : start + FUSE_WRITE_SIZE_MAX]
            await self._write_piece(handle, offset + start, piece, times=times)

    async def _write_piece(
        self, handle: FileHandle, offset: int, content: bytes | memoryview, *, times: bool
    ) -> None:
        await self._data.admit(len(content))
        # no await from here until the bytes are appended: what fits now may not fit later
        if self._volume.surely_fits(len(content)):
            try:
                await self._append(handle, offset, content, times=times)
            except PosixError as error:
                if error.errno != errno.EDQUOT:
                    raise
            else:
                return
        await self._write_what_fits(handle, offset, memoryview(content), times=times)

    async def _write_what_fits(
        self, handle: FileHandle, offset: int, content: memoryview, *, times: bool
    ) -> None:
        """Near the quota: write those parts that it lets pass, then raise EDQUOT if there are others.

        Looked at before anything is appended: bytes that no file maps would take room all the same.
        The machine has the last word. It refuses what it was asked for too late, after others who
        waited for the same commit: then there is less room, and we look again.
        """
        volume, number = self._volume, handle.inode
        end = offset + len(content)
        if volume.next_fitting(number, offset, len(content)) != (offset, len(content)):
            await self._references.relieve()
        position, whole = offset, True
        while position < end:
            # no await until the part is appended
            part = volume.next_fitting(number, position, end - position)
            if part is None:
                whole = False
                break
            start, length = part
            piece = content[start - offset : start - offset + length]
            try:
                await self._append(handle, start, piece, times=times)
            except PosixError as error:
                if error.errno != errno.EDQUOT:
                    raise
                continue
            whole = whole and start == position
            position = start + length
        if not whole:
            raise PosixError(errno.EDQUOT)

    async def _append(
        self, handle: FileHandle, offset: int, content: bytes | memoryview, *, times: bool
    ) -> None:
        """Store the bytes and map them. The caller has been admitted."""
        number = handle.inode
        fragments = self._data.append(number, offset, content)
        now = self._clock.wall_ns() if times else None
        mode = None if handle.privileged else _mode_after_write(self._volume.inode(number))
        if len(fragments) == 1:
            stripe, start, length = fragments[0].stripe, fragments[0].offset, fragments[0].length
            extents: tuple[Extent, ...] = (Extent(offset, length, stripe, start),)
        else:
            extents = tuple(_mapped(offset, fragments))
        await self._volume.propose(WriteExtents(number, extents, now, mode))

    async def fsync(self, handle_number: int) -> None:
        """fsync(2) and fdatasync(2): all that was done before is durable when it returns."""
        self._handles.file(handle_number)
        await self._volume.barrier()

    # --- space ---------------------------------------------------------------------------------

    async def fallocate(self, handle_number: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2): allocation, FALLOC_FL_KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE.

        Nothing is ever overwritten in place, so there is nothing to reserve: allocating only moves
        the end of the file.
        """
        handle = self._handles.file(handle_number)
        if not handle.writable:
            raise PosixError(errno.EBADF)
        if offset < 0 or length <= 0:
            raise PosixError(errno.EINVAL)
        if offset + length > FILE_SIZE_MAX:
            raise PosixError(errno.EFBIG)
        keep_size = bool(mode & FALLOC_KEEP_SIZE)
        operation = mode & ~FALLOC_KEEP_SIZE
        if operation not in (0, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE) or (
            operation == FALLOC_PUNCH_HOLE and not keep_size
        ):
            raise PosixError(errno.EOPNOTSUPP)
        inode = self._volume.inode(handle.inode)
        if not stat.S_ISREG(inode.mode):
            raise PosixError(errno.ENODEV)
        grows = not keep_size and offset + length > inode.size
        if operation:
            await self._volume.punch_hole(
                PunchHole(handle.inode, offset, length, self._clock.wall_ns())
            )
        if grows:
            await self._attributes.setattr(handle.inode, size=offset + length)

    def seek(self, handle_number: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE. Raises PosixError ENXIO past the end."""
        handle = self._handles.file(handle_number)
        number, reader = handle.inode, handle.reader
        size = reader.inode(number).size
        if not 0 <= offset < size:
            raise PosixError(errno.ENXIO)
        if whence == os.SEEK_HOLE:
            return min(reader.next_hole(number, offset), size)
        if whence != os.SEEK_DATA:
            raise PosixError(errno.EINVAL)
        found = reader.next_data(number, offset)
        if found is None or found >= size:
            raise PosixError(errno.ENXIO)
        return found

    async def copy_range(
        self, source: int, source_offset: int, target: int, target_offset: int, length: int
    ) -> int:
        """copy_file_range(2): returns the bytes copied, fewer at the source's end."""
        handle = self._handles.file(source)
        if not handle.readable:
            raise PosixError(errno.EBADF)
        if handle.inode == self._handles.file(target).inode and (
            abs(source_offset - target_offset) < length
        ):
            raise PosixError(errno.EINVAL)
        copied = 0
        while copied < length:
            step = min(FUSE_WRITE_SIZE_MAX, length - copied)
            content = await self._read_clipped(
                handle.reader, handle.inode, source_offset + copied, step
            )
            if not content:
                break
            await self.write(target, target_offset + copied, content)
            copied += len(content)
        return copied


def _mapped(offset: int, fragments: list[Fragment]) -> Iterator[Extent]:
    """Extents that map consecutive file bytes from `offset` to the fragments."""
    for fragment in fragments:
        yield Extent(offset, fragment.length, fragment.stripe, fragment.offset)
        offset += fragment.length


def _mode_after_write(inode: Inode) -> int | None:
    """Permission bits to set because of an unprivileged write, or None."""
    mode = without_set_id(inode.mode)
    return None if mode == inode.mode else mode & 0o7777

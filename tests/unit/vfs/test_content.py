"""Bytes: reading, writing, holes, and what may go wrong with them."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.limits import FILE_SIZE_MAX
from dwfs.types import ROOT_INODE, Extent, InodeNumber, StripeId
from dwfs.vfs import SYSTEM
from dwfs.vfs.content import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from dwfs.volume.commands import Relocate
from tests.unit.vfs.small_pool import STRIPE_SIZE, SmallPool, small_pool


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        content = random.Random(1).randbytes(5 * STRIPE_SIZE + 123)
        number = await pool.file(b"f", content)
        handle = await pool.open(number)
        assert await pool.fs.read(handle, 0, len(content)) == content
        assert await pool.fs.read(handle, 1000, STRIPE_SIZE) == content[1000 : 1000 + STRIPE_SIZE]


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 100, b"abc"), (1, 1, b"b"), (2, 5, b"c"), (3, 1, b""), (100, 1, b""), (0, 0, b"")],
)
async def test_reads_end_at_the_end(
    tmp_path: Path, offset: int, length: int, expected: bytes
) -> None:
    async with small_pool(tmp_path) as pool:
        handle = await pool.open(await pool.file(b"f", b"abc"))
        assert await pool.fs.read(handle, offset, length) == expected


async def test_holes_read_as_zeros(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        handle = await pool.open(number)
        await pool.fs.write(handle, 10, b"middle")
        await pool.fs.write(handle, 30, b"end")
        expected = bytes(10) + b"middle" + bytes(14) + b"end"
        assert await pool.content(number) == expected
        assert await pool.fs.read(handle, 0, 8) == bytes(8)
        await pool.fs.setattr(number, size=40)
        assert await pool.content(number) == expected + bytes(7)
        assert pool.inode(number).allocated_bytes == 9


async def test_what_a_truncation_cut_off_does_not_come_back(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"secret")
        await pool.fs.setattr(number, size=2)
        await pool.fs.setattr(number, size=6)
        assert await pool.content(number) == b"se" + bytes(4)


async def test_a_random_history_matches_a_byte_array(tmp_path: Path, seed: int) -> None:
    async with small_pool(tmp_path) as pool:
        chance = random.Random(seed)
        number = await pool.file(b"f")
        handle = await pool.open(number)
        model = bytearray()
        for _ in range(300):
            offset, length = chance.randrange(3 * STRIPE_SIZE), chance.randrange(1, STRIPE_SIZE)
            kind = chance.choice(("write", "write", "truncate", "punch", "read"))
            if kind == "write":
                content = chance.randbytes(length)
                await pool.fs.write(handle, offset, content)
                model.extend(bytes(max(0, offset + length - len(model))))
                model[offset : offset + length] = content
            elif kind == "truncate":
                await pool.fs.setattr(number, size=offset)
                model = model[:offset] + bytes(max(0, offset - len(model)))
            elif kind == "punch":
                mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
                await pool.fs.fallocate(handle, mode, offset, length)
                end = min(offset + length, len(model))
                model[offset:end] = bytes(max(0, end - offset))
            else:
                assert await pool.fs.read(handle, offset, length) == model[offset : offset + length]
        assert await pool.content(number) == model


async def test_appends_of_many_handles_do_not_overlap(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        pieces = [bytes([65 + i]) * 10 for i in range(20)]

        async def append(piece: bytes) -> None:
            handle = await pool.open(number, os.O_WRONLY | os.O_APPEND)
            await pool.fs.write(handle, 0, piece)
            pool.fs.release(handle)

        async with trio.open_nursery() as nursery:
            for piece in pieces:
                nursery.start_soon(append, piece)
        content = await pool.content(number)
        assert sorted(content[i : i + 10] for i in range(0, 200, 10)) == pieces


async def test_synchronous_handles_reach_the_log(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        handle = await pool.open(number, os.O_WRONLY | os.O_DSYNC)
        before = pool.log.records
        await pool.fs.write(handle, 0, b"x")
        assert pool.log.records == before + 1
        plain = await pool.open(number)
        await pool.fs.write(plain, 0, b"y")
        assert pool.log.records == before + 1
        await pool.fs.fsync(plain)
        assert pool.log.records == before + 2


async def test_writes_set_times_unless_the_kernel_does(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        handle = await pool.open(number)
        before = pool.inode(number).mtime_ns
        await pool.fs.write(handle, 0, b"x", times=False)
        assert pool.inode(number).mtime_ns == before
        await pool.fs.write(handle, 0, b"x")
        assert pool.inode(number).mtime_ns == pool.inode(number).ctime_ns > before


@pytest.mark.parametrize(
    ("offset", "code"),
    [(FILE_SIZE_MAX, errno.EFBIG), (2**64, errno.EFBIG), (-1, errno.EINVAL)],
)
async def test_offsets_that_cannot_be(tmp_path: Path, offset: int, code: int) -> None:
    async with small_pool(tmp_path) as pool:
        handle = await pool.open(await pool.file(b"f"))
        with pytest.raises(PosixError) as caught:
            await pool.fs.write(handle, offset, b"x")
        assert caught.value.errno == code


async def test_a_full_pool_refuses_writes_and_allows_removal(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"old")
        handle = await pool.open(number)
        pool.data.full = True
        with pytest.raises(PosixError) as caught:
            await pool.fs.write(handle, 0, b"new")
        assert caught.value.errno == errno.ENOSPC
        assert await pool.content(number) == b"old"
        await pool.fs.unlink(ROOT_INODE, b"f")


async def test_handles_know_what_they_are_for(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"abc")
        reader = await pool.open(number, os.O_RDONLY)
        writer = await pool.open(number, os.O_WRONLY)
        with pytest.raises(PosixError):
            await pool.fs.write(reader, 0, b"x")
        # The kernel completes partly written pages through any handle that it has.
        assert await pool.fs.read(writer, 0, 3) == b"abc"
        pool.fs.release(reader)
        for handle in (reader, 99):
            with pytest.raises(PosixError) as caught:
                await pool.fs.read(handle, 0, 1)
            assert caught.value.errno == errno.EBADF


async def scattered(pool: SmallPool) -> tuple[InodeNumber, bytes]:
    """A file whose every 1000 bytes lie in stripes that can't be read at once."""
    number = await pool.file(b"f")
    other = await pool.open(await pool.file(b"other"))
    handle = await pool.open(number)
    content = random.Random(2).randbytes(20_000)
    for offset in range(0, len(content), 1000):
        await pool.fs.write(handle, offset, content[offset : offset + 1000])
        await pool.fs.write(other, 0, bytes(STRIPE_SIZE - 1000))
    pool.data.cold = set(pool.data.stripes)
    return number, content


async def test_pieces_are_fetched_and_put_in_order(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number, content = await scattered(pool)
        assert await pool.content(number) == content


async def test_lost_bytes_are_an_error_and_others_are_not(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number, content = await scattered(pool)
        handle = await pool.open(number)
        pool.data.lost = {pool.volume.extents(number, 5000, 1)[0].stripe}
        with pytest.raises(PosixError) as caught:
            await pool.fs.read(handle, 0, len(content))
        assert caught.value.errno == errno.EIO
        assert await pool.fs.read(handle, 0, 4000) == content[:4000]
        assert await pool.fs.read(handle, 6000, 9999) == content[6000:15999]


async def test_a_stripe_that_was_cleaned_meanwhile_is_looked_up_again(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"content")
        old = pool.volume.extents(number, 0, 7)[0]
        pool.data.lost = {old.stripe}
        read = pool.data.read

        async def clean_then_fail(stripe: StripeId, offset: int, length: int) -> bytes:
            if stripe == old.stripe:
                new = StripeId(b"n" * 16)
                pool.data.stripes[new] = bytearray(b"content")
                moved = (Extent(0, 7, new, 0),)
                await pool.volume.propose(
                    Relocate(number, 0, 7, old.stripe, old.stripe_offset, moved)
                )
            return await read(stripe, offset, length)

        pool.data.read = clean_then_fail  # type: ignore[method-assign]  # the cleaner's race
        handle = await pool.open(number)
        assert await pool.fs.read(handle, 0, 7) == b"content"


async def test_sequential_readers_are_read_ahead_for(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", bytes(20 * STRIPE_SIZE))
        handle = await pool.open(number)
        for offset in range(0, 4 * STRIPE_SIZE, STRIPE_SIZE):
            await pool.fs.read(handle, offset, STRIPE_SIZE)
        ahead = [extent.stripe for extent in pool.volume.extents(number, 0, 10 * STRIPE_SIZE)]
        assert pool.data.prefetched[:6] == ahead[2:8]


async def test_random_readers_are_not_read_ahead_for(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", bytes(100 * STRIPE_SIZE))
        handle = await pool.open(number)
        for place in (50, 3, 80, 20, 99, 0, 60):
            await pool.fs.read(handle, place * STRIPE_SIZE, 4096)
        assert pool.data.prefetched == []


async def test_seek_finds_data_and_holes(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f")
        handle = await pool.open(number)
        await pool.fs.write(handle, 100, b"x" * 50)
        await pool.fs.setattr(number, size=300)
        seek = pool.fs.seek
        assert seek(handle, 0, os.SEEK_HOLE) == 0
        assert seek(handle, 0, os.SEEK_DATA) == 100
        assert seek(handle, 120, os.SEEK_DATA) == 120
        assert seek(handle, 120, os.SEEK_HOLE) == 150
        for offset, whence in ((200, os.SEEK_DATA), (300, os.SEEK_HOLE), (-1, os.SEEK_DATA)):
            with pytest.raises(PosixError) as caught:
                seek(handle, offset, whence)
            assert caught.value.errno == errno.ENXIO


async def test_fallocate(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        number = await pool.file(b"f", b"0123456789")
        handle = await pool.open(number)
        fallocate = pool.fs.fallocate
        await fallocate(handle, FALLOC_KEEP_SIZE, 0, 100)
        assert pool.inode(number).size == 10
        await fallocate(handle, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 2, 3)
        assert await pool.content(number) == b"01\0\0\x0056789"
        await fallocate(handle, FALLOC_ZERO_RANGE, 8, 4)
        assert await pool.content(number) == b"01\0\0\x00567\0\0\0\0"
        await fallocate(handle, 0, 0, 20)
        assert pool.inode(number).size == 20
        for mode, offset, length, code in (
            (FALLOC_PUNCH_HOLE, 0, 1, errno.EOPNOTSUPP),
            (0x08, 0, 1, errno.EOPNOTSUPP),
            (0, 0, 0, errno.EINVAL),
            (0, FILE_SIZE_MAX, 1, errno.EFBIG),
        ):
            with pytest.raises(PosixError) as caught:
                await fallocate(handle, mode, offset, length)
            assert caught.value.errno == code


async def test_copy_range(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        content = random.Random(3).randbytes(2 * STRIPE_SIZE)
        source = await pool.open(await pool.file(b"a", content))
        number = await pool.file(b"b")
        target = await pool.open(number)
        assert await pool.fs.copy_range(source, 1000, target, 10, 10 * STRIPE_SIZE) == (
            len(content) - 1000
        )
        assert await pool.content(number) == bytes(10) + content[1000:]
        with pytest.raises(PosixError):
            await pool.fs.copy_range(source, 0, source, 10, 100)


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    async with small_pool(tmp_path) as pool:
        with pytest.raises(PosixError) as caught:
            await pool.fs.open(ROOT_INODE, os.O_RDONLY, SYSTEM)
        assert caught.value.errno == errno.EISDIR
        assert pool.fs.open_handles == 0

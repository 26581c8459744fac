"""Reading sealed stripes: from the read-ahead cache, the page cache, one disk, or k others.

`read_now` never waits: it serves what the caches hold. `read` asks the disk that has the shard
and, when that fails in any way or takes too long, rebuilds the very sectors that are wanted. Every byte that is
returned has passed its sector's AEAD tag under the stripe's own key, so no source is trusted.

That gives the *stored* bytes, which are the plaintext unless the stripe is compressed; then
`expanding` asks for the stored bytes that it needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from errno import EIO
from functools import partial

import trio

from dwfs.errors import AuthenticationError, PosixError
from dwfs.limits import (
    AEAD_TAG_SIZE,
    FUSE_WRITE_SIZE_MAX,
    SECTOR_CACHE_ENTRIES,
    SECTOR_SIZE,
    STRIPE_CIPHER_CACHE_ENTRIES,
)
from dwfs.ports import ShardFault
from dwfs.stripe.cache import ReadAheadCache
from dwfs.stripe.expanding import FrameExpander
from dwfs.stripe.gather import ShardGatherer
from dwfs.stripe.hedge import Answer
from dwfs.stripe.layout import Run
from dwfs.stripe.opened import OpenedStripe
from dwfs.stripe.sealing import BufferPool, CipherFactory, ThreadRunner
from dwfs.types import StripeId, StripeSeal


class StripeReader:
    """Plaintext of sealed stripes."""

    def __init__(
        self,
        gatherer: ShardGatherer,
        cache: ReadAheadCache,
        cipher_of: CipherFactory,
        seal_of: Callable[[StripeId], StripeSeal | None],
        threads: ThreadRunner,
    ) -> None:
        self._gatherer = gatherer
        self._cache = cache
        self._cipher_of = cipher_of
        self._seal_of = seal_of
        self._opened: OrderedDict[StripeId, OpenedStripe] = OrderedDict()
        self._sectors: OrderedDict[tuple[StripeId, int], bytes] = OrderedDict()
        # Sectors are opened into memory that has been touched before, then copied out once.
        self._buffers = BufferPool(FUSE_WRITE_SIZE_MAX + 2 * SECTOR_SIZE, keep=2)
        self._expander = FrameExpander(threads, self._stored_now, self._read_stored)
        self.rebuilt_runs = 0  # reads that needed other shards

    def forget(self, stripe: StripeId) -> None:
        """The stripe is gone or has moved; drop all that is known of it."""
        self._opened.pop(stripe, None)
        self._cache.forget(stripe)
        for key in [key for key in self._sectors if key[0] == stripe]:
            del self._sectors[key]
        self._expander.forget(stripe)

    def release_idle(self) -> None:
        """Drop what is only kept for speed and takes much memory."""
        self._cache.clear()
        self._sectors.clear()
        self._expander.clear()
        self._buffers.drop()

    def prefetch(self, stripe: StripeId) -> None:
        """Fetch the whole stripe in the background."""
        opened = self._open(stripe)
        if opened is not None:
            self._cache.prefetch(opened)

    def read_now(self, stripe: StripeId, offset: int, length: int) -> bytes | None:
        """Plaintext, if no disk has to be waited for."""
        opened = self._opened.get(stripe) or self._open(stripe)
        if opened is None or not opened.covers(offset, length):
            return None
        if opened.frames is not None:
            return self._expander.read_now(opened, opened.frames, offset, length)
        return self._stored_now(opened, offset, length)

    async def read(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """Plaintext. Raises PosixError EIO if redundancy can't give it."""
        opened = self._open(stripe)
        if opened is None:
            raise PosixError(EIO, f"stripe {stripe.hex()} is unknown")
        if not opened.covers(offset, length):
            raise PosixError(EIO, f"stripe {stripe.hex()} has no bytes at {offset}+{length}")
        if opened.frames is not None:
            return await self._expander.read(opened, opened.frames, offset, length)
        return await self._read_stored(opened, offset, length)

    async def read_stored(self, stripe: StripeId, offset: int, length: int) -> bytes:
        """As `read`, of the bytes that were sealed."""
        opened = self._open(stripe)
        if opened is None:
            raise PosixError(EIO, f"stripe {stripe.hex()} is unknown")
        if not opened.layout.covers(offset, length):
            raise PosixError(EIO, f"stripe {stripe.hex()} stores no bytes at {offset}+{length}")
        return await self._read_stored(opened, offset, length)

    # --- bytes as they were sealed -----------------------------------------------------------

    def _stored_now(self, opened: OpenedStripe, offset: int, length: int) -> bytes | None:
        stripe = opened.seal.stripe
        sector_size = opened.layout.sector_size
        first, last = offset // sector_size, (offset + length - 1) // sector_size
        if first == last:
            kept = self._sectors.get((stripe, first))
            if kept is not None:
                start = offset - first * sector_size
                return kept[start : start + length]
        cached = self._cache.get(stripe)
        buffer = self._buffers.take((last - first + 1) * sector_size)
        out = memoryview(buffer)
        try:
            for run in opened.layout.runs(first, last):
                piece = out[(run.sector - first) * sector_size :]
                views = None if cached is None else cached.sealed(run.shard, run.offset, run.length)
                if views is not None:
                    open_sectors(opened, run, views, piece)
                    continue
                raw = self._gatherer.fetch_cached(opened, run.shard, run.offset, run.length)
                if raw is None:
                    raw = self._gatherer.rebuild_cached(opened, run.shard, run.offset, run.length)
                if raw is None:
                    return None
                open_sectors(opened, run, (memoryview(raw),), piece)
            return self._cut(opened, first, last, out, offset, length)
        except AuthenticationError:
            return None  # the waiting path meets it too, reports it and rebuilds
        finally:
            self._buffers.give(buffer)

    async def _read_stored(self, opened: OpenedStripe, offset: int, length: int) -> bytes:
        stripe = opened.seal.stripe
        sector_size = opened.layout.sector_size
        first, last = offset // sector_size, (offset + length - 1) // sector_size
        runs = opened.layout.runs(first, last)
        failed: list[Run] = []
        buffer = self._buffers.take((last - first + 1) * sector_size)
        out = memoryview(buffer)

        async def read_one(run: Run) -> None:
            if not await self._read_run(opened, run, out[(run.sector - first) * sector_size :]):
                failed.append(run)

        try:
            if len(runs) == 1:
                await read_one(runs[0])
            else:
                async with trio.open_nursery() as nursery:
                    for run in runs:
                        nursery.start_soon(read_one, run)
            if failed:
                raise PosixError(EIO, f"stripe {stripe.hex()} has lost more than its parity")
            return self._cut(opened, first, last, out, offset, length)
        finally:
            self._buffers.give(buffer)

    def _cut(
        self, opened: OpenedStripe, first: int, last: int, out: memoryview, offset: int, length: int
    ) -> bytes:
        """Bytes [offset, offset+length) of the sectors `first` to `last` in `out`."""
        layout = opened.layout
        base = first * layout.sector_size
        end = offset + length
        sector_end = min((last + 1) * layout.sector_size, layout.length)
        if end < sector_end:
            # A reader that stops within a sector is likely to come back for the rest of it.
            kept = bytes(out[last * layout.sector_size - base : sector_end - base])
            self._sectors[opened.seal.stripe, last] = kept
            if len(self._sectors) > SECTOR_CACHE_ENTRIES:
                self._sectors.popitem(last=False)
        return bytes(out[offset - base : end - base])

    async def _read_run(self, opened: OpenedStripe, run: Run, out: memoryview) -> bool:
        """Put the sectors of one run into `out`, from wherever they can be had."""
        cached = self._cache.get(opened.seal.stripe)
        if cached is not None:
            await cached.ready[run.shard].wait()
            views = cached.sealed(run.shard, run.offset, run.length)
            if views is not None:
                if opens(opened, run, views, out):
                    return True
                self._cache.forget(opened.seal.stripe)
        answer = await self._gatherer.fetch_first(
            opened, run.shard, run.offset, run.length, partial(accepts, opened, run, out)
        )
        if answer is Answer.ACCEPTED:
            return True
        if answer is Answer.REFUSED:
            if run.sectors > 1:
                return await self._read_sectors(opened, run, out)
            self._gatherer.report(opened, run.shard, ShardFault.ROTTEN)
        return await self._rebuild_run(opened, run, out)

    async def _read_sectors(self, opened: OpenedStripe, run: Run, out: memoryview) -> bool:
        """The run sector by sector: damage in one place must not cost what can be had elsewhere."""
        layout = opened.layout
        for index in range(run.sectors):
            sector = run.sector + index
            offset = run.offset + index * layout.sealed_size
            single = Run(run.shard, sector, 1, offset, layout.sealed_span(sector, 1))
            if not await self._read_run(opened, single, out[index * layout.sector_size :]):
                return False
        return True

    async def _rebuild_run(self, opened: OpenedStripe, run: Run, out: memoryview) -> bool:
        stripe = opened.seal.stripe
        current = self._seal_of(stripe)
        if current is not None and current.placement != opened.seal.placement:
            # Repair has moved shards since the stripe was opened: what failed was the old place.
            self.forget(stripe)
            fresh = self._open(stripe)
            assert fresh is not None, "the catalog has just answered"
            return await self._read_run(fresh, run, out)
        self.rebuilt_runs += 1
        for checked in (False, True):
            rebuilt = await self._gatherer.rebuild(
                opened, [run.shard], run.offset, run.length, checked=checked
            )
            if rebuilt is None:
                continue
            if opens(opened, run, (memoryview(rebuilt[0]),), out):
                return True
            if run.sectors > 1:
                return await self._read_sectors(opened, run, out)
            # A source is bad; the checked round finds out which.
        return False

    def _open(self, stripe: StripeId) -> OpenedStripe | None:
        opened = self._opened.get(stripe)
        if opened is not None:
            self._opened.move_to_end(stripe)
            return opened
        seal = self._seal_of(stripe)
        if seal is None:
            return None
        cipher = self._cipher_of(stripe, seal.salt, seal.key_version)
        opened = self._opened[stripe] = OpenedStripe(seal, cipher)
        if len(self._opened) > STRIPE_CIPHER_CACHE_ENTRIES:
            self._opened.popitem(last=False)
        return opened


def open_sectors(
    opened: OpenedStripe, run: Run, views: Sequence[memoryview], out: memoryview
) -> None:
    """Put the plaintext of the run's sectors into the front of `out`.

    Raises AuthenticationError; `out` must not be used then.
    """
    size = opened.layout.sealed_size
    sector_size = opened.layout.sector_size
    open_into = opened.cipher.open_sector_into
    number = run.sector
    target = 0
    for view in views:
        for position in range(0, len(view), size):
            sealed = view[position : position + size]
            open_into(number, sealed, out[target : target + len(sealed) - AEAD_TAG_SIZE])
            number += 1
            target += sector_size


def opens(opened: OpenedStripe, run: Run, views: Sequence[memoryview], out: memoryview) -> bool:
    """As `open_sectors`; says whether all sectors were authentic."""
    try:
        open_sectors(opened, run, views, out)
    except AuthenticationError:
        return False
    return True


def accepts(opened: OpenedStripe, run: Run, out: memoryview, raw: bytes) -> bool:
    """As `opens`, of bytes in one piece."""
    return opens(opened, run, (memoryview(raw),), out)

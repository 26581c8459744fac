"""Reading shards from disks, and rebuilding the bytes of those that can't be read.

The code works column by column: byte j of any shard depends only on byte j of k others. A small
read of a lost shard therefore fetches the same few sectors of k other shards, not the stripe.

First round, *quick*: unchecked reads; the AEAD tags of the rebuilt sectors tell whether all the
sources were sound. If they don't open, the second round, *checked*, reads whole shards through
the store's checksum and compares their headers, which finds the bad source, reports it and uses
another. What fails then is beyond redundancy.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from dwfs.errors import MediumError, ShardDamagedError, ShardMissingError
from dwfs.limits import CODING_INLINE_MAX, SEALED_SECTOR_SIZE
from dwfs.ports import DiskListing, ErasureCoder
from dwfs.stripe.layout import StripeLayout, layout_of
from dwfs.stripe.sealing import StripeCipher, ThreadRunner
from dwfs.stripe.shard_header import decode_header
from dwfs.types import DiskId, Geometry, ShardKey, StripeId, StripeSeal

READ_PIECE = 64 * SEALED_SECTOR_SIZE  # one disk request of a sequential read: 1 MiB of sectors


class DamageKind(enum.Enum):
    """What was found to be wrong with a shard."""

    MISSING = "missing"
    DAMAGED = "damaged"


class Damage(NamedTuple):
    """A shard that should be there and sound, but is not."""

    stripe: StripeId
    shard: int
    disk: DiskId
    kind: DamageKind


DamageObserver = Callable[[Damage], None]


class OpenedStripe:
    """A sealed stripe made ready for reading."""

    __slots__ = ("cipher", "keys", "layout", "seal")

    def __init__(self, seal: StripeSeal, cipher: StripeCipher) -> None:
        self.seal = seal
        self.cipher = cipher
        self.layout: StripeLayout = layout_of(seal)
        self.keys = tuple(ShardKey(seal.stripe, shard) for shard in range(self.layout.total))


class ShardGatherer:
    """Fetches shard ranges; rebuilds them from k others.

    `coder` is the one of the pool's present geometry; `coder_of` makes those of earlier ones.
    """

    def __init__(
        self,
        disks: DiskListing,
        coder: ErasureCoder,
        coder_of: Callable[[Geometry], ErasureCoder],
        threads: ThreadRunner,
        on_damage: DamageObserver,
    ) -> None:
        self._disks = disks
        self._coder_of = coder_of
        self._coders = {
            coder.geometry: coder
        }  # making one takes a self-test: fractions of a second
        self._threads = threads
        self.on_damage = on_damage

    def report(self, opened: OpenedStripe, shard: int, kind: DamageKind) -> None:
        """Tell the observer of a bad shard."""
        disk = opened.seal.placement[shard]
        self.on_damage(Damage(opened.seal.stripe, shard, disk, kind))

    def fetch_cached(
        self, opened: OpenedStripe, shard: int, offset: int, length: int
    ) -> bytes | None:
        """Exactly `length` bytes if the page cache has them; unchecked."""
        disk = opened.seal.placement[shard]
        store = self._disks.get(disk) if disk else None
        if store is None:
            return None
        try:
            raw = store.read_cached(opened.keys[shard], offset, length)
        except ShardMissingError:
            return None  # the waiting path meets it too, and reports
        except MediumError as error:
            self._disks.failed(error, disk)
            return None
        return raw if raw is not None and len(raw) == length else None

    async def fetch(
        self, opened: OpenedStripe, shard: int, offset: int, length: int
    ) -> bytes | None:
        """Exactly `length` bytes, unchecked, or None if the disk can't give them."""
        disk = opened.seal.placement[shard]
        store = self._disks.get(disk) if disk else None
        if store is None:
            return None
        try:
            raw = await store.read(opened.keys[shard], offset, length)
        except ShardMissingError:
            self.report(opened, shard, DamageKind.MISSING)
        except ShardDamagedError:
            self.report(opened, shard, DamageKind.DAMAGED)
        except MediumError as error:
            self._disks.failed(error, disk)
        else:
            if len(raw) == length:
                return raw
            self.report(opened, shard, DamageKind.DAMAGED)
        return None

    async def fetch_checked(self, opened: OpenedStripe, shard: int) -> bytes | None:
        """The whole payload, verified by checksum and header, or None."""
        disk = opened.seal.placement[shard]
        store = self._disks.get(disk) if disk else None
        if store is None:
            return None
        try:
            header, payload = await store.read_verified(opened.keys[shard])
        except ShardMissingError:
            self.report(opened, shard, DamageKind.MISSING)
            return None
        except ShardDamagedError:
            self.report(opened, shard, DamageKind.DAMAGED)
            return None
        except MediumError as error:
            self._disks.failed(error, disk)
            return None
        known = decode_header(header)
        if (
            known is None
            or known.salt != opened.seal.salt
            or known.number != shard
            or len(payload) != opened.layout.payload_length(shard)
        ):
            self.report(opened, shard, DamageKind.DAMAGED)
            return None
        return payload

    async def rebuild(
        self,
        opened: OpenedStripe,
        wanted: Sequence[int],
        offset: int,
        length: int,
        *,
        checked: bool = False,
        known: dict[int, memoryview] | None = None,
    ) -> list[bytes] | None:
        """Bytes [offset, offset+length) of the shards `wanted`, as if padded with zeros.

        Rebuilt from k others, of which `known` may already be at hand (padded to `length`).
        None if fewer than k can be had. With `checked`, sources are verified first.
        """
        data = opened.layout.data
        present: dict[int, memoryview] = dict(known or {})
        left = [s for s in range(opened.layout.total) if s not in wanted and s not in present]
        # Shards without a byte in the range are known to be zeros: they cost nothing.
        left.sort(key=lambda shard: opened.layout.payload_length(shard) > offset)
        while len(present) < data:
            if not left:
                return None
            batch, left = left[: data - len(present)], left[data - len(present) :]
            await self._gather(opened, batch, offset, length, checked, present)
        coder = self._coder(opened.seal.geometry)
        if data * length > CODING_INLINE_MAX:
            return await self._threads.run(coder.decode, present, list(wanted), length)
        return coder.decode(present, list(wanted), length)

    async def _gather(
        self,
        opened: OpenedStripe,
        batch: Sequence[int],
        offset: int,
        length: int,
        checked: bool,
        present: dict[int, memoryview],
    ) -> None:
        waiting = []
        for shard in batch:
            here = min(length, opened.layout.payload_length(shard) - offset)
            if here <= 0:
                present[shard] = memoryview(bytes(length))
                continue
            # Copying much out of the page cache is work for the disk's own threads.
            inline = not checked and here <= CODING_INLINE_MAX
            raw = self.fetch_cached(opened, shard, offset, here) if inline else None
            if raw is None:
                waiting.append((shard, here))
            else:
                present[shard] = padded(raw, length)

        async def fetch_one(shard: int, here: int) -> None:
            if checked:
                whole = await self.fetch_checked(opened, shard)
                raw = None if whole is None else whole[offset : offset + here]
            else:
                raw = await self.fetch(opened, shard, offset, here)
            if raw is not None:
                present[shard] = padded(raw, length)

        async with trio.open_nursery() as nursery:
            for shard, here in waiting:
                nursery.start_soon(fetch_one, shard, here)

    def _coder(self, geometry: Geometry) -> ErasureCoder:
        coder = self._coders.get(geometry)
        if coder is None:
            coder = self._coders[geometry] = self._coder_of(geometry)
        return coder


def padded(raw: bytes | memoryview, length: int) -> memoryview:
    """`raw` continued with zeros to `length` bytes; no copy if it is long enough."""
    if len(raw) == length:
        return memoryview(raw)
    return memoryview(bytes(raw).ljust(length, b"\0"))

"""Whole shards of a stripe, for whoever writes them anew: copied, rebuilt, or sealed again.

Three ways, tried in this order for each shard that is wanted:

1. *Copy* it from its disk, if that still gives it and checksum and header are right.
2. *Rebuild* it from k others, each of which was read whole and checked in the same way. Others that
   turn out to be bad on the way are told to the caller, and are rebuilt in the same go.
3. *Seal again.* With more than m bad shards no k whole ones are left, but damage is seldom as large
   as a shard: a reader goes sector by sector and may still get every byte. What can be read can be
   mended: the plaintext is sealed under the stripe's own key once more, which yields the very
   bytes of the first time, because key, sector numbers and plaintext are the same. (Nothing else
   may ever be sealed under that key; here every plaintext sector has just been authenticated
   under it.) Of a compressed stripe that is what was sealed, still compressed: compressing again
   may yield other bytes, with another version of the library.

So a shard that was never damaged is never put at risk by its neighbours, and nothing is ever written
that was not checked first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import trio

from dwfs.errors import (
    AuthenticationError,
    DiskTimeoutError,
    MediumError,
    PosixError,
    ShardDamagedError,
    ShardMissingError,
)
from dwfs.limits import AEAD_TAG_SIZE, CODING_INLINE_MAX
from dwfs.ports import DiskListing, ErasureCoder, ShardFault
from dwfs.stripe.layout import StripeLayout, layout_of
from dwfs.stripe.opened import padded
from dwfs.stripe.sealing import CipherFactory, StripeCipher, ThreadRunner
from dwfs.stripe.shard_header import header_fits
from dwfs.types import Geometry, ShardKey, StripeId, StripeSeal

StoredReader = Callable[[StripeId, int, int], Awaitable[bytes]]


class WholeShards:
    """What could be had of one stripe."""

    def __init__(self, seal: StripeSeal, bad: Collection[int]) -> None:
        self.seal = seal
        self.layout = layout_of(seal)
        self.suspected = set(bad)  # reported as bad: read only if nothing else is left
        self.bad: dict[int, ShardFault] = {}  # found bad here
        self.unreachable: set[int] = set()  # the disk is not there, or failed
        self.payloads: dict[int, bytes] = {}  # checked
        self.read_bytes = 0

    def untried(self) -> list[int]:
        """Stored shards that have not been asked for."""
        return [
            number
            for number in self.layout.stored_shards()
            if number not in self.payloads
            and number not in self.bad
            and number not in self.unreachable
        ]

    @property
    def known(self) -> int:
        """Shards whose bytes are known; the empty ones always are."""
        return len(self.payloads) + self.layout.total - len(self.layout.stored_shards())


class ShardSource:
    """Obtains whole shards. `read` gives authentic bytes as sealed (`StripeStore.read_stored`)."""

    def __init__(
        self,
        *,
        disks: DiskListing,
        coder_of: Callable[[Geometry], ErasureCoder],
        cipher_of: CipherFactory,
        threads: ThreadRunner,
        read: StoredReader,
    ) -> None:
        self._disks = disks
        self._coder_of = coder_of
        self._coders: dict[Geometry, ErasureCoder] = {}  # making one takes a self-test
        self._cipher_of = cipher_of
        self._threads = threads
        self._read = read

    async def obtain(
        self, seal: StripeSeal, wanted: Collection[int], bad: Collection[int] = ()
    ) -> WholeShards:
        """The payloads of the shards `wanted`, and of those found bad on the way, in `payloads`.

        `bad` were reported as damaged, and are not trusted while there are enough others. Shards
        that can't be had are simply not among the payloads.
        """
        shards = WholeShards(seal, bad)
        await self._fetch(shards, [n for n in wanted if n not in shards.suspected])
        if all(number in shards.payloads for number in wanted):
            return shards
        await self._fetch_enough(shards, trusted=True)
        if shards.known < shards.layout.data:
            await self._fetch_enough(shards, trusted=False)
        # A suspect that proved sound and was needed is as good as any other.
        broken = {*wanted, *shards.bad}
        lost = sorted(number for number in broken if number not in shards.payloads)
        if shards.known >= shards.layout.data:
            rebuilt = await self._decode(shards, lost)
        else:
            rebuilt = await self._seal_again(shards, lost)
        shards.payloads.update(rebuilt)
        return shards

    # --- reading -----------------------------------------------------------------------------

    async def _fetch_enough(self, shards: WholeShards, *, trusted: bool) -> None:
        """Read shards until k are known or none is left to ask for."""
        while (lacking := shards.layout.data - shards.known) > 0:
            left = [n for n in shards.untried() if not (trusted and n in shards.suspected)]
            if not left:
                return
            placement = shards.seal.placement
            # A disk on probation comes last: its answers are slow, or may not come at all.
            left.sort(key=lambda n: self._disks.patience_seconds(placement[n]) <= 0.0)
            await self._fetch(shards, left[:lacking])

    async def _fetch(self, shards: WholeShards, numbers: Sequence[int]) -> None:
        if len(numbers) == 1:
            await self._fetch_one(shards, numbers[0])
            return
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(self._fetch_one, shards, number)

    async def _fetch_one(self, shards: WholeShards, number: int) -> None:
        seal = shards.seal
        disk = seal.placement[number]
        store = self._disks.get(disk) if disk else None
        if store is None:
            shards.unreachable.add(number)
            return
        try:
            header, payload = await store.read_verified(ShardKey(seal.stripe, number))
        except ShardMissingError:
            shards.bad[number] = ShardFault.MISSING
        except ShardDamagedError:
            shards.bad[number] = ShardFault.ROTTEN
        except DiskTimeoutError as error:
            self._disks.failed(error, disk)
            shards.unreachable.add(number)  # nothing is known of the shard itself
        except MediumError as error:
            self._disks.failed(error, disk)
            # The rest of the disk may be fine: a bad sector is mended like any damage.
            if self._disks.get(disk) is None:
                shards.unreachable.add(number)
            else:
                shards.bad[number] = ShardFault.UNREADABLE
        else:
            shards.read_bytes += len(payload)
            right_length = len(payload) == shards.layout.payload_length(number)
            if right_length and header_fits(header, seal, number):
                shards.payloads[number] = payload
            else:
                shards.bad[number] = ShardFault.ROTTEN

    # --- computing ---------------------------------------------------------------------------

    async def _decode(self, shards: WholeShards, lost: Sequence[int]) -> dict[int, bytes]:
        layout = shards.layout
        width = layout.shard_length
        present = {number: padded(raw, width) for number, raw in shards.payloads.items()}
        for number in range(layout.data):
            if layout.payload_length(number) == 0:
                present[number] = memoryview(bytes(width))
        coder = self._coder(shards.seal.geometry)
        if layout.data * width > CODING_INLINE_MAX:
            decoded = await self._threads.run(coder.decode, present, list(lost), width)
        else:
            decoded = coder.decode(present, list(lost), width)
        return {
            number: raw[: layout.payload_length(number)]
            for number, raw in zip(lost, decoded, strict=True)
        }

    async def _seal_again(self, shards: WholeShards, lost: Sequence[int]) -> dict[int, bytes]:
        seal = shards.seal
        try:
            stored = await self._read(seal.stripe, 0, seal.stored_length)
        except (PosixError, AuthenticationError):
            return {}  # beyond redundancy
        shards.read_bytes += seal.stored_length
        cipher = self._cipher_of(seal.stripe, seal.salt, seal.key_version)
        coder = self._coder(seal.geometry)
        return await self._threads.run(
            sealed_shards, stored, shards.layout, cipher, coder, list(lost)
        )

    def _coder(self, geometry: Geometry) -> ErasureCoder:
        coder = self._coders.get(geometry)
        if coder is None:
            coder = self._coders[geometry] = self._coder_of(geometry)
        return coder


def sealed_shards(
    stored: bytes,
    layout: StripeLayout,
    cipher: StripeCipher,
    coder: ErasureCoder,
    wanted: Sequence[int],
) -> dict[int, bytes]:
    """Payloads of the shards `wanted` of a stripe with those stored bytes; takes milliseconds."""
    assert len(stored) == layout.length
    width = layout.shard_length
    sealed = memoryview(bytearray(layout.data * width))
    source = memoryview(stored)
    for sector in range(layout.sectors):
        piece = source[sector * layout.sector_size : (sector + 1) * layout.sector_size]
        start = sector * layout.sealed_size
        cipher.seal_sector(sector, piece, sealed[start : start + len(piece) + AEAD_TAG_SIZE])
    parity = [memoryview(bytearray(width)) for _ in range(layout.parity)]
    if parity:
        columns = [sealed[i * width : (i + 1) * width] for i in range(layout.data)]
        coder.encode(columns, parity)
    found = {}
    for number in wanted:
        if number < layout.data:
            start = number * width
            found[number] = bytes(sealed[start : start + layout.payload_length(number)])
        else:
            found[number] = bytes(parity[number - layout.data])
    return found

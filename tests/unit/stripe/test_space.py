"""What fits, what is predicted, and what a full pool still does."""

from __future__ import annotations

import os
import random
from errno import ENOSPC

import pytest

from dwfs.disk.space import FreeSpace, reserve_bytes
from dwfs.errors import PosixError
from dwfs.limits import GIB, KIB, MIB, STRIPE_SIZE_MAX
from dwfs.stripe import (
    Candidate,
    DiskRoom,
    StripeLayout,
    choose_disks,
    encode_header,
    forecast,
    recommend,
)
from dwfs.stripe.space import SHARD_HEADER_BYTES, SpaceAccount, shard_cost
from dwfs.types import DiskId, Geometry, PoolId, StripeId, StripeSeal, VolumeId
from tests.unit.stripe.stripe_bench import Bench, Disks, FaultyDisk, bench

UNEQUAL = (1, 2, 2, 4, 4, 8)


def rooms(*sizes: int) -> list[DiskRoom]:
    return [DiskRoom(DiskId(bytes([n]) * 16), size, size) for n, size in enumerate(sizes, 1)]


def fill(capacities: list[int], geometry: Geometry, seed: int) -> int:
    """Plaintext that placement really gets onto the disks, full stripe by full stripe."""
    draw = random.Random(seed)
    layout = StripeLayout(STRIPE_SIZE_MAX, geometry, 16 * KIB)
    free = {DiskId(bytes([n]) * 16): size for n, size in enumerate(capacities)}
    cost = shard_cost(layout.shard_length)
    stored = 0
    while True:
        candidates = [Candidate(disk, room) for disk, room in free.items()]
        chosen = choose_disks(StripeId(draw.randbytes(16)), candidates, geometry.total, cost)
        if len(chosen) < geometry.total:
            return stored
        for disk in chosen:
            free[disk] -= cost
        stored += STRIPE_SIZE_MAX


@pytest.mark.parametrize(
    "geometry", [Geometry(2, 1), Geometry(2, 2), Geometry(4, 2), Geometry(1, 1), Geometry(3, 1)]
)
@pytest.mark.parametrize(
    "sizes", [UNEQUAL, (4, 4, 4, 4, 4, 4), (1, 1, 1, 8, 8, 8), (3, 5, 7, 9, 2, 2)]
)
def test_unequal_disks_hold_what_is_predicted(sizes: tuple[int, ...], geometry: Geometry) -> None:
    capacities = [size * 512 * MIB for size in sizes]
    predicted = forecast(rooms(*capacities), geometry)
    stored = fill(capacities, geometry, seed=1)
    assert 0.98 * predicted.usable_bytes <= stored <= predicted.usable_bytes
    filled = sum(share.filled_bytes for share in predicted.shares)
    assert filled + predicted.stranded_bytes == sum(capacities)


def test_forecast_says_what_another_disk_would_give() -> None:
    disks = rooms(*(size * GIB for size in UNEQUAL))
    now = forecast(disks, Geometry(4, 2))
    # Six disks, six shards: the smallest sets the level, and the rest is stranded.
    assert now.usable_bytes == pytest.approx(4 * GIB, rel=0.01)
    assert now.stranded_bytes == pytest.approx(15 * GIB, rel=0.01)
    more = forecast(disks, Geometry(4, 2), added_bytes=8 * GIB)
    assert more.usable_bytes > now.usable_bytes * 1.9
    assert len(more.shares) == 7


def test_forecast_counts_free_space_as_it_is_now() -> None:
    disks = rooms(*[GIB] * 6)
    half = [disk._replace(free_bytes=GIB // 2) for disk in disks]
    assert forecast(half, Geometry(4, 2)).free_bytes == pytest.approx(2 * GIB, rel=0.01)
    one_full = [*disks, *rooms(GIB)]
    one_full[0] = one_full[0]._replace(free_bytes=0)
    assert forecast(one_full, Geometry(4, 2)).free_bytes == pytest.approx(4 * GIB, rel=0.01)


def test_too_few_disks_get_less_parity_and_then_nothing() -> None:
    fewer = forecast(rooms(*[GIB] * 5), Geometry(4, 2))
    assert fewer.geometry == Geometry(4, 1)
    assert fewer.usable_bytes == pytest.approx(4 * GIB, rel=0.01)
    none = forecast(rooms(GIB, GIB), Geometry(4, 2))
    assert (none.usable_bytes, none.free_bytes, none.stranded_bytes) == (0, 0, 2 * GIB)


def test_recommended_geometry_holds_most() -> None:
    assert recommend([size * GIB for size in UNEQUAL], 2) == Geometry(2, 2)
    assert recommend([GIB] * 6, 2) == Geometry(4, 2)
    assert recommend([GIB] * 2, 2) is None
    # As much with one shard less: a disk is left to rebuild on.
    assert recommend([GIB, GIB, GIB], 1) == Geometry(2, 1)


def test_shard_cost_is_what_a_record_takes() -> None:
    seal = StripeSeal(
        StripeId(b"s" * 16), b"x" * 24, 2**32 - 1, Geometry(16, 8), STRIPE_SIZE_MAX, 1 << 20, (), ()
    )
    header = encode_header(PoolId(b"p" * 16), VolumeId(b"v" * 16), seal, 23)
    assert len(header) <= SHARD_HEADER_BYTES <= len(header) + 24


def test_reserve_has_room_for_the_log_on_every_size_of_disk() -> None:
    sizes = [64 * MIB << shift for shift in range(20)]
    reserves = [reserve_bytes(size) for size in sizes]
    assert reserves == sorted(reserves)
    assert all(reserve >= 16 * MIB for reserve in reserves)
    assert reserve_bytes(4 * GIB) >= 128 * MIB
    assert reserve_bytes(1 << 44) == 4 * GIB


def test_puts_under_way_are_counted_when_disks_are_chosen() -> None:
    disks = Disks(2, size=GIB)
    account = SpaceAccount(disks, Geometry(1, 1))
    before = {candidate.disk: candidate.free for candidate in account.candidates(set())}
    first = disks.disks[0].disk
    usable = account.usable()
    account.promise(first, MIB)
    after = {candidate.disk: candidate.free for candidate in account.candidates(set())}
    assert before[first] - after[first] == shard_cost(MIB)
    assert account.usable() == usable
    account.redeem(first, MIB)
    assert {c.disk: c.free for c in account.candidates(set())} == before


async def filled(b: Bench, size: int = 256 * KIB) -> int:
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            await b.store.admit(size)
            b.store.append(1, written, os.urandom(size))
            written += size

    with pytest.raises(PosixError) as caught:
        await write()
    assert caught.value.errno == ENOSPC
    return written


async def test_one_full_disk_among_empty_ones_is_no_full_pool() -> None:
    listing = Disks(7, size=64 * MIB)
    full = listing.disks[3]
    full.size = 16 * MIB  # its reserve: not a byte for shards
    async with bench(disks=listing) as b:
        written = await filled(b)
        assert written > 0.95 * 4 * 48 * MIB
        seals = await b.commit()
        assert not full.shards
        assert all(all(seal.placement) for seal in seals)


async def test_unequal_disks_are_filled_to_the_prediction_through_the_store() -> None:
    listing = Disks(0)
    listing.disks = [
        FaultyDisk(DiskId(bytes([n]) * 16), size * 16 * MIB + 16 * MIB)
        for n, size in enumerate(UNEQUAL, 1)
    ]
    async with bench(2, 1, listing) as b:
        predicted = b.store.capacity_bytes()
        written = await filled(b)
        # The smallest disk has room for eight shards; `fill` above says how exact it is.
        assert 0.93 * predicted <= written <= predicted
        assert b.store.free_bytes() < 256 * KIB
        for seal in await b.commit():
            assert all(seal.placement)


def test_space_that_is_given_back_fills_the_reserve_first() -> None:
    full = FreeSpace(
        size_bytes=GIB, available_bytes=0, reserve_bytes=64 * MIB, short_bytes=24 * MIB
    )
    assert full.after(0) == (0, 40 * MIB)
    assert full.after(10 * MIB) == (0, 30 * MIB)
    assert full.after(-20 * MIB) == (0, 60 * MIB)
    assert full.after(-30 * MIB) == (6 * MIB, 64 * MIB)
    assert full.after(100 * MIB) == (0, 0)

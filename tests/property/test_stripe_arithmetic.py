"""Layout, placement and space against dumb models."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dwfs.stripe import Candidate, StripeLayout, choose_disks, usable_bytes, water_level
from dwfs.types import DiskId, Geometry, StripeId

SECTOR = 32
TAG = 16
geometries = st.builds(Geometry, st.integers(1, 8), st.integers(0, 4))


@given(st.integers(1, 40 * SECTOR), geometries, st.data())
def test_layout_agrees_with_really_cutting_bytes(
    length: int, geometry: Geometry, data: st.DataObject
) -> None:
    layout = StripeLayout(length, geometry, SECTOR)
    sectors = [
        [(i, j) for j in range(min(SECTOR, length - i * SECTOR) + TAG)]
        for i in range(-(-length // SECTOR))
    ]
    each = -(-len(sectors) // geometry.data)
    shards = [
        [byte for sector in sectors[i * each : (i + 1) * each] for byte in sector]
        for i in range(geometry.data)
    ]
    assert [layout.payload_length(i) for i in range(geometry.data)] == [len(s) for s in shards]
    assert layout.shard_length == max(len(s) for s in shards)
    assert layout.sealed_length == sum(len(s) for s in shards)
    first = data.draw(st.integers(0, len(sectors) - 1))
    last = data.draw(st.integers(first, len(sectors) - 1))
    read = []
    for run in layout.runs(first, last):
        assert run.length == layout.sealed_span(run.sector, run.sectors)
        read += shards[run.shard][run.offset : run.offset + run.length]
    assert read == [byte for sector in sectors[first : last + 1] for byte in sector]


@given(st.lists(st.integers(0, 60), max_size=8), st.integers(1, 9))
def test_water_level_is_the_largest_that_fits(free: list[int], shards: int) -> None:
    fits = [s for s in range(sum(free) + 1) if sum(min(f, s) for f in free) >= shards * s]
    assert water_level(free, shards) == max(fits)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 3))
def test_usable_space_can_really_be_used(free: list[int], data: int) -> None:
    """Filling the largest disks first, unit by unit, stores as much as was promised."""
    geometry = Geometry(data, 1)
    left = list(free)
    stored = 0
    while True:
        left.sort(reverse=True)
        if len(left) < geometry.total or left[geometry.total - 1] == 0:
            break
        for i in range(geometry.total):
            left[i] -= 1
        stored += data
    assert usable_bytes(free, geometry) == stored


@given(st.lists(st.integers(0, 1000), max_size=9), st.integers(1, 8), st.integers(1, 500))
def test_chosen_disks_are_distinct_and_have_room(free: list[int], shards: int, length: int) -> None:
    candidates = [Candidate(DiskId(bytes([i]) * 16), f) for i, f in enumerate(free)]
    chosen = choose_disks(StripeId(b"s" * 16), candidates, shards, length)
    room = {c.disk for c in candidates if c.free >= length}
    assert len(set(chosen)) == len(chosen) == min(shards, len(room))
    assert set(chosen) <= room


def test_unequal_disks_are_used_in_proportion_and_filled_together() -> None:
    free = {DiskId(bytes([i]) * 16): size for i, size in enumerate((8000, 4000, 2000, 2000, 1000))}
    total = usable_bytes(list(free.values()), Geometry(1, 1))
    placed: Counter[DiskId] = Counter()
    stripes = 0
    while True:
        candidates = [Candidate(disk, left) for disk, left in free.items()]
        chosen = choose_disks(StripeId(stripes.to_bytes(16, "big")), candidates, 2, 10)
        if len(chosen) < 2:
            break
        stripes += 1
        for disk in chosen:
            free[disk] -= 10
            placed[disk] += 1
    assert stripes * 10 >= 0.98 * total
    assert placed[DiskId(bytes([1]) * 16)] > 1.5 * placed[DiskId(bytes([2]) * 16)]

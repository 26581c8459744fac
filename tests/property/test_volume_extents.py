"""Extent lists and node runs against dumb models: a dictionary of bytes, a set of numbers."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dwfs.types import Extent, StripeId
from dwfs.volume import extents as extent_list
from dwfs.volume import runs

STRIPES = [StripeId(bytes([number]) * 16) for number in range(3)]
Place = tuple[StripeId, int]

operations = st.lists(
    st.tuples(
        st.booleans(),  # insert or remove
        st.integers(0, 60),  # offset
        st.integers(1, 30),  # length
        st.sampled_from(STRIPES),
        st.one_of(st.none(), st.integers(0, 100)),  # stripe offset; None = as the file's
    ),
    max_size=30,
)


def expand(extents: list[Extent]) -> dict[int, Place]:
    return {
        extent.offset + i: (extent.stripe, extent.stripe_offset + i)
        for extent in extents
        for i in range(extent.length)
    }


@given(operations, st.integers(0, 90), st.integers(1, 40))
def test_extents_behave_like_bytes(
    steps: list[tuple[bool, int, int, StripeId, int | None]], start: int, length: int
) -> None:
    extents: list[Extent] = []
    model: dict[int, Place] = {}
    balance: extent_list.Balance = {}
    for is_insert, offset, size, stripe, stripe_offset in steps:
        if is_insert:
            place = offset if stripe_offset is None else stripe_offset
            extent_list.insert(extents, Extent(offset, size, stripe, place), balance)
            model.update({offset + i: (stripe, place + i) for i in range(size)})
        else:
            extent_list.remove(extents, offset, offset + size, balance)
            model = {k: v for k, v in model.items() if not offset <= k < offset + size}
        assert expand(extents) == model
        position = 0
        for extent in extents:
            assert extent.offset >= position
            assert extent.length > 0
            position = extent.end
        for left, right in pairwise(extents):
            joined = (
                left.end == right.offset
                and left.stripe == right.stripe
                and left.stripe_offset + left.length == right.stripe_offset
            )
            assert not joined or not is_insert or offset not in (left.end, right.end), "unmerged"
    assert {k: v for k, v in balance.items() if v} == Counter(s for s, _ in model.values())
    end = start + length
    found = extent_list.slice_range(extents, start, end)
    assert expand(found) == {k: v for k, v in model.items() if start <= k < end}


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3000), st.integers(0, 20)), max_size=400),
    st.integers(0, 3000),
    st.integers(1, 50),
)
def test_runs_cover_every_node(steps: list[tuple[bool, int, int]], first: int, limit: int) -> None:
    ranges: runs.Runs = []
    model: set[int] = set()
    for is_add, index, span in steps:
        if is_add:
            runs.add(ranges, index)
            model.add(index)
        else:
            runs.discard(ranges, index, index + span)
            model -= set(range(index, index + span + 1))
        assert len(ranges) <= runs.RUNS_MAX
    covered = list(runs.within(ranges, 0, 4000))
    assert covered == sorted(set(covered))
    assert model <= set(covered)
    for left, right in pairwise(ranges):
        assert left[1] < right[0]
    assert runs.count(ranges, first, 4000) == sum(index >= first for index in covered)
    last = runs.ascend(ranges, first, limit)
    later = [index for index in covered if index >= first]
    assert last >= 0 or len(later) <= limit
    if last >= 0:
        assert [index for index in later if index <= last] == later[:limit]
    floor = runs.descend(ranges, limit)
    assert len([index for index in covered if index >= floor]) == min(limit, len(covered))


def test_many_far_pieces_are_joined() -> None:
    ranges: runs.Runs = []
    for index in range(0, 4 * runs.RUNS_MAX, 2):
        runs.add(ranges, index)
    assert len(ranges) <= runs.RUNS_MAX
    assert set(range(0, 4 * runs.RUNS_MAX, 2)) <= set(runs.within(ranges, 0, 10_000))

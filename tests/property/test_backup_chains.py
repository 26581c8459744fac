"""Which streams belong together: against a dumb model that follows bases one by one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwfs.errors import UsageError
from dwfs.send.chains import Backup, chain_of, in_order, next_base, select, surplus
from dwfs.volume.transfer import Origin


def origin(number: int, pool: bytes = b"p") -> Origin:
    return Origin(pool * 16, b"v" * 16, number, number * 100, f"s{number}")


def backup(number: int, base: int | None, pool: bytes = b"p") -> Backup:
    start = None if base is None else origin(base, pool)
    return Backup(Path(f"{pool!r}-{number}-{base}"), origin(number, pool), start, 10, 1, 1)


@st.composite
def collections(draw: st.DrawFn) -> list[Backup]:
    """Some streams of one pool, in any order; bases may be missing, snapshots may come twice."""
    found = []
    for number in range(1, draw(st.integers(1, 9))):
        for _ in range(draw(st.integers(0, 2))):
            base = draw(st.none() | st.integers(1, number))
            found.append(backup(number, base if base != number else None))
    unique = {one.path: one for one in found}
    return draw(st.permutations(sorted(unique.values(), key=lambda one: str(one.path))))


@given(collections())
def test_a_chain_leads_from_a_full_stream_to_what_is_wanted(backups: list[Backup]) -> None:
    for wanted in backups:
        chain = chain_of(backups, wanted)
        if chain is None:
            assert wanted.base is not None
            continue
        assert chain[0].base is None
        assert chain[-1] == wanted
        for before, after in pairwise(chain):
            assert after.base == before.snapshot


@given(collections(), st.integers(1, 4))
def test_what_is_kept_stays_whole_and_the_newest_are_kept(backups: list[Backup], keep: int) -> None:
    gone = surplus(backups, keep)
    left = [one for one in backups if one not in gone]
    whole = [one for one in in_order(backups) if chain_of(backups, one) is not None]
    for one in whole[-keep:]:
        assert chain_of(left, one) == chain_of(backups, one)
    if not whole:
        assert not gone, "nothing to fall back on: nothing is deleted"
    assert surplus(left, keep) == []


@given(collections(), st.integers(1, 4))
def test_an_increment_starts_from_the_newest_whole_one_or_there_is_none(
    backups: list[Backup], full_every: int
) -> None:
    everything = {(one.snapshot.name, one.snapshot.time_ns) for one in backups}
    base = next_base(backups, everything, full_every)
    whole = [one for one in in_order(backups) if chain_of(backups, one) is not None]
    if base is None:
        assert not whole or len(chain_of(backups, whole[-1]) or []) >= full_every
    else:
        assert base == whole[-1]
        assert len(chain_of(backups, base) or []) < full_every
    assert next_base(backups, set(), full_every) is None


def test_what_is_to_be_had_back_is_told() -> None:
    backups = [backup(1, None), backup(2, 1), backup(4, 3)]
    assert [one.snapshot.epoch for one in select(backups, None)] == [1, 2]
    assert [one.snapshot.epoch for one in select(backups, "s1")] == [1]
    with pytest.raises(UsageError, match="files that it starts from are missing"):
        select(backups, "s4")
    with pytest.raises(UsageError, match="no backup of @s9"):
        select(backups, "s9")
    with pytest.raises(UsageError, match="no backup there"):
        select([], None)
    with pytest.raises(UsageError, match="of 2 pools"):
        select([*backups, backup(1, None, b"q")], None)

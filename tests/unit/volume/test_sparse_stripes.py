"""Which stripes the cleaner is told of, and in what order, when there are very many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dwfs.types import DiskId, Geometry, StripeId, StripeSeal
from dwfs.volume import StateStore
from dwfs.volume import stripes as stripes_module
from dwfs.volume.stripes import SPARSE_FRACTION_MAX, StripeTable
from tests.unit.volume.fakes import FakeCipher, FakeNames

LENGTH = 1000


def stripe_id(number: int) -> StripeId:
    return StripeId(number.to_bytes(16, "big"))


def add(table: StripeTable, number: int, live: int) -> None:
    table.adjust(stripe_id(number), live)
    table.apply_seal(
        StripeSeal(
            stripe_id(number),
            b"s" * 24,
            1,
            Geometry(1, 1),
            LENGTH,
            16384,
            (DiskId(b"a" * 16), DiskId(b"b" * 16)),
            (),
        )
    )


@pytest.fixture
def table(tmp_path: Path) -> StripeTable:
    return StripeTable(StateStore(tmp_path / "state.mdb", FakeCipher(), FakeNames()))


def test_worst_stripes_come_first_and_full_ones_never(table: StripeTable, seed: int) -> None:
    choice = random.Random(seed)
    live = {number: choice.randrange(1, LENGTH + 1) for number in range(500)}
    for number, count in live.items():
        add(table, number, count)
    for number in choice.sample(range(500), 200):
        change = choice.randrange(1 - live[number], 1)
        live[number] += change
        table.adjust(stripe_id(number), change)
    for bound in (0.1, 0.5, 0.9, 1.0):
        limit = min(bound, SPARSE_FRACTION_MAX)
        wanted = sorted(
            (count / LENGTH, stripe_id(number))
            for number, count in live.items()
            if count / LENGTH <= limit
        )
        assert table.sparse_stripes(bound, 1000) == [stripe for _, stripe in wanted]
        assert table.sparse_stripes(bound, 7) == [stripe for _, stripe in wanted[:7]]


def test_when_too_many_are_sparse_the_fullest_are_forgotten(
    table: StripeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripes_module, "SPARSE_TRACKED_MAX", 10)
    for number in range(10):
        add(table, number, 900)
    add(table, 10, 100)
    add(table, 11, 950)
    assert table.sparse_stripes(1.0, 1) == [stripe_id(10)]
    assert len(table.sparse_stripes(1.0, 100)) == 10
    for number in [*range(10), 10]:
        if table.live_bytes(stripe_id(number)):
            table.adjust(stripe_id(number), -table.live_bytes(stripe_id(number)))
            assert table.drop(stripe_id(number))
    # There is room again: those that were forgotten are found.
    assert table.sparse_stripes(1.0, 100) == [stripe_id(11)]

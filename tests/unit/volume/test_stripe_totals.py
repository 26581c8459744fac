"""What compression saves is known exactly, without asking the disks."""

from __future__ import annotations

import random
from pathlib import Path

from dwfs.types import (
    DiskId,
    Geometry,
    ShardMove,
    StripeFrames,
    StripeId,
    StripeSeal,
)
from dwfs.volume import StateStore
from dwfs.volume.stripes import StripeTable, StripeTotals
from tests.unit.volume.fakes import FakeCipher, FakeNames

DISKS = (DiskId(b"a" * 16), DiskId(b"b" * 16))


def a_seal(number: int, length: int, stored: int) -> StripeSeal:
    frames = None
    if stored < length:
        frames = StripeFrames(1, 65536, stored, stored.to_bytes(2, "little"))
    stripe = StripeId(number.to_bytes(16, "big"))
    return StripeSeal(stripe, b"s" * 24, 1, Geometry(1, 1), length, 16384, DISKS, (), frames)


def sums(seals: list[StripeSeal]) -> StripeTotals:
    return StripeTotals(
        len(seals), sum(seal.length for seal in seals), sum(seal.stored_length for seal in seals)
    )


def test_totals_follow_every_seal_and_drop_and_survive_reopening(tmp_path: Path, seed: int) -> None:
    store = StateStore(tmp_path / "state.mdb", FakeCipher(), FakeNames())
    table = StripeTable(store)
    choice = random.Random(seed)
    known: list[StripeSeal] = []
    for number in range(300):
        length = choice.randrange(1, 65_000)
        seal = a_seal(number, length, choice.choice([length, choice.randrange(1, length + 1)]))
        table.apply_seal(seal)
        table.apply_seal(seal)  # replayed
        known.append(seal)
        if choice.random() < 0.3:
            table.move(ShardMove(seal.stripe, 0, DISKS[0], DiskId(b"c" * 16)))
        if choice.random() < 0.3:
            dead = known.pop(choice.randrange(len(known)))
            assert table.drop(dead.stripe)
            assert not table.drop(dead.stripe)
        table.adjust(StripeId((1000 + number).to_bytes(16, "big")), 5)  # not sealed yet
        assert table.totals() == sums(known)
    assert sums(known).stored_bytes < sums(known).logical_bytes
    table.table.flush()
    assert StripeTable(store).totals() == sums(known)

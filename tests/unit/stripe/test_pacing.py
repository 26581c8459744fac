"""The pacer's pieces. Its rests are tested with repair, which takes them."""

from __future__ import annotations

from dwfs.limits import KIB, MIB
from dwfs.stripe.pacing import Pacer
from tests.unit.stripe.mending_bench import TrioClock


async def test_under_a_ceiling_a_piece_is_a_seconds_worth() -> None:
    """A scrub that is stopped in its rest has then not read far ahead of its ceiling."""
    assert Pacer(TrioClock(), lambda: 0).piece_bytes(8 * MIB) == 8 * MIB
    slow = Pacer(TrioClock(), lambda: 0, bytes_per_second=300 * KIB)
    assert slow.piece_bytes(8 * MIB) == 300 * KIB
    assert Pacer(TrioClock(), lambda: 0, bytes_per_second=1000.0).piece_bytes(8 * MIB) == 64 * KIB

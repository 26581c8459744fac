"""Which disks a stripe's shards go to: weighted rendezvous hashing by free space. Pure.

Every disk draws a score from a hash of (stripe, disk), stretched by its weight; the highest scores
win (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005: -w / ln u). Adding or
removing a disk so moves no other choice, and no state is kept.

Plain weighting strands space when disks are very unequal: with 100, 50 and 50 GB free and two
shards a stripe, all of it is usable only if every stripe uses the large disk. Hence the *water
level*: S is the largest shard space for which sum(min(free, S)) covers all shards. A disk with
free ≥ S must be in every stripe, and the others share the remaining shards by weight. As weights
follow free space, an imperfect draw corrects itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import log
from typing import NamedTuple

from dwfs.types import DiskId, StripeId


class Candidate(NamedTuple):
    """A disk that may take a shard."""

    disk: DiskId
    free: int  # bytes that shards may use


def water_level(free: Sequence[int], shards: int) -> int:
    """The largest S with sum(min(f, S)) ≥ shards · S: bytes a shard when all space is used.

    0 if there are fewer disks than shards. Exact: of the j largest disks, those above S count S
    each, so S = floor(sum of the rest / (shards - j)) for the smallest j where that holds.
    """
    if shards <= 0 or len(free) < shards:
        return 0
    ordered = sorted(free, reverse=True)
    rest = sum(ordered)
    for capped in range(shards):
        level = rest // (shards - capped)
        if ordered[capped] <= level:
            return level
        rest -= ordered[capped]
    raise AssertionError("the smallest of as many disks as shards is never above the level")


def score(stripe: StripeId, disk: DiskId, weight: int) -> float:
    """The disk's draw for the stripe; higher wins."""
    digest = blake2b(stripe + disk, digest_size=8).digest()
    uniform = (int.from_bytes(digest, "little") + 0.5) / 2.0**64
    return -weight / log(uniform) if uniform < 1.0 else float("inf")


def choose_disks(
    stripe: StripeId, candidates: Sequence[Candidate], shards: int, shard_length: int
) -> list[DiskId]:
    """Up to `shards` distinct disks with room for a shard, best first.

    Fewer are returned when fewer have room; the caller decides whether that is enough.
    """
    fitting = [candidate for candidate in candidates if candidate.free >= shard_length]
    if len(fitting) <= shards:
        level = 0
    else:
        level = water_level([candidate.free for candidate in fitting], shards)
    ranked = sorted(
        fitting,
        key=lambda candidate: (
            0 < level <= candidate.free,
            score(stripe, candidate.disk, max(1, candidate.free)),
        ),
        reverse=True,
    )
    chosen = ranked[:shards]
    # Among the chosen, the order decides who holds data and who parity; it must not follow size.
    chosen.sort(key=lambda candidate: score(stripe, candidate.disk, 1), reverse=True)
    return [candidate.disk for candidate in chosen]

"""The health that people are shown."""

from __future__ import annotations

import pytest

from dwfs.node.status import DiskState, DiskStatus, Health, assess, explain
from dwfs.types import Geometry

ONE_ONE, TWO_TWO, FOUR_TWO = Geometry(1, 1), Geometry(2, 2), Geometry(4, 2)

STATES: dict[str, DiskState] = {
    "o": "online",
    "s": "suspect",
    "a": "offline",
    "m": "missing",
    "f": "failing",
    "r": "removing",
}


def _states(letters: str) -> list[DiskState]:
    return [STATES[letter] for letter in letters]


@pytest.mark.parametrize(
    ("geometry", "states", "short", "health", "left"),
    [
        (FOUR_TWO, "oooooo", 0, "healthy", 2),
        (FOUR_TWO, "ooooom", 0, "degraded", 1),
        (FOUR_TWO, "ooooof", 0, "degraded", 1),
        (FOUR_TWO, "ooooos", 0, "degraded", 1),
        (FOUR_TWO, "oooooa", 0, "degraded", 1),
        (
            FOUR_TWO,
            "ooooor",
            0,
            "healthy",
            2,
        ),  # it is only to be emptied, and gives all that it has
        (FOUR_TWO, "oooomm", 0, "at-risk", 0),
        (FOUR_TWO, "oooomf", 0, "at-risk", 0),
        (FOUR_TWO, "oooama", 0, "failed", 0),
        (FOUR_TWO, "ooommm", 0, "failed", 0),
        (FOUR_TWO, "ooomff", 0, "at-risk", 0),  # failing disks are still read: nothing is lost yet
        (FOUR_TWO, "oooooo", 1, "degraded", 1),
        (FOUR_TWO, "oooooo", 2, "at-risk", 0),
        (ONE_ONE, "oo", 0, "healthy", 1),
        (ONE_ONE, "om", 0, "at-risk", 0),
        (ONE_ONE, "mm", 0, "failed", 0),
    ],
)
def test_assess_by_the_disks(
    geometry: Geometry, states: str, short: int, health: Health, left: int
) -> None:
    assert assess(geometry, _states(states), short) == (health, left)


@pytest.mark.parametrize(
    ("geometry", "states", "short", "unreadable", "health", "left"),
    [
        (TWO_TWO, "ooooom", 0, 0, "degraded", 2),  # its shards were rebuilt: two may fail again
        (TWO_TWO, "ooommm", 1, 0, "degraded", 1),  # one after the other, and rebuilt in between
        (TWO_TWO, "oooomm", 2, 0, "at-risk", 0),
        (TWO_TWO, "oooooo", 0, 0, "healthy", 2),
        (TWO_TWO, "oooooo", 3, 1, "failed", 0),
        (TWO_TWO, "ooommm", 3, 7, "failed", 0),
        (FOUR_TWO, "ooooom", 0, 0, "degraded", 1),  # what is written now has one shard less
        (FOUR_TWO, "oooomm", 0, 0, "at-risk", 0),  # nothing was in a stripe yet when both went
        (FOUR_TWO, "oooomm", 1, 0, "at-risk", 0),
    ],
)
def test_assess_by_the_stripes(
    geometry: Geometry, states: str, short: int, unreadable: int, health: Health, left: int
) -> None:
    verdict = assess(geometry, _states(states), short, counted=True, unreadable_stripes=unreadable)
    assert verdict == (health, left)


def test_the_advice_names_the_disk_and_what_may_still_fail() -> None:
    disks = [
        DiskStatus("aa", "/disks/1", "online", 10, 1, 0),
        DiskStatus("bb", "/disks/2", "missing", None, None, 3, "its directory is gone"),
    ]
    lines = explain("degraded", 1, 2, disks, 0)
    assert "/disks/2" in lines[0]
    assert "its directory is gone" in lines[0]
    assert "1 disk more may fail" in lines[1]


def test_the_advice_tells_slow_and_suspect_disks_and_unreadable_stripes() -> None:
    disks = [
        DiskStatus("aa", "/disks/1", "online", 10, 1, 0, slow="reads take 900 ms"),
        DiskStatus("bb", "/disks/2", "suspect", 10, 1, 3, "2 reads failed"),
    ]
    text = "\n".join(explain("failed", 0, 1, disks, 5, 1))
    assert "reads take 900 ms" in text
    assert "suspect: 2 reads failed" in text
    assert "1 stripe can't be read" in text
    assert "5 stripes lack shards" in text
    assert "disks are gone" not in text

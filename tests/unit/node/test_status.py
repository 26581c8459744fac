"""The health that people are shown."""

from __future__ import annotations

import pytest

from dwfs.node.status import DiskState, DiskStatus, Health, assess, explain


@pytest.mark.parametrize(
    ("parity", "states", "short", "health", "left"),
    [
        (2, "oooooo", 0, "healthy", 2),
        (2, "ooooom", 0, "degraded", 1),
        (2, "ooooof", 0, "degraded", 1),
        (2, "oooomm", 0, "at-risk", 0),
        (2, "oooomf", 0, "at-risk", 0),
        (2, "ooommm", 0, "failed", 0),
        (2, "ooomff", 0, "at-risk", 0),  # failing disks are still read: nothing is lost yet
        (2, "oooooo", 1, "degraded", 1),
        (2, "oooooo", 2, "at-risk", 0),
        (1, "oo", 0, "healthy", 1),
        (1, "om", 0, "at-risk", 0),
        (1, "mm", 0, "failed", 0),
    ],
)
def test_assess(parity: int, states: str, short: int, health: Health, left: int) -> None:
    names: dict[str, DiskState] = {"o": "online", "m": "missing", "f": "failing"}
    assert assess(parity, [names[letter] for letter in states], short) == (health, left)


def test_the_advice_names_the_disk_and_what_may_still_fail() -> None:
    disks = [
        DiskStatus("aa", "/disks/1", "online", 10, 1, 0),
        DiskStatus("bb", "/disks/2", "missing", None, None, 3, "its directory is gone"),
    ]
    lines = explain("degraded", 1, 2, disks, 0)
    assert "/disks/2" in lines[0]
    assert "its directory is gone" in lines[0]
    assert "1 disk more may fail" in lines[1]

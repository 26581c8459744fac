"""Endless activities go on whatever happens to them."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dwfs.errors import MediumError
from dwfs.node.background import Supervisor


async def _in_a_nursery(error: Exception) -> None:
    async def fail() -> None:
        raise error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)


class Faulty:
    """An activity that fails some times, in a nursery of its own, and then ends."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.runs = 0
        self._failures = failures
        self._error = error

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self._failures:
            await _in_a_nursery(self._error)


@pytest.mark.expect_log("scrub: disk .* trying again")
async def test_a_foreseen_failure_is_one_also_inside_groups(
    autojump_clock: trio.testing.MockClock,
) -> None:
    supervisor = Supervisor()
    activity = Faulty(3, MediumError(b"d" * 16, "scrub", "EIO"))
    await supervisor.keep("scrub", activity.run)
    assert (activity.runs, supervisor.unforeseen_errors) == (4, 0)


@pytest.mark.expect_log("unforeseen error in background activity 'scrub'")
async def test_a_defect_is_counted_and_the_activity_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    supervisor = Supervisor()
    activity = Faulty(2, KeyError("defect"))
    await supervisor.keep("scrub", activity.run)
    assert (activity.runs, supervisor.unforeseen_errors) == (3, 2)

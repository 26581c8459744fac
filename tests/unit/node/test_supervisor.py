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


@pytest.mark.expect_log("scrub: disk .* trying again")
async def test_a_foreseen_failure_is_one_also_inside_groups(
    autojump_clock: trio.testing.MockClock,
) -> None:
    supervisor = Supervisor()
    runs = 0

    async def activity() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            await _in_a_nursery(MediumError(b"d" * 16, "scrub", "EIO"))

    await supervisor.keep("scrub", activity)
    assert runs == 4
    assert supervisor.unforeseen_errors == 0


@pytest.mark.expect_log("unforeseen error in background activity 'scrub'")
async def test_a_defect_is_counted_and_the_activity_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    supervisor = Supervisor()
    runs = 0

    async def activity() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            await _in_a_nursery(KeyError("defect"))

    await supervisor.keep("scrub", activity)
    assert (runs, supervisor.unforeseen_errors) == (3, 2)

"""Waiting for several things at once."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

import trio


async def in_parallel(works: Iterable[Awaitable[None]]) -> None:
    """Wait for all of them, each in a task of its own."""

    async def wait_for(work: Awaitable[None]) -> None:
        await work

    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(wait_for, work)

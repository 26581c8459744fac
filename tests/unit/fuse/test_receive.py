"""The quick way to wait: exclusion, wake-ups, fairness, cancellation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyfuse3
import pytest
import trio

from dwfs.fuse.receive import BURST_REQUESTS, Readiness, ReadTurn, quick_receive

FUSE: Any = pyfuse3  # its stubs do not show the global that is replaced


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_only_one_holds_the_turn() -> None:
    turn = ReadTurn()
    inside = finished = 0

    async def work() -> None:
        nonlocal inside, finished
        for step in range(20):
            async with turn:
                inside += 1
                assert inside == 1
                if step % 3:
                    await trio.lowlevel.checkpoint()
                inside -= 1
            if step % 2:
                await trio.lowlevel.checkpoint()
        finished += 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(7):
                nursery.start_soon(work)
    assert finished == 7


async def test_a_free_turn_is_taken_without_a_checkpoint() -> None:
    turn = ReadTurn()
    with trio.testing.assert_no_checkpoints():
        async with turn:
            pass


async def test_somebody_reads_while_a_handler_is_suspended() -> None:
    turn, reads = ReadTurn(), []
    blocked = trio.Event()

    async def worker(name: str, *, blocks: bool) -> None:
        async with turn:
            reads.append(name)
            await trio.lowlevel.checkpoint()
        if blocks:
            await blocked.wait()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: worker("slow", blocks=True))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(lambda: worker("other", blocks=False))
            await trio.testing.wait_all_tasks_blocked()
            assert reads == ["slow", "other"]
            blocked.set()


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    turn = ReadTurn()

    async def wait_for_turn() -> None:
        async with turn:
            pytest.fail("was cancelled before its turn came")

    async with trio.open_nursery() as nursery, turn:
        nursery.start_soon(wait_for_turn)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.testing.assert_no_checkpoints():
        async with turn:
            pass


async def test_what_is_there_is_taken_at_once(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    readiness = Readiness()
    with trio.testing.assert_no_checkpoints():
        for _ in range(BURST_REQUESTS // 2):
            await readiness.wait(pipe[0])


async def test_other_tasks_get_their_turn(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    readiness, turns = Readiness(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(10 * BURST_REQUESTS):
            await readiness.wait(pipe[0])
        nursery.cancel_scope.cancel()
    assert turns >= 5


async def test_a_burst_can_be_cancelled(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    readiness, served = Readiness(), 0
    with trio.CancelScope() as scope:
        scope.cancel()
        while True:
            await readiness.wait(pipe[0])
            served += 1
    assert served <= BURST_REQUESTS


async def test_what_comes_later_wakes_the_waiter(pipe: tuple[int, int]) -> None:
    readiness = Readiness()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readiness.wait, pipe[0])
            await trio.testing.wait_all_tasks_blocked()
            os.write(pipe[1], b"x")


async def test_a_closing_descriptor_is_reported(pipe: tuple[int, int]) -> None:
    readiness = Readiness()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await readiness.wait(pipe[0])

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(pipe[0])


def test_the_stand_in_is_put_in_and_taken_out() -> None:
    with quick_receive() as reception:
        assert reception is not None
        stand_in = FUSE.trio
        assert stand_in.Lock is ReadTurn
        assert stand_in.open_nursery is trio.open_nursery
        assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
        with quick_receive() as second:
            assert second is None  # somebody else has put in something
    assert FUSE.trio is trio


def test_without_the_global_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pyfuse3, "trio")
    with quick_receive() as reception:
        assert reception is None
    assert not hasattr(pyfuse3, "trio")


async def test_an_action_before_the_second_wait(pipe: tuple[int, int]) -> None:
    happened = []
    with quick_receive() as reception:
        assert reception is not None
        reception.before_second_wait(lambda: happened.append(os.write(pipe[1], b"x")))
        await FUSE.trio.lowlevel.wait_readable(pipe[0])
        assert happened == []
        for _ in range(3):
            await FUSE.trio.lowlevel.wait_readable(pipe[0])
        assert happened == [1]

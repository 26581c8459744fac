"""The disk's worker threads when the disk hangs: deadlines, the circuit breaker, being abandoned."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from dwfs import limits
from dwfs.disk import DiskExecutor

DEADLINE = 10.0


class Hanging:
    """A call that does not come back before it is told to."""

    def __init__(self, result: int = 7) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._result = result

    def __call__(self) -> int:
        self.begun.set()
        assert self.go_on.wait(20)
        return self._result

    def run(self) -> None:
        """As a call without a result."""
        self()


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@asynccontextmanager
async def executor_with(
    *calls: Hanging, threads: int = 1
) -> AsyncIterator[tuple[DiskExecutor, Clock]]:
    clock = Clock()
    executor = DiskExecutor("hang", threads=threads, now=clock)
    try:
        yield executor, clock
    finally:
        for call in calls:
            call.go_on.set()
        executor.close()
        for thread in executor._threads:
            thread.join(10)


def is_stalled(executor: DiskExecutor) -> bool:
    return executor.stalled  # not narrowed by mypy


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


async def expect_timeout(executor: DiskExecutor, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="timed out") as caught:
        await executor.run(call)
    assert caught.value.errno == errno.ETIMEDOUT


async def test_a_call_that_hangs_is_given_up_and_the_executor_is_stalled_until_it_returns() -> None:
    call = Hanging()
    async with executor_with(call) as (executor, clock), trio.open_nursery() as nursery:
        nursery.start_soon(expect_timeout, executor, call)
        await until(call.begun.is_set)
        clock.time += DEADLINE
        assert executor.oldest_seconds(clock.time) == DEADLINE
        assert executor.expire(clock.time, DEADLINE) == 0
        assert not is_stalled(executor)
        clock.time += 1
        assert executor.expire(clock.time, DEADLINE) == 1
        assert is_stalled(executor)
        await trio.testing.wait_all_tasks_blocked()
        began = time.monotonic()
        await expect_timeout(executor, lambda: None)  # at once: the circuit is open
        assert time.monotonic() - began < 1
        assert executor.expire(clock.time, DEADLINE) == 0
        call.go_on.set()
        await until(lambda: not executor.stalled)
        assert await executor.run(divmod, 7, 2) == (3, 1)
        assert executor.oldest_seconds(clock.time) == 0.0
        assert executor.waiting() == 0


async def test_queued_calls_are_given_up_and_never_made() -> None:
    call = Hanging()
    made: list[int] = []
    async with executor_with(call) as (executor, clock), trio.open_nursery() as nursery:
        nursery.start_soon(expect_timeout, executor, call)
        await until(call.begun.is_set)
        clock.time += 1
        for number in range(5):
            nursery.start_soon(expect_timeout, executor, lambda number=number: made.append(number))
        await trio.testing.wait_all_tasks_blocked()
        clock.time += DEADLINE - 0.5
        assert executor.expire(clock.time, DEADLINE) == 1  # the others have waited less
        clock.time += 1
        assert executor.expire(clock.time, DEADLINE) == 5
        call.go_on.set()
        await until(lambda: executor.waiting() == 0)
    assert made == []


async def test_waiters_for_a_place_are_freed_too() -> None:
    call = Hanging()
    async with executor_with(call) as (executor, clock), trio.open_nursery() as nursery:
        nursery.start_soon(expect_timeout, executor, call)
        await until(call.begun.is_set)
        for _ in range(limits.DISK_QUEUE_MAX + 30):
            nursery.start_soon(expect_timeout, executor, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        clock.time += DEADLINE + 1
        assert executor.expire(clock.time, DEADLINE) == limits.DISK_QUEUE_MAX
        # All end without another expiry, or the nursery would wait for ever.


async def test_a_queue_that_moves_is_merely_slow() -> None:
    calls = [Hanging(number) for number in range(4)]
    results: list[int] = []
    async with executor_with(*calls) as (executor, clock):

        async def caller(call: Hanging) -> None:
            results.append(await executor.run(call))

        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(caller, call)
                await trio.testing.wait_all_tasks_blocked()
            for count, call in enumerate(calls, start=1):
                await until(call.begun.is_set)
                clock.time += DEADLINE - 1
                assert executor.expire(clock.time, DEADLINE) == 0
                call.go_on.set()
                await until(lambda count=count: len(results) == count)  # type: ignore[misc]  # mypy and defaults of lambdas
    assert results == [0, 1, 2, 3]


async def test_late_results_are_discarded_and_what_they_used_is_let_go_once() -> None:
    call = Hanging(42)
    discarded: list[int] = []
    ended: list[str] = []
    async with executor_with(call) as (executor, clock), trio.open_nursery() as nursery:

        async def caller() -> None:
            with pytest.raises(OSError, match="timed out"):
                await executor.run(
                    call, discard=discarded.append, afterwards=lambda: ended.append("late")
                )
            assert not ended  # the thread is still at it

        nursery.start_soon(caller)
        await until(call.begun.is_set)
        clock.time += DEADLINE + 1
        executor.expire(clock.time, DEADLINE)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="timed out"):
            await executor.run(call, afterwards=lambda: ended.append("refused"))
        assert ended == ["refused"]
        assert discarded == []
        call.go_on.set()
        await until(lambda: len(ended) == 2)
        assert discarded == [42]
        assert ended == ["refused", "late"]
        ended.clear()
        assert await executor.run(
            abs, -3, discard=discarded.append, afterwards=lambda: ended.append("usual")
        )
        assert ended == ["usual"]
        with pytest.raises(ZeroDivisionError):
            await executor.run(divmod, 1, 0, afterwards=lambda: ended.append("failed"))
        assert ended == ["usual", "failed"]
        assert discarded == [42]


@pytest.mark.expect_log("a late result could not be discarded")
async def test_a_discard_that_fails_harms_nothing() -> None:
    call = Hanging(5)

    def fail(_: int) -> None:
        raise ValueError

    async with executor_with(call) as (executor, clock), trio.open_nursery() as nursery:

        async def caller() -> None:
            with pytest.raises(OSError, match="timed out"):
                await executor.run(call, discard=fail)

        nursery.start_soon(caller)
        await until(call.begun.is_set)
        clock.time += DEADLINE + 1
        executor.expire(clock.time, DEADLINE)
        call.go_on.set()
        await until(lambda: executor.waiting() == 0)
        assert await executor.run(abs, -1) == 1


async def test_an_abandonable_call_is_left_behind_at_once() -> None:
    call = Hanging()
    ended: list[int] = []
    async with executor_with(call, threads=2) as (executor, clock):
        with trio.move_on_after(0.01) as scope:
            await executor.run(call, abandonable=True, afterwards=lambda: ended.append(1))
        assert scope.cancelled_caught
        assert executor.waiting() == 1
        assert not ended
        assert await executor.run(abs, -1) == 1  # nothing is stalled: the disk is slow at most
        clock.time += DEADLINE + 1
        assert executor.expire(clock.time, DEADLINE) == 0
        assert is_stalled(executor)  # but now it hangs, though nobody waits
        await expect_timeout(executor, lambda: None)
        call.go_on.set()
        await until(lambda: ended == [1])
        assert executor.waiting() == 0


async def test_abandoned_calls_are_bounded() -> None:
    call = Hanging()
    made: list[int] = []
    async with executor_with(call) as (executor, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.run, call)
            await until(call.begun.is_set)
            refused = 0
            for _ in range(3 * limits.DISK_QUEUE_MAX):
                with trio.CancelScope() as scope:
                    with trio.move_on_after(0):
                        scope.deadline = trio.current_time() + 0.0005
                        try:
                            await executor.run(lambda: made.append(1), abandonable=True)
                        except OSError:
                            refused += 1
            call.go_on.set()
        assert executor.waiting() <= 2 * limits.DISK_QUEUE_MAX
    assert made == []


async def test_abandon_frees_all_and_posted_calls_are_still_made() -> None:
    call = Hanging()
    done: list[str] = []
    async with executor_with(call) as (executor, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_timeout, executor, call)
            await until(call.begun.is_set)
            nursery.start_soon(expect_timeout, executor, lambda: None)
            executor.post(done.append, "before")
            await trio.testing.wait_all_tasks_blocked()
            executor.abandon()
        with pytest.raises(OSError, match="No such device"):
            await executor.run(abs, 1)
        executor.post(done.append, "after")
        began = time.monotonic()
        assert not executor.close()
        assert time.monotonic() - began < 2
        assert done == []
        call.go_on.set()
        for thread in executor._threads:
            thread.join(10)
        assert done == ["before", "after"]


async def test_threads_of_an_abandoned_executor_end_when_the_disk_lets_them_go() -> None:
    hung, idle = Hanging(), Hanging()
    async with executor_with(hung, idle, threads=3) as (executor, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_timeout, executor, hung)
            await until(hung.begun.is_set)
            executor.abandon()
        await until(lambda: sum(thread.is_alive() for thread in executor._threads) == 1)
        hung.go_on.set()
        await until(lambda: not any(thread.is_alive() for thread in executor._threads))
        assert executor.close()


async def test_closing_a_stalled_executor_does_not_wait() -> None:
    call = Hanging()
    async with executor_with(call) as (executor, clock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_timeout, executor, call)
            await until(call.begun.is_set)
            clock.time += DEADLINE + 1
            executor.expire(clock.time, DEADLINE)
        began = time.monotonic()
        assert not executor.close()
        assert time.monotonic() - began < 2


async def test_a_posted_call_that_hangs_stalls_as_well() -> None:
    call = Hanging()
    async with executor_with(call) as (executor, clock):
        executor.post(call.run)
        await until(call.begun.is_set)
        clock.time += DEADLINE + 1
        assert executor.oldest_seconds(clock.time) == DEADLINE + 1
        executor.expire(clock.time, DEADLINE)
        assert is_stalled(executor)
        call.go_on.set()
        await until(lambda: not executor.stalled)


async def test_expiry_races_with_answers(seed: int) -> None:
    """Answers and expiries cross in the air: each caller gets one of the two, and all is let go."""
    chance = random.Random(seed)
    executor = DiskExecutor("race", threads=2)
    ended: list[int] = []
    outcomes: list[str] = []
    values: list[int] = []

    def slow(number: int) -> int:
        time.sleep(number % 3 * 0.0005)
        return number

    async def caller(number: int) -> None:
        try:
            value = await executor.run(
                slow,
                number,
                discard=values.append,
                afterwards=lambda: ended.append(number),
                abandonable=number % 2 == 0,
            )
            assert value == number
            outcomes.append("answer")
        except OSError as error:
            outcomes.append("timeout" if error.errno == errno.ETIMEDOUT else str(error))

    async def cancelled_caller(number: int) -> None:
        with trio.move_on_after(chance.random() * 0.003):
            await caller(number)

    async with trio.open_nursery() as nursery:
        for number in range(400):
            nursery.start_soon(cancelled_caller if number % 4 == 0 else caller, number)
            if chance.random() < 0.3:
                executor.expire(time.monotonic(), 0.0004)
            if chance.random() < 0.2:
                await trio.sleep(0.001)
    await until(lambda: executor.waiting() == 0)
    assert sorted(ended) == list(range(400))
    assert set(outcomes) <= {"answer", "timeout"}
    assert len(outcomes) >= 300
    assert executor.close()

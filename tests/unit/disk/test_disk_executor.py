"""The disk's worker threads."""

from __future__ import annotations

import threading
import time

import pytest
import trio
import trio.testing

from dwfs import limits
from dwfs.disk import DiskExecutor


def no_threads(name: str) -> bool:
    return not any(thread.name.startswith(f"dwfs-{name}") for thread in threading.enumerate())


async def wait_for(executor: DiskExecutor, gate: threading.Event) -> None:
    await executor.run(gate.wait)


async def test_results_and_exceptions_come_back() -> None:
    executor = DiskExecutor("results")
    assert await executor.run(divmod, 17, 5) == (3, 2)
    with pytest.raises(ZeroDivisionError):
        await executor.run(divmod, 1, 0)
    assert executor.close()
    assert executor.close()
    assert no_threads("results")
    with pytest.raises(RuntimeError):
        await executor.run(divmod, 1, 1)


async def test_a_running_call_is_waited_for_and_then_the_cancellation_arrives() -> None:
    executor = DiskExecutor("cancel")
    finished = []

    def slow() -> int:
        time.sleep(0.1)
        finished.append(True)
        return 5

    with trio.move_on_after(0.01) as scope:
        assert await executor.run(slow) == 5
        await trio.lowlevel.checkpoint()
        pytest.fail("the cancellation was lost")
    assert scope.cancelled_caught
    assert finished == [True]
    assert executor.waiting() == 0
    executor.close()


async def test_a_cancelled_caller_starts_nothing() -> None:
    executor = DiskExecutor("cancelled")
    called: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await executor.run(called.append, 1)
    executor.close()
    assert not called
    assert executor.waiting() == 0


async def test_the_queue_is_bounded_and_fair() -> None:
    executor = DiskExecutor("queue", threads=1)
    gate = threading.Event()
    order: list[int] = []
    count = limits.DISK_QUEUE_MAX + 20

    async def caller(number: int) -> None:
        await executor.run(order.append, number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, executor, gate)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(count):
            nursery.start_soon(caller, number)
            await trio.testing.wait_all_tasks_blocked()
        assert executor.waiting() == limits.DISK_QUEUE_MAX
        gate.set()
    # Waiters get places in order; trio starts the tasks that one tick wakes in random order.
    ahead = limits.DISK_QUEUE_MAX - 1
    assert order[:ahead] == list(range(ahead))
    assert sorted(order) == list(range(count))
    executor.close()


async def test_waiting_for_a_place_can_be_cancelled() -> None:
    executor = DiskExecutor("place", threads=1)
    gate = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(limits.DISK_QUEUE_MAX):
            nursery.start_soon(wait_for, executor, gate)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01) as scope:
            await executor.run(pytest.fail, "ran")
        assert scope.cancelled_caught
        gate.set()
    assert executor.close()


async def test_close_lets_queued_calls_finish() -> None:
    executor = DiskExecutor("close", threads=1)
    done: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(executor.run, slow, number)
        await trio.testing.wait_all_tasks_blocked()
        assert executor.close()
        assert sorted(done) == list(range(5))


@pytest.mark.expect_log("a background call failed")
async def test_posted_calls_are_run_and_a_failing_one_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor = DiskExecutor("post", threads=1)
    called: list[int] = []
    executor.post(called.append, 1)
    executor.post(called.remove, 7)
    executor.post(called.append, 2)
    assert await executor.run(len, called) == 2
    assert "a background call failed" in caplog.text
    assert executor.close()
    executor.post(called.append, 3)
    assert called == [1, 2]

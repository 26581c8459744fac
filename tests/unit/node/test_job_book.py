"""What long work remembers: it survives restarts, and its loss costs nothing but time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs.node.services.jobs import (
    FINISHED_MAX,
    DiskScrubRecord,
    JobStore,
    ScrubRecord,
    follow,
    read_book,
    write_atomically,
)
from dwfs.node.status import JobStatus
from dwfs.node.system import SystemClock
from dwfs.stripe import ScrubState
from dwfs.types import DiskPosition, PoolId

POOL = PoolId(b"p" * 16)


class Inline:
    """A worker that works at once, or fails."""

    def __init__(self) -> None:
        self.failure: OSError | None = None
        self.writes = 0

    async def run(self, function: Callable[[Path, bytes], None], path: Path, raw: bytes) -> None:
        """See `Worker`."""
        await trio.lowlevel.checkpoint()
        self.writes += 1
        if self.failure is not None:
            raise self.failure
        function(path, raw)


def store(path: Path, worker: Inline | None = None) -> JobStore:
    """A job store over `path`."""
    return JobStore(path, POOL, SystemClock(), worker or Inline())


async def test_the_book_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    jobs = store(path)
    state = ScrubState(
        position=DiskPosition(3, 4096), faults={"torn": 2}, unrepairable=[b"\0\xff" * 8]
    )
    jobs.book.scrub = ScrubRecord(17, disks={"aa": DiskScrubRecord("/d1", state, 1000)})
    jobs.finish(JobStatus("balance", "finished", "", started_ns=5))
    await jobs.save()
    again = store(path)
    assert again.book == jobs.book
    assert again.book.scrub is not None
    assert again.book.scrub.disks["aa"].state.position == DiskPosition(3, 4096)
    assert again.ended("balance", "", 5) is not None
    assert again.ended("balance", "", 6) is None


async def test_only_the_latest_jobs_are_kept(tmp_path: Path) -> None:
    jobs = store(tmp_path / "jobs.json")
    for number in range(FINISHED_MAX + 5):
        jobs.finish(JobStatus("repair", "finished", "", started_ns=number))
    assert len(jobs.book.finished) == FINISHED_MAX
    assert jobs.book.finished[0].started_ns == FINISHED_MAX + 4


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1}', b"\xff\xfe", b"[]"])
@pytest.mark.expect_log("begins anew")
def test_a_damaged_book_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.json"
    path.write_bytes(content)
    assert read_book(path, POOL).scrub is None


def test_the_book_of_another_pool_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    write_atomically(path, b'{"format": 1, "pool": "ff", "balance_wanted": true}')
    assert not read_book(path, POOL).balance_wanted


async def test_a_failed_save_is_made_up_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "jobs.json"
    worker = Inline()
    jobs = store(path, worker)
    worker.failure = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        await jobs.save()
    assert not path.exists()
    worker.failure = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert read_book(path, POOL) == jobs.book
    assert worker.writes == 2


async def test_following_a_job_tells_all_that_is_new(
    autojump_clock: trio.testing.MockClock,
) -> None:
    started = trio.current_time()
    told: list[tuple[float, object, object]] = []

    def look() -> JobStatus:
        seconds = trio.current_time() - started
        if seconds > 9:
            return JobStatus("scrub", "finished", "", done_bytes=30, total_bytes=30, result="fine")
        return JobStatus(
            "scrub", "running", "reading", done_bytes=int(seconds // 4), total_bytes=30
        )

    async def progress(event: Mapping[str, object]) -> None:
        told.append((trio.current_time() - started, event["done"], event["state"]))

    assert (await follow(look, progress)).result == "fine"
    assert told[-1][1:] == (30, "finished")
    assert [done for _, done, _ in told[:3]] == [0, 0, 1]
    silences = [after[0] - before[0] for before, after in pairwise(told)]
    assert max(silences) <= 2.5

"""A disk that hangs in the middle of a call holds up nobody for longer than the deadline."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio

from dwfs.disk.executor import DiskExecutor
from dwfs.disk.medium import Buffer, PosixMedium
from dwfs.log import (
    LogDisk,
    LogSettings,
    MirroredLog,
    SnapshotHeader,
    SnapshotKeeper,
    find_snapshot,
)
from dwfs.log.lanes import HungError, Lane, Lanes
from dwfs.log.watching import GivenUpError, Watch
from dwfs.types import DiskId, LogSequence
from tests.sim.log_rig import POOL, VOLUMES, GcmCipher, disk_id

A = VOLUMES[0]
DEADLINE_SECONDS = 1.0  # enough for a busy machine to make one step


class HangingMedium(PosixMedium):
    """Real files, and calls that do not return before they are told to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hanging: tuple[str, str] | None = None
        self._go = threading.Event()
        self.hung = threading.Event()

    def hang(self, disk: str, operation: str) -> None:
        """From now on, the operation hangs on the disk, and what hangs already goes on doing so."""
        if self._hanging is None:
            self._go.clear()
        self._hanging = (disk, operation)

    def release(self) -> None:
        """It works again."""
        self._hanging = None
        self._go.set()

    def _pass(self, path: str, operation: str) -> None:
        hanging = self._hanging
        if hanging is not None and hanging[1] == operation and f"/{hanging[0]}/" in path:
            self.hung.set()
            self._go.wait()

    def names(self, directory: Path) -> list[str]:
        self._pass(f"{directory}/", "names")
        return super().names(directory)

    def create(self, path: Path, *, replace: bool = False) -> int:
        self._pass(str(path), "create")
        return super().create(path, replace=replace)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        self._pass(os.readlink(f"/proc/self/fd/{handle}"), "read")
        return super().read(handle, offset, length)

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        zeros = not any(buffers[0][:64])
        self._pass(path, "zeros" if zeros else "write")
        super().write(handle, offset, buffers)

    def sync(self, handle: int) -> None:
        self._pass(os.readlink(f"/proc/self/fd/{handle}"), "sync")
        super().sync(handle)

    def remove(self, path: Path) -> None:
        self._pass(str(path), "remove")
        super().remove(path)


class Bench:
    """Three disks and a log with real threads on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.medium = HangingMedium()
        self.failed: list[tuple[DiskId, int | None]] = []
        self.numbers = [0, 1, 2]
        self.obeys = True
        for number in self.numbers:
            (root / f"d{number}").mkdir()
        self.settings = LogSettings(
            pool=POOL,
            copies=2,
            header_cipher=GcmCipher(),
            disks=self.disks,
            make_executor=lambda name: DiskExecutor(name, 1),
            on_disk_failed=self.on_failed,
            random_bytes=os.urandom,
            medium=self.medium,
            file_size=1 << 20,
            deadline_seconds=DEADLINE_SECONDS,
        )

    def disks(self) -> list[LogDisk]:
        return [LogDisk(disk_id(number), self.root / f"d{number}") for number in self.numbers]

    def on_failed(self, disk: DiskId, error: OSError) -> None:
        """As the pool: what hangs is suspect, and no longer offered."""
        self.failed.append((disk, error.errno))
        if self.obeys and disk[0] - 1 in self.numbers:
            self.numbers.remove(disk[0] - 1)

    async def open(self) -> MirroredLog:
        directories = {disk_id(number): self.root / f"d{number}" for number in range(3)}
        inventory = MirroredLog.recover(directories, POOL, GcmCipher(), PosixMedium())
        tail = inventory.tails.get(A)
        first = tail.sequence if tail is not None else LogSequence(1)
        return await MirroredLog.open(self.settings, inventory, {A: (GcmCipher(), first)})

    def sequences(self) -> list[int]:
        directories = {disk_id(number): self.root / f"d{number}" for number in range(3)}
        inventory = MirroredLog.recover(directories, POOL, GcmCipher(), PosixMedium())
        return [record.first for record in inventory.replay({A: GcmCipher()}, {})]

    def handles(self) -> list[str]:
        """Open files on the disks."""
        found = []
        for entry in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{entry}")
            except OSError:
                continue
            if path.startswith(str(self.root)):
                found.append(path)
        return found


async def append(log: MirroredLog, *numbers: int) -> None:
    for number in numbers:
        await log.append(A, bytes([number]) * 300, LogSequence(number), LogSequence(number))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        bench.medium.release()


async def until_closed(bench: Bench) -> None:
    with trio.fail_after(5):
        while bench.handles():
            await trio.sleep(0.02)


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("parallel", [False, True])
async def test_an_append_goes_elsewhere_and_the_late_thread_changes_nothing(
    bench: Bench, nursery: trio.Nursery, operation: str, parallel: bool
) -> None:
    log = await bench.open()
    nursery.start_soon(log.watch)
    log._files._estimator.sequential = lambda *_: not parallel  # type: ignore[method-assign]  # choose the way
    await append(log, 1, 2)
    victim = log.status().members[0]
    bench.medium.hang(f"d{victim[0] - 1}", operation)
    before = trio.current_time()
    await append(log, 3)
    assert trio.current_time() - before < 3 * DEADLINE_SECONDS
    assert bench.failed == [(victim, errno.ETIMEDOUT)]
    assert log.status().copies == 2
    assert victim not in log.status().members
    await append(log, 4)
    bench.medium.release()
    await append(log, 5)
    assert (await log.heal()).files_short == 0
    assert await log.verify() == []
    nursery.cancel_scope.cancel()
    await log.close()
    await until_closed(bench)
    assert bench.sequences() == [1, 2, 3, 4, 5]


async def test_a_filler_that_hangs_holds_up_no_other_disk(
    bench: Bench, nursery: trio.Nursery
) -> None:
    log = await bench.open()
    nursery.start_soon(log.watch)
    victim = log.status().members[0]
    bench.medium.hang(f"d{victim[0] - 1}", "zeros")
    await append(log, *range(1, 12))
    assert bench.failed in ([], [(victim, errno.ETIMEDOUT)])
    assert bench.sequences() == list(range(1, 12))
    bench.medium.release()
    nursery.cancel_scope.cancel()
    await log.close()
    await until_closed(bench)


@pytest.mark.parametrize("operation", ["names", "create", "write"])
async def test_a_new_file_does_without_a_disk_that_hangs(
    bench: Bench, nursery: trio.Nursery, operation: str
) -> None:
    log = await bench.open()
    nursery.start_soon(log.watch)
    await append(log, 1)
    bench.medium.hang("d0", operation)
    for number in range(2, 5):
        await log.close_current()
        await append(log, number)
    assert bench.failed == [(disk_id(0), errno.ETIMEDOUT)]
    assert log.status().copies == 2
    bench.medium.release()
    nursery.cancel_scope.cancel()
    await log.close()
    await until_closed(bench)
    assert bench.sequences() == [1, 2, 3, 4]


async def test_a_disk_that_hangs_and_is_offered_all_the_same_fails_at_once(
    bench: Bench, nursery: trio.Nursery
) -> None:
    bench.obeys = False
    log = await bench.open()
    nursery.start_soon(log.watch)
    await append(log, 1)
    bench.medium.hang("d0", "create")
    for number in range(2, 5):
        await log.close_current()
        await append(log, number)
    before = trio.current_time()
    for number in range(5, 12):
        await log.close_current()
        await append(log, number)
    assert trio.current_time() - before < DEADLINE_SECONDS
    assert log.status().copies == 2
    # It is taken out, and back while its thread still hangs: then it is tried again.
    bench.numbers.remove(0)
    await log.heal()
    bench.numbers.append(0)
    bench.medium.hang("d0", "nothing")
    for _ in range(3):
        await log.close_current()
    assert len(log.status().members) == 2
    bench.medium.release()
    await log.heal()
    nursery.cancel_scope.cancel()
    await log.close()
    await until_closed(bench)
    assert bench.sequences() == list(range(1, 12))


async def test_healing_and_opening_do_without_a_disk_that_hangs(bench: Bench) -> None:
    log = await bench.open()
    await append(log, 1, 2)
    holders = log.status().members
    await log.close()
    # The next mount has to copy the file to a third disk, and a copy can't be read.
    bench.numbers.remove(holders[1][0] - 1)
    bench.settings = LogSettings(
        **{
            name: getattr(bench.settings, name)
            for name in LogSettings.__struct_fields__
            if name != "readable"
        },
        readable=lambda: [LogDisk(disk_id(n), bench.root / f"d{n}") for n in range(3)],
    )
    bench.medium.hang(f"d{holders[0][0] - 1}", "read")
    log = await bench.open()
    assert bench.failed == [(holders[0], errno.ETIMEDOUT)]
    assert log.status().files_short  # one disk is left to take copies, and has one
    assert log.needs(holders[0]) == log.needs(holders[1]) == 0
    bench.medium.release()
    bench.numbers[:] = [0, 1, 2]
    assert (await log.heal()).files_short == 0
    await log.close()
    await until_closed(bench)
    assert bench.sequences() == [1, 2]


async def test_checking_does_without_a_disk_that_hangs(bench: Bench) -> None:
    log = await bench.open()
    await append(log, 1, 2)
    await log.close_current()
    (holder, *_) = log._closed[0].holders
    bench.medium.hang(f"d{holder[0] - 1}", "read")
    assert not [finding for finding in await log.verify() if finding.kind == "damage"]
    assert set(bench.failed) == {(holder, errno.ETIMEDOUT)}
    bench.medium.release()
    await log.close()
    await until_closed(bench)


async def test_a_late_thread_cuts_off_no_record_that_the_next_mount_counts_on(bench: Bench) -> None:
    bench.obeys = False
    log = await bench.open()
    await append(log, 1, 2)
    first, second = log.status().members
    bench.medium.hang(f"d{second[0] - 1}", "sync")
    with trio.move_on_after(0):
        await append(log, 3)  # it goes on, and is repeated elsewhere; here it stays unacknowledged
    await log.close()
    names = [f"d{disk[0] - 1}/log/{1:016x}.log" for disk in (first, second)]
    sizes = [(bench.root / name).stat().st_size for name in names]
    bench.medium.release()
    await until_closed(bench)
    assert [(bench.root / name).stat().st_size for name in names] == sizes


async def test_closing_leaves_a_hanging_thread_behind(bench: Bench) -> None:
    log = await bench.open()
    await append(log, 1)
    bench.medium.hang(f"d{log.status().members[0][0] - 1}", "sync")
    with trio.move_on_after(4 * DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.watch)
            await append(log, 2)
            nursery.cancel_scope.cancel()
    before = trio.current_time()
    await log.close()
    assert trio.current_time() - before < 3 * DEADLINE_SECONDS
    bench.medium.release()
    await until_closed(bench)
    assert bench.sequences() == [1, 2]


@pytest.mark.parametrize("watched", [False, True])
async def test_nobody_waits_for_ever_though_the_watch_is_cancelled_or_missing(
    bench: Bench, watched: bool
) -> None:
    log = await bench.open()
    await append(log, 1)
    bench.medium.hang(f"d{log.status().members[0][0] - 1}", "sync")
    with trio.fail_after(6 * DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            if watched:
                nursery.start_soon(log.watch)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(append, log, 2)
            nursery.start_soon(log.heal)
            await trio.sleep(DEADLINE_SECONDS / 4)
            if watched:
                nursery.cancel_scope.cancel()
        await append(log, *range(log._next[A].sequence, 4))
        await log.close()
    bench.medium.release()
    await until_closed(bench)
    assert bench.sequences() == [1, 2, 3]


async def test_a_snapshot_goes_to_the_other_disks(bench: Bench) -> None:
    keeper = SnapshotKeeper(bench.settings, A, GcmCipher())
    header = SnapshotHeader(POOL, A, LogSequence(7), LogSequence(8), 1)
    bench.medium.hang("d1", "write")
    result = await keeper.write(header, lambda: [(b"k%d" % n, bytes(100_000)) for n in range(30)])
    assert sorted(result.disks) == [disk_id(0), disk_id(2)]
    assert bench.failed == [(disk_id(1), errno.ETIMEDOUT)]
    bench.medium.release()
    await keeper.close()
    await until_closed(bench)
    directories = {disk_id(number): bench.root / f"d{number}" for number in range(3)}
    found = find_snapshot(directories, POOL, A, GcmCipher(), PosixMedium())
    assert found is not None
    assert sorted(found.disks) == [disk_id(0), disk_id(2)]
    assert len(list(found.pairs())) == 30


async def test_time_in_which_we_were_stopped_is_no_silence_of_a_disk() -> None:
    lanes = Lanes(lambda name: DiskExecutor(name, 1), 12.0)
    go = threading.Event()

    def job(watch: Watch) -> str:
        watch.enter(disk_id(0))
        go.wait()
        return "done"

    async with trio.open_nursery() as nursery:
        results: list[str] = []

        async def call() -> None:
            results.append(await lanes.writer.run(job))

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        for now in (100.0, 100.25, 5000.0, 5000.25, 90.0, 90.25):
            lanes.expire(now)
        go.set()
    assert "".join(results) == "done"
    await lanes.watched(lambda: lanes.close(set()))


def test_a_watch_delivers_or_gives_up_and_never_both() -> None:
    watch = Watch()
    assert watch.finish()
    assert not watch.give_up()
    watch = Watch()
    assert watch.give_up()
    assert not watch.finish()
    with pytest.raises(GivenUpError):
        watch.enter(disk_id(0))


async def test_a_stalled_lane_fails_at_once_until_its_thread_is_back() -> None:
    lane = Lane(DiskExecutor("lane", 1), disk_id(0))
    go = threading.Event()

    def job(_watch: Watch) -> None:
        go.wait()

    def stalled() -> bool:
        return lane.stalled

    with pytest.raises(HungError, match="timed out") as caught:
        await lane.run_watched(0.3, job)
    assert caught.value.disk == disk_id(0)
    assert stalled()
    with pytest.raises(HungError, match="still hangs"):
        await lane.run_watched(0.3, job)
    go.set()
    with trio.fail_after(5):
        while stalled():
            await trio.sleep(0.01)
    await lane.run_watched(0.3, job)
    await lane.close(0.3)

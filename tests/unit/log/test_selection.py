"""Sets rotate over healthy, roomy disks; the way of writing follows measured times."""

from __future__ import annotations

from pathlib import Path

from dwfs.log.ports import LogDisk
from dwfs.log.selection import SEQUENTIAL_SIZE_MAX, SyncEstimator, choose_members
from tests.sim.log_rig import disk_id

DISKS = [LogDisk(disk_id(number), Path(f"/{number}"), 1000) for number in range(4)]


def chosen(rotation: int, **options: object) -> list[int]:
    avoid = {disk_id(number) for number in options.get("avoid", ())}  # type: ignore[attr-defined]  # test shorthand
    disks = [
        LogDisk(d.disk, d.directory, 1 if n in options.get("full", ()) else 1000)  # type: ignore[operator]  # as above
        for n, d in enumerate(DISKS)
    ]
    return [member.disk[0] - 1 for member in choose_members(disks, 2, rotation, avoid, 100)]


def test_rotation_spreads_load() -> None:
    assert [chosen(rotation) for rotation in range(4)] == [[0, 1], [1, 2], [2, 3], [3, 0]]


def test_suspects_and_full_disks_come_last_but_come() -> None:
    assert chosen(0, avoid=(0,)) == [1, 2]
    assert chosen(0, full=(0, 1)) == [2, 3]
    assert chosen(0, avoid=(0, 1, 2)) == [3, 0]
    assert choose_members([], 2, 5, set(), 0) == []


def test_slow_disks_are_written_in_parallel_and_one_hiccup_does_not_count() -> None:
    estimator = SyncEstimator()
    disks = [disk_id(number) for number in range(3)]
    assert estimator.sequential(disks, 4096)
    for _ in range(50):
        for disk in disks:
            estimator.observe(disk, 50e-6, 4096)
    estimator.observe(disks[0], 0.5, 4096)
    assert estimator.sequential(disks, 4096)
    assert not estimator.sequential(disks, SEQUENTIAL_SIZE_MAX + 1)
    for _ in range(50):
        for disk in disks[:2]:
            estimator.observe(disk, 5e-3, 4096)
    assert not estimator.sequential(disks, 4096)


def test_fast_disks_come_back_from_the_parallel_way() -> None:
    estimator = SyncEstimator()
    disks = [disk_id(number) for number in range(3)]
    for _ in range(100):
        for disk in disks:
            estimator.observe(disk, 1e-3, 4096)
    assert not estimator.sequential(disks, 4096)
    ways = []
    for _ in range(200):
        ways.append(estimator.sequential(disks, 4096))
        for disk in disks:
            estimator.observe(disk, 60e-6 if ways[-1] else 1e-3, 4096, alone=ways[-1])
    assert all(ways[-100:])

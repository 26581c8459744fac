"""State snapshots: whole or not at all, and read from whatever copies are left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dwfs.errors import DamageError, NoSpaceError
from dwfs.log import (
    LogDisk,
    PosixMedium,
    Snapshot,
    SnapshotHeader,
    SnapshotResult,
    SnapshotStoppedError,
    find_snapshot,
    remove_older,
    write_snapshot,
)
from dwfs.types import LogSequence
from tests.sim.log_medium import SimulatedMedium
from tests.sim.log_rig import POOL, VOLUMES, GcmCipher, disk_id

VOLUME = VOLUMES[0]
MEDIUM = PosixMedium()


def disks_of(root: Path, count: int = 3) -> list[LogDisk]:
    for number in range(count):
        (root / f"d{number}").mkdir(exist_ok=True)
    return [LogDisk(disk_id(number), root / f"d{number}") for number in range(count)]


def pairs(count: int = 30, size: int = 120_000) -> Iterator[tuple[bytes, bytes]]:
    return ((b"key%d" % number, bytes([number % 256]) * size) for number in range(count))


def write(
    disks: list[LogDisk], sequence: int = 7, copies: int = 2, **rest: object
) -> SnapshotResult:
    header = SnapshotHeader(
        POOL,
        VOLUME,
        LogSequence(sequence),
        LogSequence(sequence - 1),
        sequence,
        bytes([sequence]) * 16,
    )
    medium = rest.pop("medium", MEDIUM)
    return write_snapshot(header, pairs(), GcmCipher(), disks, copies, medium=medium, **rest)  # type: ignore[arg-type]  # test shorthand


def find(disks: list[LogDisk]) -> Snapshot | None:
    directories = {disk.disk: disk.directory for disk in disks}
    return find_snapshot(directories, POOL, VOLUME, GcmCipher(), MEDIUM)


def test_round_trip_and_progress(tmp_path: Path) -> None:
    disks = disks_of(tmp_path)
    assert find(disks) is None
    seen: list[tuple[int, int]] = []
    result = write(disks, on_progress=lambda count, size: seen.append((count, size)))
    assert result.disks == (disks[0].disk, disks[1].disk)
    assert seen[-1] == (30, result.size_bytes)
    found = find(disks)
    assert found is not None
    assert list(found.pairs()) == list(pairs())
    assert (found.header.sequence, found.header.replay_from) == (7, 6)
    assert found.size_bytes == result.size_bytes


def test_copies_damaged_in_different_places_make_a_whole_one(tmp_path: Path) -> None:
    disks = disks_of(tmp_path)
    write(disks)
    for path, place in zip(sorted(tmp_path.glob("d*/snapshots/*")), (0.2, 0.8), strict=True):
        data = bytearray(path.read_bytes())
        data[int(len(data) * place)] ^= 1
        path.write_bytes(data)
    found = find(disks)
    assert found is not None
    assert list(found.pairs()) == list(pairs())


def test_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    disks = disks_of(tmp_path)
    write(disks, 7)
    write(disks, 9)
    for path in tmp_path.glob("d*/snapshots/*0009-*"):
        path.write_bytes(path.read_bytes()[:-1])
    found = find(disks)
    assert found is not None
    assert found.header.sequence == 7
    assert "0009: damaged on all 2 disks" in found.notes[0]
    for path in tmp_path.glob("d*/snapshots/*"):
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamageError, match="no state snapshot is whole"):
        find(disks)


def test_wrong_key_is_no_whole_snapshot(tmp_path: Path) -> None:
    disks = disks_of(tmp_path)
    write(disks)
    directories = {disk.disk: disk.directory for disk in disks}
    with pytest.raises(DamageError):
        find_snapshot(directories, POOL, VOLUME, GcmCipher(b"w" * 32), MEDIUM)
    assert find_snapshot(directories, POOL, VOLUMES[1], GcmCipher(), MEDIUM) is None


def test_a_failing_disk_is_replaced_by_a_spare(tmp_path: Path) -> None:
    medium = SimulatedMedium(5)
    disks = [LogDisk(disk_id(number), Path(f"/d{number}")) for number in range(3)]
    medium.full.add("d0")
    result = write(disks, medium=medium)
    assert result.disks == (disks[1].disk, disks[2].disk)
    assert list(result.failures) == [disks[0].disk]
    medium.full.update(("d1", "d2"))
    with pytest.raises(NoSpaceError):
        write(disks, 8, medium=medium)
    assert {path.name for path in medium.seen} == {f"{7:016x}-{VOLUME.hex()[:16]}.snap"}


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    disks = disks_of(tmp_path)
    with pytest.raises(SnapshotStoppedError):
        write(disks, should_stop=lambda: True)
    assert not list(tmp_path.glob("d*/snapshots/*"))


def test_remove_older(tmp_path: Path) -> None:
    disks = disks_of(tmp_path)
    write(disks, 7)
    write(disks, 9)
    (tmp_path / "d2/snapshots").mkdir()
    (tmp_path / "d2/snapshots" / f"{9:016x}-{VOLUME.hex()[:16]}.snap.part").touch()
    assert remove_older({d.disk: d.directory for d in disks}, VOLUME, LogSequence(9), MEDIUM) == {}
    assert {path.name[:16] for path in tmp_path.glob("d*/snapshots/*")} == {f"{9:016x}"}

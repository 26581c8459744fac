"""Copies of state snapshots: made again where disks were lost, dropped where a disk leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dwfs.disk.medium import PosixMedium
from dwfs.errors import NotEnoughDisksError
from dwfs.log import LogDisk, SnapshotHeader, SnapshotKeeper, find_snapshot, snapshot_holders
from dwfs.types import LogSequence
from tests.sim.log_rig import POOL, VOLUMES, GcmCipher, LogRig, disk_id

VOLUME = VOLUMES[0]


def pairs() -> Iterator[tuple[bytes, bytes]]:
    return ((b"key%d" % number, bytes([number % 256]) * 100_000) for number in range(30))


def rig_of(root: Path, disks: int = 4) -> LogRig:
    for number in range(disks):
        (root / f"d{number}").mkdir()
    return LogRig(root, disks, 2, PosixMedium())


def keeper_of(rig: LogRig) -> SnapshotKeeper:
    return SnapshotKeeper(rig.settings(), VOLUME, GcmCipher())


def header(sequence: int) -> SnapshotHeader:
    return SnapshotHeader(POOL, VOLUME, LogSequence(sequence), LogSequence(sequence), sequence)


def snapshots(rig: LogRig, number: int) -> list[Path]:
    return sorted((rig.directory(number) / "snapshots").glob("*"))


def readable(rig: LogRig) -> bool:
    directories = {disk.disk: disk.directory for disk in rig.disks()}
    found = find_snapshot(directories, POOL, VOLUME, GcmCipher(), PosixMedium())
    return found is not None and list(found.pairs()) == list(pairs())


async def test_copies_of_a_lost_disk_are_made_again_and_older_ones_go(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    keeper = keeper_of(rig)
    assert (await keeper.heal()).sequence is None
    assert not keeper.needs(disk_id(0))
    first = await keeper.write(header(5), pairs)
    second = await keeper.write(header(6), pairs)
    assert set(first.disks) != set(second.disks)  # they rotate
    lost = second.disks[0]
    rig.present.remove(lost[0] - 1)
    report = await keeper.heal()
    assert (report.sequence, report.mended, report.short) == (6, 1, False)
    assert len(report.holders) == 2
    assert lost not in report.holders
    for number in rig.present:
        assert len(snapshots(rig, number)) == (disk_id(number) in report.holders)
    rig.present = [disk[0] - 1 for disk in report.holders if disk not in second.disks]
    assert readable(rig)
    await keeper.close()


async def test_rot_is_found_and_mended_when_asked_for(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    keeper = keeper_of(rig)
    result = await keeper.write(header(5), pairs)
    sound = b""
    for disk, place in zip(result.disks, (0.3, 0.6), strict=True):
        (path,) = snapshots(rig, disk[0] - 1)
        sound = path.read_bytes()
        data = bytearray(sound)
        data[int(len(data) * place)] ^= 1
        path.write_bytes(data)
    assert (await keeper.heal()).mended == 0
    report = await keeper.heal(thorough=True)
    assert (report.mended, report.short, set(report.holders)) == (2, False, set(result.disks))
    for disk in result.disks:
        assert [path.read_bytes() for path in snapshots(rig, disk[0] - 1)] == [sound]
    await keeper.close()


async def test_a_disk_is_emptied_only_when_the_others_have_copies(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, disks=3)
    keeper = keeper_of(rig)
    assert keeper.needs(disk_id(0))  # nothing is known yet
    result = await keeper.write(header(5), pairs)
    leaving = result.disks[0]
    number = leaving[0] - 1
    rig.present.remove(number)
    rig.leaving.append(number)
    disk = LogDisk(leaving, rig.directory(number))
    assert keeper.used_bytes(leaving) == result.size_bytes
    with pytest.raises(NotEnoughDisksError, match="needs its copy"):
        await keeper.drop_copies(disk)
    assert not (await keeper.heal()).short
    assert not keeper.needs(leaving)
    await keeper.drop_copies(disk)
    assert not snapshots(rig, number)
    assert keeper.used_bytes(leaving) == 0
    rig.leaving.clear()
    assert readable(rig)
    directories = {one.disk: one.directory for one in rig.disks()}
    (copies,) = snapshot_holders(directories, POOL, VOLUME, PosixMedium())
    assert (copies.header.sequence, len(copies.disks)) == (5, 2)
    assert copies.size_bytes == result.size_bytes
    await keeper.close()


async def test_a_copy_only_on_a_failing_disk_is_read_from_there(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, disks=3)
    keeper = keeper_of(rig)
    result = await keeper.write(header(5), pairs)
    for path in snapshots(rig, result.disks[1][0] - 1):
        path.unlink()
    failing = result.disks[0][0] - 1
    rig.present.remove(failing)
    rig.leaving.append(failing)
    report = await keeper.heal()
    assert (report.mended, report.short) == (2, False)
    rig.leaving.clear()
    assert readable(rig)
    await keeper.close()

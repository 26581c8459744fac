"""Disks that leave, come back stale, or are removed; and what a check says of the copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from dwfs.disk.medium import PosixMedium
from dwfs.errors import NotEnoughDisksError
from dwfs.log import LogDisk, MirroredLog, verify
from dwfs.log.format import FileHeader, StreamStart
from dwfs.log.lineage import FileFacts, StreamRun
from dwfs.log.returning import reason_to_keep
from dwfs.types import LogSequence, PoolId
from tests.sim.log_rig import POOL, VOLUMES, GcmCipher, LogRig, disk_id

A, B = VOLUMES[:2]


def rig_of(root: Path, disks: int = 4, file_size: int = 700) -> LogRig:
    for number in range(disks):
        (root / f"d{number}").mkdir()
    rig = LogRig(root, disks, 2, PosixMedium(), file_size)
    rig.preallocation_size = 0
    return rig


async def append(log: MirroredLog, first: int, last: int) -> None:
    for number in range(first, last + 1):
        await log.append(A, bytes([number]) * 100, LogSequence(number), LogSequence(number))


def files(rig: LogRig, number: int) -> set[str]:
    return {path.name for path in (rig.directory(number) / "log").glob("*")}


def sequences(rig: LogRig, replay_from: int = 1) -> list[int]:
    return [record[1] for record in rig.replay({A: LogSequence(replay_from)}, [A])]


async def test_a_disk_that_was_away_for_a_while_catches_up_and_loses_what_was_trimmed(
    tmp_path: Path,
) -> None:
    rig = rig_of(tmp_path)
    log = await rig.open()
    await append(log, 1, 12)
    rig.present.remove(0)
    await log.heal()
    stale = files(rig, 0)
    await append(log, 13, 20)
    await log.trim(A, LogSequence(16))
    rig.present.append(0)
    report = await log.heal()
    assert report.files_removed > 0
    assert report.notes == ()
    assert report.files_short == 0
    known = {f"{file.sequence:016x}.log" for file in log._closed}
    assert files(rig, 0) <= known
    assert stale - known
    assert await log.verify() == []
    await log.close()
    assert sequences(rig, 17) == [17, 18, 19, 20]


async def test_a_disk_that_missed_mounts_and_trims_comes_back_to_an_open_pool(
    tmp_path: Path,
) -> None:
    rig = rig_of(tmp_path)
    log = await rig.open()
    await append(log, 1, 12)
    await log.close()
    rig.present.remove(1)
    log = await rig.open()
    await append(log, 13, 20)
    await log.close_current()
    await log.trim(A, LogSequence(15))
    await log.close()
    log = await rig.open({A: 16})
    await append(log, 21, 22)
    (rig.directory(1) / "log" / "00000000000000f0.log").touch()  # torn at its creation
    (rig.directory(1) / "log" / "0000000000000001.log.part").touch()
    rig.present.append(1)
    report = await log.heal()
    assert report.notes == ()
    known = {f"{file.sequence:016x}.log" for file in log._closed}
    assert files(rig, 1) - {"00000000000000f0.log"} <= known
    await append(log, 23, 24)
    await log.close()
    assert sequences(rig, 16) == list(range(16, 25))


async def test_it_comes_back_at_a_mount_and_confuses_nobody(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    log = await rig.open()
    await append(log, 1, 12)
    rig.present.remove(1)
    await append(log, 13, 20)
    await log.heal()
    await log.close_current()
    await log.trim(A, LogSequence(20))
    await append(log, 21, 22)
    await log.close()
    assert files(rig, 1)
    rig.present.append(1)
    assert sequences(rig, 21) == [21, 22]
    log = await rig.open({A: 21})
    assert log.status().files_short == 0
    await log.heal()
    kept = {f"{file.sequence:016x}.log" for file in log._closed}
    assert log._current is not None
    assert files(rig, 1) <= kept | {f"{log._current.header.sequence:016x}.log"}
    await log.close()
    assert sequences(rig, 21) == [21, 22]


async def test_what_was_written_elsewhere_meanwhile_is_left_alone_and_told(
    tmp_path: Path,
) -> None:
    rig = rig_of(tmp_path)
    log = await rig.open()
    await append(log, 1, 3)
    rig.present.remove(0)
    await log.heal()
    (tmp_path / "elsewhere").mkdir()
    other = rig_of(tmp_path / "elsewhere")
    other.present = [0]
    (rig.directory(0) / "log").rename(other.directory(0) / "log")
    for _ in range(3):
        stranger = await other.open()
        await append(stranger, int(stranger._next[A].sequence), int(stranger._next[A].sequence) + 2)
        await stranger.close()
    (other.directory(0) / "log").rename(rig.directory(0) / "log")
    rig.present.append(0)
    before = files(rig, 0)
    report = await log.heal()
    assert any("in use elsewhere" in note for note in report.notes)
    assert files(rig, 0) >= before - {f"{file.sequence:016x}.log" for file in log._closed}
    await log.close()


async def test_removing_a_disk_in_good_order(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, disks=3)
    log = await rig.open()
    await append(log, 1, 20)
    leaving = LogDisk(disk_id(0), rig.directory(0))
    assert log.used_bytes(leaving.disk) > 0
    with pytest.raises(NotEnoughDisksError, match="still takes new log files"):
        await log.drop_copies(leaving)
    rig.present.remove(0)
    rig.leaving.append(0)
    assert log.needs(leaving.disk) > 0
    with pytest.raises(NotEnoughDisksError, match="wait until the others have copies"):
        await log.drop_copies(leaving)
    await log.heal()
    assert log.needs(leaving.disk) == 0
    await log.drop_copies(leaving)
    assert not files(rig, 0)
    assert log.used_bytes(leaving.disk) == 0
    rig.leaving.clear()
    assert await log.verify() == []
    await log.close()
    for missing in (1, 2):
        rig.present = [number for number in (1, 2) if number != missing]
        assert sequences(rig) == list(range(1, 21))


async def test_an_only_copy_on_a_failing_disk_is_copied_off_it(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, disks=3)
    log = await rig.open()
    await append(log, 1, 6)
    await log.close_current()
    holders = [number for number in range(3) if files(rig, number)]
    for name in files(rig, holders[1]):
        (rig.directory(holders[1]) / "log" / name).unlink()
    await log.close()
    rig.present = [number for number in range(3) if number != holders[0]]
    rig.leaving = [holders[0]]
    directories = {disk.disk: disk.directory for disk in rig.settings().readable_disks().values()}
    inventory = MirroredLog.recover(directories, POOL, GcmCipher(), PosixMedium())
    streams = {A: (rig.ciphers[A], inventory.tails[A].sequence)}
    log = await MirroredLog.open(rig.settings(), inventory, streams)
    assert log.status().files_short == 0
    await log.close()
    rig.leaving.clear()
    assert sequences(rig) == [1, 2, 3, 4, 5, 6]


async def test_a_check_names_each_copy_that_is_not_as_the_others(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, disks=2, file_size=1 << 20)
    log = await rig.open()
    await append(log, 1, 6)
    await log.close_current()
    assert await log.verify() == []
    (name,) = {f"{file.sequence:016x}.log" for file in log._closed if file.reach}
    path = rig.directory(0) / "log" / name
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    findings = await log.verify()
    assert [finding.kind for finding in findings] == ["shortage", "shortage"]
    assert "disk 01010101 is damaged" in findings[0].detail
    assert "has 1 of 2 whole copies" in findings[1].detail
    other = rig.directory(1) / "log" / name
    other.write_bytes(data)
    assert [finding.kind for finding in await log.verify()] == ["damage"]
    await log.close()
    findings = verify(rig.inventory(), {A: LogSequence(1)}, 2)
    assert findings
    assert {finding.kind for finding in findings} == {"damage"}
    assert verify(rig.inventory(), {A: LogSequence(7)}, 2) == []


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("deleted", [True, False])
async def test_what_a_check_found_is_mended(tmp_path: Path, grows: bool, deleted: bool) -> None:
    rig = rig_of(tmp_path, disks=3, file_size=1 << 20)
    log = await rig.open()
    await append(log, 1, 6)
    if not grows:
        await log.close_current()
    name = min(files(rig, 0) | files(rig, 1))
    path = next(p for n in range(3) if (p := rig.directory(n) / "log" / name).exists())
    if deleted:
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
    assert await log.verify() != []
    report = await log.heal()
    assert report.files_short == 0
    assert await log.verify() == []
    await append(log, 7, 8)
    await log.close()
    assert sequences(rig) == [1, 2, 3, 4, 5, 6, 7, 8]


def facts(incarnation: int, last: int, before: int) -> FileFacts:
    start = StreamStart(A, 1, LogSequence(1), bytes(16))
    header = FileHeader(PoolId(POOL), b"i" * 16, 1, incarnation, (), (start,))
    return FileFacts(header, True, {A: StreamRun(1, 9, last, last, b"x" * 16, b"y" * 16, before)})


@pytest.mark.parametrize(
    ("file", "own", "floor", "kept"),
    [
        (facts(3, 10, 9), set(), 9, ""),  # its last record was never acknowledged
        (facts(3, 10, 9), set(), 8, "commands up to 9"),
        (facts(5, 1, 0), set(), 9, "in use elsewhere"),
        (facts(5, 99, 98), {b"i" * 16}, 9, ""),
    ],
)
def test_what_may_go(file: FileFacts, own: set[bytes], floor: int, kept: str) -> None:
    reason = reason_to_keep(file, 5, own, {A: floor})
    assert kept in reason
    assert bool(kept) == bool(reason)

"""The log on real files: what survives which loss, and what is refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dwfs.errors import DamageError, FormatError, PosixError
from dwfs.log import MirroredLog, PosixMedium
from dwfs.log import format as fmt
from dwfs.types import LogSequence, VolumeId
from tests.sim.log_medium import SimulatedMedium
from tests.sim.log_rig import VOLUMES, GcmCipher, LogRig

A, B = VOLUMES[:2]


def rig_of(root: Path, disks: int = 3, copies: int = 2, file_size: int = 1 << 20) -> LogRig:
    for number in range(disks):
        (root / f"d{number}").mkdir()
    return LogRig(root, disks, copies, PosixMedium(), file_size)


async def fill(
    rig: LogRig, count: int, size: int = 100, first: int = 1, close: bool = True
) -> None:
    log = await rig.open()
    for number in range(first, first + count):
        payload = number.to_bytes(4, "big") * (size // 4)
        await log.append(A, payload, LogSequence(number), LogSequence(number))
    if close:
        await log.close()


def sequences(rig: LogRig, replay_from: int = 1) -> list[int]:
    return [record[1] for record in rig.replay({A: LogSequence(replay_from)}, [A])]


def log_files(rig: LogRig) -> list[Path]:
    return sorted(rig.root.glob("d*/log/*.log"), key=lambda path: path.name)


async def test_records_come_back_in_order_over_mounts(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    await fill(rig, 5)
    log = await rig.open()
    await log.append(B, b"other", LogSequence(1), LogSequence(3))
    await log.append(A, b"", LogSequence(6), LogSequence(5))
    await log.append(A, b"six", LogSequence(6), LogSequence(6))
    await log.close()
    assert rig.replay()[5:] == [(B, 1, 3, b"other"), (A, 6, 5, b""), (A, 6, 6, b"six")]
    assert sequences(rig, 6) == [6, 6]
    assert rig.replay({A: LogSequence(7), B: LogSequence(3)}) == [(B, 1, 3, b"other")]


async def test_any_one_disk_may_be_missing_and_its_return_changes_nothing(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, file_size=500)
    await fill(rig, 20)
    for missing in range(3):
        rig.present = [number for number in range(3) if number != missing]
        assert sequences(rig) == list(range(1, 21))
    await fill(rig, 5, first=21)
    rig.present = [0, 1, 2]
    assert sequences(rig) == list(range(1, 26))


async def test_a_missing_file_in_the_middle_is_refused_by_name(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, file_size=500)
    await fill(rig, 20)
    gone = sorted({path.name for path in log_files(rig)})[2]
    for path in log_files(rig):
        if path.name == gone:
            path.unlink()
    with pytest.raises(DamageError, match=r"missing \(commands 1 to"):
        sequences(rig)
    assert sequences(rig, 20) == [20]


async def test_rot_in_one_copy_is_mended_from_the_other(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, disks=2)
    await fill(rig, 20)
    path = log_files(rig)[0]
    whole = path.read_bytes()
    for offset in (3, 700, 1500, len(whole) - 5):
        rotten = bytearray(whole)
        rotten[offset] ^= 4
        path.write_bytes(rotten)
        assert sequences(rig) == list(range(1, 21))
    path.write_bytes(whole[:1000])
    await (await rig.open()).close()
    assert path.read_bytes() == whole


async def test_rot_in_the_middle_of_all_copies_is_damage_and_at_the_end_a_torn_tail(
    tmp_path: Path,
) -> None:
    rig = rig_of(tmp_path, disks=2)
    await fill(rig, 20)
    for path in log_files(rig):
        path.write_bytes(path.read_bytes()[:-7])
    assert sequences(rig) == list(range(1, 20))
    for path in log_files(rig):
        data = bytearray(path.read_bytes())
        data[1200] ^= 1
        path.write_bytes(data)
    with pytest.raises(DamageError, match="damaged in the middle"):
        rig.replay({}, [A])


async def test_wrong_key_and_newer_format_are_refused(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    await fill(rig, 3)
    rig.ciphers[A] = GcmCipher(b"x" * 32)
    with pytest.raises(DamageError, match="does not open"):
        sequences(rig)
    path = log_files(rig)[0]
    for other in log_files(rig):
        other.write_bytes(b"")

    header = fmt.FileHeader(VOLUMES[0], b"i" * 16, 1, 1, (), ())  # type: ignore[arg-type]  # any 16 bytes
    aad = bytearray(fmt.file_header_aad(header, 0))
    aad[8] = 9
    path.write_bytes(fmt.encode_file_header(bytes(aad), b"")[0])
    with pytest.raises(FormatError, match="log format 9"):
        sequences(rig)


async def test_a_failing_disk_is_replaced_and_the_record_is_not_doubled(tmp_path: Path) -> None:
    medium = SimulatedMedium(1)
    rig = LogRig(Path("/"), 4, 2, medium)
    await fill(rig, 3, close=False)
    log = await rig.open()
    victim = log.status().members[0][0] - 1
    medium.full.add(f"d{victim}")
    await log.append(A, b"again", LogSequence(4), LogSequence(4))
    assert log.status().copies == 2
    assert [error.errno for _, error in rig.failed] == [errno.ENOSPC]
    medium.crash()
    assert sequences(rig) == [1, 2, 3, 4]


async def test_fewer_copies_are_said_and_no_copy_is_an_error(tmp_path: Path) -> None:
    medium = SimulatedMedium(2)
    rig = LogRig(Path("/"), 3, 3, medium)
    log = await rig.open()
    medium.dead.update(("d0", "d1"))
    await log.append(A, b"one", LogSequence(1), LogSequence(1))
    assert (log.status().copies, log.status().copies_wanted) == (1, 3)
    medium.dead.add("d2")
    with pytest.raises(PosixError, match="no disk can take the log"):
        await log.append(A, b"two", LogSequence(2), LogSequence(2))
    medium.dead.clear()
    await log.append(A, b"two, later", LogSequence(2), LogSequence(2))
    assert log.status().copies == 3
    report = await log.heal()
    assert report.files_short == 0
    medium.crash()
    rig.present = [0]
    assert [record[3] for record in rig.replay({}, [A])] == [b"one", b"two, later"]


async def test_heal_mirrors_files_of_a_lost_disk_again(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, disks=4, copies=2, file_size=500)
    await fill(rig, 20, close=False)
    log = await rig.open()
    rig.present = [1, 2, 3]
    report = await log.heal()
    assert report.files_mended > 0
    assert (report.files_short, report.files_unreadable) == (0, 0)
    await log.close()
    for missing in (1, 2, 3):
        rig.present = [number for number in (1, 2, 3) if number != missing]
        assert sequences(rig) == list(range(1, 21))


async def test_a_file_begun_on_one_disk_only_is_no_shortage(tmp_path: Path) -> None:
    # What a kill between the creation of two copies leaves: nothing is in it, so nothing is short.
    rig = rig_of(tmp_path)
    await fill(rig, 3)
    await (await rig.open()).close()
    log_files(rig)[-1].unlink()
    log = await rig.open()
    assert log.status().files_short == 0
    await log.close()
    assert sequences(rig) == [1, 2, 3]


async def test_trim_removes_what_nobody_needs_and_never_the_current_file(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, file_size=500)
    log = await rig.open()
    for number in range(1, 21):
        await log.append(A, bytes(100), LogSequence(number), LogSequence(number))
        if number == 3:
            await log.append(B, b"b", LogSequence(1), LogSequence(1))
    before = log.size_bytes
    await log.trim(A, LogSequence(20))
    assert 0 < log.size_bytes < before
    assert rig.replay({A: LogSequence(21)}) == [(B, 1, 1, b"b")]
    await log.trim(B, LogSequence(1))
    await log.close_current()
    await log.trim(A, LogSequence(20))
    assert log.status().files == 1
    assert {path.name for path in log_files(rig)} == {log_files(rig)[-1].name}
    await log.append(A, b"on", LogSequence(21), LogSequence(21))
    await log.close()
    assert sequences(rig, 21) == [21]
    with pytest.raises(DamageError):
        sequences(rig, 5)


async def test_facts_after_a_snapshot_are_not_trimmed(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    await fill(rig, 3, close=False)
    log = await rig.open()
    await log.append(A, b"facts", LogSequence(4), LogSequence(3))
    await log.close_current()
    await log.trim(A, LogSequence(3))
    await log.close()
    assert rig.replay({A: LogSequence(4)}, [A]) == [(A, 4, 3, b"facts")]


async def test_a_volume_made_later_and_one_destroyed(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    log = await rig.open()
    young = VolumeId(b"y" * 16)
    rig.ciphers[young] = GcmCipher(b"y" * 32)
    log.add_stream(young, rig.ciphers[young], LogSequence(1))
    await log.append(young, b"new", LogSequence(1), LogSequence(1))
    assert rig.replay({}, [young]) == [(young, 1, 1, b"new")]
    log.forget_stream(young)
    await log.close_current()
    await log.trim(A, LogSequence(1))
    assert log.status().files == 1
    await log.close()


async def test_large_records_and_foreign_pool(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    await fill(rig, 1, size=3 << 20)
    assert len(rig.replay({}, [A])[0][3]) == 3 << 20
    directories = {disk.disk: disk.directory for disk in rig.disks()}

    foreign = MirroredLog.recover(directories, b"Q" * 16, GcmCipher(), PosixMedium())  # type: ignore[arg-type]  # a pool id
    assert not foreign.files
    assert "another pool" in foreign.notes[0]

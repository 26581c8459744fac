"""Zeros ahead of the records: they are there, they go, and they never cover a record."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dwfs import limits
from dwfs.disk.medium import Buffer
from dwfs.errors import DamageError
from dwfs.log import LogDisk, MirroredLog, PosixMedium
from dwfs.log.preallocation import Preallocation
from dwfs.types import LogSequence
from tests.sim.log_rig import VOLUMES, LogRig, disk_id

A = VOLUMES[0]
D = disk_id(0)


async def opened(root: Path, records: int) -> tuple[LogRig, MirroredLog]:
    for number in range(2):
        (root / f"d{number}").mkdir()
    rig = LogRig(root, 2, 2, PosixMedium())
    log = await rig.open()
    for number in range(1, records + 1):
        await log.append(A, bytes([number]) * 300, LogSequence(number), LogSequence(number))
    rig.run_everything_posted()
    return rig, log


def sequences(rig: LogRig) -> list[int]:
    return [record[1] for record in rig.replay({}, [A])]


def sizes(rig: LogRig) -> set[int]:
    return {path.stat().st_size for path in rig.root.glob("d*/log/*.log")}


async def test_a_file_grows_ahead_of_its_records_and_is_cut_when_closed(tmp_path: Path) -> None:
    rig, log = await opened(tmp_path, 5)
    assert sizes(rig) == {rig.file_size}
    assert log.size_bytes < 5000
    assert sequences(rig) == [1, 2, 3, 4, 5]
    size = log.size_bytes
    await log.close()
    assert sizes(rig) == {size}
    assert sequences(rig) == [1, 2, 3, 4, 5]


async def test_zeros_end_the_chain_but_hide_no_damage(tmp_path: Path) -> None:
    rig, log = await opened(tmp_path, 20)
    files = list(rig.root.glob("d*/log/*.log"))
    end = log.size_bytes
    for path in files:
        data = bytearray(path.read_bytes())
        assert len(data) > end
        data[end - 150 : end] = bytes(150)
        path.write_bytes(data)
    assert sequences(rig) == list(range(1, 20))
    for path in files:
        data = bytearray(path.read_bytes())
        data[3000:3100] = bytes(100)
        path.write_bytes(data)
    with pytest.raises(DamageError, match="damaged in the middle"):
        sequences(rig)


async def test_a_disk_with_little_room_gets_no_zeros(tmp_path: Path) -> None:
    rig = LogRig(tmp_path, 1, 1, PosixMedium())
    rig.directory(0).mkdir()
    everything = rig.disks()
    rig.disks = lambda: [  # type: ignore[method-assign]  # a small disk
        LogDisk(disk.disk, disk.directory, limits.MIB) for disk in everything
    ]
    log = await rig.open()
    await log.append(A, b"one", LogSequence(1), LogSequence(1))
    assert sizes(rig) == {log.size_bytes}


def test_the_filler_keeps_off_what_a_writer_claimed(tmp_path: Path) -> None:
    """A writer overtakes the filler again and again; no byte of its records is lost."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    size = 16 * limits.MIB
    region = Preallocation({D: path}, 0, size)
    medium = PosixMedium()
    handle = medium.open(path, write=True)
    filler = threading.Thread(target=region.fill, args=(medium, [D], region.plan(0, size)))
    filler.start()
    for offset in range(0, size, 100_000):
        region.claim(D, min(offset + 100_000, size))
        medium.write(handle, offset, (b"x" * min(100_000, size - offset),))
    filler.join()
    medium.close(handle)
    assert path.read_bytes() == b"x" * size


def test_no_room_ends_the_matter(tmp_path: Path) -> None:
    class Full(PosixMedium):
        def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
            raise OSError(28, "no space")

    path = tmp_path / "file"
    path.write_bytes(b"")
    region = Preallocation({D: path}, 0, limits.MIB)
    region.fill(Full(), [D], region.plan(0, limits.MIB))
    assert not region.is_short(0, limits.MIB)

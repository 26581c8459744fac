"""The small files that say whose a disk is, through power cuts at every step and stale copies.

The simulated medium keeps any combination of what was not synced, and tears writes. Whatever happens,
the disk says what was last acknowledged, or what was being written when the power failed, and nothing
else; never nothing.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dwfs.disk import (
    Attendance,
    DiskCondition,
    DiskMember,
    PoolHeader,
    erase_disk,
    probe,
    read_attendance,
    read_header,
    survey_headers,
    verify_header,
    write_attendance,
    write_header,
)
from dwfs.disk.medium import Medium
from dwfs.errors import DwfsError
from dwfs.types import DiskId, Geometry, PoolId, VolumeId
from tests.sim.medium import SimulatedDisk, SimulatedMedium

KEY = b"k" * 32
POOL = PoolId(b"p" * 16)
DISK = DiskId(b"disk-number-one.")
ROOT = Path("/one")


def header(generation: int, size: int) -> PoolHeader:
    return PoolHeader(
        pool=POOL,
        name="tank",
        generation=generation,
        geometry=Geometry(2, 1),
        disk=DISK,
        members=(DiskMember(DISK, "/one"),),
        keyslots=(b"s" * size,),
        root_volume=VolumeId(b"v" * 16),
        created_ns=1,
        state_id=generation.to_bytes(16, "big"),
    )


def rig(seed: int) -> tuple[random.Random, SimulatedMedium]:
    chance = random.Random(seed)
    return chance, SimulatedMedium(chance, [SimulatedDisk("one", 1 << 24)])


@pytest.mark.parametrize("round_number", range(20))
def test_headers_survive_power_cuts(seed: int, round_number: int) -> None:
    chance, medium = rig(seed + round_number)
    write_header(ROOT, header(1, 10), KEY, medium)
    acknowledged = 1
    for generation in range(2, 40):
        if chance.random() < 0.6:
            medium.operations_left = chance.randrange(1, 14)
        try:
            write_header(ROOT, header(generation, chance.randrange(3_000)), KEY, medium)
            acknowledged = generation
        except OSError:
            assert medium.off
        if medium.off or chance.random() < 0.2:
            medium.restart(lose_unsynced=True)
        medium.operations_left = None
        found = read_header(ROOT, medium)
        verify_header(found, KEY)
        assert found.header.generation in (acknowledged, generation)
        assert found.header.state_id == found.header.generation.to_bytes(16, "big")
        assert probe(ROOT, DISK, medium) is DiskCondition.OK
        # What is read once stays: a reader acts on it.
        acknowledged = found.header.generation
        survey = survey_headers([found])
        assert (survey.current == ()) == found.fallback


def rot(medium: Medium, path: Path, chance: random.Random) -> None:
    handle = medium.open(path, write=True)
    at = chance.randrange(medium.size(handle))
    [byte] = medium.read(handle, at, 1)
    medium.write(handle, at, [bytes([byte ^ 1 << chance.randrange(8)])])
    medium.sync(handle)
    medium.close(handle)


def test_one_rotten_copy_falls_back_and_is_made_good_by_the_next_write(seed: int) -> None:
    chance, medium = rig(seed)
    write_header(ROOT, header(1, 10), KEY, medium)
    for generation in range(2, 30):
        write_header(ROOT, header(generation, 10), KEY, medium)
        rot(medium, ROOT / "dwfs-disk", chance)
        found = read_header(ROOT, medium)
        assert found.fallback
        assert found.header.generation == generation - 1
        verify_header(found, KEY)
        write_header(ROOT, header(generation, 10), KEY, medium)
        found = read_header(ROOT, medium)
        assert (found.header.generation, found.fallback) == (generation, False)


@pytest.mark.parametrize("round_number", range(10))
def test_attendance_survives_power_cuts(seed: int, round_number: int) -> None:
    chance, medium = rig(seed + round_number)
    known: Attendance | None = None
    for counter in range(1, 40):
        following = Attendance(POOL, DISK, counter, chance.randbytes(16))
        if chance.random() < 0.6:
            medium.operations_left = chance.randrange(1, 7)
        try:
            write_attendance(ROOT, following, medium)
            allowed = [following]
        except OSError:
            allowed = [following, known] if known is not None else [following]
        if medium.off or chance.random() < 0.3:
            medium.restart(lose_unsynced=True)
        medium.operations_left = None
        found = read_attendance(ROOT, medium)
        assert found in allowed or (found is None and known is None)
        known = found


def test_a_damaged_or_foreign_attendance_is_none(seed: int) -> None:
    chance, medium = rig(seed)
    assert read_attendance(ROOT, medium) is None
    for _ in range(50):
        write_attendance(ROOT, Attendance(POOL, DISK, 7, b"t" * 16), medium)
        rot(medium, ROOT / "dwfs-attendance", chance)
        assert read_attendance(ROOT, medium) is None
    handle = medium.create(ROOT / "dwfs-attendance", replace=True)
    medium.close(handle)
    assert read_attendance(ROOT, medium) is None


@pytest.mark.parametrize("round_number", range(10))
def test_an_erasure_can_be_cut_short_and_repeated(seed: int, round_number: int) -> None:
    chance, medium = rig(seed + round_number)
    write_header(ROOT, header(1, 10), KEY, medium)
    write_header(ROOT, header(2, 10), KEY, medium)
    write_attendance(ROOT, Attendance(POOL, DISK, 1, b"t" * 16), medium)
    ours = ["segments/0000000001.seg", "log/0000000000000001.log", "log/0000000000000002.log.part",
            "snapshots/0000000000000001-0123456789abcdef.snap"]  # fmt: skip
    for name in [*ours, "segments/note.txt"]:
        medium.make_directory((ROOT / name).parent)
        handle = medium.create(ROOT / name)
        medium.write(handle, 0, [b"content"])
        medium.sync(handle)
        medium.close(handle)
        medium.sync_directory((ROOT / name).parent)
    for _ in range(100):
        medium.operations_left = chance.randrange(1, 12)
        try:
            erase_disk(ROOT, medium)
        except OSError:
            medium.restart(lose_unsynced=True)
            if any(medium.names(ROOT / folder) for folder in ("log", "snapshots")):
                assert read_header(ROOT, medium).header.pool == POOL  # it still says whose it was
            continue
        finally:
            medium.operations_left = None
        break
    else:
        erase_disk(ROOT, medium)
    assert sorted(medium.names(ROOT)) == ["segments"]  # somebody's note is none of ours
    assert medium.names(ROOT / "segments") == ["note.txt"]
    with pytest.raises(DwfsError, match="not a disk of a dwfs pool"):
        read_header(ROOT, medium)

"""The pool header, its survey over many disks, and the probe."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from dwfs.codec import checksum
from dwfs.disk import (
    DiskCondition,
    DiskMember,
    PoolHeader,
    StoredHeader,
    free_space,
    probe,
    read_header,
    survey_headers,
    verify_header,
    write_header,
)
from dwfs.disk.space import reserve_bytes
from dwfs.errors import FormatError, NewerFormatError
from dwfs.types import DiskId, Geometry, PoolId, VolumeId

KEY = bytes(range(32))
DISKS = [DiskId(bytes([number]) * 16) for number in range(4)]


def header(
    generation: int = 1,
    disk: int = 0,
    pool: bytes = b"p" * 16,
    members: int = 3,
    name: str = "tank",
) -> PoolHeader:
    return PoolHeader(
        pool=PoolId(pool),
        name=name,
        generation=generation,
        geometry=Geometry(2, 1),
        disk=DISKS[disk],
        members=tuple(
            DiskMember(identity, f"/disk{n}") for n, identity in enumerate(DISKS[:members])
        ),
        keyslots=(b"slot one", b"slot two"),
        root_volume=VolumeId(b"v" * 16),
        created_ns=1_700_000_000_000_000_000,
    )


def test_a_header_comes_back_and_is_verified(tmp_path: Path) -> None:
    write_header(tmp_path, header(), KEY)
    stored = read_header(tmp_path)
    assert stored.header == header()
    assert not stored.fallback
    verify_header(stored, KEY)
    with pytest.raises(FormatError, match="altered without the pool's key"):
        verify_header(stored, bytes(32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dwfs-disk"]


def test_every_damaged_or_shortened_header_falls_back(tmp_path: Path) -> None:
    write_header(tmp_path, header(1), KEY)
    write_header(tmp_path, header(2), KEY)
    path = tmp_path / "dwfs-disk"
    content = path.read_bytes()
    for position in range(len(content)):
        rotten = bytearray(content)
        rotten[position] ^= 0x04
        for bad in (bytes(rotten), content[:position]):
            path.write_bytes(bad)
            stored = read_header(tmp_path)
            assert (stored.header.generation, stored.fallback) == (1, True)
    path.unlink()
    assert read_header(tmp_path).header.generation == 1


def test_a_torn_header_is_not_kept_as_the_previous_one(tmp_path: Path) -> None:
    write_header(tmp_path, header(1), KEY)
    write_header(tmp_path, header(2), KEY)
    (tmp_path / "dwfs-disk").write_bytes(b"torn")
    write_header(tmp_path, header(3), KEY)
    assert read_header(tmp_path).header.generation == 3
    (tmp_path / "dwfs-disk").unlink()
    assert read_header(tmp_path).header.generation == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:5], "truncated"),
        (lambda content: content[:40], "truncated"),
        (lambda content: b"", "truncated"),
        (lambda content: content[:60] + b"\xff" + content[61:], "damaged"),
        (lambda content: content + b"more", "damaged"),
        (lambda content: b"#!/bin/sh\n", "not made by dwfs"),
    ],
)
def test_refusals_say_what_is_wrong(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]  # a lambda of bytes
    write_header(tmp_path, header(), KEY)
    path = tmp_path / "dwfs-disk"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError, match=message):
        read_header(tmp_path)


def test_a_newer_format_is_refused_even_with_an_older_copy(tmp_path: Path) -> None:
    write_header(tmp_path, header(), KEY)
    write_header(tmp_path, header(2), KEY)
    path = tmp_path / "dwfs-disk"
    content = bytearray(path.read_bytes()[:-16])
    content[8] = 3
    path.write_bytes(bytes(content) + checksum(content))
    with pytest.raises(NewerFormatError, match=r"newer dwfs \(format 3\).*up to 2: upgrade dwfs"):
        read_header(tmp_path)
    assert probe(tmp_path, DISKS[0]) is DiskCondition.FOREIGN


def test_an_older_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_header(tmp_path, header(), KEY)
    path = tmp_path / "dwfs-disk"
    content = bytearray(path.read_bytes()[:-16])
    content[8] = 1
    path.write_bytes(bytes(content) + checksum(content))
    with pytest.raises(FormatError, match=r"development version of dwfs .*copy the data"):
        read_header(tmp_path)


def test_an_empty_directory_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is the disk mounted"):
        read_header(tmp_path)


def test_contradictions_are_not_written(tmp_path: Path) -> None:
    for bad in (
        header(0),
        header(disk=3),
        msgspec.structs.replace(header(), pool=PoolId(b"short")),
    ):
        with pytest.raises(FormatError, match="contradicts"):
            write_header(tmp_path, bad, KEY)


def stored(one: PoolHeader, directory: str = "/d") -> StoredHeader:
    return StoredHeader(one, Path(directory), b"", b"", False)


def test_the_newest_generation_wins_and_the_others_are_told_apart() -> None:
    newest, stale = stored(header(3, 0)), stored(header(2, 1))
    twice, foreign = stored(header(2, 0), "/copy"), stored(header(9, 0, pool=b"q" * 16))
    removed = stored(header(2, 3, members=4))
    survey = survey_headers([stale, twice, newest, foreign, removed], PoolId(b"p" * 16))
    assert survey.newest is newest
    assert survey.current == (newest,)
    assert survey.stale == (stale,)
    assert survey.removed == (removed,)
    assert survey.foreign == (foreign,)
    assert survey.duplicates == (twice,)
    assert survey.missing() == (DISKS[2],)


def test_of_two_headers_of_one_generation_the_majority_wins() -> None:
    odd = stored(header(5, 0, name="odd"))
    most = [stored(header(5, 1)), stored(header(5, 2))]
    survey = survey_headers([odd, *most])
    assert survey.newest.header.name == "tank"
    assert survey.stale == (odd,)


def test_a_survey_without_one_pool_is_refused() -> None:
    with pytest.raises(FormatError, match="different pools"):
        survey_headers([stored(header()), stored(header(pool=b"q" * 16, name="other"))])
    with pytest.raises(FormatError, match="none of the directories"):
        survey_headers([])


def test_probe_tells_conditions_apart(tmp_path: Path) -> None:
    assert probe(tmp_path / "gone", DISKS[0]) is DiskCondition.MISSING
    assert probe(tmp_path, DISKS[0]) is DiskCondition.MISSING
    write_header(tmp_path, header(), KEY)
    assert probe(tmp_path, DISKS[0]) is DiskCondition.OK
    assert probe(tmp_path, DISKS[1]) is DiskCondition.FOREIGN
    (tmp_path / "dwfs-disk").write_bytes(b"\x89dwf")
    assert probe(tmp_path, DISKS[0]) is DiskCondition.UNREADABLE


def test_directories_on_one_filesystem_share_its_space(tmp_path: Path) -> None:
    directories = [tmp_path / name for name in "abc"]
    for directory in directories[:2]:
        directory.mkdir()
    spaces = free_space(directories)
    assert set(spaces) == set(directories[:2])
    status = os.statvfs(tmp_path)
    size = status.f_blocks * status.f_frsize
    available = status.f_bavail * status.f_frsize - reserve_bytes(size)
    total = sum(space.available_bytes for space in spaces.values())
    assert abs(total - available) < available // 10 + (1 << 20)
    assert spaces[directories[0]].size_bytes == size // 2

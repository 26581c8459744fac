"""Importing a pool from its disks alone: what is refused, and what comes back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from dwfs.config import Directories, load_config, save_config
from dwfs.errors import (
    DamageError,
    FormatError,
    NewerFormatError,
    NotEnoughDisksError,
    PoolBusyError,
    UsageError,
    WrongKeyError,
)
from dwfs.node.credential import Credential
from dwfs.node.importing import ImportedPool, import_pool, plan_import
from dwfs.node.pool import open_pool
from dwfs.types import Geometry
from tests.unit.node.pools import Rig, read_file, write_file

BIG = os.urandom(3 << 20)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on four disks, with two files."""
    rig = await Rig(tmp_path, Geometry(2, 1), 4).create()
    async with rig.open() as pool:
        await write_file(pool, "small", b"hello")
        await write_file(pool, "big", BIG)
    return rig


@pytest.fixture
def elsewhere(tmp_path: Path) -> Directories:
    """Another machine."""
    return Directories.from_environment({"DWFS_ROOT": str(tmp_path / "elsewhere")})


async def run_import(
    rig: Rig, directories: Directories, *disks: Path, name: str | None = None
) -> ImportedPool:
    plan = plan_import(directories, disks or rig.disks, name)
    return await import_pool(directories, plan, rig.credential())


async def check_content(rig: Rig, directories: Directories, name: str) -> None:
    config = load_config(directories, name)
    async with open_pool(directories, config, rig.credential()) as pool:
        assert await read_file(pool, "small") == b"hello"
        assert await read_file(pool, "big") == BIG


def everything(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in home.rglob("*")}


async def test_all_disks(rig: Rig, elsewhere: Directories) -> None:
    imported = await run_import(rig, elsewhere)
    assert (imported.pool, imported.uuid) == (rig.name, rig.config.uuid)
    assert imported.files == 2
    assert imported.directories == 0
    assert imported.stored_bytes >= len(BIG)
    assert imported.disks == [str(path) for path in rig.disks]
    assert imported.missing == imported.notes == []
    assert imported.unreadable == 0
    assert imported.last_change_ns > 1_700_000_000 * 10**9
    await check_content(rig, elsewhere, rig.name)


async def test_a_state_directory_out_of_an_old_backup_is_replaced(rig: Rig, tmp_path: Path) -> None:
    """The system disk was set back by some days; the pool's disks were not."""
    state = rig.directories.state_directory(rig.name)
    backup = tmp_path / "backup"
    shutil.copytree(state, backup)
    async with rig.open() as pool:
        assert pool.snapshotter is not None
        await write_file(pool, "later", BIG)
        await pool.snapshotter.take()  # and trims the log
        await write_file(pool, "last", b"of all")
    shutil.rmtree(state)
    backup.rename(state)
    with pytest.raises(DamageError, match="log is incomplete"):
        async with rig.open():
            pass
    imported = await run_import(rig, rig.directories)
    assert imported.files == 4
    async with rig.open() as pool:
        assert await read_file(pool, "later") == BIG
        assert await read_file(pool, "last") == b"of all"


@pytest.mark.expect_log("missing")
async def test_parity_disks_may_be_missing(rig: Rig, elsewhere: Directories) -> None:
    imported = await run_import(rig, elsewhere, *rig.disks[1:], name="attic")
    assert imported.pool == "attic"
    assert imported.missing == [str(rig.disks[0])]
    config = load_config(elsewhere, "attic")
    assert [disk.path for disk in config.disks] == rig.disks
    await check_content(rig, elsewhere, "attic")


async def test_disks_in_other_places_and_in_any_order(rig: Rig, elsewhere: Directories) -> None:
    moved = [path.with_name(f"moved-{path.name}") for path in rig.disks]
    for source, target in zip(rig.disks, moved, strict=True):
        source.rename(target)
    await run_import(rig, elsewhere, *reversed(moved), moved[0])
    assert {disk.path for disk in load_config(elsewhere, rig.name).disks} == set(moved)
    await check_content(rig, elsewhere, rig.name)


async def test_a_stale_state_directory_is_not_believed(rig: Rig, elsewhere: Directories) -> None:
    state = rig.directories.state_directory(rig.name)
    old = state.with_name("old")
    shutil.copytree(state, old)
    async with rig.open() as pool:
        await write_file(pool, "later", b"later")
    shutil.rmtree(state)
    shutil.copytree(old, state)  # what a restored boot disk would hold
    imported = await run_import(rig, rig.directories)
    assert imported.files == 3
    async with rig.open() as pool:
        assert await read_file(pool, "later") == b"later"


async def test_again_keeps_what_the_administrator_configured(
    rig: Rig, elsewhere: Directories
) -> None:
    await run_import(rig, elsewhere)
    config = load_config(elsewhere, rig.name)
    save_config(elsewhere, msgspec.structs.replace(config, mount_options=("noatime",)))
    assert plan_import(elsewhere, rig.disks).known
    await run_import(rig, elsewhere)
    assert load_config(elsewhere, rig.name).mount_options == ("noatime",)
    await check_content(rig, elsewhere, rig.name)


@pytest.mark.parametrize("step", ["save_config", "open_pool"])
async def test_a_kill_half_way(
    rig: Rig, elsewhere: Directories, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*arguments: object, **named: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"dwfs.node.importing.{step}", kill)
        with pytest.raises(Killed):
            await run_import(rig, elsewhere)
    await run_import(rig, elsewhere)
    await check_content(rig, elsewhere, rig.name)


async def test_a_wrong_key_changes_nothing(
    rig: Rig, elsewhere: Directories, tmp_path: Path
) -> None:
    before = everything(tmp_path)
    plan = plan_import(elsewhere, rig.disks)
    with pytest.raises(WrongKeyError):
        await import_pool(elsewhere, plan, Credential("keyfile", os.urandom(64)))
    assert everything(tmp_path) == before


async def test_too_few_disks(rig: Rig, elsewhere: Directories, tmp_path: Path) -> None:
    (tmp_path / "unmounted").mkdir()
    before = everything(tmp_path)
    with pytest.raises(NotEnoughDisksError) as caught:
        plan_import(elsewhere, [rig.disks[0], tmp_path / "unmounted", rig.disks[3]])
    text = str(caught.value)
    assert "has 4 disks and 3 of them are needed, but only 2 were found" in text
    assert "at least 1 more" in text
    assert f"{rig.disks[1]}, {rig.disks[2]}" in text
    assert "unmounted (not a disk of a dwfs pool" in text
    assert everything(tmp_path) == before


async def test_two_pools(rig: Rig, elsewhere: Directories, tmp_path: Path) -> None:
    other = Rig(tmp_path / "other", Geometry(1, 1), 2)
    (tmp_path / "other").mkdir()
    other.name = "attic"
    other.plan = msgspec.structs.replace(other.plan, name="attic")
    await other.create()
    with pytest.raises(FormatError) as caught:
        plan_import(elsewhere, [*rig.disks, other.disks[0]])
    text = str(caught.value)
    assert f"'rig' ({rig.config.uuid})" in text
    assert f"'attic' ({other.config.uuid}) in {other.disks[0]}" in text
    with pytest.raises(UsageError, match="another pool 'rig'"):
        plan_import(rig.directories, other.disks, "rig")


async def test_a_cloned_disk(rig: Rig, elsewhere: Directories, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(rig.disks[2], clone)
    with pytest.raises(FormatError, match="one is a copy") as caught:
        plan_import(elsewhere, [*rig.disks, clone])
    assert str(clone) in str(caught.value)
    assert str(rig.disks[2]) in str(caught.value)


@pytest.mark.parametrize("what", ["empty", "foreign", "rotten"])
@pytest.mark.expect_log("missing")
async def test_a_directory_of_no_use_is_left_aside(
    rig: Rig, elsewhere: Directories, what: str
) -> None:
    place = rig.disks[1]
    if what == "rotten":
        for name in ("dwfs-disk", "dwfs-disk.previous"):
            content = bytearray((place / name).read_bytes())
            content[20] ^= 1
            (place / name).write_bytes(content)
    else:
        shutil.rmtree(place)
        place.mkdir()
        if what == "foreign":
            (place / "dwfs-disk").write_bytes(b"something else entirely")
    plan = plan_import(elsewhere, rig.disks)
    assert len(plan.missing) == 1
    assert str(place) in plan.notes[0]
    await run_import(rig, elsewhere)
    await check_content(rig, elsewhere, rig.name)


async def test_nothing_of_use_at_all(elsewhere: Directories, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughDisksError, match="none of the directories"):
        plan_import(elsewhere, [tmp_path])
    with pytest.raises(UsageError, match="leave it out"):
        plan_import(elsewhere, [tmp_path / "absent"])
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a directory"):
        plan_import(elsewhere, [tmp_path / "file"])


async def test_a_newer_format(
    rig: Rig, elsewhere: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dwfs.disk.header.FORMAT_VERSION", 0)
    with pytest.raises(NewerFormatError, match="upgrade"):
        plan_import(elsewhere, rig.disks)


async def test_known_under_another_name(rig: Rig) -> None:
    with pytest.raises(UsageError, match="configured here already, as 'rig'"):
        plan_import(rig.directories, rig.disks, "attic")


async def test_an_unreadable_configuration(rig: Rig) -> None:
    rig.directories.config_file(rig.name).write_text("nonsense")
    with pytest.raises(FormatError, match="move that file away"):
        plan_import(rig.directories, rig.disks)


async def test_a_pool_in_use(rig: Rig) -> None:
    async with rig.open():
        with pytest.raises(PoolBusyError):
            await run_import(rig, rig.directories)

"""Disks that join, leave, go away for service and are replaced, on an open pool."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.disk import DiskCondition, FreeSpace, Medium, probe, read_header, write_header
from dwfs.errors import FormatError, NoSpaceError, NotEnoughDisksError, UsageError
from dwfs.limits import MIB
from dwfs.node import keyslots
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.check import check_pool
from dwfs.node.credential import Credential
from dwfs.node.disks.holdings import holding_of
from dwfs.node.disks.listing import PoolDisk
from dwfs.node.disks.survey import survey_disks
from dwfs.node.disks.timing import DiskTiming
from dwfs.node.services.move_target import VolumeMoveTarget
from dwfs.types import DiskId, Geometry, ShardKey, ShardMove
from tests.unit.node.pools import Rig, no_progress, read_file, until_clean, write_file
from tests.unit.node.test_pool import crashing

BIG = os.urandom(3 << 20)
OTHER = os.urandom(2 << 20)
TIMING = DiskTiming(probe_seconds=0.05, expire_seconds=0.05, space_seconds=3600.0)
OPTIONS = OpenOptions(timing=TIMING)
SHARED = "shares a filesystem"


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """2+1 on four disks."""
    return await Rig(tmp_path, Geometry(2, 1), 4).create()


@pytest.fixture
def spare(tmp_path: Path) -> Path:
    """An empty directory."""
    directory = tmp_path / "spare"
    directory.mkdir()
    return directory


def disk_of(pool: Pool, directory: Path) -> DiskId:
    return pool.life_cycle.find(str(directory)).id


def fullest(pool: Pool) -> PoolDisk:
    return max(pool.foundation.disks.all(), key=lambda one: one.status().shard_bytes or 0)


async def until_gone(pool: Pool, disk: DiskId) -> None:
    with trio.move_on_after(30):
        while pool.foundation.disks.find(disk) is not None:
            await trio.sleep(0.02)
        return
    assert pool.services is not None
    raise AssertionError(pool.services.statuses(), pool.services.repairer.progress())


async def until_state(pool: Pool, disk: DiskId, state: str) -> None:
    with trio.fail_after(20):
        while (found := pool.foundation.disks.find(disk)) is None or found.state != state:
            await trio.sleep(0.02)


@pytest.mark.expect_log(SHARED)
async def test_a_new_disk_is_used_and_remembered(rig: Rig, spare: Path) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "before", BIG)
        disk = await pool.life_cycle.add(spare, label="the new one")
        assert disk.state == "online"
        assert disk in pool.foundation.disks.all()
        assert pool.foundation.disks.get(disk.id) in pool.foundation.disks.writable()
        for number in range(20):
            await write_file(pool, f"after{number}", OTHER[: 64 << 10])
            await pool.volume.destage()
        assert disk.store is not None
        assert disk.store.keys(None, 1), "nothing went to the new disk"
        assert pool.life_cycle.find("the new one") is disk
    assert spare in [configured.path for configured in rig.config.disks]
    assert not survey_disks(rig.config).stale
    async with rig.open(OPTIONS) as pool:
        assert len(pool.foundation.disks.all()) == 5
        assert await read_file(pool, "after3") == OTHER[: 64 << 10]
        await until_clean(pool)


async def test_what_may_not_join(rig: Rig, tmp_path: Path, spare: Path) -> None:
    (tmp_path / "other").mkdir()
    foreign = await Rig(tmp_path / "other", Geometry(1, 1), 2).create()
    (spare / "letter.txt").write_text("dear all")
    async with rig.open(OPTIONS) as pool:
        life = pool.life_cycle
        generation = pool.foundation.header.generation
        with pytest.raises(UsageError, match=r"not empty.*letter.txt"):
            await life.add(spare)
        with pytest.raises(FormatError, match=r"holds a disk of pool 'rig' .*nothing was changed"):
            await life.add(foreign.disks[0])
        with pytest.raises(UsageError, match="is a disk of this pool already"):
            await life.add(rig.disks[0])
        with pytest.raises(UsageError, match="lie within each other"):
            await life.add(rig.disks[0] / "deeper")
        with pytest.raises(UsageError, match="neither is the directory"):
            await life.add(tmp_path / "no" / "such")
        with pytest.raises(UsageError, match="absolute"):
            await life.add(Path("here"))
        shutil.copytree(rig.disks[0], tmp_path / "copy")
        with pytest.raises(UsageError, match=r"as .*disk0 does: one is a copy"):
            await life.add(tmp_path / "copy")
        (tmp_path / "file").write_text("x")
        with pytest.raises(UsageError, match="neither is the directory"):
            await life.add(tmp_path / "file" / "below")
        inside = OpenOptions(timing=TIMING, mountpoint=str(tmp_path / "mnt"))
        assert pool.foundation.header.generation == generation
        assert len(pool.foundation.disks.all()) == 4
    async with rig.open(inside) as pool:
        with pytest.raises(UsageError, match="lies in the pool itself"):
            await pool.life_cycle.add(tmp_path / "mnt" / "disk")


async def test_a_disk_too_small_to_join(
    rig: Rig, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dwfs.node.disks.newcomer.DISK_SIZE_MIN", 1 << 60)
    async with rig.open(OPTIONS) as pool:
        with pytest.raises(NoSpaceError, match=r"\d+ MiB of free space.*at least \d+ MiB"):
            await pool.life_cycle.add(spare)
    assert not list(spare.iterdir())


@pytest.mark.expect_log(SHARED)
async def test_a_failed_joining_leaves_the_directory_as_it_was(
    rig: Rig, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    async with rig.open(OPTIONS) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("dwfs.node.foundation.save_config", fail)
            with pytest.raises(UsageError, match="No space left"):
                await pool.life_cycle.add(spare)
        assert not list(spare.iterdir())
        assert len(pool.foundation.header.members) == 4
        await pool.life_cycle.add(spare)


@pytest.mark.expect_log(SHARED)
@pytest.mark.parametrize("configured", [False, True])
async def test_a_crash_while_joining(
    rig: Rig, spare: Path, configured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others never got the new header. Without the configuration the directory is a leftover."""

    async def vanish(*arguments: object) -> list[str]:
        raise KeyError("the machine stops here")

    async with rig.open(OPTIONS) as pool:
        before = rig.directories.config_file(rig.name).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("dwfs.node.disks.membership.Membership._write_everywhere", vanish)
            with pytest.raises(KeyError):
                await pool.life_cycle.add(spare)
        assert (spare / "dwfs-disk").exists()
        if not configured:
            rig.directories.config_file(rig.name).write_bytes(before)
    async with rig.open(OPTIONS) as pool:
        if not configured:
            assert len(pool.foundation.disks.all()) == 4
            await pool.life_cycle.add(spare)
        assert len(pool.foundation.disks.all()) == 5
        assert all(disk.state == "online" for disk in pool.foundation.disks.all())
        await write_file(pool, "f", BIG)
    assert not survey_disks(rig.config).stale


@pytest.mark.expect_log(SHARED)
async def test_a_disk_is_emptied_removed_and_can_be_added_again(rig: Rig) -> None:
    leaving = rig.disks[1]
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        disk = disk_of(pool, leaving)
        await pool.life_cycle.remove(disk)
        with pytest.raises(UsageError, match="already"):
            await pool.life_cycle.remove(disk)
        await until_gone(pool, disk)
        assert await read_file(pool, "f") == BIG
        await until_clean(pool)
        with trio.fail_after(5):
            while list(leaving.iterdir()):
                await trio.sleep(0.02)
        assert disk not in [member.id for member in pool.foundation.header.members]
        again = await pool.life_cycle.add(leaving)
        assert again.id != disk
    assert len(rig.config.disks) == 4
    async with rig.open(OPTIONS) as pool:
        assert await read_file(pool, "f") == BIG


async def test_a_removal_survives_a_restart(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dwfs.node.services.removing.RemovalService._attend", _never)
        async with rig.open(OPTIONS) as pool:
            await write_file(pool, "f", BIG)
            disk = disk_of(pool, rig.disks[1])
            await pool.life_cycle.remove(disk)
    async with rig.open(OPTIONS) as pool:
        assert pool.foundation.disks.find(disk) is None or (
            pool.life_cycle.find(str(rig.disks[1])).wish == "removing"
        )
        await until_gone(pool, disk)
        assert await read_file(pool, "f") == BIG


async def _for_ever(*arguments: object) -> None:
    await trio.sleep_forever()


async def _never(*arguments: object) -> None:
    pass


async def test_a_removal_can_be_called_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dwfs.node.services.removing.RemovalService._attend", _never)
    async with rig.open(OPTIONS) as pool:
        disk = disk_of(pool, rig.disks[1])
        with pytest.raises(UsageError, match="not being removed"):
            await pool.life_cycle.keep(disk)
        await pool.life_cycle.remove(disk)
        with pytest.raises(UsageError, match="being removed"):
            await pool.life_cycle.offline(disk)
        await pool.life_cycle.keep(disk)
        assert pool.life_cycle.find(str(rig.disks[1])).state == "online"
        with pytest.raises(UsageError, match="not being removed"):
            await pool.life_cycle.finish_removal(disk)


async def test_no_removal_below_what_stripes_need(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, Geometry(2, 1), 3).create()
    async with rig.open(OPTIONS) as pool:
        with pytest.raises(
            NotEnoughDisksError, match=r"2\+1 needs 3 disks that work.*there would be 2.*add a disk"
        ):
            await pool.life_cycle.remove(disk_of(pool, rig.disks[0]))
        assert pool.foundation.disks.states() == ["online"] * 3


async def test_no_removal_without_room_for_what_it_holds(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        disk = fullest(pool).id
        for one in pool.foundation.disks.all():
            assert one.store is not None
            one.store.update_space(FreeSpace(1 << 30, 1000))
        with pytest.raises(NoSpaceError, match=r"[\d.]+ MiB would have to move.*room for 0.0 MiB"):
            await pool.life_cycle.remove(disk)


async def test_finishing_too_early_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dwfs.node.services.removing.RemovalService._attend", _never)
    monkeypatch.setattr("dwfs.stripe.repair.Repairer.run", _for_ever)
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        disk = disk_of(pool, rig.disks[1])
        await pool.life_cycle.remove(disk)
        if (await holding_of(pool.volume.catalog, disk)).shards:
            with pytest.raises(NotEnoughDisksError, match=r"\d+ shards .* still have their place"):
                await pool.life_cycle.finish_removal(disk)
        assert pool.foundation.disks.find(disk) is not None


@pytest.mark.expect_log(SHARED)
async def test_a_shard_on_its_way_to_a_disk_keeps_it_from_leaving(
    rig: Rig, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Balancing had chosen the new disk as a target just before it was to be removed again."""
    monkeypatch.setattr("dwfs.node.services.removing.RemovalService._attend", _never)
    monkeypatch.setattr("dwfs.stripe.repair.Repairer.run", _for_ever)
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        new = await pool.life_cycle.add(spare)
        seal = pool.volume.catalog.seals(None, 1)[0]
        assert pool.stripes.begin_move(seal.stripe)
        source = pool.foundation.disks.get(seal.placement[0])
        assert source is not None
        assert new.store is not None
        await pool.life_cycle.remove(new.id)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def finish() -> None:
                with pytest.raises(NotEnoughDisksError, match="still have their place"):
                    await pool.life_cycle.finish_removal(new.id)

            await trio.sleep(0.3)
            key = ShardKey(seal.stripe, 0)
            header, payload = await source.read_verified(key)
            await new.store.put(key, header, memoryview(payload))
            await new.store.sync()
            move = ShardMove(seal.stripe, 0, source.disk, new.id)
            await VolumeMoveTarget(pool.volume).place([move])
            pool.stripes.end_move(seal.stripe)
        await source.delete([key])
        assert await read_file(pool, "f") == BIG


@pytest.mark.expect_log(SHARED)
async def test_a_disk_is_replaced(tmp_path: Path, spare: Path) -> None:
    rig = await Rig(tmp_path, Geometry(2, 1), 3).create()
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        old = disk_of(pool, rig.disks[0])
        new = await pool.life_cycle.replace(old, spare)
        assert pool.life_cycle.successor_of(old) == new.id
        await until_gone(pool, old)
        assert pool.life_cycle.successor_of(old) is None
        assert await read_file(pool, "f") == BIG
        await until_clean(pool)
    async with rig.open(OPTIONS) as pool:
        assert len(pool.foundation.disks.all()) == 3
        assert await read_file(pool, "f") == BIG


@pytest.mark.expect_log(SHARED, "is missing", "log", "snapshot", "stays missing")
async def test_a_dead_disk_is_replaced(tmp_path: Path, spare: Path) -> None:
    rig = await Rig(tmp_path, Geometry(2, 1), 3).create()
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        old = disk_of(pool, rig.disks[0])
        shutil.rmtree(rig.disks[0])
        await until_state(pool, old, "missing")
        await pool.life_cycle.replace(old, spare)
        await until_gone(pool, old)
        assert await read_file(pool, "f") == BIG
        await until_clean(pool)


@pytest.mark.expect_log(SHARED)
async def test_a_replacement_must_be_large_enough(
    rig: Rig, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dwfs.node.disks.newcomer.DISK_SIZE_MIN", 0)
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await write_file(pool, "g", BIG)
        await pool.volume.destage()
        holding = fullest(pool)
        with monkeypatch.context() as patch:
            patch.setattr(
                "dwfs.node.disks.newcomer.share_space",
                lambda spaces: dict.fromkeys(spaces, FreeSpace(MIB, 4096)),
            )
            with pytest.raises(
                NoSpaceError, match=r"has room for 0.0 MiB, but .* holds [\d.]+ MiB"
            ):
                await pool.life_cycle.replace(holding.id, spare)
        assert len(pool.foundation.disks.all()) == 4
    assert not list(spare.iterdir())


async def test_service_of_a_disk(rig: Rig) -> None:
    """What changed while it was away is all that is done when it is back."""
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "kept", BIG)
        await write_file(pool, "changed", BIG)
        await pool.volume.destage()
        disk = disk_of(pool, rig.disks[2])
        await pool.life_cycle.offline(disk)
        member = pool.life_cycle.find(str(rig.disks[2]))
        assert (member.state, member.store, member.executor) == ("offline", None, None)
        with pytest.raises(UsageError, match="offline already"):
            await pool.life_cycle.offline(disk)
        with pytest.raises(NotEnoughDisksError, match=r"2 disks would be away and only 1 may be"):
            await pool.life_cycle.offline(disk_of(pool, rig.disks[0]))
        away = rig.disks[2].with_name("away")
        rig.disks[2].rename(away)  # nothing of ours is open there, and nobody minds
        await write_file(pool, "changed", OTHER)
        await pool.volume.destage()
        await trio.sleep(0.3)
        assert (member.state, member.store) == ("offline", None)
        assert await read_file(pool, "kept") == BIG
        away.rename(rig.disks[2])
        await pool.life_cycle.online(disk)
        assert pool.life_cycle.find(str(rig.disks[2])).state == "online"
        await until_clean(pool)
        assert (await read_file(pool, "changed"))[: len(OTHER)] == OTHER


async def test_offline_amid_writing_loses_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crashing(rig, monkeypatch) as pool:
        await write_file(pool, "f", BIG + OTHER)  # a stripe and more: one is closed, on its way
        await pool.life_cycle.offline(disk_of(pool, rig.disks[2]))
        await pool.volume.barrier()
    async with rig.open(OPTIONS) as pool:
        assert await read_file(pool, "f") == BIG + OTHER


async def test_offline_lasts_over_a_restart(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        disk = disk_of(pool, rig.disks[2])
        await pool.life_cycle.offline(disk)
    async with rig.open(OPTIONS) as pool:
        assert pool.life_cycle.find(str(rig.disks[2])).state == "offline"
        assert await read_file(pool, "f") == BIG
        await pool.life_cycle.online(disk)
        await until_state(pool, disk, "online")
        await until_clean(pool)


async def test_disks_by_the_names_people_use(rig: Rig) -> None:
    async with rig.open(OPTIONS) as pool:
        find = pool.life_cycle.find
        disk = pool.foundation.disks.all()[1]
        assert find(f"{rig.disks[1]}/") is disk
        assert find(disk.status().id) is disk
        assert find(disk.id.hex()[:12].upper()) is disk
        with pytest.raises(UsageError, match=r"has no disk 'nonsense' \(it has .*disk0"):
            find("nonsense")
        with pytest.raises(UsageError, match="has no disk"):
            find(disk.id.hex()[:2])


async def test_keyslots_and_members_change_under_one_owner(rig: Rig, spare: Path) -> None:
    fresh = Credential("passphrase", b"correct horse")
    async with rig.open(OPTIONS) as pool:
        membership = pool.foundation.membership
        disk = disk_of(pool, rig.disks[2])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.life_cycle.offline, disk)
            change = await membership.change_keyslots(
                lambda header: keyslots.with_key(header, rig.credential(), fresh, "desk")
            )
        assert change.slot == 3
        await pool.life_cycle.online(disk)
        await until_state(pool, disk, "online")
        assert len(keyslots.describe_slots(pool.foundation.header)) == 3
    headers = [read_header(path).header for path in rig.disks]
    assert len({header.generation for header in headers}) == 1
    assert len({header.keyslots for header in headers}) == 1
    assert {member.state for member in headers[0].members} == {"active"}


@pytest.mark.expect_log(SHARED)
async def test_a_crash_between_leaving_and_deleting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rig.directories.config_file(rig.name).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("dwfs.node.disks.life_cycle.LifeCycle._erase", _never)
        async with rig.open(OPTIONS) as pool:
            disk = disk_of(pool, rig.disks[1])
            await pool.life_cycle.remove(disk)
            await until_gone(pool, disk)
    rig.directories.config_file(rig.name).write_bytes(before)
    async with rig.open(OPTIONS) as pool:
        assert len(pool.foundation.disks.all()) == 3
        await write_file(pool, "f", BIG)
        await pool.life_cycle.add(rig.disks[1])
        assert len(pool.foundation.disks.all()) == 4
    assert len(rig.config.disks) == 4


async def test_a_disk_that_was_altered_does_not_join(rig: Rig, spare: Path) -> None:
    """A header without the pool's MAC makes no leftover of ours."""
    stored = read_header(rig.disks[0])
    forged = msgspec.structs.replace(
        stored.header,
        disk=DiskId(b"x" * 16),
        members=(msgspec.structs.replace(stored.header.members[0], id=DiskId(b"x" * 16)),),
    )
    write_header(spare, forged, b"not the key of the pool, surely.")
    async with rig.open(OPTIONS) as pool:
        with pytest.raises(FormatError, match="altered without the pool's key"):
            await pool.life_cycle.add(spare)


@pytest.mark.expect_log("vanished|damaged|begun but never written")
async def test_a_copy_made_while_the_disk_was_in_use_is_known_for_what_it_lacks(rig: Rig) -> None:
    copy = rig.disks[2].with_name("copy")
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "before", BIG)
        await pool.volume.destage()
        shutil.copytree(rig.disks[2], copy)
        await write_file(pool, "after", OTHER)
        await pool.volume.destage()
    shutil.rmtree(rig.disks[2])
    copy.rename(rig.disks[2])
    async with rig.open(OPTIONS) as pool:
        assert pool.services is not None
        await pool.services.repairer.quiet()
        report = await check_pool(pool, read=True, progress=no_progress)
        assert not report.shards_damaged
        assert await read_file(pool, "after") == OTHER


@pytest.mark.expect_log(SHARED, "is missing", "log", "snapshot", "stays missing")
async def test_a_dead_disk_is_replaced_by_one_at_its_place(tmp_path: Path) -> None:
    """Two members have the same directory until the old one has left: also over a restart."""
    rig = await Rig(tmp_path, Geometry(2, 1), 3).create()
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        await pool.volume.destage()
        old = disk_of(pool, rig.disks[0])
        shutil.rmtree(rig.disks[0])
        await until_state(pool, old, "missing")
        await pool.life_cycle.replace(old, rig.disks[0])
    places = [configured.path for configured in rig.config.disks]
    assert places.count(rig.disks[0]) == 2
    async with rig.open(OPTIONS) as pool:
        with pytest.raises(UsageError, match="several disks: give the whole id"):
            pool.life_cycle.find(str(rig.disks[0]))
        assert pool.life_cycle.find(old.hex()).id == old
        await until_gone(pool, old)
        assert await read_file(pool, "f") == BIG
        await until_clean(pool)


async def test_a_probe_under_way_does_not_hinder_going_offline_in_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.open(OPTIONS) as pool:
        await write_file(pool, "f", BIG)
        member = pool.life_cycle.find(str(rig.disks[2]))
        store = member.store
        begun, ended = trio.Event(), trio.Event()
        token = trio.lowlevel.current_trio_token()

        def slow_probe(directory: Path, disk: DiskId, medium: Medium) -> DiskCondition:
            if disk == member.id:
                trio.from_thread.run_sync(begun.set, trio_token=token)
                trio.from_thread.run(ended.wait, trio_token=token)
            return probe(directory, disk, medium)

        async def destage() -> None:
            ended.set()
            await trio.sleep(0.3)  # the probe's answer is judged meanwhile
            assert member.store is store, "it was taken down amid writing"

        with monkeypatch.context() as patch:
            patch.setattr("dwfs.node.disks.watch.probe", slow_probe)
            await begun.wait()
            patch.setattr(pool.volume, "destage", destage)
            await pool.life_cycle.offline(member.id)
        assert (member.state, member.store) == ("offline", None)
        assert await read_file(pool, "f") == BIG

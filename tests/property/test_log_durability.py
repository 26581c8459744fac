"""Whatever was acknowledged is recovered, and what is recovered is a prefix of what was appended.

Seeded runs of several mounts, ended by kills and power cuts, over disks that lose un-synced writes, tear them, die, hang, rot, are
wiped, leave, come back stale, or are removed in good order, at most m at a time.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dwfs.log import LogDisk, MirroredLog
from dwfs.log import format as fmt
from dwfs.types import LogSequence, VolumeId
from tests.sim.log_medium import PowerCutError, SimulatedMedium
from tests.sim.log_rig import VOLUMES, LogRig, disk_id

RUNS = int(os.environ.get("DWFS_LOG_RUNS", "120"))
FIRST_SEED = int(os.environ.get("DWFS_LOG_SEED", "1"))

Record = tuple[VolumeId, int, int, bytes]


class World:
    """The log, its disks, and a model that remembers what it promised."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.parity = self.random.choice((1, 1, 2))
        self.count = 2 * self.parity + 1 + self.random.randint(0, 2)
        self.medium = SimulatedMedium(seed + 1)
        self.rig = LogRig(
            Path("/"), self.count, self.parity + 1, self.medium, self.random.choice((900, 3000))
        )
        self.rig.random = random.Random(seed + 2)
        self.rig.preallocation_size = self.random.choice((0, 600, 2000, 70000))
        self.kept: dict[VolumeId, list[Record]] = {volume: [] for volume in VOLUMES}
        self.attempt: Record | None = None
        self.replay_from = {volume: LogSequence(1) for volume in VOLUMES}

    def check(self) -> Record | None:
        """Compare what the disks hold with what was promised; adopt an attempt that made it."""
        recovered = self.rig.replay(self.replay_from)
        adopted = None
        for volume in VOLUMES:
            start = self.replay_from[volume]
            wanted = [record for record in self.kept[volume] if max(record[1:3]) >= start]
            got = [record for record in recovered if record[0] == volume]
            assert got[: len(wanted)] == wanted, "an acknowledged record is lost or changed"
            extra = got[len(wanted) :]
            attempt = [self.attempt] if self.attempt and self.attempt[0] == volume else []
            assert extra in ([], attempt), "a record that nobody appended"
            if extra:
                adopted = extra[0]
        return adopted

    def harm(self) -> bool:
        """Take up to m disks away or damage them. True: the next open must be let finish."""
        self.rig.leaving.clear()
        self.rig.failed.clear()
        victims = self.random.sample(range(self.count), self.random.randint(0, self.parity))
        self.rig.present = list(range(self.count))
        kind = self.random.choice(("away", "away", "rot", "wipe"))
        for victim in victims:
            if kind == "away":
                self.rig.present.remove(victim)
            elif kind == "rot":
                self.medium.rot(f"d{victim}", self.random.randint(1, 6))
            else:
                self.medium.wipe(f"d{victim}")
        self.spare_losses = self.parity - len(victims)
        self.gone = [victim for victim in victims if kind == "away"]
        return kind != "away" and bool(victims)

    async def mount(self) -> None:
        """One mount, from recovery to a power cut."""
        must_finish = self.harm()
        adopted = self.check()
        if not must_finish and self.random.random() < 0.3:
            self.medium.operations_left = self.random.randint(0, 30)
        log = await self.rig.open(
            {volume: int(start) for volume, start in self.replay_from.items()}
        )
        if adopted is not None:
            self.kept[adopted[0]].append(adopted)
        self.attempt = None
        if self.medium.operations_left is None:
            self.medium.operations_left = self.random.randint(0, 150)
        in_turn = self.random.random() < 0.7
        log._files._estimator.sequential = lambda *_: in_turn  # type: ignore[method-assign]  # one way
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.watch)
            for _ in range(self.random.randint(0, 40)):
                await self.step(log)
            nursery.cancel_scope.cancel()

    async def step(self, log: MirroredLog) -> None:
        self.believe_reports()
        dice = self.random.random()
        volume = self.random.choice(VOLUMES)
        if dice < 0.74:
            await self.append(log, volume)
        elif dice < 0.82:
            await self.trim(log, volume)
        elif dice < 0.86:
            await log.heal()
        elif dice < 0.92 and self.spare_losses > 0:
            self.spare_losses -= 1
            self.lose()
        elif dice < 0.95:
            await self.come_back(log)
        elif dice < 0.97:
            await self.remove(log)
        else:
            await log.close_current()

    def believe_reports(self) -> None:
        """As the pool does: a disk that failed or hung is no longer offered, sooner or later."""
        for disk, error in self.rig.failed:
            number = disk[0] - 1
            if error.errno != errno.ENOSPC and number in self.rig.present:
                self.rig.present.remove(number)
                self.gone.append(number)
        if self.random.random() < 0.7:
            self.rig.failed.clear()

    def lose(self) -> None:
        """Something happens to one more disk."""
        victim = self.random.choice(self.rig.present)
        kind = self.random.choice(("dead", "full", "hangs", "hangs", "leaves"))
        if kind == "dead":
            self.medium.dead.add(f"d{victim}")
        elif kind == "full":
            self.medium.full.add(f"d{victim}")
        elif kind == "hangs":
            self.medium.hung.add(f"d{victim}")
        else:
            self.rig.present.remove(victim)
            self.gone.append(victim)

    async def come_back(self, log: MirroredLog) -> None:
        """All hanging disks answer again, and one that was gone is back."""
        self.medium.release(*sorted(self.medium.hung))
        able = [number for number in self.gone if f"d{number}" not in self.medium.dead]
        if able:
            back = self.random.choice(able)
            self.gone.remove(back)
            self.rig.present.append(back)
        await log.heal()

    async def remove(self, log: MirroredLog) -> None:
        """A disk is removed in good order, and put back as an empty one: nothing is lost by that."""
        if self.gone or self.spare_losses < self.parity or self.medium.dead | self.medium.full:
            return
        victim = self.random.choice(self.rig.present)
        self.rig.present.remove(victim)
        self.rig.leaving.append(victim)
        report = await log.heal()
        assert log.needs(disk_id(victim)) == 0
        assert not report.files_unreadable
        await log.drop_copies(LogDisk(disk_id(victim), self.rig.directory(victim)))
        assert not self.medium.names(self.rig.directory(victim) / "log")
        assert log.used_bytes(disk_id(victim)) == 0
        self.medium.wipe(f"d{victim}")
        self.rig.leaving.remove(victim)
        self.rig.present.append(victim)

    async def append(self, log: MirroredLog, volume: VolumeId) -> None:
        first = log._next[volume].sequence
        last = LogSequence(first + self.random.randint(-1, 3))
        payload = self.random.randbytes(self.random.choice((0, 10, 200, 1500)))
        self.attempt = (volume, first, last, payload)
        await log.append(volume, payload, first, last)
        self.kept[volume].append(self.attempt)
        self.attempt = None

    async def trim(self, log: MirroredLog, volume: VolumeId) -> None:
        last = log._next[volume].sequence - 1
        if last < 1:
            return
        upto = LogSequence(self.random.randint(1, last))
        # A snapshot ends where a record does.
        ends = [record[2] for record in self.kept[volume] if record[2] <= upto]
        if ends:
            upto = LogSequence(max(ends))
            self.replay_from[volume] = LogSequence(max(self.replay_from[volume], upto + 1))
            await log.trim(volume, upto)


async def run(seed: int) -> None:
    world = World(seed)
    for _ in range(world.random.randint(2, 7)):
        try:
            await world.mount()
        except* PowerCutError:
            pass
        if world.random.random() < 0.4:
            world.medium.kill()
        else:
            world.medium.crash()
    world.medium.crash()
    world.rig.present = list(range(world.count))
    world.rig.leaving.clear()
    world.check()
    await settle(world)


async def settle(world: World) -> None:
    """With all disks there, `heal` leaves m+1 whole copies of what is needed, and nothing else."""
    world.rig.failed.clear()
    log = await world.rig.open({volume: int(start) for volume, start in world.replay_from.items()})
    report = await log.heal()
    assert (report.files_short, report.files_unreadable, report.notes) == (0, 0, ())
    assert await log.verify() == []
    known = {file.sequence for file in log._closed}
    current = log._current
    assert current is not None
    known.add(current.header.sequence)
    for number in range(world.count):
        names = world.medium.names(world.rig.directory(number) / "log")
        assert {fmt.parse_file_name(name) for name in names} <= known
    await log.close()
    assert not world.rig.failed
    assert all(executor.closed for executor in world.rig.executors)
    assert not world.medium.open_handles


@pytest.mark.parametrize("batch", range(4))
def test_acknowledged_records_survive(batch: int) -> None:
    for seed in range(FIRST_SEED + batch, FIRST_SEED + RUNS, 4):
        try:
            trio.run(run, seed, clock=MockClock(autojump_threshold=0))
        except BaseException:  # whatever it was, it can be had again
            print(f"replay with: DWFS_LOG_SEED={seed} DWFS_LOG_RUNS=1")
            raise


class Story:
    """A fixed story of disks that leave, come back and are removed; cut off after some operation."""

    def __init__(self, seed: int) -> None:
        self.medium = SimulatedMedium(seed)
        self.rig = LogRig(Path("/"), 4, 2, self.medium, 700)
        self.rig.random = random.Random(seed)
        self.rig.preallocation_size = 500
        self.done = 0  # the last command that was acknowledged
        self.trimmed = 0
        self.dropped = False  # disk 1 was emptied, or may have been

    async def append(self, log: MirroredLog, count: int) -> None:
        for _ in range(count):
            sequence = LogSequence(self.done + 1)
            await log.append(VOLUMES[0], sequence.to_bytes(4, "big") * 30, sequence, sequence)
            self.done += 1

    async def trim(self, log: MirroredLog, upto: int) -> None:
        self.trimmed = upto
        await log.trim(VOLUMES[0], LogSequence(upto))

    async def tell(self, operations: int) -> None:
        log = await self.rig.open()
        self.medium.operations_left = operations
        await self.append(log, 5)
        self.rig.present.remove(0)
        await self.append(log, 4)
        await log.heal()
        await self.trim(log, 6)
        await self.append(log, 3)
        self.rig.present.append(0)
        await log.heal()
        await self.append(log, 2)
        self.rig.present.remove(1)
        self.rig.leaving.append(1)
        await log.heal()
        self.dropped = True
        await log.drop_copies(LogDisk(disk_id(1), self.rig.directory(1)))
        await self.append(log, 2)
        self.rig.leaving.remove(1)
        self.rig.present.append(1)
        await log.heal()
        await self.append(log, 4)

    def check(self) -> None:
        """With any one disk gone, beside none: disk 0 alone was ever behind, and has caught up."""
        for lost in (None, 0, 1, 2, 3):
            self.rig.present = [number for number in range(4) if number != lost]
            start = LogSequence(self.trimmed + 1)
            got = [record[1] for record in self.rig.replay({VOLUMES[0]: start}, [VOLUMES[0]])]
            wanted = list(range(start, self.done + 1))
            assert got in (wanted, [*wanted, self.done + 1]), f"disk {lost} is lost"


async def run_story(seed: int, operations: int) -> bool:
    """Whether the story came to its end."""
    story = Story(seed)
    try:
        await story.tell(operations)
    except* PowerCutError:
        pass
    left = story.medium.operations_left
    story.medium.crash()
    story.check()
    story.rig.present = list(range(4))
    story.rig.leaving.clear()
    log = await story.rig.open({VOLUMES[0]: story.trimmed + 1})
    report = await log.heal()
    assert (report.files_short, report.files_unreadable, report.notes) == (0, 0, ())
    await log.close()
    story.check()
    return left is not None and left > 0


def test_a_power_cut_at_any_operation_of_a_change_of_disks(seed: int) -> None:
    operations = seed % 3  # each third one; the runs together try all
    clock = MockClock(autojump_threshold=0)
    while not trio.run(run_story, seed + operations, operations, clock=clock):
        operations += 3
        clock = MockClock(autojump_threshold=0)
    assert operations > 100

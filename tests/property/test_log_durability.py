"""Whatever was acknowledged is recovered, and what is recovered is a prefix of what was appended.

Seeded runs of several mounts over disks that lose un-synced writes, tear them, die, rot, are wiped
or stay away, at most m at a time.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from dwfs.log import MirroredLog
from dwfs.types import LogSequence, VolumeId
from tests.sim.log_medium import PowerCutError, SimulatedMedium
from tests.sim.log_rig import VOLUMES, LogRig

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
        if self.random.random() < 0.3:
            log._estimator.sequential = lambda *_: False  # type: ignore[method-assign]  # the parallel way
        for _ in range(self.random.randint(0, 40)):
            await self.step(log)

    async def step(self, log: MirroredLog) -> None:
        dice = self.random.random()
        volume = self.random.choice(VOLUMES)
        if dice < 0.8:
            await self.append(log, volume)
        elif dice < 0.87:
            await self.trim(log, volume)
        elif dice < 0.92:
            await log.heal()
        elif dice < 0.96 and self.spare_losses > 0:
            self.spare_losses -= 1
            kind = self.random.choice((self.medium.dead, self.medium.full))
            kind.add(f"d{self.random.choice(self.rig.present)}")
        else:
            await log.close_current()

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
        world.medium.crash()
    world.rig.present = list(range(world.count))
    world.check()


@pytest.mark.parametrize("batch", range(4))
def test_acknowledged_records_survive(batch: int) -> None:
    for seed in range(FIRST_SEED + batch, FIRST_SEED + RUNS, 4):
        try:
            trio.run(run, seed)
        except BaseException:
            print(f"replay with: DWFS_LOG_SEED={seed} DWFS_LOG_RUNS=1")
            raise

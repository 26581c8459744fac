"""Crashes: whatever happens, what is recovered is a prefix that has all that was acknowledged.

Writers, barriers and commits run side by side on a log and a data store that dawdle and fail. At
random moments the durable world is copied, as a crash would leave it; each copy is then recovered,
compared with the same prefix of commands applied to an empty state, checked, and read.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.types import (
    DiskId,
    Extent,
    InodeNumber,
    LogSequence,
    ShardMove,
    StripeId,
    VolumeId,
)
from dwfs.volume import EmbeddedReplicator, StateStore, Volume, VolumeState, recover
from dwfs.volume.commands import (
    Command,
    Create,
    MoveShards,
    Purge,
    Rename,
    SetAttributes,
    Unlink,
    WriteExtents,
    decode_batch,
)
from dwfs.volume.machine import apply
from dwfs.volume.records import Inode
from dwfs.volume.store import KIND_DENTRY, KIND_INODE, KIND_NODE, KIND_ORPHAN
from tests.unit.volume.fakes import (
    PLACEMENT,
    STREAM,
    FakeCipher,
    FakeDataStore,
    FakeLog,
    FakeNames,
)

ROOT = InodeNumber(1)


@dataclass
class Image:
    """What a crash leaves."""

    pairs: list[tuple[bytes, bytes]]
    records: list[bytes]
    durable: dict[StripeId, bytes]
    acknowledged: int


class RecordingReplicator(EmbeddedReplicator):
    """Notes every command that was applied, in order: the model's sequence."""

    def __init__(self, state: VolumeState, log: FakeLog, data: FakeDataStore) -> None:
        super().__init__(state, log, data, STREAM)
        self.applied: list[Command] = []

    async def propose(self, command: Command) -> Inode | None:
        result = await super().propose(command)
        self.applied.append(command)  # no await since it was applied
        return result


class World:
    """One run: the volume, all commands in order, and the images taken on the way."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.directory = directory
        self.log = CrashingLog(self)
        self.data = FakeDataStore(seed, stripe_size=300_000)
        self.data.erratic = True
        self.store = new_store(directory / "state.mdb")
        state = VolumeState(self.store)
        replicator = RecordingReplicator(state, self.log, self.data)
        self.commands = replicator.applied
        self.volume = Volume(state, replicator, self.data)
        self.contents: dict[StripeId, bytearray] = {}
        self.images: list[Image] = []
        self.acknowledged = 0
        self.pairs: list[tuple[bytes, bytes]] = []

    def take_image(self) -> None:
        if len(self.images) < 12:
            self.images.append(
                Image(
                    self.pairs, list(self.log.records), dict(self.data.durable), self.acknowledged
                )
            )

    async def propose(self, command: Command) -> None:
        try:
            await self.volume.propose(command)
        except PosixError:
            return

    async def writer(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()
            if self.dice.random() < 0.4:
                await trio.lowlevel.checkpoint()

    async def step(self) -> None:
        dice = self.dice
        name = b"n%d" % dice.randrange(8)
        time_ns = len(self.commands)
        choice = dice.random()
        number = self.volume.lookup(ROOT, name)
        if dice.random() < 0.1:
            await self.move_shard()
        elif number is None:
            new = self.volume.allocate_inode()
            await self.propose(Create(ROOT, name, new, 0o100644, 0, 0, 0, b"", (), time_ns))
        elif choice < 0.6:
            await self.write(number)
        elif choice < 0.7:
            await self.propose(Unlink(ROOT, name, time_ns))
            await self.propose(Purge((number,)))
        elif choice < 0.8:
            other = b"n%d" % dice.randrange(8)
            await self.propose(Rename(ROOT, name, ROOT, other, dice.randrange(3), time_ns))
        elif choice < 0.9:
            size = dice.randrange(200_000)
            await self.propose(SetAttributes(number, None, None, None, size, None, None, time_ns))
        else:
            await self.volume.purge(self.volume.orphans()[:1])

    async def move_shard(self) -> None:
        """As repair does, of some stripe; sometimes from where the shard isn't any more."""
        seals = self.volume.catalog.seals(None, 100)
        if seals:
            seal = self.dice.choice(seals)
            number = self.dice.randrange(len(seal.placement))
            source = self.dice.choice(seal.placement)
            target = DiskId(self.dice.randbytes(16))
            await self.propose(MoveShards((ShardMove(seal.stripe, number, source, target),)))

    async def write(self, number: InodeNumber) -> None:
        dice = self.dice
        offset = dice.choice((dice.randrange(150_000), 4 * 2**20 - 10))
        data = dice.randbytes(16) * dice.choice((1, 50, 8000))
        extents = []
        position = offset
        for piece in self.data.append(number, offset, data):
            extents.append(Extent(position, piece.length, piece.stripe, piece.offset))
            position += piece.length
            content = self.contents.setdefault(piece.stripe, bytearray())
            assert len(content) == piece.offset
            content += data[-piece.length :]
        await self.propose(WriteExtents(number, tuple(extents), len(self.commands), None))

    async def syncer(self, rounds: int) -> None:
        for _ in range(rounds):
            promised = len(self.commands)
            action = self.dice.random()
            try:
                if action < 0.7:
                    await self.volume.barrier()
                elif action < 0.8:
                    if not await self.volume.drop_dead_stripes():
                        continue
                else:
                    await self.volume.commit()
                    self.pairs = list(self.store.pairs())
            except PosixError:
                continue
            self.acknowledged = max(self.acknowledged, promised)
            for _ in range(self.dice.randrange(6)):
                await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        await self.volume.create_root(0o755, 0, 0, 0)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(self.writer, 60)
                nursery.start_soon(self.syncer, 14)


class CrashingLog(FakeLog):
    """Takes images right before, during and right after records."""

    def __init__(self, world: World) -> None:
        super().__init__(world.dice)
        self._world = world

    async def append(
        self, stream: VolumeId, payload: bytes, first: LogSequence, last: LogSequence
    ) -> None:
        if self._world.dice.random() < 0.1:
            self._world.take_image()
        if self._world.dice.random() < 0.05:
            # the record reaches the disk, but the crash comes before anybody hears of it
            self.records.append(payload)
            self._world.take_image()
            self.records.pop()
        await super().append(stream, payload, first, last)
        if self._world.dice.random() < 0.1:
            self._world.take_image()


def new_store(path: Path) -> StateStore:
    return StateStore(path, FakeCipher(), FakeNames(), 2**28)


def dump(state: VolumeState) -> dict[bytes, bytes]:
    """Everything that commands alone determine."""
    state.flush()
    kinds = (KIND_INODE, KIND_DENTRY, KIND_NODE, KIND_ORPHAN)
    return {k: copy.copy(v) for kind in kinds for k, v in state.store.scan(kind)}


@pytest.mark.parametrize("case", range(25))
def test_every_crash_leaves_a_sufficient_prefix(tmp_path: Path, seed: int, case: int) -> None:
    world = World(tmp_path, seed + case)
    trio.run(world.run)
    world.take_image()
    assert list(world.volume.check()) == []
    world.store.close()
    for number, image in enumerate(world.images):
        recover_image(world, image, tmp_path / f"image-{number}.mdb")


def recover_image(world: World, image: Image, path: Path) -> None:
    store = new_store(path)
    if image.pairs:
        store.load(image.pairs)
    state = VolumeState(store)
    data = FakeDataStore()
    data.durable = dict(image.durable)
    wanted = min(state.meta.replay_from, state.meta.applied + 1)
    recovery = recover(state, data, [record for record in image.records if reach(record) >= wanted])
    assert recovery.lost == []
    reference_store = new_store(path.with_suffix(".reference"))
    reference = VolumeState(reference_store)
    for command in world.commands[: recovery.applied]:
        apply(reference, command)
    assert dump(state) == dump(reference)
    assert recovery.applied >= image.acknowledged
    placements = moved(world.commands[: recovery.applied])
    for seal in state.stripes.seals(None, 10_000):
        assert list(seal.placement) == placements.get(seal.stripe, list(PLACEMENT))
    read_everything(world, state, data)
    volume = Volume(state, replicator_after(state, data, recovery.inlined), data)
    trio.run(volume.destage)
    assert list(volume.check()) == []
    assert all(volume.catalog.seal_of(stripe) for stripe in recovery.restored)
    trio.run(volume.commit)
    assert volume.replay_from == volume.committed + 1
    store.close()
    reference_store.close()


def reach(record: bytes) -> int:
    """What a trim must pass before the log may forget the record."""
    batch = decode_batch(record)
    return batch.first_sequence + max(len(batch.commands) - 1, 0)


def moved(commands: list[Command]) -> dict[StripeId, list[DiskId]]:
    """Where the shards of all stripes are that were moved."""
    placements: dict[StripeId, list[DiskId]] = {}
    for command in commands:
        for move in command.moves if isinstance(command, MoveShards) else ():
            placement = placements.setdefault(move.stripe, list(PLACEMENT))
            if placement[move.number] == move.source:
                placement[move.number] = move.target
    return placements


def replicator_after(
    state: VolumeState, data: FakeDataStore, inlined: dict[StripeId, LogSequence]
) -> EmbeddedReplicator:
    log = FakeLog()
    log.next = state.meta.applied + 1
    replicator = EmbeddedReplicator(state, log, data, STREAM)
    replicator.resume(inlined)
    return replicator


def read_everything(world: World, state: VolumeState, data: FakeDataStore) -> None:
    volume = Volume(state, replicator_after(state, data, {}), data)
    for entry in volume.read_directory(ROOT, 0, 1000):
        for extent in volume.extents(entry.inode, 0, 2**40):
            start = extent.stripe_offset
            found = data.read_now(extent.stripe, start, extent.length)
            assert found == bytes(world.contents[extent.stripe][start : start + extent.length])

"""Barriers and commits as their callers see them."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE, Extent, InodeNumber, LogSequence
from dwfs.volume.commands import Create, SetXattr, WriteExtents, decode_batch
from tests.unit.volume.fakes import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A volume with a root directory that is in the log."""
    bench = Bench(tmp_path)
    trio.run(bench.volume.barrier)
    yield bench
    assert list(bench.volume.check()) == []
    bench.close()


async def create(bench: Bench, name: bytes) -> InodeNumber:
    number = bench.volume.allocate_inode()
    await bench.volume.propose(Create(ROOT_INODE, name, number, 0o100644, 0, 0, 0, b"", (), 5))
    return number


async def write(bench: Bench, number: InodeNumber, offset: int, data: bytes) -> None:
    for piece in bench.data.append(number, offset, data):
        extent = Extent(offset, piece.length, piece.stripe, piece.offset)
        await bench.volume.propose(WriteExtents(number, (extent,), 6, None))


async def test_callers_share_rounds(bench: Bench) -> None:
    records = len(bench.log.records)

    async def client(name: bytes) -> None:
        await create(bench, name)
        await bench.volume.barrier()

    bench.log.dice = random.Random(3)  # it takes its time
    bench.log.faults = False

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(client, b"%d" % number)
    assert len(bench.log.records) - records < 20
    assert bench.volume._replicator.logged == 21
    before = len(bench.log.records)
    await bench.volume.barrier()
    assert len(bench.log.records) == before, "nothing to write, nothing written"


async def test_a_failed_barrier_is_told_and_made_good(bench: Bench) -> None:
    bench.log.failing = True
    number = await create(bench, b"f")
    await write(bench, number, 0, b"data")
    for _ in range(2):
        with pytest.raises(PosixError) as caught:
            await bench.volume.barrier()
        assert caught.value.errno == errno.EIO
    assert bench.volume.inode(number).size == 4
    bench.log.failing = False
    await bench.volume.barrier()
    batch = decode_batch(bench.log.records[-1])
    assert batch.first_sequence == 2
    assert len(batch.commands) == 2
    assert [piece.data for piece in batch.data] == [b"data"]


async def test_small_data_rides_in_the_log_and_pins_it_until_sealed(bench: Bench) -> None:
    number = await create(bench, b"f")
    await write(bench, number, 0, b"small")
    await bench.volume.commit()
    assert (bench.volume.committed, bench.volume.replay_from) == (3, 2)
    await bench.volume.destage()
    await bench.volume.commit()
    assert (bench.volume.committed, bench.volume.replay_from) == (3, 4)
    extent = bench.volume.extents(number, 0, 5)[0]
    assert bench.volume.catalog.seal_of(extent.stripe) is not None


async def test_much_data_is_sealed_before_its_commands_are_logged(bench: Bench) -> None:
    number = await create(bench, b"f")
    await write(bench, number, 0, bytes(limits.LOG_INLINE_MAX + 1))
    bench.data.failing = True
    with pytest.raises(PosixError):
        await bench.volume.barrier()
    assert bench.volume._replicator.logged == 1
    bench.data.failing = False
    await bench.volume.barrier()
    batch = decode_batch(bench.log.records[-1])
    assert (len(batch.seals), batch.data) == (1, ())


async def test_a_full_buffer_forces_a_barrier(bench: Bench) -> None:
    number = await create(bench, b"f")
    for index in range(200):
        await bench.volume.propose(
            SetXattr(number, b"user.%d" % (index % 20), bytes(64 * 1024), 0, 7, None)
        )
    assert bench.volume._replicator.logged > 1
    assert all(len(record) < limits.LOG_RECORD_SIZE_MAX for record in bench.log.records)
    await bench.volume.barrier()
    sequence = 1
    for record in bench.log.records:
        batch = decode_batch(record)
        assert batch.first_sequence == sequence
        sequence += len(batch.commands)
    assert sequence == 203


async def test_a_commit_holds_exactly_what_is_logged(bench: Bench) -> None:
    companions: list[LogSequence] = []

    async def writer() -> None:
        for index in range(100):
            await create(bench, b"%d" % index)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
            await bench.volume.commit(lambda: companions.append(bench.volume._replicator.logged))
            assert bench.volume.committed == companions[-1]
    assert len(companions) == 5


async def test_dead_stripes_are_dropped_after_a_barrier(bench: Bench) -> None:
    number = await create(bench, b"f")
    await write(bench, number, 0, b"old")
    await bench.volume.destage()
    old = bench.volume.extents(number, 0, 3)[0].stripe
    await write(bench, number, 0, b"new")
    assert bench.volume.catalog.dead_stripes(10) == [old]
    bench.log.failing = True
    with pytest.raises(PosixError):
        await bench.volume.drop_dead_stripes()
    assert bench.data.dropped == []
    bench.log.failing = False
    assert await bench.volume.drop_dead_stripes() == 1
    assert bench.data.dropped == [old]


async def test_a_stripe_is_dropped_only_after_its_own_barrier(bench: Bench) -> None:
    """Two callers at once: the first one's barrier does not cover what the second one proposed."""
    number = await create(bench, b"f")
    stripes = []
    for offset in (0, 100):
        await write(bench, number, offset, bytes(100))
        stripes.append(bench.volume.extents(number, offset, 1)[0].stripe)
        await bench.volume.destage()
    await write(bench, number, 0, bytes(100))
    first = bench.log.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.volume.drop_dead_stripes)
        await trio.testing.wait_all_tasks_blocked()
        await write(bench, number, 100, bytes(100))
        nursery.start_soon(bench.volume.drop_dead_stripes)
        await trio.testing.wait_all_tasks_blocked()
        bench.log.blocked = trio.Event()
        first.set()
        await trio.testing.wait_all_tasks_blocked()
        dropped = list(bench.data.dropped)
        bench.log.blocked.set()  # before any assertion: the barrier can't be cancelled
    assert dropped == stripes[:1]
    assert bench.data.dropped == stripes


async def test_sparse_stripes_come_worst_first(bench: Bench) -> None:
    number = await create(bench, b"f")
    stripes = []
    for index in range(3):
        await write(bench, number, index * 100, bytes(100))
        stripes.append(bench.volume.extents(number, index * 100, 1)[0].stripe)
        await bench.volume.destage()
    for index, dead in enumerate((30, 90, 60)):
        await write(bench, number, index * 100, bytes(dead))
    assert bench.volume.catalog.sparse_stripes(0.75, 10) == [stripes[1], stripes[2], stripes[0]]
    assert bench.volume.catalog.sparse_stripes(0.5, 1) == [stripes[1]]


async def test_a_stripe_that_a_waiting_write_refers_to_is_not_dead(bench: Bench) -> None:
    """Data is in a stripe before its command applies: sealed meanwhile, it must not be dropped."""
    number = await create(bench, b"f")
    blocked = bench.log.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.volume.commit)
        await trio.testing.wait_all_tasks_blocked()
        await create(bench, b"g")  # so that the commit needs a second barrier, behind the gate
        bench.log.blocked = trio.Event()
        blocked.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(write, bench, number, 0, b"late")
        await trio.testing.wait_all_tasks_blocked()
        size_behind_the_gate = bench.volume.inode(number).size
        bench.data.rotate()
        seals = await bench.data.settle()
        for seal in seals:
            bench.volume.catalog.apply_seal(seal)
        bench.data.committed(seals)
        dead = bench.volume.catalog.dead_stripes(10)
        bench.log.blocked.set()  # before any assertion: the barrier can't be cancelled
    assert size_behind_the_gate == 0
    assert dead == []
    stripe = bench.volume.extents(number, 0, 4)[0].stripe
    assert stripe == seals[0].stripe
    assert bench.volume.catalog.live_bytes(stripe) == 4
    assert await bench.volume.drop_dead_stripes() == 0

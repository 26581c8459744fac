"""Random histories sent to another volume, in full and in increments: the trees are the same.

An independent walker compares everything that can be seen of a tree. Streams are received in one go, or
broken off at random frames, with a crash that leaves what was durable, and piped in again or aborted.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import trio

from dwfs.crypto import SecretBytes, StreamKey
from dwfs.errors import DwfsError, PosixError, UsageError
from dwfs.send import Receiver, Sender, abort_receive
from dwfs.send.format import FrameSealer, Header, StreamDecoder, encode_header
from dwfs.types import InodeNumber
from dwfs.volume import recover
from dwfs.volume.commands import Create, SetAttributes
from dwfs.volume.records import Snapshot
from dwfs.volume.transfer import Origin
from tests.unit.volume.fakes import Bench
from tests.unit.volume.histories import History, look

POOL, VOLUME = b"p" * 16, b"v" * 16
SALT = b"z" * 32
CREATE = Create(InodeNumber(1), b"x", InodeNumber(2**40), 0o100644, 0, 0, 0, b"", (), 1)


def origin(snapshot: Snapshot) -> Origin:
    return Origin(POOL, VOLUME, snapshot.epoch, snapshot.time_ns, snapshot.name)


def secret() -> SecretBytes:
    return SecretBytes.copy_of(b"r" * 32)


def send(bench: Bench, name: str, base: str | None = None, stream: bytes = b"s" * 16) -> bytes:
    target = bench.volume.snapshot(name)
    start = None if base is None else bench.volume.snapshot(base)
    key = StreamKey.of_root(secret(), SALT, stream)
    header = Header(
        stream,
        origin(target),
        None if start is None else origin(start),
        target.inode_count,
        target.allocated_bytes,
        "pool",
        SALT,
        None,
        key.commitment,
    )
    encoded = encode_header(header)
    parts = [encoded]

    async def sink(piece: bytes) -> None:
        parts.append(piece)

    sender = Sender(bench.volume, bench.data, start, target)
    trio.run(sender.run, FrameSealer(header, encoded, key), sink)
    return b"".join(parts)


async def receive(bench: Bench, stream: bytes, frames: int | None = None, mark: int = 1) -> None:
    """Receive all, or so many frames."""
    decoder = StreamDecoder()
    decoder.feed(stream)
    header = decoder.header()
    assert header is not None
    decoder.unlock(StreamKey.of_root(secret(), header.salt, header.stream))
    receiver = Receiver(bench.volume, bench.data, "there", mark)
    await receiver.begin(header, 5)
    while (frame := decoder.next_frame()) is not None:
        if frames is not None and frame.number >= frames:
            return
        await receiver.take(frame)
    decoder.end()
    await receiver.finish()


async def no_progress(done: int, total: int | None) -> None:
    """Nobody looks."""


def crash(bench: Bench, directory: Path) -> Bench:
    """What a crash leaves: the log, and sealed stripes. The state is made anew out of them."""
    directory.mkdir()
    after = Bench(directory, make_root=False)
    after.data.durable = dict(bench.data.durable)
    after.data.dice = random.Random(bench.data.dice.random())
    after.log = bench.log
    result = recover(after.state, after.data, bench.log.records)
    assert not result.lost
    after.log.next = after.state.meta.applied + 1
    after.open_volume_again(result.inlined)
    return after


def check(bench: Bench) -> None:
    assert list(bench.volume.check()) == []


def same(history: History, name: str, bench: Bench) -> None:
    """The snapshot there is what it is here, and so is the volume's current state there."""
    volume = history.bench.volume
    expected = look(volume.view(volume.snapshot(name)), history.bench)
    assert look(bench.volume.view(bench.volume.snapshot(name)), bench) == expected
    assert look(bench.volume, bench) == expected
    check(bench)


@pytest.mark.parametrize("seed", range(12))
def test_full_and_increments(tmp_path: Path, seed: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    history = History(tmp_path / "a", seed)
    target = Bench(tmp_path / "b")
    dice = random.Random(seed)
    base = None
    for number in range(5):
        history.steps(dice.choice([0, 20, 60, 150]))
        name = f"s{number}"
        history.snapshot(name)
        if dice.random() < 0.3:
            continue  # not sent: the next increment goes over it
        history.steps(10)  # what comes after the snapshot is none of its business
        stream = send(history.bench, name, base)
        trio.run(receive, target, stream)
        same(history, name, target)
        if base is not None and dice.random() < 0.5:
            trio.run(history.bench.volume.destroy_snapshot, base)
            while trio.run(history.bench.volume.reap, 7):
                pass
        base = name
    check(history.bench)


@pytest.mark.parametrize("seed", range(12))
def test_broken_off_anywhere_it_goes_on(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dwfs.send.sender.SEND_FRAME_FILL", 3000)  # many frames
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    history = History(tmp_path / "a", seed)
    target = Bench(tmp_path / "b")
    dice = random.Random(seed)
    base = None
    crashes = 0
    for number in range(3):
        history.steps(60)
        name = f"s{number}"
        history.snapshot(name)
        stream = send(history.bench, name, base)
        while dice.random() < 0.7:
            count = dice.randrange(40)
            trio.run(receive, target, stream, count, dice.choice([1, 5000, 50_000]))
            crashes += 1
            if dice.random() < 0.5:
                target = crash(target, tmp_path / f"crash{crashes}")
            else:
                target.reopen()
            if target.volume.receive_state.unfinished is None:
                break  # it was so short that all came in
            with pytest.raises(PosixError, match="EBUSY"):
                trio.run(target.volume.propose, CREATE)
            if dice.random() < 0.3:
                before = trio.run(abort_receive, target.volume, "there", no_progress)
                assert "again" in before
                check(target)
                if base is None:
                    assert target.volume.is_empty
                else:
                    same(history, base, target)
            if dice.random() < 0.5:
                history.relocate()
                stream = send(history.bench, name, base, b"t" * 16)  # made anew
        if name not in target.state.snapshots.by_name:
            trio.run(receive, target, stream)
        same(history, name, target)
        base = name


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    history = History(tmp_path / "a", 1)
    target, used = Bench(tmp_path / "b"), History(tmp_path / "c", 2)
    history.steps(40)
    history.snapshot("one")
    history.steps(40)
    history.snapshot("two")
    full, increment = send(history.bench, "one"), send(history.bench, "two", "one")
    used.steps(40)
    before = look(used.bench.volume, used.bench)
    with pytest.raises(UsageError, match="not empty"):
        trio.run(receive, used.bench, full)
    with pytest.raises(UsageError, match="no copy of the snapshot @one"):
        trio.run(receive, used.bench, increment)
    assert look(used.bench.volume, used.bench) == before
    assert used.bench.volume.receive_state.unfinished is None
    with pytest.raises(UsageError, match="no copy"):
        trio.run(receive, target, increment)
    trio.run(receive, target, full)
    with pytest.raises(UsageError, match="has received @one already"):
        trio.run(receive, target, full)
    trio.run(target.volume.propose, CREATE)
    with pytest.raises(UsageError, match="snapshot rollback there@one"):
        trio.run(receive, target, increment)
    trio.run(target.volume.rollback, "one", no_progress)
    trio.run(receive, target, increment)
    same(history, "two", target)


def test_another_stream_does_not_go_on_where_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dwfs.send.sender.SEND_FRAME_FILL", 500)
    for name in "abc":
        (tmp_path / name).mkdir()
    history, other = History(tmp_path / "a", 3), History(tmp_path / "c", 3)
    target = Bench(tmp_path / "b")
    history.steps(60)
    other.steps(60)
    other.propose(SetAttributes(InodeNumber(1), 0o700, 7, 7, None, None, None, None))
    history.snapshot("one")
    stream = send(history.bench, "one")
    history.steps(30)
    history.snapshot("two")
    trio.run(receive, target, stream, 5)
    with pytest.raises(DwfsError, match="in the middle of receiving @one"):
        trio.run(receive, target, send(history.bench, "two"))
    # A stream that claims to be the same one, and is not.
    forged = other.bench.volume
    trio.run(forged.take_snapshot, "one", history.bench.volume.snapshot("one").time_ns)
    with pytest.raises(UsageError, match="differs"):
        trio.run(receive, target, send(other.bench, "one"))
    trio.run(receive, target, stream)
    same(history, "one", target)


def test_giving_up_may_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dwfs.send.sender.SEND_FRAME_FILL", 500)
    for name in "ab":
        (tmp_path / name).mkdir()
    history, target = History(tmp_path / "a", 8), Bench(tmp_path / "b")
    history.steps(80)
    history.snapshot("one")
    stream = send(history.bench, "one")
    trio.run(receive, target, stream, 4)
    monkeypatch.setattr(target.volume, "rollback", partial(target.volume.rollback, batch=2))
    steps = 0

    async def die(done: int, total: int | None) -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            await target.volume.barrier()
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="power"):
        trio.run(abort_receive, target.volume, "there", die)
    target = crash(target, tmp_path / "c")
    assert target.volume.rolling_back
    trio.run(target.volume.finish_rollback, no_progress)
    with pytest.raises(DwfsError, match="being aborted"):
        trio.run(receive, target, stream)
    said = trio.run(abort_receive, target.volume, "there", no_progress)
    assert said == "pool there is empty again"
    assert target.volume.is_empty
    check(target)
    trio.run(receive, target, stream)
    same(history, "one", target)

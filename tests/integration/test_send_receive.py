"""Off-site backup by the commands that people give: a snapshot of one pool, piped into another."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pools import Pool
from tests.integration.test_snapshots import change, fill

MIB = 1 << 20


class Pair:
    """Two pools on different machines, as far as they can tell, and a key for what goes between them."""

    def __init__(self, home: Path) -> None:
        self.source = Pool(home / "here")
        self.target = Pool(home / "there")
        self.key = home / "stream-key"
        self.key.write_bytes(os.urandom(64))
        self.key.chmod(0o600)

    def create(self) -> Pair:
        for pool in (self.source, self.target):
            pool.create(disks=3, data=2, parity=1)
        return self

    def words(self, pool: Pool, *words: str) -> list[str]:
        return [
            *(sys.executable, "-m", "dwfs", *words),
            *("--keyfile", str(pool.keyfile), "--stream-keyfile", str(self.key)),
        ]

    def send(self, *words: str) -> bytes:
        done = subprocess.run(
            self.words(self.source, "send", *words),
            env=self.source.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"sent pool@" in done.stderr
        return done.stdout

    def receive(
        self, stream: bytes, *words: str, key: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        arguments = self.words(self.target, "receive", "pool", *words)
        if key is not None:
            arguments[-1] = str(key)
        return subprocess.run(
            arguments,
            env=self.target.environment,
            input=stream,
            capture_output=True,
            timeout=120,
        )

    def received(self, stream: bytes) -> str:
        done = self.receive(stream)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def refused(self, stream: bytes, code: int, said: str, *words: str) -> None:
        done = self.receive(stream, *words)
        assert done.returncode == code, done.stderr.decode()
        assert said in done.stderr.decode()
        assert b"Traceback (most recent call last)" not in done.stderr or b"dwfs: " in done.stderr

    def snapshot(self, name: str) -> None:
        self.source.dwfs("snapshot", "create", f"pool@{name}")

    def same(self, name: str) -> None:
        """The target is, bit by bit, what the snapshot is here; looking changes nothing there."""
        self.target.mount("dev,suid,ro")
        here = self.source.mountpoint / ".snapshots" / name
        try:
            assert facts(self.target.mountpoint) == facts(here)
            if shutil.which("rsync"):
                done = subprocess.run(
                    ["rsync", "-naHAXci", "--delete", f"{here}/", f"{self.target.mountpoint}/"],
                    capture_output=True,
                    text=True,
                )
                assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        finally:
            self.target.umount()
        assert "as it should be" in self.target.dwfs(
            "check", "pool", "--keyfile", self.target.keyfile
        )


def facts(directory: Path) -> dict[str, tuple[object, ...]]:
    """What rsync does not compare: inode numbers within the volume, all times, holes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        holes: list[int] = []
        if stat.S_ISREG(status.st_mode) and status.st_size:
            with path.open("rb") as file:
                try:
                    place = 0
                    while place < status.st_size:
                        place = os.lseek(file.fileno(), place, os.SEEK_DATA)
                        holes.append(place)
                        place = os.lseek(file.fileno(), place, os.SEEK_HOLE)
                        holes.append(place)
                except OSError:
                    pass  # no data after a hole
        found[str(path.relative_to(directory))] = (
            status.st_ino & (1 << 48) - 1,
            status.st_mode,
            status.st_nlink,
            status.st_rdev,
            status.st_size,
            status.st_blocks,
            status.st_mtime_ns,
            status.st_ctime_ns,
            holes,
        )
    return found


def decorate(directory: Path) -> None:
    """Everything that a tree can have besides files."""
    (directory / "link").symlink_to("folder-0/nowhere")
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "device", stat.S_IFBLK | 0o600, os.makedev(7, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(directory, os.O_PATH)
        listener.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
    file = sorted(directory.glob("folder-1/file-*"))[0]
    os.link(file, directory / "second-name")
    os.setxattr(file, "user.colour", b"blue\0")
    file.chmod(0o4711)
    os.chown(file, 1234, 5678, follow_symlinks=False)
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", "u:4321:r,d:g:99:rwx", directory / "folder-2"], check=True)
    os.utime(directory / "folder-3", ns=(1, 1_234_567_890_123_456_789))
    with (directory / "sparse").open("wb") as sparse:
        sparse.truncate(300 * MIB)
        for place in (0, 77 * MIB + 5, 299 * MIB):
            sparse.seek(place)
            sparse.write(b"island")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    try:
        yield pair.create()
    finally:
        pair.source.close()
        pair.target.close()


def test_full_and_increments_are_identical(pair: Pair) -> None:
    source = pair.source.mount()
    fill(source.mountpoint, 1)
    decorate(source.mountpoint)
    pair.snapshot("one")
    assert "received pool@one" in pair.received(pair.send("pool@one"))
    pair.same("one")
    change(source.mountpoint, 2)
    with (source.mountpoint / "sparse").open("r+b") as sparse:
        sparse.truncate(80 * MIB)
    os.removexattr(source.mountpoint / "second-name", "user.colour")
    pair.snapshot("two")
    fill(source.mountpoint / "folder-4", 3)
    pair.snapshot("three")
    source.dwfs("snapshot", "destroy", "pool@two", "--yes")
    whole = len(pair.send("pool@three"))
    increment = pair.send("pool@three", "--from", "@one")
    estimate = json.loads(
        source.dwfs("send", "pool@three", "--from", "pool@one", "--estimate", "--json")
    )
    assert abs(estimate["stream_bytes"] - len(increment)) < 64 * 1024 < len(increment) < whole
    assert "received pool@three (since @one)" in pair.received(increment)
    pair.same("three")
    pair.refused(increment, 2, "has received @three already")
    # Very little has changed, so very little goes over the line; the source need not be mounted.
    (source.mountpoint / "tiny").write_bytes(b"tiny")
    pair.snapshot("four")
    source.umount()
    small = pair.send("pool@four", "--from", "@three")
    assert len(small) < 4096
    pair.received(small)
    source.mount()
    pair.same("four")
    listed = json.loads(
        pair.target.dwfs("snapshot", "list", "pool", "--json", "--keyfile", pair.target.keyfile)
    )
    assert [one["name"] for one in listed["snapshots"]] == ["one", "three", "four"]


@pytest.mark.parametrize("how", ["truncated", "killed"])
def test_interrupted_it_goes_on_or_is_given_up(pair: Pair, how: str) -> None:
    source = pair.source.mount()
    fill(source.mountpoint, 1)
    (source.mountpoint / "big").write_bytes(random.Random(5).randbytes(150 * MIB))
    pair.snapshot("one")
    stream = pair.send("pool@one")

    def interrupt() -> None:
        if how == "truncated":
            pair.refused(stream[: 100 * MIB], 10, "ends early")
            return
        receiver = subprocess.Popen(
            pair.words(pair.target, "receive", "pool"),
            env=pair.target.environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert receiver.stdin is not None
        receiver.stdin.write(stream[: 120 * MIB])
        receiver.stdin.flush()
        time.sleep(1)  # so much was read; the mark at 64 MiB is durable, most likely
        receiver.send_signal(signal.SIGKILL)
        receiver.wait()
        receiver.stdin.close()

    interrupt()
    target, key = pair.target, ("--keyfile", str(pair.target.keyfile))
    refusal = target.run("mount", "pool", target.mountpoint, *key)
    assert refusal.returncode == 4
    assert "received only a part of @one" in refusal.stderr
    assert "dwfs receive --abort pool" in refusal.stderr
    assert target.run("snapshot", "create", "pool@x", *key).returncode == 1
    said = target.dwfs("receive", "--abort", "pool", *key)
    assert said == "pool pool is empty again\n"
    assert target.run("receive", "--abort", "pool", *key).returncode == 2
    target.mount()
    assert list(target.mountpoint.iterdir()) == []
    target.umount()
    interrupt()
    # Made again, with another salt: it goes on with that, too.
    done = pair.receive(pair.send("pool@one"), "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["skipped_bytes"] >= 64 * MIB
    pair.same("one")


def test_what_can_not_be_received_is_refused(pair: Pair, tmp_path: Path) -> None:
    source, target = pair.source.mount(), pair.target
    fill(source.mountpoint, 1)
    pair.snapshot("one")
    change(source.mountpoint, 2)
    pair.snapshot("two")
    full, increment = pair.send("pool@one"), pair.send("pool@two", "--from", "@one")
    pair.refused(increment, 2, "no copy of the snapshot @one")
    pair.refused(b"", 6, "the input is empty")
    pair.refused(b"#!/bin/sh\nrm -rf everything\n", 6, "not a stream of 'dwfs send'")
    pair.refused(full[:8] + b"\0\0\0\2" + full[12:], 6, "format 2")
    damaged = bytearray(full)
    damaged[len(full) // 2] ^= 4
    pair.refused(bytes(damaged), 10, "of the stream is damaged")
    target.dwfs("receive", "--abort", "pool", "--keyfile", target.keyfile)
    other = tmp_path / "other-key"
    other.write_bytes(os.urandom(64))
    other.chmod(0o600)
    done = pair.receive(full, key=other)
    assert done.returncode == 5
    assert b"not the one that the stream was sealed with" in done.stderr
    target.mount()
    pair.refused(full, 4, "is mounted at")
    (target.mountpoint / "mine").touch()
    target.umount()
    pair.refused(full, 2, "not empty")
    target.mount()
    (target.mountpoint / "mine").unlink()
    target.umount()
    pair.received(full)
    target.mount()
    (target.mountpoint / "mine").touch()
    target.umount()
    pair.refused(increment, 2, "dwfs snapshot rollback pool@one")
    target.dwfs("snapshot", "rollback", "pool@one", "--yes", "--keyfile", target.keyfile)
    pair.received(increment)
    pair.same("two")
    assert source.run("send", "pool@nothing").returncode == 2
    assert source.run("send", "pool@one", "--from", "@two").returncode == 2
    # Without a key of its own, a stream is for pools with the same root key.
    own = tmp_path / "own.stream"
    with own.open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "dwfs", "send", "pool@one"],
            env=source.environment,
            stdout=file,
            check=True,
        )
    with own.open("rb") as file:
        refusal = target.run("receive", "pool", "--keyfile", target.keyfile, stdin=file)
    assert refusal.returncode == 5
    assert "root key of the pool that sent it" in refusal.stderr


def test_a_receiver_without_room_goes_on_when_there_is_some(pair: Pair) -> None:
    source, target = pair.source.mount(), pair.target
    (source.mountpoint / "big").write_bytes(os.urandom(20 * MIB))
    pair.snapshot("one")
    stream = pair.send("pool@one")
    target.dwfs("volume", "set", "pool", "quota=9M", "--keyfile", target.keyfile)
    pair.refused(stream, 8, "quota of pool pool is used up")
    target.dwfs("volume", "set", "pool", "quota=none", "--keyfile", target.keyfile)
    assert "had come in before" in pair.received(stream)
    pair.same("one")


def test_a_snapshot_that_is_being_sent_is_held(pair: Pair) -> None:
    source = pair.source.mount()
    (source.mountpoint / "big").write_bytes(os.urandom(20 * MIB))
    pair.snapshot("one")
    sender = subprocess.Popen(
        pair.words(source, "send", "pool@one"),
        env=source.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert sender.stdout is not None
    assert sender.stderr is not None
    sender.stdout.read(100_000)
    refusal = source.run("snapshot", "destroy", "pool@one", "--yes")
    assert refusal.returncode == 4
    assert "@one is being sent" in refusal.stderr
    sender.stdout.close()
    sender.wait(60)
    said = sender.stderr.read().decode()
    sender.stderr.close()
    assert sender.returncode == 141, said
    assert "whoever takes the stream has gone" in said
    deadline = time.monotonic() + 20
    while source.run("snapshot", "destroy", "pool@one", "--yes").returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)

"""Two mounted pools side by side, one of them with many snapshots: what writing costs in each, and
what the destruction of the middle snapshot gives back. A part of `snapshots.py`.

Both pools have the same history; the one takes snapshots in it. Rounds alternate, the second one
beginning where the first ended, so that what slows the machine for a while slows both.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from pathlib import Path

import msgspec

from dwfs.config import Directories
from dwfs.node.client import ask
from dwfs.node.status import SnapshotAnswer, SnapshotList
from tests.benchmark.systems import Dwfs

SNAPSHOTS = 100
ROUNDS = 5
BIG_SIZE = 64 << 20
BLOCK = 64 << 10
FILES = 500
FIGURES = ("create", "random overwrite 64 KiB", "write 4 KiB + fsync")


class Subject:
    """One mounted pool with its files."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.system = Dwfs(home)
        self.socket = Directories.from_environment(
            {"DWFS_ROOT": str(home / "root")}
        ).control_socket("bench")
        self.tree = self.system.mount / "tree"
        self.dice = random.Random(7)
        self.serial = 0

    def begin(self) -> None:
        """Have one large file and many small ones."""
        self.tree.mkdir()
        with (self.tree / "big").open("wb") as file:
            for _ in range(BIG_SIZE >> 20):
                file.write(self.dice.randbytes(1 << 20))
        for number in range(FILES):
            (self.tree / f"small-{number}").write_bytes(self.dice.randbytes(8000))

    def live(self, snapshots: bool) -> None:
        """Change something a hundred times, with or without snapshots in between."""
        for number in range(SNAPSHOTS):
            self.overwrite(8)
            for _ in range(10):
                place = self.tree / f"small-{self.dice.randrange(FILES)}"
                place.write_bytes(self.dice.randbytes(8000))
            if snapshots:
                ask(self.socket, "snapshot.create", {"name": f"s{number}"})
        os.sync()

    def overwrite(self, count: int) -> None:
        """Random blocks of the large file."""
        handle = os.open(self.tree / "big", os.O_WRONLY)
        try:
            for _ in range(count):
                place = self.dice.randrange(BIG_SIZE // BLOCK) * BLOCK
                os.pwrite(handle, self.dice.randbytes(BLOCK), place)
            os.fsync(handle)
        finally:
            os.close(handle)

    def measure(self) -> dict[str, float]:
        """Operations a second."""
        rates = {}
        self.serial += 1
        place = self.tree / f"round-{self.serial}"
        place.mkdir()
        started = time.perf_counter()
        for number in range(2000):
            os.close(os.open(place / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        rates["create"] = 2000 / (time.perf_counter() - started)
        started = time.perf_counter()
        self.overwrite(400)
        rates["random overwrite 64 KiB"] = 400 / (time.perf_counter() - started)
        handle = os.open(place / "0", os.O_WRONLY)
        block = self.dice.randbytes(4096)
        started = time.perf_counter()
        for number in range(400):
            os.pwrite(handle, block, number % 50 * 4096)
            os.fsync(handle)
        rates["write 4 KiB + fsync"] = 400 / (time.perf_counter() - started)
        os.close(handle)
        return rates

    def kept_bytes(self) -> int:
        """Bytes that only snapshots map, once nothing is left to be reaped."""
        while True:
            listed = msgspec.json.decode(ask(self.socket, "snapshot.list"), type=SnapshotList)
            if not listed.reaping:
                return listed.kept_bytes
            time.sleep(0.2)

    def destroy(self, name: str) -> int:
        """Destroy a snapshot; its unique bytes as they were told."""
        reply = ask(self.socket, "snapshot.destroy", {"names": [name]})
        return msgspec.json.decode(reply, type=SnapshotAnswer).snapshots[0].unique_bytes


def compare(home: Path) -> list[str]:
    """Lines of the documentation."""
    home.mkdir()
    without, beside = Subject(home / "without"), Subject(home / "beside")
    with without.system.running(), beside.system.running():
        for subject in (without, beside):
            subject.begin()
            subject.live(snapshots=subject is beside)
        rounds: dict[Subject, list[dict[str, float]]] = {without: [], beside: []}
        for number in range(ROUNDS):
            for subject in (without, beside) if number % 2 == 0 else (beside, without):
                rounds[subject].append(subject.measure())
        rows = [_row(figure, rounds[without], rounds[beside]) for figure in FIGURES]
        before = beside.kept_bytes()
        told = beside.destroy(f"s{SNAPSHOTS // 2}")
        given = before - beside.kept_bytes()
    destruction = (
        f"The middle one of {SNAPSHOTS} was said to have {told:,} bytes of its own; its destruction "
        f"gave back {given:,}."
    )
    return [
        f"| operations a second | without | beside {SNAPSHOTS} snapshots | ratio |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        "",
        destruction,
    ]


def _row(figure: str, without: list[dict[str, float]], beside: list[dict[str, float]]) -> str:
    ours = statistics.median(one[figure] for one in without)
    theirs = statistics.median(one[figure] for one in beside)
    ratio = statistics.median(b[figure] / a[figure] for a, b in zip(without, beside, strict=True))
    return f"| {figure} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} |"

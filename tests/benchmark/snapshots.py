"""What snapshots cost: taking one as the volume grows, writing beside many, and giving one back.

    python tests/benchmark/snapshots.py [--full] [--no-mount] [--no-write]

The first part applies commands to a state with the real ciphers, without disks or kernel, so that nothing
else hides what they cost; each snapshot is taken with 500 inodes and 500 names changed and not written back.
The second compares two mounted pools (`snapshots_mounted.py`).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dwfs.crypto import NameHasher, ValueCipher
from dwfs.types import ROOT_INODE, Extent, InodeNumber, StripeId
from dwfs.volume import StateStore, VolumeState
from dwfs.volume.commands import (
    NO_INODE,
    Command,
    Create,
    DestroySnapshot,
    ReapSnapshots,
    Rename,
    TakeSnapshot,
    WriteExtents,
)
from dwfs.volume.machine import apply
from tests.benchmark.report import replace_between_markers
from tests.benchmark.snapshots_mounted import compare
from tests.benchmark.systems import REPOSITORY

PER_DIRECTORY = 1000
CHANGES = 500  # before each snapshot that is timed
REPEATS = 7
MANY = 100  # snapshots beside which writing is measured
WRITES = 20_000
STRIPES = [StripeId(number.to_bytes(16, "big")) for number in range(1, 500)]


class Measured:
    """A volume's state, and the files in it."""

    def __init__(self, path: Path) -> None:
        key = memoryview(bytes(range(32)))
        self.state = VolumeState(StateStore(path, ValueCipher(key), NameHasher(key)))
        self.files: list[InodeNumber] = []
        self.directories: list[InodeNumber] = []
        self.dice = random.Random(1)
        self.serial = 1
        apply(self.state, Create(NO_INODE, b"", ROOT_INODE, 0o40755, 0, 0, 0, b"", (), 1))

    def apply(self, command: Command) -> None:
        """As the replicator does it: what is dirty is relieved now and then."""
        apply(self.state, command)
        self.serial += 1
        if self.serial % 16 == 0:
            self.state.relieve()

    def grow(self, count: int) -> None:
        """Have so many files of one extent each."""
        while len(self.files) < count:
            if len(self.files) % PER_DIRECTORY == 0:
                self.directories.append(self._create(ROOT_INODE, 0o40755))
            number = self._create(self.directories[-1], 0o100644)
            self.files.append(number)
            self.write(number)
            if len(self.files) % 20_000 == 0:
                self.state.commit()

    def _create(self, parent: InodeNumber, mode: int) -> InodeNumber:
        number = self.state.meta.next_inode
        self.apply(Create(parent, b"f%d" % number, number, mode, 0, 0, 0, b"", (), self.serial))
        return number

    def write(self, number: InodeNumber, offset: int = 0) -> None:
        """4 KiB."""
        extent = Extent(offset, 4096, self.dice.choice(STRIPES), self.dice.randrange(900) * 4096)
        self.apply(WriteExtents(number, (extent,), self.serial, None))

    def change(self, count: int) -> None:
        """Write to so many files and rename others."""
        for _ in range(count):
            self.write(self.dice.choice(self.files))
            place = self.dice.randrange(len(self.files))
            parent = self.directories[place // PER_DIRECTORY]
            name = b"f%d" % self.files[place]
            self.apply(Rename(parent, name, parent, name + b"x", 0, self.serial))
            self.apply(Rename(parent, name + b"x", parent, name, 0, self.serial))

    def take(self) -> float:
        """A snapshot; milliseconds."""
        command = TakeSnapshot(f"s{self.serial}", self.serial, False)
        started = time.perf_counter()
        apply(self.state, command)
        self.serial += 1
        return (time.perf_counter() - started) * 1e3

    def destroy_all(self) -> None:
        """Give everything back."""
        for name in list(self.state.snapshots.by_name):
            apply(self.state, DestroySnapshot(name))
        while self.state.meta.reaping or self.state.meta.sweeping:
            apply(self.state, ReapSnapshots(10_000))


def taking(volume: Measured, steps: list[int]) -> list[str]:
    """Rows: how long a snapshot takes as the volume grows."""
    rows = []
    for count in steps:
        volume.grow(count)
        times = []
        for _ in range(REPEATS):
            volume.change(CHANGES)
            times.append(volume.take())
        rows.append(f"| {count:,} | {statistics.median(times):.1f} | {max(times):.1f} |")
        print(rows[-1], file=sys.stderr, flush=True)
        volume.destroy_all()
        volume.state.commit()
    return rows


def writing(home: Path, snapshots: int, files: int) -> float:
    """Microseconds for a write of 4 KiB to a random file, the oldest snapshot seeing all of them."""
    volume = Measured(home / f"state-{snapshots}.mdb")
    volume.grow(files)
    for _ in range(snapshots):
        volume.change(CHANGES)
        volume.take()
    volume.change(2 * CHANGES)
    volume.state.commit()
    started = time.process_time()
    for _ in range(WRITES):
        volume.write(volume.dice.choice(volume.files), volume.dice.randrange(3) * 4096)
    volume.state.commit()
    spent = (time.process_time() - started) / WRITES * 1e6
    volume.state.store.close()
    return spent


def main() -> int:
    """Measure and write the tables into the documentation."""
    parser = argparse.ArgumentParser(description="what snapshots cost")
    parser.add_argument("--full", action="store_true", help="go to 1,000,000 files")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    parser.add_argument("--no-mount", action="store_true", help="only the volume layer")
    options = parser.parse_args()
    steps = [1_000, 100_000, *([1_000_000] if options.full else [])]
    with tempfile.TemporaryDirectory(prefix="dwfs-snapshots-") as home:
        volume = Measured(Path(home) / "state.mdb")
        rows = taking(volume, steps)
        volume.state.store.close()
        mounted = [] if options.no_mount else compare(Path(home) / "pools")
        without, beside = [], []
        for number in range(3):
            (place := Path(home) / str(number)).mkdir()
            without.append(writing(place, 0, 2_000))
            beside.append(writing(place, MANY, 2_000))
    told = (
        f"Applying a write of 4 KiB to one of 2,000 files: {statistics.median(without):.1f} µs "
        f"without snapshots, {statistics.median(beside):.1f} µs beside {MANY} of them."
    )
    command = f"Made by `python tests/benchmark/snapshots.py{' --full' * options.full}`."
    text = "\n".join(
        [
            command,
            "",
            "| files | take a snapshot, ms (median) | slowest |",
            "| ---: | ---: | ---: |",
            *rows,
            "",
            told,
            "",
            *mounted,
        ]
    )
    print(text)
    if not options.no_write:
        replace_between_markers(REPOSITORY / "docs/performance.md", "snapshots", text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

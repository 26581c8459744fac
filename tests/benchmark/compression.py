"""What compression costs and saves: the figures of docs/performance.md on it.

    python tests/benchmark/compression.py [--tree DIR] [--settings off zstd] [--rounds N]
                                          [--size-mib N] [--no-write]

For each setting a pool is made through the `dwfs` command, and given

    tree    a directory of source code (the running Python's standard library), copied file by file
    file    one large file, made of the same sources, for sequential and random reads
    noise   one large file that can't be compressed

The settings take turns round by round, and the table shows medians: the machine is shared and noisy.
Space is what the disks' filesystems have allocated for segments, parity included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.healing import Bench, forget, read_randomly, read_sequentially
from tests.benchmark.report import replace_between_markers

MIB = 1 << 20
REPOSITORY = Path(__file__).resolve().parents[2]
RANDOM_SECONDS = 3.0
NO_SOURCES = ("__pycache__", "site-packages", "lib-dynload", "config-*", "*.so", "*.a", "*.exe")
LEFT_OUT = shutil.ignore_patterns(*NO_SOURCES)

# What a round of one setting found; a figure's name is its row in the table.
Figures = dict[str, float]
ROWS = {
    "tree: bytes on the disks": "MiB",
    "tree: ratio": "",
    "tree: copied and synced": "MB/s",
    "tree: read cold, file by file": "MB/s",
    "file: bytes on the disks": "MiB",
    "file: ratio": "",
    "file: written and synced": "MB/s",
    "file: read cold, in sequence": "MB/s",
    "file: read cold, 4 KiB at random": "reads/s",
    "noise: ratio": "",
    "noise: written and synced": "MB/s",
    "noise: read cold, in sequence": "MB/s",
}


class Subject:
    """A mounted pool with one setting, and what it stored before the part that is measured."""

    def __init__(self, home: Path, setting: str, size_mib: int) -> None:
        self.bench = Bench(home, size_mib)
        self.bench.build()
        self.bench.pool.dwfs("volume", "set", self.bench.pool.name, f"compression={setting}")
        self.before = (0.0, 0.0, 0.0)

    @property
    def root(self) -> Path:
        """The mount point."""
        return self.bench.pool.mountpoint

    def stored(self) -> tuple[float, float, float]:
        """Bytes on the disks, logical and stored bytes of the stripes; of all so far."""
        pool = self.bench.pool
        used = sum(self.bench.usage(number) for number in range(len(pool.disks)))
        status = json.loads(pool.dwfs("volume", "get", pool.name, "--json"))
        return used, status["data_bytes"], status["packed_bytes"]

    def growth(self, what: str, found: Figures) -> None:
        """Note what was stored since the last call."""
        after = self.stored()
        used, logical, stored = (b - a for a, b in zip(self.before, after, strict=True))
        self.before = after
        found[f"{what}: bytes on the disks"] = used / MIB
        found[f"{what}: ratio"] = logical / stored


def timed(work: Callable[[], object], size_bytes: int) -> float:
    """MB/s."""
    started = time.perf_counter()
    work()
    return size_bytes / (time.perf_counter() - started) / 1e6


def files_of(tree: Path) -> list[Path]:
    """In an order that repeats."""
    return sorted(path for path in tree.rglob("*") if path.is_file())


def sync(root: Path) -> None:
    """Make all durable: an fsync is a barrier of the whole volume."""
    os.sync()
    descriptor = os.open(root, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def measure(home: Path, setting: str, tree: Path, size_mib: int) -> Figures:
    """One round of one setting."""
    subject = Subject(home, setting, size_mib)
    found: Figures = {}
    try:
        measure_tree(subject, tree, found)
        sources = b"".join(path.read_bytes() for path in files_of(tree))
        sources *= -(-2 * MIB // len(sources))  # a small tree yields less than is written at once
        for what, block in (("file", sources), ("noise", os.urandom(16 * MIB))):
            measure_file(subject, what, block, size_mib * MIB, found)
    finally:
        subject.bench.close()
    return found


def measure_tree(subject: Subject, tree: Path, found: Figures) -> None:
    """Copy a tree of small files, and read it back."""
    sources = files_of(tree)
    size = sum(path.stat().st_size for path in sources)
    target = subject.root / "tree"

    def copy() -> None:
        shutil.copytree(tree, target)
        sync(subject.root)

    for path in sources:
        path.read_bytes()  # the source's own disk is not what is measured
    found["tree: copied and synced"] = timed(copy, size)
    subject.growth("tree", found)
    subject.bench.remount()
    copies = files_of(target)
    for path in copies:
        forget(path)
    found["tree: read cold, file by file"] = timed(
        lambda: [path.read_bytes() for path in copies], size
    )
    for source, copied in zip(sources, copies, strict=True):
        assert source.read_bytes() == copied.read_bytes(), copied


def measure_file(subject: Subject, what: str, block: bytes, size: int, found: Figures) -> None:
    """Write one large file, and read it back in sequence and, if it isn't noise, at random."""
    path = subject.root / what

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for offset in range(0, size, MIB):
                start = offset % (len(block) - MIB)
                file.write(block[start : start + MIB])
        sync(subject.root)

    found[f"{what}: written and synced"] = timed(write, size)
    subject.growth(what, found)
    subject.bench.remount()
    found[f"{what}: read cold, in sequence"] = read_sequentially([path])
    if what == "file":
        subject.bench.remount()
        found["file: read cold, 4 KiB at random"] = read_randomly([path], RANDOM_SECONDS, 5)


def table(results: dict[str, list[Figures]]) -> list[str]:
    """Medians, side by side; the last columns compare with the first setting."""
    settings = list(results)
    lines = [
        "|  | " + " | ".join(f"`{setting}`" for setting in settings) + " | last ÷ first |",
        "| --- |" + " ---: |" * (len(settings) + 1),
    ]
    for name, unit in ROWS.items():
        values = [statistics.median(one[name] for one in results[setting]) for setting in settings]
        shown = " | ".join(f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in values)
        label = f"{name}, {unit}" if unit else name
        lines.append(f"| {label} | {shown} | {values[-1] / values[0]:.2f} |")
    return lines


def main() -> int:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description="measure what compression costs and saves")
    parser.add_argument("--tree", type=Path, help="source code to copy")
    parser.add_argument("--settings", nargs="+", default=["off", "zstd"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size-mib", type=int, default=256, help="of each large file")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    options = parser.parse_args()
    results: dict[str, list[Figures]] = {setting: [] for setting in options.settings}
    with tempfile.TemporaryDirectory(prefix="dwfs-compression-") as name:
        tree = Path(name) / "source"
        shutil.copytree(options.tree or sysconfig.get_path("stdlib"), tree, ignore=LEFT_OUT)
        count, size = len(files_of(tree)), sum(path.stat().st_size for path in files_of(tree))
        for number in range(options.rounds):
            for setting in options.settings:
                home = Path(tempfile.mkdtemp(prefix="pool-", dir=name))
                results[setting].append(measure(home, setting, tree, options.size_mib))
                shutil.rmtree(home)
                print(f"round {number + 1}, {setting}: {results[setting][-1]}", file=sys.stderr)
    head = (
        f"Made by `python tests/benchmark/compression.py --rounds {options.rounds}`: medians; a pool "
        f"of 4+2 on six directories of one disk; a tree of {count:,} files, {size / MIB:.0f} MiB; "
        f"large files of {options.size_mib} MiB."
    )
    text = "\n".join([head, "", *table(results)])
    print(text)
    if not options.no_write:
        replace_between_markers(REPOSITORY / "docs/performance.md", "compression", text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

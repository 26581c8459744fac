"""Cost as the volume grows: create, lookup and readdir for each file, and mount time.

    python tests/benchmark/growth.py [--full] [--no-write]

Fills one dwfs pool to 1,000, then 100,000, then (--full) 1,000,000 files in directories of 1,000,
and after each step measures a fixed number of operations on a random sample, and a clean mount.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.report import replace_between_markers
from tests.benchmark.systems import REPOSITORY, Dwfs, anonymous_bytes

PER_DIRECTORY = 1000
SAMPLE = 1000


def fill(root: Path, first: int, last: int) -> float:
    """Create files number first … last-1; microseconds for each."""
    started = time.perf_counter()
    for number in range(first, last):
        if number % PER_DIRECTORY == 0:
            (root / str(number // PER_DIRECTORY)).mkdir()
        path = f"{root}/{number // PER_DIRECTORY}/file-{number}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    return (time.perf_counter() - started) / (last - first) * 1e6


def lookup(root: Path, count: int) -> float:
    """Look up a random sample with cold kernel caches; microseconds for each."""
    choice = random.Random(count)
    numbers = [choice.randrange(count) for _ in range(SAMPLE)]
    started = time.perf_counter()
    for number in numbers:
        os.stat(f"{root}/{number // PER_DIRECTORY}/file-{number}")
    return (time.perf_counter() - started) / SAMPLE * 1e6


def listing(root: Path) -> float:
    """List up to twenty directories; microseconds for each entry."""
    seen = 0
    started = time.perf_counter()
    for directory in sorted(os.listdir(root))[:20]:
        seen += len(os.listdir(root / directory))
    return (time.perf_counter() - started) / seen * 1e6


def measure(steps: list[int], home: Path) -> list[str]:
    """Rows of the table."""
    rows = []
    system = Dwfs(home / "dwfs")
    with system.running():
        root, done = system.mount / "tree", 0
        root.mkdir()
        for count in steps:
            creating = fill(root, done, count)
            done = count
            system.close()
            started = time.perf_counter()
            system.open()
            mounting = time.perf_counter() - started
            looking, reading = lookup(root, count), listing(root)
            memory = anonymous_bytes(system.pids()) / 2**20
            cells = (
                f"{creating:.0f} | {looking:.0f} | {reading:.1f} | {mounting:.2f} | {memory:.0f}"
            )
            rows.append(f"| {count:,} | {cells} |")
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Measure and write the table into the documentation."""
    parser = argparse.ArgumentParser(description="cost for each file as the volume grows")
    parser.add_argument("--full", action="store_true", help="go to 1,000,000 files")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    options = parser.parse_args()
    steps = [1_000, 100_000, *([1_000_000] if options.full else [])]
    home = Path(tempfile.mkdtemp(prefix="dwfs-growth-"))
    try:
        rows = measure(steps, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    head = (
        "| files | create, µs | lookup cold, µs | readdir, µs an entry | mount, s | memory, MiB |"
    )
    command = f"Made by `python tests/benchmark/growth.py{' --full' * options.full}`."
    text = "\n".join([command, "", head, "| ---: |" + " ---: |" * 5, *rows]) + "\n"
    print(text)
    if not options.no_write:
        replace_between_markers(REPOSITORY / "docs/performance.md", "growth", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Cost of sending snapshots: a full stream, and what follows when little has changed.

    python tests/benchmark/send.py [--files N] [--no-write]

Fills a pool with small files, sends it to another pool, changes one file in a hundred, and sends
that; then changes nothing, and sends that. `cat` of the stream's file stands for the line.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.report import replace_between_markers
from tests.benchmark.systems import REPOSITORY, Dwfs

PER_DIRECTORY = 1000
SIZE = 4096
MIB = 1 << 20


def write(root: Path, number: int, choice: random.Random) -> None:
    """Make or replace one file."""
    (root / str(number // PER_DIRECTORY) / f"file-{number}").write_bytes(choice.randbytes(SIZE))


def fill(root: Path, count: int) -> None:
    """Make all files, durably."""
    choice = random.Random(1)
    for number in range(count):
        if number % PER_DIRECTORY == 0:
            (root / str(number // PER_DIRECTORY)).mkdir()
        write(root, number, choice)
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


class Ends:
    """A pool that sends, mounted, and one that receives."""

    def __init__(self, source: Dwfs, target: Dwfs, home: Path) -> None:
        self.source, self.target = source, target
        self.key = home / "stream-key"
        self.key.write_bytes(os.urandom(64))
        self.key.chmod(0o600)
        self.file = home / "stream"

    def _run(self, system: Dwfs, *words: str, stdin: Path | None, stdout: Path | None) -> float:
        started = time.perf_counter()
        with (
            open(stdin or os.devnull, "rb") as source,
            open(stdout or os.devnull, "wb") as sink,
        ):
            subprocess.run(
                [sys.executable, "-m", "dwfs", *words, "--stream-keyfile", str(self.key)],
                env={**os.environ, **system.environment},
                stdin=source,
                stdout=sink,
                check=True,
            )
        return time.perf_counter() - started

    def round(self, name: str, base: str | None) -> tuple[float, float, int]:
        """Snapshot, send, receive: seconds of the last two, and the stream's length."""
        environment = {**os.environ, **self.source.environment}
        create = [sys.executable, "-m", "dwfs", "snapshot", "create", f"bench@{name}"]
        subprocess.run(create, env=environment, check=True, stdout=subprocess.DEVNULL)
        since = [] if base is None else ["--from", f"@{base}"]
        words = ("send", f"bench@{name}", *since)
        sending = self._run(self.source, *words, stdin=None, stdout=self.file)
        keyfile = str(self.target.home / "keyfile")
        words = ("receive", "bench", "--keyfile", keyfile)
        receiving = self._run(self.target, *words, stdin=self.file, stdout=None)
        return sending, receiving, self.file.stat().st_size


def row(what: str, changed: int, sending: float, receiving: float, size: int) -> str:
    """One line of the table."""
    cells = (
        f"{changed:,}",
        f"{changed * SIZE / MIB:,.1f}",
        f"{size / MIB:,.1f}",
        f"{sending:.1f}",
        f"{receiving:.1f}",
        f"{changed / sending:,.0f}" if changed else "–",
        f"{size / sending / MIB:,.0f}",
    )
    line = f"| {what} | {' | '.join(cells)} |"
    print(line, file=sys.stderr, flush=True)
    return line


def measure(count: int, home: Path) -> list[str]:
    """Rows of the table."""
    source, target = Dwfs(home / "source"), Dwfs(home / "target")
    with source.running(), target.running():
        target.close()
        ends = Ends(source, target, home)
        fill(source.mount, count)
        rows = [row("everything", count, *ends.round("one", None))]
        choice = random.Random(2)
        changed = choice.sample(range(count), count // 100)
        for number in changed:
            write(source.mount, number, choice)
        rows.append(row("1 % changed", len(changed), *ends.round("two", "one")))
        rows.append(row("nothing changed", 0, *ends.round("three", "two")))
    return rows


def main() -> int:
    """Measure and write the table into the documentation."""
    parser = argparse.ArgumentParser(description="cost of sending and receiving snapshots")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="dwfs-send-"))
    try:
        rows = measure(options.files, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    head = (
        f"| {options.files:,} files of 4 KiB | files sent | their bytes, MiB | stream, MiB | send, s | "
        "receive, s | files/s sent | MiB/s sent |"
    )
    command = "Made by `python tests/benchmark/send.py`; both pools are 4+2 on one disk."
    text = "\n".join([command, "", head, "| --- |" + " ---: |" * 7, *rows]) + "\n"
    print(text)
    if not options.no_write:
        replace_between_markers(REPOSITORY / "docs/performance.md", "send", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

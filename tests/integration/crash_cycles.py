"""Cycles of: workload with a recorded history, `kill -9` of the owner, mount, verify.

As a script: `python tests/integration/crash_cycles.py --cycles 100 [--operations] [--seed N]`. With
`--operations` each cycle also begins a scrub, a removal, a replacement, or loses or damages a disk, and the
kill comes in the middle of that. A failure prints the seed that replays its choices (times of the kills
vary a little with the machine).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integration.crash_model import (
    Operation,
    check_buffered,
    check_journal,
    check_prefix,
    observe,
    token_table,
)
from tests.integration.healing_operations import Operations
from tests.integration.pools import Pool

DURABLE_WITHIN_SECONDS = 5.0  # the contract for what was never synced
SLACK_SECONDS = 3.0  # a busy machine
HANG_SECONDS = 60.0
CYCLES_KEPT = 2


class History:
    """What the workload of one cycle recorded."""

    def __init__(self, path: Path, killed_at: float) -> None:
        self.operations: list[Operation] = []
        self.completed: set[int] = set()
        self.least = 0  # operations that must be there
        for line in path.read_text().splitlines():
            word, *rest = json.loads(line)
            if word == "op":
                self.operations.append(rest)
            elif word == "ok":
                number = len(self.operations)
                self.completed.add(number)
                old = rest[0] < killed_at - DURABLE_WITHIN_SECONDS - SLACK_SECONDS
                if old or self.operations[-1][0] in ("fsync", "bsync", "jsync"):
                    self.least = number


class Cycles:
    """One pool through many crashes."""

    def __init__(self, pool: Pool, seed: int, *, operations: bool = False) -> None:
        self._pool = pool
        self._choice = random.Random(seed)
        self._operations = Operations(pool, self._choice) if operations else None
        self._settled: list[
            tuple[Path, dict[str, tuple[Any, ...]], dict[str, str]]
        ] = []  # Any: see observe
        self.mount_seconds: list[float] = []

    def run(self, number: int) -> str:
        """One cycle; a line that says what happened. Raises AssertionError."""
        pool, choice = self._pool, self._choice
        directory = pool.mountpoint / f"cycle-{number:04}"
        path = pool.home / f"history-{number:04}"
        script = str(Path(__file__).with_name("crash_workload.py"))
        workload = subprocess.Popen(
            [sys.executable, script, str(directory), str(path), str(choice.randrange(2**32))],
            env=pool.environment,
        )
        try:
            self._wait_until_ready(path, workload)
            doing = self._operations.begin() if self._operations is not None else ""
            time.sleep(
                choice.uniform(9, 11) if choice.random() < 0.1 else choice.uniform(0.05, 2.5)
            )
            assert workload.poll() is None, f"the workload stopped early: {path.read_text()[-300:]}"
            pool.kill()
            killed_at = time.monotonic()
            workload.wait(HANG_SECONDS)
        finally:
            workload.kill()
            workload.wait()
        assert workload.returncode in (0, 1, -7), f"workload: {workload.returncode}"
        interrupted = self._mount_again()
        history = History(path, killed_at)
        length = check_prefix(directory / "ordered", history.operations, history.least)
        check_buffered(directory / "buffered", history.operations, history.completed)
        check_journal(directory / "buffered/journal", history.operations, history.completed)
        self._check_earlier_cycles()
        tokens = token_table(history.operations)
        self._settled.append((directory, observe(directory / "ordered", tokens), tokens))
        path.unlink()
        if self._operations is not None:
            self._operations.wait_until_whole()
        status = pool.status()
        assert status["health"] == "healthy", status
        assert status["unforeseen_errors"] == 0, pool.log()
        recovery = f"{self.mount_seconds[-1]:.2f} s{' after a kill during recovery' * interrupted}"
        total, lost = len(history.operations), len(history.operations) - length
        return (
            f"cycle {number}: {total} operations, {lost} lost, mounted again in {recovery}"
            f"{'; during: ' * bool(doing)}{doing}"
        )

    def _wait_until_ready(self, path: Path, workload: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        while not path.exists() or '"ready"' not in path.read_text():
            assert workload.poll() is None, "the workload could not begin"
            assert time.monotonic() < deadline, "the mount hangs"
            time.sleep(0.02)

    def _mount_again(self) -> bool:
        """Mount, a quarter of the times after a mount that is killed in its middle."""
        pool = self._pool
        interrupted = self._choice.random() < 0.25
        if interrupted:
            words = ["mount", pool.name, str(pool.mountpoint), "--keyfile", str(pool.keyfile)]
            first = subprocess.Popen(
                [sys.executable, "-m", "dwfs", *words, "--foreground"],
                env=pool.environment,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(self._choice.uniform(0, 1.5))
            first.kill()
            first.wait()
        started = time.monotonic()
        pool.mount()
        self.mount_seconds.append(time.monotonic() - started)
        return interrupted

    def _check_earlier_cycles(self) -> None:
        """What a recovery showed must still be there after the next crash."""
        for directory, before, tokens in self._settled:
            assert observe(directory / "ordered", tokens) == before, f"{directory} changed later"
        while len(self._settled) >= CYCLES_KEPT:
            shutil.rmtree(self._settled.pop(0)[0])


def run_cycles(pool: Pool, count: int, seed: int, *, operations: bool = False) -> Cycles:
    """Mount the pool and run cycles, printing one line each."""
    pool.mount()
    cycles = Cycles(pool, seed, operations=operations)
    for number in range(1, count + 1):
        print(cycles.run(number), flush=True)
        if number % 10 == 0:
            if operations:
                scrub_through(pool)
            pool.dwfs("check", pool.name, *["--read"] * operations)
    pool.umount()
    return cycles


def scrub_through(pool: Pool) -> None:
    """One whole scrub, after the one that the kill has interrupted and the mount resumed."""
    pool.wait_for(lambda status: status["scrub"]["state"] != "running", HANG_SECONDS)
    pool.dwfs("scrub", pool.name, "--wait")


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description="crash and verify a dwfs pool")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--operations", action="store_true", help="repair, drain, damage as well")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dwfs-crash-") as home:
        pool = Pool(Path(home))
        try:
            pool.create(disks=7 if options.operations else 6)
            cycles = run_cycles(pool, options.cycles, options.seed, operations=options.operations)
        except AssertionError as error:
            print(f"FAILED: {error}\nreplay: {sys.argv[0]} --seed {options.seed}\n{pool.log()}")
            return 1
        finally:
            with contextlib.suppress(psutil.Error):
                pool.close()
    slowest = max(cycles.mount_seconds)
    print(f"{options.cycles} cycles passed; slowest mount {slowest:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

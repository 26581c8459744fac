"""What healing costs and how well it works: the figures of docs/reliability.md.

    python tests/benchmark/healing.py [STORY ...] [--size-mib N] [--no-write]

Each story makes a pool of its own through the `dwfs` command, breaks it, and measures how it heals:

    degraded   sequential and random cold reads, healthy and with two of six disks gone
    rebuild    a lost disk replaced: bytes, rate, and what is left for readers meanwhile
    away       a disk that was away during 1 % of the writes comes back
    rot        1 % of the stored bytes changed on two disks: scrubbed away
    unequal    disks of 1, 2, 2, 4, 4 and 8 GiB: the room that was promised, used, given back
    cleaning   random overwrites of a pool that is 90 % full

Rates are compared with one another inside one story, because the machine is shared and noisy.
`unequal`, `rot` and `cleaning` need root: their disks are loop devices.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from tests.benchmark.report import replace_between_markers
from tests.integration.loop_disks import LoopDisks, flip_bytes
from tests.integration.pools import Pool

MIB = 1 << 20
FILE_MIB = 64
READ_SIZE = 4096
REPOSITORY = Path(__file__).resolve().parents[2]
HEALTHY_SECONDS = 900.0


class Bench:
    """A mounted pool with some files."""

    def __init__(self, home: Path, size_mib: int) -> None:
        self.home = home
        self.size_mib = size_mib
        self.pool = Pool(home)
        self.loops: LoopDisks | None = None

    def build(self, disks: int = 6, data: int = 4, parity: int = 2) -> None:
        """A pool on plain directories."""
        self.pool.create(disks, data, parity).mount()

    def build_on_loops(self, sizes_mib: list[int], data: int, parity: int) -> None:
        """A pool on loop devices."""
        self.loops = LoopDisks(self.home, sizes_mib)
        self.pool.disks = list(self.loops.directories)
        self.pool.create(data=data, parity=parity).mount()

    def close(self) -> None:
        """Take everything away."""
        with suppress(psutil.Error):
            self.pool.close()
        if self.loops is not None:
            self.loops.close()

    def write_files(self, prefix: str, mib: int) -> list[Path]:
        """Incompressible files of 64 MiB each; synced."""
        paths = []
        block = os.urandom(MIB)
        for number in range(max(1, mib // FILE_MIB)):
            path = self.pool.mountpoint / f"{prefix}-{number}"
            with path.open("wb", buffering=0) as file:
                for piece in range(min(FILE_MIB, mib)):
                    file.write(piece.to_bytes(8, "big") + block[8:])
                os.fsync(file.fileno())
            paths.append(path)
        return paths

    def remount(self) -> None:
        """Cold caches of the mount and of the disks."""
        self.pool.umount()
        self.forget()
        self.pool.mount()

    def forget(self) -> None:
        """Have the kernel forget the segments and the files."""
        subprocess.run(["sync"], check=True)
        for disk in self.pool.disks:
            for path in disk.glob("segments/*"):
                forget(path)
        for path in self.pool.mountpoint.glob("*"):
            forget(path)

    def written_bytes(self) -> int:
        """What the owner has written with system calls."""
        return int(psutil.Process(self.pool.status()["pid"]).io_counters().write_chars)

    def usage(self, number: int) -> int:
        """Allocated bytes of a disk's segments."""
        return sum(
            path.stat().st_blocks * 512 for path in self.pool.disks[number].glob("segments/*")
        )

    def wait_healthy(self) -> float:
        """Seconds until everything is whole."""
        started = time.monotonic()
        self.pool.wait_for(
            lambda status: status["health"] == "healthy" and not status["degraded_stripes"],
            HEALTHY_SECONDS,
        )
        return time.monotonic() - started


def row(what: str, measured: str, ratio: str, goal: str) -> str:
    """One line of the table."""
    return f"| {what} | {measured} | {ratio} | {goal} |"


def forget(path: Path) -> None:
    """Drop one file from the page cache."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_sequentially(paths: list[Path]) -> float:
    """MB/s."""
    started, total = time.perf_counter(), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(MIB):
                total += len(piece)
    return total / (time.perf_counter() - started) / 1e6


def read_randomly(paths: list[Path], seconds: float, seed: int) -> float:
    """4 KiB reads a second."""
    choice = random.Random(seed)
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
    for descriptor in descriptors:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    count = 0
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        for _ in range(50):
            number = choice.randrange(len(descriptors))
            os.pread(descriptors[number], READ_SIZE, choice.randrange(sizes[number] - READ_SIZE))
        count += 50
    elapsed = time.perf_counter() - started
    for descriptor in descriptors:
        os.close(descriptor)
    return count / elapsed


def degraded(bench: Bench) -> list[str]:
    """Reads with two of six disks gone."""
    bench.build()
    paths = bench.write_files("file", bench.size_mib)
    figures: dict[str, list[float]] = {}
    for state in ("healthy", "degraded", "healthy", "degraded"):
        hidden = [disk.with_suffix(".away") for disk in bench.pool.disks[:2]]
        bench.pool.umount()
        if state == "degraded":
            for disk, away in zip(bench.pool.disks, hidden, strict=False):
                disk.rename(away)
        for kind in ("sequential", "random"):
            bench.forget()
            bench.pool.mount()
            rate = (
                read_sequentially(paths) if kind == "sequential" else read_randomly(paths, 4.0, 7)
            )
            figures.setdefault(f"{kind} {state}", []).append(rate)
            bench.pool.umount()
        if state == "degraded":
            for disk, away in zip(bench.pool.disks, hidden, strict=False):
                away.rename(disk)
        bench.pool.mount()
        bench.wait_healthy()
    rows = []
    for kind, unit in (("sequential", "MB/s"), ("random", "4 KiB reads/s")):
        healthy, broken = (max(figures[f"{kind} {state}"]) for state in ("healthy", "degraded"))
        measured = f"{broken:,.0f} {unit}, healthy {healthy:,.0f}"
        ratio = f"{broken / healthy:.2f} of healthy"
        rows.append(row(f"{kind} cold read, two of six disks gone", measured, ratio, "≥ 0.5"))
    return rows


def rebuild(bench: Bench) -> list[str]:
    """A lost disk is replaced."""
    bench.build()
    paths = bench.write_files("file", bench.size_mib)
    bench.remount()
    alone = read_sequentially(paths)
    lost = bench.usage(0)
    bench.pool.umount()
    bench.pool.lose(0)
    bench.forget()
    bench.pool.mount()
    fresh = bench.home / "fresh"
    fresh.mkdir()
    written = bench.written_bytes()
    started = time.monotonic()
    worker = threading.Thread(
        target=bench.pool.run,
        args=("disk", "replace", bench.pool.name, bench.pool.disks[0], fresh, "--wait"),
        kwargs={"timeout": 900},
    )
    worker.start()
    old, bench.pool.disks[0] = bench.pool.disks[0], fresh
    marks = [time_of_filling(bench, 0, int(lost * share)) for share in (0.1, 0.9)]
    worker.join()
    seconds = time.monotonic() - started
    written = bench.written_bytes() - written
    assert not old.exists()
    bench.wait_healthy()
    rebuilt = bench.usage(0)
    meanwhile = rebuild_under_readers(bench, paths)
    rate = 0.8 * bench.size_mib * MIB / (marks[1] - marks[0]) / 1e6
    return [
        row(
            f"bytes written to rebuild a disk that held {lost / MIB:,.0f} MiB",
            f"{rebuilt / MIB:,.0f} MiB on the disk, {written / MIB:,.0f} MiB in all system calls",
            f"{written / lost:.2f} of lost",
            "≈ 1",
        ),
        row(
            "rate of that rebuild between 10 and 90 %, in bytes of the files concerned",
            f"{rate:,.0f} MB/s, sequential read {alone:,.0f} MB/s; the command took {seconds:.1f} s",
            f"{rate / alone:.2f}",
            "≥ 0.5",
        ),
        meanwhile,
    ]


def time_of_filling(bench: Bench, number: int, size_bytes: int) -> float:
    """When a disk held so much."""
    while bench.usage(number) < size_bytes:
        time.sleep(0.02)
    return time.monotonic()


def rebuild_under_readers(bench: Bench, paths: list[Path]) -> str:
    """Random readers while another disk is rebuilt, beside the same before."""
    bench.remount()
    before = read_randomly(paths, 5.0, 1)
    bench.pool.umount()
    bench.pool.lose(3)
    fresh = bench.home / "fresh-2"
    fresh.mkdir()
    bench.forget()
    bench.pool.mount()
    degraded_rate = read_randomly(paths, 5.0, 1)
    bench.forget()
    worker = threading.Thread(
        target=bench.pool.run,
        args=("disk", "replace", bench.pool.name, bench.pool.disks[3], fresh, "--wait"),
        kwargs={"timeout": 900},
    )
    worker.start()
    time.sleep(1.0)
    bench.pool.disks[3] = fresh
    held = bench.usage(3)
    during = read_randomly(paths, 5.0, 2)
    rebuilt = (bench.usage(3) - held) / MIB
    running = worker.is_alive()
    worker.join()
    note = "" if running else ", the rebuild ended earlier"
    return row(
        "random reads during a rebuild",
        f"{during:,.0f}/s, before it (degraded) {degraded_rate:,.0f}/s, healthy {before:,.0f}/s; "
        f"{rebuilt:,.0f} MiB were rebuilt meanwhile{note}",
        f"{during / degraded_rate:.2f} of degraded, {during / before:.2f} of healthy",
        "≥ 0.5",
    )


def away(bench: Bench) -> list[str]:
    """A disk is away while 1 % is written."""
    bench.build()
    bench.write_files("file", bench.size_mib)
    bench.remount()
    held = bench.usage(5)
    away_path = bench.pool.disks[5].with_suffix(".away")
    bench.pool.disks[5].rename(away_path)
    bench.pool.wait_for(lambda status: status["disks"][5]["state"] == "missing")
    bench.write_files("late", max(1, bench.size_mib // 100))
    written = bench.written_bytes()
    away_path.rename(bench.pool.disks[5])
    seconds = bench.wait_healthy()
    written = bench.written_bytes() - written
    return [
        row(
            f"a disk with {held / MIB:,.0f} MiB that was away during 1 % of the writes",
            f"back in {seconds:.1f} s, {written / MIB:.1f} MiB written",
            f"{written / held:.3f} of its content",
            "≈ 0.01",
        )
    ]


def rot(bench: Bench) -> list[str]:
    """One percent of all bytes of two disks."""
    bench.build_on_loops([bench.size_mib] * 6, 4, 2)
    paths = bench.write_files("file", bench.size_mib * 2)
    bench.pool.umount()
    choice = random.Random(1)
    changed = sum(flip_bytes(bench.pool.disks[number], 0.01, choice) for number in (1, 4))
    bench.pool.mount()
    started = time.monotonic()
    done = bench.pool.run("scrub", bench.pool.name, "--wait", timeout=900)
    seconds = time.monotonic() - started
    checked = bench.pool.run("check", bench.pool.name, "--read", timeout=900)
    sound = "finds nothing" if checked.returncode == 0 else "FINDS DAMAGE"
    total = sum(bench.usage(number) for number in range(6))
    read_sequentially(paths)
    return [
        row(
            f"{changed / MIB:.1f} MiB changed on two of six disks (1 % of what they hold)",
            f"scrubbed {total / MIB:,.0f} MiB in {seconds:.0f} s (exit {done.returncode}); "
            f"a check that reads everything {sound}",
            f"{total / seconds / 1e6:,.0f} MB/s",
            "all repaired",
        )
    ]


def unequal(bench: Bench) -> list[str]:
    """1, 2, 2, 4, 4 and 8 GiB."""
    bench.build_on_loops([1024, 2048, 2048, 4096, 4096, 8192], 2, 1)
    promised = bench.pool.status()["usage"]["free_bytes"]
    written, number = 0, 0
    block = os.urandom(4 * MIB)
    started = time.monotonic()
    try:
        while True:
            with (bench.pool.mountpoint / f"file-{number}").open("wb", buffering=0) as file:
                for _ in range(16):
                    written += file.write(block)
                os.fsync(file.fileno())
            number += 1
    except OSError as error:
        reason = error.strerror
    seconds = time.monotonic() - started
    fills = [f"{fill:.2f}" for fill in fill_levels(bench)]
    shutil.rmtree(bench.pool.mountpoint / "nothing", ignore_errors=True)
    for path in bench.pool.mountpoint.glob("*"):
        path.unlink()
    bench.pool.wait_for(lambda status: status["usage"]["free_bytes"] > 0.98 * promised, 120)
    return [
        row(
            "room on disks of 1, 2, 2, 4, 4, 8 GiB at 2+1",
            f"promised {promised / MIB:,.0f} MiB, written {written / MIB:,.0f} MiB until “{reason}” "
            f"in {seconds:.0f} s; disks filled to {', '.join(fills)}",
            f"{written / promised:.3f}",
            "0.98 … 1.02",
        )
    ]


def fill_levels(bench: Bench) -> list[float]:
    """Share of each filesystem that is used."""
    levels = []
    for disk in bench.pool.disks:
        status = os.statvfs(disk)
        levels.append(1 - status.f_bavail / status.f_blocks)
    return levels


def cleaning(bench: Bench) -> list[str]:
    """Random overwrites at 90 % full."""
    bench.build_on_loops([512] * 4, 2, 1)
    room = bench.pool.status()["usage"]["free_bytes"]
    path = bench.pool.mountpoint / "file"
    size = int(room * 0.9) // MIB * MIB
    with path.open("wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    choice, written, slowest = random.Random(3), 0, 0.0
    block = os.urandom(64 * 1024)
    outcome = "no error"
    started = time.monotonic()
    descriptor = os.open(path, os.O_WRONLY)
    try:
        while written < size:
            begun = time.monotonic()
            os.pwrite(descriptor, block, choice.randrange(size // 4096 - 16) * 4096)
            written += len(block)
            if written % (16 * MIB) == 0:
                os.fsync(descriptor)
            slowest = max(slowest, time.monotonic() - begun)
    except OSError as error:
        outcome = f"“{error.strerror}” after {written / MIB:,.0f} MiB"
    finally:
        os.close(descriptor)
    rate = written / (time.monotonic() - started) / 1e6
    return [
        row(
            "random 64 KiB overwrites of a pool that is 90 % full, until all was written once more",
            f"{outcome}; {rate:.0f} MB/s, slowest write {slowest:.1f} s",
            f"{written / size:.2f}",
            "1.00",
        )
    ]


STORIES: dict[str, Callable[[Bench], list[str]]] = {
    "degraded": degraded,
    "rebuild": rebuild,
    "away": away,
    "rot": rot,
    "unequal": unequal,
    "cleaning": cleaning,
}


def main() -> int:
    """Run stories and write the table."""
    parser = argparse.ArgumentParser(description="measure how a dwfs pool heals")
    parser.add_argument("stories", nargs="*", choices=[*STORIES, []], metavar="STORY")
    parser.add_argument("--size-mib", type=int, default=1024, help="user data of most stories")
    parser.add_argument("--no-write", action="store_true", help="leave docs/reliability.md alone")
    options = parser.parse_args()
    rows = []
    for name in options.stories or list(STORIES):
        home = Path(tempfile.mkdtemp(prefix=f"dwfs-healing-{name}-"))
        bench = Bench(home, options.size_mib)
        try:
            rows += STORIES[name](bench)
        finally:
            bench.close()
            shutil.rmtree(home, ignore_errors=True)
        print("\n".join(rows), file=sys.stderr, flush=True)
    command = f"Made by `python tests/benchmark/healing.py --size-mib {options.size_mib}`."
    head = ["| what | measured | ratio | goal |", "| --- | --- | --- | --- |"]
    text = "\n".join([command, "", *head, *rows]) + "\n"
    print(text)
    if not options.no_write and not options.stories:
        replace_between_markers(REPOSITORY / "docs/reliability.md", "healing", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

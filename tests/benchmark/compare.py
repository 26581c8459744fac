"""`./run bench`: dwfs, gocryptfs, GlusterFS and a plain directory, measured in one run.

All systems are mounted at once on the same disk and take turns (A B C D, A B C D, …), so that a
slow minute of the machine hits all of them. The first round warms up and is thrown away. The
table of medians, the ratios against the goals and the anonymous memory of the processes go into
`docs/performance.md`, between two markers, with the command line and the facts of the machine.

The workload is either our own (`dwfs bench`) or any script that takes a directory and prints one
line of JSON with figures. `MB` in its environment is the size of the large file in MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.report import Measurements, render, replace_between_markers
from tests.benchmark.systems import REPOSITORY, SYSTEMS, System, anonymous_bytes, command

MEMORY_SAMPLE_SECONDS = 0.25
IDLE_SECONDS = 12.0  # after the last load: two state commits have passed
ROUND_TIMEOUT_SECONDS = 1800.0


class MemorySampler(threading.Thread):
    """Keeps the highest anonymous memory of some processes while a round runs."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(name="memory sampler", daemon=True)
        self.highest_bytes = 0
        self._pids = pids
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(MEMORY_SAMPLE_SECONDS):
            self.highest_bytes = max(self.highest_bytes, anonymous_bytes(self._pids))

    def finish(self) -> int:
        """Stop sampling and return the highest figure."""
        self._ended.set()
        self.join()
        return max(self.highest_bytes, anonymous_bytes(self._pids))


def workload_command(workload: str, directory: Path, size_mib: int) -> list[str]:
    """The argument list of one round in `directory`."""
    if workload == "builtin":
        size = str(size_mib)
        return [sys.executable, "-m", "dwfs", "bench", str(directory), "--json", "--size-mib", size]
    return [sys.executable, workload, str(directory)]


def run_round(system: System, workload: str, size_mib: int) -> tuple[dict[str, float], int]:
    """One round of the workload: its figures, and the highest anonymous memory meanwhile."""
    pids = system.pids()
    sampler = MemorySampler(pids)
    if pids:
        sampler.start()
    try:
        done = subprocess.run(
            workload_command(workload, system.mount, size_mib),
            env={**os.environ, "MB": str(size_mib), "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=ROUND_TIMEOUT_SECONDS,
        )
    finally:
        highest = sampler.finish() if pids else 0
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    rates = {name: float(value) for name, value in figures.items() if type(value) in (int, float)}
    return rates, highest


def measure(systems: list[System], options: argparse.Namespace) -> list[Measurements]:
    """Start the systems, let them take turns, and collect what was measured."""
    results: list[Measurements] = []
    with contextlib.ExitStack() as stack:
        for system in systems:
            say(f"starting {system.title}")
            stack.enter_context(system.running())
            result = Measurements(system.name, system.title, system.version())
            time.sleep(2)
            result.idle_before_bytes = anonymous_bytes(system.pids())
            results.append(result)
        for number in range(options.rounds + 1):
            for system, result in zip(systems, results, strict=True):
                label = f"round {number} of {options.rounds}" if number else "warm-up"
                started = time.monotonic()
                rates, highest = run_round(system, options.workload, options.size_mib)
                say(
                    f"{label}: {system.title}: {time.monotonic() - started:.0f} s {json.dumps(rates)}"
                )
                result.load_bytes = max(result.load_bytes, highest)
                if number or options.rounds == 0:
                    result.rounds.append(rates)
        time.sleep(IDLE_SECONDS if any(system.pids() for system in systems) else 0)
        for system, result in zip(systems, results, strict=True):
            result.idle_after_bytes = anonymous_bytes(system.pids())
    return results


def machine_facts(work_directory: Path) -> list[str]:
    """What the figures depend on: processor, memory, kernel, filesystem, day."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    filesystem = command("findmnt", "-no", "FSTYPE", "-T", work_directory).strip()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return [
        f"{os.cpu_count()} × {model}, {memory_gib:.0f} GiB",
        f"Linux {platform.release()}, Python {platform.python_version()}, all on {filesystem}",
        f"measured {today}",
    ]


def say(text: str) -> None:
    """Progress goes to stderr: stdout carries the table alone."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workload", default="builtin", help="builtin, or a script's path")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated choice")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (0: warm-up only)")
    parser.add_argument("--size-mib", type=int, default=512, help="size of the large file")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    parser.add_argument("--output", type=Path, help="also write the raw figures as JSON here")
    options = parser.parse_args()
    unknown = set(options.systems.split(",")) - set(SYSTEMS)
    if unknown:
        parser.error(f"unknown systems: {', '.join(sorted(unknown))}")
    if options.workload != "builtin" and not Path(options.workload).is_file():
        parser.error(f"no such workload script: {options.workload}")
    return options


def main() -> int:
    """Measure, print the tables, and put them into the documentation."""
    options = arguments()
    home = Path(tempfile.mkdtemp(prefix="dwfs-compare-", dir=options.work_dir))
    systems = []
    for name in options.systems.split(","):
        system = SYSTEMS[name](home / name)
        reason = system.missing()
        if reason:
            say(f"left out {system.title}: {reason}")
        else:
            systems.append(system)
    try:
        facts = machine_facts(home)
        results = measure(systems, options)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    # A script of the reader's own lies elsewhere: its name says enough.
    words = [Path(word).name if word == options.workload else word for word in sys.argv[1:]]
    command_line = " ".join(["./run bench", *words])
    text = render(results, facts, command_line, statistics.median)
    print(text)
    if options.output:
        raw = {result.name: result.rounds for result in results}
        options.output.write_text(json.dumps(raw, indent=1) + "\n")
    if not options.no_write:
        replace_between_markers(REPOSITORY / "docs/performance.md", "comparison", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The whole engine below the kernel, simulated: `python -m tests.sim.engine --seed N [--verbose]`.

One seed decides everything: the plan, the order of tasks, the bytes of keys and stripe ids, what a crash
leaves. A failure is shortened to the fewest steps that still fail, and printed with the line that
replays it. `--seeds N` runs seeds `--first` to `--first`+N-1; the exit code is 1 if any failed.

Sets of bytes are iterated in an order that Python draws for each process, so the process starts itself
anew with that drawing fixed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final
from unittest.mock import patch

import msgspec
import trio
import trio.testing
from trio._core import _run as trio_scheduler

import dwfs.node.pool as node_pool
from tests.sim.engine_plan import Plan, draw_plan
from tests.sim.engine_run import Complaints, EngineRun

_TELL_EVERY: Final = 100
STUCK_SECONDS: Final = 150  # of real time, for one simulation
SHRINKING_SECONDS: Final = 60.0


class Result(msgspec.Struct):
    """What came of a simulation."""

    plan: Plan
    failure: str  # empty: none
    details: str
    trace: list[str]
    digest: str  # equal for equal histories


def simulate(plan: Plan) -> Result:
    """Run a plan. Never raises for what the engine does."""
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix="dwfs-sim-", dir=base))
    failure, details = "", ""
    run = EngineRun(plan, home)
    complaints = Complaints(run)
    logger = logging.getLogger("dwfs")
    before = logger.level, logger.propagate
    logger.addHandler(complaints)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with _deterministic(plan.seed, run), _stuck():
            trio.run(run.run, clock=trio.testing.MockClock(autojump_threshold=0))
    # Whatever comes out of the engine is a finding.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        cause = _first_cause(error)
        failure = f"{type(cause).__name__}: {cause}"
        details = "".join(traceback.format_exception(error))
    finally:
        logger.removeHandler(complaints)
        logger.level, logger.propagate = before
        shutil.rmtree(home, ignore_errors=True)
    digest = hashlib.sha256("\n".join([*run.trace, failure]).encode()).hexdigest()[:16]
    return Result(plan, failure, details, run.trace, digest)


def shorten(result: Result, seconds: float = SHRINKING_SECONDS) -> Result:
    """The shortest failing plan found by leaving out steps, in ever smaller pieces."""
    give_up = time.monotonic() + seconds
    size = max(1, len(result.plan.steps) // 2)
    while size:
        start = 0
        while start < len(result.plan.steps):
            if time.monotonic() > give_up:
                return result
            steps = result.plan.steps[:start] + result.plan.steps[start + size :]
            shorter = simulate(msgspec.structs.replace(result.plan, steps=steps))
            if shorter.failure and _kind(shorter) == _kind(result):
                result = shorter
            else:
                start += size
        size //= 2
    return result


def _kind(result: Result) -> str:
    return "".join(filter(str.isalpha, result.failure))[:16]


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _NobodyAsks:
    """A control server without a socket: real I/O would mix real time into the simulated."""

    def __init__(self, *_arguments: object) -> None:
        """Takes what a control server takes."""

    async def serve(self) -> None:
        """Wait for nobody."""
        await trio.sleep_forever()


@contextlib.contextmanager
def _deterministic(seed: int, run: EngineRun) -> Iterator[None]:
    """Chance comes from the seed alone: task order, and all that asks the kernel for bytes."""
    gc.disable()  # finalizers run when references end, not when memory is short
    try:
        with (
            patch.object(os, "urandom", run.world.machine.randomness.bytes),
            patch.object(node_pool, "ControlServer", _NobodyAsks),
            patch.object(trio_scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            patch.object(trio_scheduler, "_r", random.Random(f"tasks {seed}")),
        ):
            yield
    finally:
        gc.enable()
        gc.collect()


@contextlib.contextmanager
def _stuck() -> Iterator[None]:
    """A simulation that stands still in real time says where all its tasks are."""

    def tell(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"stuck for {STUCK_SECONDS} s\n" + "\n".join(_tasks()))

    before = signal.signal(signal.SIGALRM, tell)
    signal.alarm(STUCK_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _tasks() -> Iterator[str]:
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        task = waiting.pop()
        if task is None:
            continue
        frames = [
            f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
            for frame, line in task.iter_await_frames()
        ]
        yield f"{task.name}: {' > '.join(frames[-6:])}"
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def report(result: Result, *, verbose: bool) -> str:
    """What a person needs to see of a failure."""
    lines = [str(result.plan), f"FAILED: {result.failure}"]
    if verbose:
        lines += ["history:", *result.trace, result.details]
    else:
        lines += ["the end of its history:", *result.trace[-12:]]
    lines.append(f"replay: python -m tests.sim.engine --seed {result.plan.seed} --verbose")
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Simulate the engine.")
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--verbose", action="store_true", help="print the whole history")
    parser.add_argument("--whole", action="store_true", help="do not shorten failing plans")
    parser.add_argument("--failures", type=int, default=3, help="stop after so many")
    options = parser.parse_args()
    first, count = (options.first, options.seeds) if options.seed is None else (options.seed, 1)
    failed = 0
    for seed in range(first, first + count):
        result = simulate(draw_plan(seed))
        if result.failure:
            failed += 1
            print(report(result if options.whole else shorten(result), verbose=options.verbose))
            sys.stdout.flush()
            if failed == options.failures:
                break
        elif options.verbose:
            print("\n".join([str(result.plan), *result.trace, f"history {result.digest}"]))
        if (seed + 1 - first) % _TELL_EVERY == 0:
            print(f"{seed + 1 - first} of {count} seeds, {failed} failed", file=sys.stderr)
    print(f"{seed + 1 - first} seeds from {first} on, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(  # noqa: S606  # reason: no shell is what is wanted
            sys.executable,
            [sys.executable, "-m", "tests.sim.engine", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    sys.exit(main())

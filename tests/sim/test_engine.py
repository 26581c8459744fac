"""Several hundred simulated lives of a pool; `--long` or DWFS_SIM_SEEDS makes it any number.

Each starts from a seed of its own. The session's seed chooses where the seeds begin, so every run of the
tests tries others; a failure prints the line that replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from dwfs.volume.versions import CURRENT, Versions, suffix
from tests.sim.engine import simulate
from tests.sim.engine_history import History, HistoryError, State
from tests.sim.engine_plan import draw_plan
from tests.sim.medium import Inode

_ROOT = Path(__file__).parents[2]
_PARTS = 10  # tests that may run at the same time
_SEEDS = 300
_SEEDS_LONG = 2000


def _simulate(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sim.engine", *arguments],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(_PARTS))
def test_the_engine_keeps_its_promises(seed: int, long: bool, part: int) -> None:
    """Nothing durable is lost, nothing deleted comes back, and every pool heals."""
    count = int(os.environ.get("DWFS_SIM_SEEDS", _SEEDS_LONG if long else _SEEDS))
    process = _simulate("--first", str(seed), "--seeds", str(-(-count // _PARTS)))
    output = process.communicate()[0]
    assert process.returncode == 0, output


def test_a_seed_decides_everything() -> None:
    """The same seed gives the same history, in another process too."""
    running = [_simulate("--seed", "7", "--verbose") for _ in range(2)]
    first, second = (process.communicate()[0] for process in running)
    assert "history" in first
    assert first == second


def test_disks_that_lie_about_fsync_are_found_out() -> None:
    """The whole simulation is judged: on such disks no engine can keep its promises."""
    with patch.object(Inode, "sync", lambda _inode: None):
        assert any(simulate(draw_plan(seed)).failure for seed in range(20))


def test_plans_differ_and_damage_no_more_than_parity() -> None:
    """Seeds are worth trying, and no plan asks for what can't be promised."""
    plans = [draw_plan(seed) for seed in range(50)]
    assert len({str(plan) for plan in plans}) == 50
    for plan in plans:
        assert len(plan.victims) <= plan.geometry.parity
        faults = {step.name for step in plan.steps if step.what in ("rot", "zero", "hang", "away")}
        assert faults <= set(plan.victims)


def test_history_accepts_a_prefix_from_the_last_fsync_on_and_nothing_else() -> None:
    """The judge itself is judged: lost, resurrected and mixed states are told apart from a prefix."""

    def lived() -> History:
        history = History()
        for files in ({b"a": b"1"}, {b"a": b"2"}, {b"b": b"2"}):
            history.begin(State(files))
            history.end()
        history.durable(2)
        history.begin(State({b"b": b"3"}))
        history.begin(State({b"b": b"3"}, {"daily": {b"b": b"3"}}))
        return history

    assert lived().recovered(State({b"b": b"3"}, {"daily": {b"b": b"3"}})) == 0  # there, or
    assert lived().recovered(State({b"b": b"3"})) == 1  # not there
    assert lived().recovered(State({b"b": b"2"})) == 2
    assert lived().recovered(State({b"a": b"2"})) == 3  # not durable yet
    for wrong in (
        State({b"a": b"1"}),
        State({}),
        State({b"a": b"2", b"b": b"2"}),
        State({b"b": b"3"}, {"daily": {b"b": b"2"}}),
        State({b"b": b"3"}, {"weekly": {b"b": b"3"}}),
    ):
        with pytest.raises(HistoryError):
            lived().recovered(wrong)


def test_snapshots_that_change_are_found_out() -> None:
    """The judge again: without the note that keeps an old version, snapshots show new contents."""

    def overwrite(versions: Versions, key: bytes, value: bytes) -> None:
        newest = versions.find(key, CURRENT)
        stored = key + suffix(versions.epoch) if newest is None else newest[0]
        versions.store.put(stored, value)

    with patch.object(Versions, "put", overwrite):
        assert any(simulate(draw_plan(seed)).failure for seed in range(20))

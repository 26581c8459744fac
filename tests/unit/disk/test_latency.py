"""The two numbers that say how long a disk takes."""

from __future__ import annotations

import random

import pytest

from dwfs.disk.faults import medium_error
from dwfs.disk.latency import QUANTILE, Latency
from dwfs.errors import DiskFullError, DiskTimeoutError, MediumError
from dwfs.types import DiskId


def test_nothing_is_said_before_the_first_sample() -> None:
    assert Latency().figures() == (None, None)


def test_mean_and_quantile_are_near_the_true_ones(seed: int) -> None:
    chance = random.Random(seed)
    latency = Latency()
    samples = [chance.lognormvariate(-7, 0.5) for _ in range(20_000)]
    seen = []
    for count, sample in enumerate(samples):
        latency.learn(sample)
        if count > 2_000:
            seen.append(latency.figures())
    mean, high = (
        sum(value or 0 for value in column) / len(seen) for column in zip(*seen, strict=True)
    )
    assert mean == pytest.approx(sum(samples) / len(samples), rel=0.2)
    true = sorted(samples)[int(QUANTILE * len(samples))]
    assert 0.6 * true < high < 1.6 * true


def test_a_disk_that_becomes_slow_or_fast_is_known_soon() -> None:
    latency = Latency()
    for _ in range(1_000):
        latency.learn(0.001)
    for _ in range(100):
        latency.learn(0.1)
    mean, high = latency.figures()
    assert mean == pytest.approx(0.1, rel=0.1)
    assert high is not None
    assert high > 0.09
    for _ in range(3_000):
        latency.learn(0.001)
    assert (latency.figures()[1] or 0) < 0.002


def test_a_sample_of_zero_is_no_trap() -> None:
    latency = Latency()
    latency.learn(0.0)
    for _ in range(300):
        latency.learn(0.01)
    assert (latency.figures()[1] or 0) > 0.005


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (28, DiskFullError, "ENOSPC"),
        (110, DiskTimeoutError, "timed out: the disk does not answer"),
        (5, MediumError, "EIO: Input/output error"),
        (None, MediumError, "what it says"),
    ],
)
def test_errors_say_what_the_engine_acts_on(
    number: int | None, kind: type[MediumError], text: str
) -> None:
    error = OSError(number, "") if number is not None else OSError("what it says")
    found = medium_error(DiskId(b"d" * 16), "put", error)
    assert type(found) is kind
    assert text in str(found)

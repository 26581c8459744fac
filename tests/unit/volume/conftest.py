"""What the tests of the volume layer share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.volume.fakes import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A volume with a root directory."""
    bench = Bench(tmp_path)
    yield bench
    assert list(bench.volume.check()) == []
    bench.close()

"""The state directory is believed only when that is safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from dwfs.node import marker
from dwfs.types import PoolId

POOL = PoolId(b"p" * 16)


def test_nothing_there_is_not_believed(tmp_path: Path) -> None:
    assert not marker.is_believable(tmp_path, POOL)


def test_a_crash_of_the_process_leaves_a_believable_state(tmp_path: Path) -> None:
    marker.mark(tmp_path, POOL, clean=False)
    assert marker.is_believable(tmp_path, POOL)
    assert not marker.is_clean(tmp_path, POOL)


@pytest.mark.parametrize("clean", [True, False])
def test_after_a_reboot_only_a_clean_state_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    marker.mark(tmp_path, POOL, clean=clean)
    monkeypatch.setattr(marker, "current_boot_id", lambda: "another boot")
    assert marker.is_believable(tmp_path, POOL) == clean


def test_another_pools_state_is_not_believed(tmp_path: Path) -> None:
    marker.mark(tmp_path, POOL, clean=True)
    assert not marker.is_believable(tmp_path, PoolId(b"q" * 16))


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff" * 100])
def test_a_damaged_marker_is_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "marker").write_bytes(content)
    assert not marker.is_believable(tmp_path, POOL)

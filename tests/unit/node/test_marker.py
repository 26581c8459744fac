"""The state directory is believed only when that is safe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dwfs.node import marker
from dwfs.types import PoolId

POOL = PoolId(b"p" * 16)
STATE = b"s" * 16


def test_nothing_there_is_not_believed(tmp_path: Path) -> None:
    assert not marker.is_believable(tmp_path, POOL, STATE)


def test_a_crash_of_the_process_leaves_a_believable_state(tmp_path: Path) -> None:
    marker.mark(tmp_path, POOL, STATE, clean=False)
    assert marker.is_believable(tmp_path, POOL, STATE)
    assert not marker.is_clean(tmp_path, POOL, STATE)


@pytest.mark.parametrize("clean", [True, False])
def test_after_a_reboot_only_a_clean_state_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    marker.mark(tmp_path, POOL, STATE, clean=clean)
    monkeypatch.setattr(marker, "current_boot_id", lambda: "another boot")
    assert marker.is_believable(tmp_path, POOL, STATE) == clean


def test_another_pools_state_is_not_believed(tmp_path: Path) -> None:
    marker.mark(tmp_path, POOL, STATE, clean=True)
    assert not marker.is_believable(tmp_path, PoolId(b"q" * 16), STATE)


def test_a_state_that_was_left_behind_is_not_believed(tmp_path: Path) -> None:
    marker.mark(tmp_path, POOL, STATE, clean=True)
    elsewhere = b"t" * 16
    assert marker.is_current(tmp_path, POOL, STATE)
    assert not marker.is_current(tmp_path, POOL, elsewhere)
    assert not marker.is_believable(tmp_path, POOL, elsewhere)
    assert not marker.is_clean(tmp_path, POOL, elsewhere)


def test_a_marker_of_an_older_version_fits_a_header_without_a_state_id(tmp_path: Path) -> None:
    old = {"format": 1, "pool": POOL.hex(), "boot_id": "x", "clean": True}
    (tmp_path / "marker").write_text(json.dumps(old))
    assert marker.is_clean(tmp_path, POOL, b"")


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff" * 100])
def test_a_damaged_marker_is_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "marker").write_bytes(content)
    assert not marker.is_believable(tmp_path, POOL, STATE)


def test_two_openings_without_an_end_are_a_reason_for_doubt(tmp_path: Path) -> None:
    marker.mark(tmp_path, POOL, STATE, clean=True)
    marker.mark_opening(tmp_path, POOL, STATE)
    assert marker.is_believable(tmp_path, POOL, STATE)
    assert not marker.is_clean(tmp_path, POOL, STATE)
    marker.mark_opening(tmp_path, POOL, STATE)
    assert not marker.is_believable(tmp_path, POOL, STATE)
    assert marker.is_current(tmp_path, POOL, STATE)


def test_an_opening_that_ends_well_clears_the_doubt(tmp_path: Path) -> None:
    for _ in range(3):
        marker.mark_opening(tmp_path, POOL, STATE)
        marker.mark(tmp_path, POOL, STATE, clean=False)
    assert marker.is_believable(tmp_path, POOL, STATE)


def test_openings_that_fail_in_order_raise_no_doubt(tmp_path: Path) -> None:
    marker.mark(tmp_path, POOL, STATE, clean=True)
    for _ in range(3):
        marker.mark_opening(tmp_path, POOL, STATE)
        marker.forgive_opening(tmp_path, POOL, STATE)
    marker.forgive_opening(tmp_path, POOL, STATE)
    marker.mark_opening(tmp_path, POOL, STATE)
    assert marker.is_believable(tmp_path, POOL, STATE)

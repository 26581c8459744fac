"""Unmounting as an ordinary user: what fusermount3 complains about reaches whoever must act."""

from __future__ import annotations

from pathlib import Path

import pytest

from dwfs.errors import DwfsError, PoolBusyError
from dwfs.fuse import mounting
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, Mount

POINT = "/mnt/pool"
MOUNT = Mount(POINT, "0:99", FILESYSTEM_TYPE, "pool", ("rw",), ("rw",))


@pytest.fixture
def complain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fusermount3 that fails, with the content of this file on stderr; the mount stays."""
    words = tmp_path / "complaint"
    program = tmp_path / "fusermount3"
    program.write_text(f"#!/bin/sh\ncat '{words}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(mounting, "_SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(mounting, "mount_at", lambda directory: MOUNT)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    return words


def test_a_mount_in_use(complain: Path) -> None:
    complain.write_text(f"fusermount3: failed to unmount {POINT}: Device or resource busy\n")
    with pytest.raises(PoolBusyError, match="in use"):
        mounting.unmount(POINT)


def test_another_reason_is_told_and_is_not_called_use(complain: Path) -> None:
    complain.write_text("fusermount3: failed to open /etc/mtab: No such file or directory\n")
    with pytest.raises(DwfsError, match="failed to open /etc/mtab") as caught:
        mounting.unmount(POINT)
    assert not isinstance(caught.value, PoolBusyError)


def test_somebody_was_faster(complain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complain.write_text(f"fusermount3: entry for {POINT} not found in /etc/mtab\n")
    monkeypatch.setattr(mounting, "mount_at", lambda directory: None)
    mounting.unmount(POINT)

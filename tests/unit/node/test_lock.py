"""A pool has one owner; a dead owner's lock is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dwfs.config import Directories
from dwfs.errors import PoolBusyError
from dwfs.node.lock import PoolLock, owner_of, wait_until_unowned

_HOLDER = """
import os, sys
from dwfs.config import Directories
from dwfs.node.lock import PoolLock
lock = PoolLock.acquire(Directories.from_environment(os.environ), "pool")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return Directories.from_environment({"DWFS_ROOT": str(tmp_path)})


def test_the_second_owner_is_refused_and_told_the_pid(directories: Directories) -> None:
    with PoolLock.acquire(directories, "pool"):
        assert owner_of(directories, "pool") == os.getpid()
        with pytest.raises(PoolBusyError, match=str(os.getpid())):
            PoolLock.acquire(directories, "pool")
    assert owner_of(directories, "pool") is None
    PoolLock.acquire(directories, "pool").release()


def test_pools_do_not_share_a_lock(directories: Directories) -> None:
    with PoolLock.acquire(directories, "one"), PoolLock.acquire(directories, "two"):
        pass


def test_a_killed_owner_frees_the_lock(directories: Directories, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER],
        env={**os.environ, "DWFS_ROOT": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert owner_of(directories, "pool") == holder.pid
    assert not wait_until_unowned(directories, "pool", 0.05)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert wait_until_unowned(directories, "pool", 1)
    PoolLock.acquire(directories, "pool").release()


def test_asking_changes_nothing(directories: Directories) -> None:
    assert owner_of(directories, "pool") is None
    assert not directories.runtime.exists()

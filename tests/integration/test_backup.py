"""A directory of backups: written by a timer's command, pruned, and had back into a new pool."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pools import Pool, tree
from tests.integration.test_snapshots import change, fill

MIB = 1 << 20


class Store:
    """A pool, and a directory elsewhere."""

    def __init__(self, home: Path) -> None:
        self.pool = Pool(home / "here")
        self.directory = home / "elsewhere"
        self.directory.mkdir()
        self.key = home / "stream-key"
        self.key.write_bytes(os.urandom(64))
        self.key.chmod(0o600)

    def backup(self, *words: str) -> dict[str, Any]:  # Any: JSON
        place = ("--to", str(self.directory), "--stream-keyfile", str(self.key))
        unlock = ("--keyfile", str(self.pool.keyfile))
        value = json.loads(self.pool.dwfs("backup", "pool", *place, *words, "--json", *unlock))
        assert isinstance(value, dict)
        return value

    def listed(self) -> list[dict[str, Any]]:  # Any: JSON
        value = json.loads(self.pool.dwfs("backup", "--list", self.directory, "--json"))
        assert isinstance(value, list)
        return value

    def snapshots(self) -> list[str]:
        unlock = ("--keyfile", str(self.pool.keyfile))
        value = json.loads(self.pool.dwfs("snapshot", "list", "pool", "--json", *unlock))
        return [one["name"] for one in value["snapshots"]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    try:
        store.pool.create(disks=3, data=2, parity=1).mount()
        yield store
    finally:
        store.pool.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Pool]:
    """Another box, after the first one burnt down."""
    pool = Pool(tmp_path / "there")
    try:
        yield pool.create(disks=3, data=2, parity=1)
    finally:
        pool.close()


def test_backups_are_written_pruned_and_had_back(store: Store, fresh: Pool) -> None:
    mountpoint = store.pool.mountpoint
    trees = {}
    fill(mountpoint, 1)
    (mountpoint / "large").write_bytes(os.urandom(8 * MIB))
    for number in range(4):
        if number:
            change(mountpoint, number)
        trees[number] = tree(mountpoint)
        # A backup that was interrupted: its file and its snapshot go with the next one.
        if number == 2:
            store.pool.dwfs("snapshot", "create", "pool@backup-20200101T000000Z")
            (store.directory / ".pool-20200101T000000Z-increment.partial").write_bytes(b"half")
        if number == 3:
            store.pool.umount()
        answer = store.backup("--full-every", "3")
        assert (answer["base"] is None) == (number in (0, 3))
        assert store.snapshots() == [answer["snapshot"]]  # only what the next one starts from
        assert os.stat(answer["file"]).st_mode & 0o777 == 0o600
    listed = store.listed()
    assert [one["base"] is None for one in listed] == [True, False, False, True]
    assert all(one["whole"] for one in listed)
    assert listed[2]["size_bytes"] < listed[0]["size_bytes"]
    assert len(list(store.directory.iterdir())) == 4
    unlock = ("--keyfile", str(fresh.keyfile), "--stream-keyfile", str(store.key))
    place = ("--from-backup", str(store.directory))
    second = listed[1]["snapshot"]
    said = fresh.dwfs("receive", "pool", *place, "--at", f"@{second}", *unlock)
    assert f"received pool@{second}" in said
    compare(fresh, trees[1])
    fresh.dwfs("receive", "pool", *place, "--at", listed[2]["snapshot"], *unlock)
    compare(fresh, trees[2])
    refusal = fresh.run("receive", "pool", *place, "--at", second, *unlock)
    assert refusal.returncode == 2
    assert "received all of that already" in refusal.stderr
    # Two are kept: the newest, and the one before with all that it needs. Then only the newest.
    assert store.backup("--full-every", "3", "--keep", "3")["removed"] == []
    removed = store.backup("--full-every", "3", "--keep", "3")["removed"]
    assert [name.rsplit("-", 1)[1] for name in removed] == [
        "full.dwfs",
        "increment.dwfs",
        "increment.dwfs",
    ]
    assert [one["whole"] for one in store.listed()] == [True, True, True]


def compare(pool: Pool, expected: dict[str, tuple[int, int, str]]) -> None:
    """Look at the copy without leaving a trace in it."""
    pool.mount("dev,suid,ro")
    assert tree(pool.mountpoint) == expected
    pool.umount()


def test_what_can_not_be_written_leaves_nothing(store: Store) -> None:
    fill(store.pool.mountpoint, 1)
    key = ("--stream-keyfile", str(store.key))
    refusal = store.pool.run("backup", "pool", "--to", store.directory / "nowhere", *key)
    assert refusal.returncode == 2
    assert "is no directory" in refusal.stderr
    assert store.pool.run("backup", "--to", store.directory, *key).returncode == 2
    (store.pool.mountpoint / "large").write_bytes(os.urandom(20 * MIB))
    words = ("backup", "pool", "--to", store.directory, *key)
    done = store.pool.run(*words, preexec_fn=_small_files_only)
    assert done.returncode == 1
    assert "can't write to" in done.stderr
    assert list(store.directory.iterdir()) == []
    assert store.snapshots() == []


def _small_files_only() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))

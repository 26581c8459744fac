"""What an operator, and bad luck, do to a pool between two crashes: long operations and damage.

Each call of `begin` starts at most one thing and doesn't wait for its end, so that the kill that follows
comes at any moment of it. Damage is only done to a pool that is whole, and never to more disks than its
parity can replace.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.integration.loop_disks import flip_bytes
from tests.integration.pools import Pool

HEALTHY_SECONDS = 120.0


class Operations:
    """Chooses and begins. `pool.disks` follows what the pool's members are."""

    def __init__(self, pool: Pool, choice: random.Random) -> None:
        self._pool = pool
        self._choice = choice
        self._spare = 0
        self._offline: Path | None = None

    def wait_until_whole(self) -> None:
        """Bring back what was taken offline, and wait until every stripe is whole."""
        if self._offline is not None:
            self._pool.dwfs("disk", "online", self._pool.name, self._offline)
            self._offline = None
        self._pool.wait_for(
            lambda status: (
                status["health"] == "healthy"
                and not status["degraded_stripes"]
                and all(disk["state"] == "online" for disk in status["disks"])
            ),
            HEALTHY_SECONDS,
        )
        self._follow_members()

    def begin(self) -> str:
        """Start something; says what."""
        kinds = [self._scrub, self._balance, self._add, self._remove, self._replace]
        kinds += [self._take_offline, self._lose, self._rot]
        return self._choice.choice(kinds)()

    def _follow_members(self) -> None:
        members = {Path(disk["path"]) for disk in self._pool.status()["disks"]}
        for gone in set(self._pool.disks) - members:
            left = [path.name for path in gone.iterdir()] if gone.is_dir() else []
            assert not left, f"{gone} was removed, but {left} are still there"
        self._pool.disks = sorted(members)

    def _fresh(self) -> Path:
        self._spare += 1
        directory = self._pool.home / f"spare{self._spare}"
        directory.mkdir()
        return directory

    def _disk(self) -> Path:
        return self._choice.choice(self._pool.disks)

    def _scrub(self) -> str:
        self._pool.dwfs("scrub", self._pool.name)
        return "scrub"

    def _balance(self) -> str:
        self._pool.dwfs("disk", "balance", self._pool.name)
        return "balance"

    def _add(self) -> str:
        if len(self._pool.disks) >= 9:
            return self._remove()
        directory = self._fresh()
        self._pool.dwfs("disk", "add", self._pool.name, directory)
        self._pool.disks.append(directory)
        return f"add {directory.name}"

    def _remove(self) -> str:
        if len(self._pool.disks) <= 6:
            return self._add()
        directory = self._disk()
        self._pool.dwfs("disk", "remove", self._pool.name, directory)
        return f"remove {directory.name}"

    def _replace(self) -> str:
        directory, fresh = self._disk(), self._fresh()
        self._pool.dwfs("disk", "replace", self._pool.name, directory, fresh)
        self._pool.disks.append(fresh)
        return f"replace {directory.name} by {fresh.name}"

    def _take_offline(self) -> str:
        self._offline = self._disk()
        self._pool.dwfs("disk", "offline", self._pool.name, self._offline)
        return f"offline {self._offline.name}"

    def _lose(self) -> str:
        directory, fresh = self._disk(), self._fresh()
        shutil.rmtree(directory)
        self._pool.wait_for(
            lambda status: any(disk["state"] == "missing" for disk in status["disks"])
        )
        self._pool.dwfs("disk", "replace", self._pool.name, directory, fresh)
        self._pool.disks.append(fresh)
        return f"lose {directory.name}, replace it by {fresh.name}"

    def _rot(self) -> str:
        directory = self._disk()
        changed = flip_bytes(directory, 0.002, self._choice)
        self._pool.dwfs("scrub", self._pool.name)
        return f"{changed} bytes rot on {directory.name}, scrub"

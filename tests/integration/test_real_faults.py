"""What breaks in real life, on small real disks: full, frozen, pulled, read-only, rotten, swapped, cloned.

The disks are ext4 and xfs filesystems on loop devices. Every story ends with the pool healthy again, every
file byte by byte what was written, and `dwfs check --read` finding nothing.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.loop_disks import LoopDisks, flip_bytes
from tests.integration.pools import Pool, digest
from tests.integration.test_degraded import check, fill, forget_caches, load

pytestmark = pytest.mark.needs_root

MIB = 1 << 20
HEALTHY_SECONDS = 90.0


class LoopPool(Pool):
    """A pool on loop disks."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.loops: LoopDisks

    def build(self, sizes_mib: list[int], data: int, parity: int) -> LoopPool:
        """`dwfs init` on disks of these sizes, ext4 and xfs in turn."""
        self.loops = LoopDisks(self.home, sizes_mib, ("ext4", "xfs"))
        self.disks = list(self.loops.directories)
        self.create(data=data, parity=parity)
        return self

    def close(self) -> None:
        """Unmount the pool, then its disks."""
        if hasattr(self, "loops"):
            for number in list(self.loops.frozen):
                self.loops.thaw(number)
        super().close()
        if hasattr(self, "loops"):
            self.loops.close()

    def state(self, number: int) -> str:
        """The state of a disk as status tells it."""
        return self.states()[str(self.disks[number])]

    def states(self) -> dict[str, str]:
        """Directory → state."""
        return {disk["path"]: disk["state"] for disk in self.status()["disks"]}

    def wait_healthy(self) -> None:
        """All disks online, all stripes whole."""
        self.wait_for(
            lambda status: status["health"] == "healthy" and not status["degraded_stripes"],
            HEALTHY_SECONDS,
        )

    def verify(self) -> None:
        """`dwfs check --read` finds nothing."""
        done = self.run("check", self.name, "--read")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def loop_pool(tmp_path: Path) -> Iterator[LoopPool]:
    """A place for a pool on loop disks."""
    pool = LoopPool(tmp_path / "pool")
    yield pool
    pool.close()


def fill_up(directory: Path, block: bytes) -> dict[Path, str]:
    """Files of the block's size until the pool says ENOSPC; those that were written whole."""
    found: dict[Path, str] = {}
    number = 0
    while True:
        path = directory / f"full-{number}"
        try:
            with path.open("wb", buffering=0) as file:
                written = 0
                while written < len(block):
                    written += file.write(block[written:])
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            path.unlink()
            return found
        found[path] = digest(path)
        number += 1


def test_filled_to_the_brim_emptied_and_filled_again(loop_pool: LoopPool, seed: int) -> None:
    pool = loop_pool.build([100, 320, 100, 130], data=2, parity=1).mount()
    promised = pool.status()["usage"]["free_bytes"]
    block = random.Random(seed).randbytes(3 * MIB)
    files = fill_up(pool.mountpoint, block)
    assert len(files) * len(block) >= promised * 0.9, "it said that there was more room"
    assert check(files) == []
    pool.kill()  # the worst moment: full
    pool.mount()
    assert check(files) == []
    for path in list(files):
        path.unlink()
    pool.wait_for(lambda status: status["usage"]["free_bytes"] >= promised * 0.9, 60)
    files = fill_up(pool.mountpoint, block)
    assert len(files) * len(block) >= promised * 0.85
    pool.remount()
    assert check(files) == []
    pool.verify()


def test_one_full_disk_is_no_full_pool(loop_pool: LoopPool, seed: int) -> None:
    pool = loop_pool.build([128, 128, 128, 128], data=2, parity=1).mount()
    stranger = pool.loops.mounts[1] / "somebody-else's"
    subprocess.run(["dd", "if=/dev/zero", f"of={stranger}", "bs=1M"], capture_output=True)
    time.sleep(3)  # until the space was measured again
    files = fill(pool.mountpoint, seed, 60)
    assert pool.status()["degraded_stripes"] == 0
    stranger.unlink()
    pool.remount()
    assert check(files) == []
    pool.verify()


def test_a_frozen_disk_does_not_freeze_the_filesystem(loop_pool: LoopPool, seed: int) -> None:
    pool = loop_pool.build([300] * 4, data=2, parity=1).mount()
    files = fill(pool.mountpoint, seed, 30)
    with load(pool.mountpoint) as errors:
        time.sleep(1)
        pool.loops.freeze(0)
        pool.wait_for(
            lambda status: status["disks"][0]["state"] in ("suspect", "missing", "failing"), 60
        )
        before = time.monotonic()
        forget_caches(pool, files)
        assert check(files) == []
        after = pool.mountpoint / "written-while-frozen"
        after.write_bytes(os.urandom(3 * MIB))
        with after.open("r+b") as file:
            os.fsync(file.fileno())
        files[after] = digest(after)
        assert time.monotonic() - before < 15
        pool.loops.thaw(0)
        pool.wait_healthy()
    assert errors == []
    pool.remount()
    assert check(files) == []
    pool.verify()


def test_a_pulled_disk_catches_up_by_what_changed(loop_pool: LoopPool, seed: int) -> None:
    pool = loop_pool.build([300] * 4, data=3, parity=1).mount()
    files = fill(pool.mountpoint, seed, 100)
    subprocess.run(["sync", "-f", pool.mountpoint], check=True)
    pool.loops.detach(2)
    pool.wait_for(lambda status: status["disks"][2]["state"] == "missing")
    late = pool.mountpoint / "late"
    late.write_bytes(os.urandom(2 * MIB))
    files[late] = digest(late)
    first = next(iter(files))
    first.unlink()
    del files[first]
    subprocess.run(["sync", "-f", pool.mountpoint], check=True)
    pool.wait_for(lambda status: status["degraded_stripes"] > 0)
    written = disk_usage(pool.disks[0])
    pool.loops.attach(2)
    pool.wait_healthy()
    assert disk_usage(pool.disks[0]) < written + 10 * MIB, "the others were not rewritten"
    pool.loops.detach(1)  # now the one that was away is needed
    pool.wait_for(lambda status: status["disks"][1]["state"] == "missing")
    forget_caches(pool, files)
    assert check(files) == []
    pool.loops.attach(1)
    pool.wait_healthy()
    pool.verify()


def disk_usage(directory: Path) -> int:
    """Allocated bytes of a disk's segments."""
    return sum(path.stat().st_blocks * 512 for path in (directory / "segments").iterdir())


def test_a_disk_that_turned_read_only_is_evacuated(loop_pool: LoopPool, seed: int) -> None:
    pool = loop_pool.build([300] * 4, data=2, parity=1).mount()
    files = fill(pool.mountpoint, seed, 40)
    with load(pool.mountpoint) as errors:
        pool.loops.fail_to_read_only(2)
        pool.wait_for(lambda status: status["disks"][2]["state"] == "failing", 60)
    assert errors == []
    # Its shards go to the disk that is left over, while it still can be read.
    pool.wait_for(lambda status: not status["degraded_stripes"] and not shards_on(status, 2), 60)
    pool.loops.detach(2)
    forget_caches(pool, files)
    assert check(files) == []


def shards_on(status: dict[str, object], number: int) -> int:
    """Bytes of shards that the pool still keeps on a disk."""
    disks = status["disks"]
    assert isinstance(disks, list)
    return int(disks[number]["shard_bytes"] or 0)


def test_rot_on_as_many_disks_as_may_be_lost_is_scrubbed_away(
    loop_pool: LoopPool, seed: int
) -> None:
    pool = loop_pool.build([300] * 5, data=3, parity=2).mount()
    files = fill(pool.mountpoint, seed, 60)
    pool.umount()
    choice = random.Random(seed)
    assert sum(flip_bytes(pool.disks[number], 0.01, choice) for number in (1, 3)) > 0
    pool.mount()
    pool.dwfs("scrub", pool.name, "--wait")
    pool.wait_healthy()
    pool.verify()
    for number in (0, 4):  # now the mended ones must do
        pool.loops.detach(number)
    pool.wait_for(lambda status: status["redundancy_left"] == 0)
    forget_caches(pool, files)
    assert check(files) == []


def test_rot_beyond_repair_is_named_by_path_and_costs_nothing_else(
    loop_pool: LoopPool, seed: int
) -> None:
    pool = loop_pool.build([300] * 3, data=2, parity=1).mount()
    files = fill(pool.mountpoint, seed, 60)
    pool.umount()
    choice = random.Random(seed)
    for directory in pool.disks:
        flip_bytes(directory, 0.002, choice)
    pool.mount()
    pool.run("scrub", pool.name, "--wait")
    named = set(pool.status()["scrub"]["damaged_files"])
    damaged = set()
    for path, expected in files.items():
        try:
            assert digest(path) == expected, f"{path} came back with other bytes"
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            damaged.add("/" + str(path.relative_to(pool.mountpoint)))
    assert damaged == named


def test_power_loss_of_the_whole_box(loop_pool: LoopPool, seed: int) -> None:
    pool = loop_pool.build([300] * 4, data=2, parity=1).mount()
    files = fill(pool.mountpoint, seed, 40)  # each of them synced
    with load(pool.mountpoint):
        time.sleep(1.5)
        for number in range(4):
            pool.loops.fail(number)  # what was not written back is gone
        pool.kill()
    shutil.rmtree(
        pool.root / "lib"
    )  # as after a reboot: what the state directory says is not believed
    for number in range(4):
        pool.loops.detach(number)
        pool.loops.attach(number)
    pool.mount()
    assert check(files) == []
    pool.wait_healthy()
    pool.verify()


def test_disks_that_changed_places_are_known_by_their_identity(
    loop_pool: LoopPool, seed: int
) -> None:
    pool = loop_pool.build([300] * 4, data=2, parity=1).mount()
    files = fill(pool.mountpoint, seed, 30)
    pool.umount()
    # Both ext4, so that each can be mounted where the other was.
    pool.loops.detach(0)
    pool.loops.detach(2)
    pool.loops.attach(0, at=2)
    pool.loops.attach(2, at=0)
    pool.mount()
    assert check(files) == []
    pool.wait_healthy()
    pool.verify()


def test_an_old_copy_of_a_disk_is_not_believed(loop_pool: LoopPool, seed: int) -> None:
    pool = loop_pool.build([300] * 4, data=2, parity=1).mount()
    fill(pool.mountpoint, seed, 10)
    pool.umount()
    image, copy = pool.home / "loop-0.image", pool.home / "old-copy"
    pool.loops.detach(0)
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    pool.loops.attach(0)
    pool.mount()
    files = fill(pool.mountpoint, seed + 1, 60)
    pool.umount()
    pool.loops.detach(0)
    subprocess.run(["cp", "--sparse=always", copy, image], check=True)
    pool.loops.attach(0)
    pool.mount()
    assert check(files) == []
    pool.wait_healthy()
    pool.verify()
    pool.loops.detach(1)  # the old copy is whole again
    pool.wait_for(lambda status: status["disks"][1]["state"] == "missing")
    forget_caches(pool, files)
    assert check(files) == []

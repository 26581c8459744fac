"""What programs wrote and the kernel holds is brought in, to the last byte, before it is said so."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dwfs.fuse import unmount
from dwfs.fuse.mountinfo import mount_at

pytestmark = pytest.mark.needs_root

REPOSITORY = Path(__file__).parents[3]
MIB = 1 << 20
MNT_FORCE = 1  # linux/mount.h


class Server:
    """The serving process."""

    def __init__(self, base: Path) -> None:
        self.point = base / "mnt"
        self.point.mkdir()
        (base / "state").mkdir()
        words = ["-m", "tests.unit.fuse.serve_slow_writes", str(base / "state"), str(self.point)]
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def bring_in(self) -> str:
        """What it says when it has brought in everything."""
        self.process.send_signal(signal.SIGUSR1)
        return self.line()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        yield server
    finally:
        if mount_at(str(server.point)) is not None:
            unmount(str(server.point), lazy=True)
        server.process.communicate(timeout=20)


def test_an_idle_mount_has_nothing_to_bring_in(server: Server) -> None:
    assert server.bring_in() == "True 0"


def test_what_was_mapped_and_changed_comes_in_before_it_is_said_so(server: Server) -> None:
    # syncfs(2) alone returns when the kernel has queued these writes; they take much longer.
    for number in range(3):
        with contextlib.ExitStack() as stack:
            descriptor = os.open(server.point / "f", os.O_RDWR | os.O_CREAT)
            stack.callback(os.close, descriptor)
            os.ftruncate(descriptor, 48 * MIB)
            memory = stack.enter_context(mmap.mmap(descriptor, 48 * MIB))
            for start in range(0, 48 * MIB, MIB):
                memory[start : start + MIB] = bytes([number + 1]) * MIB
            assert server.bring_in() == f"True {48 * MIB}"
        (server.point / "f").unlink()


def test_what_an_open_file_has_not_flushed_comes_in(server: Server) -> None:
    with (server.point / "log").open("wb", buffering=0) as file:
        for size in (5, 7):
            file.write(b"x" * size)
            said = server.bring_in().split()
            assert said[0] == "True"
    assert said[1] == "12"


def test_a_server_that_is_killed_meanwhile_ends(server: Server) -> None:
    """Its threads must not wait for its own mount: they would keep it, and that, for ever."""
    flags = os.O_CREAT | os.O_WRONLY
    descriptors = [os.open(server.point / f"f{number}", flags) for number in range(500)]
    try:
        for descriptor in descriptors:
            os.write(descriptor, bytes(3000))
        server.process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        server.process.kill()
        server.process.wait(10)
    finally:
        # Wakes who hangs. Not by umount(8): a child would close our files first, and hang as well.
        ctypes.CDLL(None).umount2(os.fsencode(server.point), MNT_FORCE)
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # nobody answers any more
                os.close(descriptor)

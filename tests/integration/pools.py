"""A real pool for a test: made, mounted, broken and put away through the `dwfs` command alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND_TIMEOUT_SECONDS = 120.0


class Pool:
    """A pool `name` with its disks, keys and directories below `home`."""

    name = "pool"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "root"
        self.keyfile = home / "keyfile"
        self.mountpoint = home / "mnt"
        self.disks: list[Path] = []
        self.environment = {**os.environ, "DWFS_ROOT": str(self.root), "DWFS_DEBUG": "1"}
        self.environment["PYTHONPATH"] = str(REPOSITORY)
        self.mountpoint.mkdir(parents=True)
        self.keyfile.touch(mode=0o600)
        self.keyfile.write_bytes(os.urandom(64))

    def run(
        self, *words: str | Path, **options: Any
    ) -> subprocess.CompletedProcess[str]:  # Any: subprocess.run's own options
        """Run `dwfs WORDS` and return what came of it."""
        return subprocess.run(
            [sys.executable, "-m", "dwfs", *map(str, words)],
            env={**self.environment, **options.pop("environment", {})},
            stdin=options.pop("stdin", subprocess.DEVNULL),
            capture_output=True,
            text=True,
            timeout=options.pop("timeout", COMMAND_TIMEOUT_SECONDS),
            **options,
        )

    def dwfs(self, *words: str | Path) -> str:
        """Run `dwfs WORDS`, which must succeed; returns its stdout."""
        done = self.run(*words)
        said = f"{done.stderr}{done.stdout}"
        assert done.returncode == 0, f"dwfs {words}: exit {done.returncode}: {said}"
        return done.stdout

    def create(self, disks: int = 6, data: int = 4, parity: int = 2) -> Self:
        """`dwfs init` on new directories (or on `self.disks`, if a test prepared them)."""
        if not self.disks:
            self.disks = [self.home / f"disk{number}" for number in range(disks)]
            for disk in self.disks:
                disk.mkdir()
        words = [word for disk in self.disks for word in ("--disk", str(disk))]
        geometry = ["--data", str(data), "--parity", str(parity)]
        self.dwfs("init", self.name, *words, *geometry, "--keyfile", self.keyfile)
        return self

    def mount(self, options: str = "dev,suid") -> Self:
        """`dwfs mount` in the background."""
        self.dwfs("mount", self.name, self.mountpoint, "--keyfile", self.keyfile, "-o", options)
        assert self.mountpoint.is_mount()
        return self

    def umount(self) -> None:
        """`dwfs umount`; the owner met nothing that it hadn't foreseen."""
        unforeseen = self.status()["unforeseen_errors"]
        self.dwfs("umount", self.mountpoint)
        assert not self.mountpoint.is_mount()
        assert unforeseen == 0, self.log()

    def remount(self) -> None:
        """Unmount and mount again: everything afterwards comes from the disks."""
        self.umount()
        self.mount()

    def status(self) -> dict[str, Any]:  # Any: JSON
        """`dwfs status --json`."""
        value = json.loads(self.dwfs("status", self.name, "--json"))
        assert isinstance(value, dict)
        return value

    def wait_for(
        self, what: Callable[[dict[str, Any]], bool], seconds: float = 30
    ) -> dict[str, Any]:  # Any: JSON
        """Poll the status until `what` holds of it."""
        deadline = time.monotonic() + seconds
        status: dict[str, Any] = {}  # Any: JSON
        while True:
            done = self.run("status", self.name, "--json")
            assert done.returncode == 0, done.stderr
            if what(status := json.loads(done.stdout)):
                return status
            assert time.monotonic() < deadline, f"not reached in {seconds} s: {status}"
            time.sleep(0.2)

    def kill(self) -> None:
        """`kill -9` the owner and wait until it is gone; the mount stays, dead."""
        process = psutil.Process(self.status()["pid"])
        process.send_signal(signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(30)

    def lose(self, *numbers: int) -> None:
        """Delete the directories of some disks."""
        for number in numbers:
            shutil.rmtree(self.disks[number])

    def log(self) -> str:
        """The end of the owner's log."""
        with contextlib.suppress(OSError):
            return (self.root / "run" / self.name / "dwfs.log").read_text()[-4000:]
        return "(no log)"

    def close(self) -> None:
        """Leave nothing behind, whatever state the test left."""
        pid = None
        with contextlib.suppress(AssertionError, ValueError, subprocess.TimeoutExpired):
            pid = self.status()["pid"]
        if is_mount_point(self.mountpoint):
            done = self.run("umount", self.mountpoint)
            if done.returncode != 0:
                subprocess.run(["fusermount3", "-uz", self.mountpoint], capture_output=True)
        if pid:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                try:
                    process.wait(20)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait(10)


def is_mount_point(path: Path) -> bool:
    """As Path.is_mount, but also true for a mount whose owner is dead."""
    table = Path("/proc/self/mountinfo").read_text()
    return any(line.split()[4] == str(path) for line in table.splitlines())


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Relative path → (mode, mtime in ns, content digest or link target) of everything below."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content, modified = "", status.st_mtime_ns
        if stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = digest(path)
        elif stat.S_ISDIR(status.st_mode):
            modified = 0  # a directory's times follow its entries
        found[str(path.relative_to(directory))] = (status.st_mode, modified, content)
    return found


def copy_tree(source: Path, target: Path) -> int:
    """Copy with modes and times, without caches and installed packages; returns the file count."""
    ignored = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages", "*.so")
    shutil.copytree(source, target, symlinks=True, ignore=ignored)
    return sum(len(files) for _, _, files in os.walk(target))


def open_the_way(path: Path) -> None:
    """As root, let other users pass the private directories of pytest that lead to `path`."""
    for parent in path.parents:
        if os.geteuid() == 0 and parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)

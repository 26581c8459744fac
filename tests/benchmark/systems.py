"""The filesystems that `compare.py` puts side by side: how each is mounted, measured and removed.

Every system gets its own directory below one working directory, so that all of them lie on the
same disk. A system is started once, stays mounted while the rounds of all systems alternate, and
leaves nothing behind: processes are ended by the ids that were found when they were started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
DISKS = 6
DATA, PARITY = 4, 2
START_TIMEOUT_SECONDS = 60.0


class CommandFailedError(Exception):
    """A command that a system needs did not succeed; the text holds its output."""


def command(*argv: str | Path, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed; raises CommandFailedError."""
    done = subprocess.run(
        [str(word) for word in argv],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        words = " ".join(str(word) for word in argv)
        raise CommandFailedError(f"{words}: exit {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def wait_until_mounted(directory: Path) -> None:
    """Return when `directory` is a mount point; raises CommandFailedError after a minute."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not directory.is_mount():
        if time.monotonic() > deadline:
            raise CommandFailedError(
                f"{directory} was not mounted in {START_TIMEOUT_SECONDS:.0f} s"
            )
        time.sleep(0.05)


def processes_mentioning(text: str) -> list[psutil.Process]:
    """Processes (not ourselves) whose command line or DWFS_ROOT holds `text`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(text in word for word in process.cmdline()):
                found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Ask the processes to end, insist after ten seconds, and wait for them."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=10)


def anonymous_bytes(pids: list[int]) -> int:
    """Sum of the processes' anonymous memory (`Anonymous` in smaps_rollup)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    total += int(line.split()[1]) * 1024
    return total


class System:
    """One filesystem under test, living below `home`; `mount` is where the workload runs."""

    name = "plain"
    title = "plain directory"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.mount = home / "mount"

    def missing(self) -> str | None:
        """Why the system can't run here, or None."""
        return None

    def start(self) -> None:
        """Create and mount."""
        self.mount.mkdir(parents=True)

    def pids(self) -> list[int]:
        """The user-space processes that do the filesystem's work."""
        return []

    def version(self) -> str:
        """What is measured, for the report."""
        return command("findmnt", "-no", "FSTYPE", "-T", self.home.parent).strip()

    def stop(self) -> None:
        """Unmount and remove everything; also after a failed `start`."""
        shutil.rmtree(self.home, ignore_errors=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[System]:
        """`start`, then `stop` whatever happens."""
        try:
            self.start()
            yield self
        finally:
            self.stop()


class Gocryptfs(System):
    """gocryptfs: encrypted, one directory, no redundancy."""

    name = "gocryptfs"
    title = "gocryptfs"

    def missing(self) -> str | None:
        return None if shutil.which("gocryptfs") else "gocryptfs is not installed"

    def start(self) -> None:
        cipher, password = self.home / "cipher", self.home / "password"
        cipher.mkdir(parents=True)
        self.mount.mkdir()
        password.write_text("only a benchmark\n")
        command("gocryptfs", "-init", "-q", "-passfile", password, cipher)
        command("gocryptfs", "-q", "-passfile", password, cipher, self.mount)
        wait_until_mounted(self.mount)

    def pids(self) -> list[int]:
        return [process.pid for process in processes_mentioning(str(self.home / "cipher"))]

    def version(self) -> str:
        return command("gocryptfs", "-version").split(";")[0].strip()

    def stop(self) -> None:
        processes = processes_mentioning(str(self.home / "cipher"))
        subprocess.run(["fusermount3", "-uz", str(self.mount)], check=False, capture_output=True)
        end(processes)
        super().stop()


class Gluster(System):
    """GlusterFS disperse 4+2 over loopback, with a management daemon of its own."""

    name = "gluster"
    title = "GlusterFS disperse 4+2"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._host = socket.gethostname()  # GlusterFS refuses "localhost" and 127.0.0.1 by name
        self._address = socket.gethostbyname(self._host)

    def missing(self) -> str | None:
        if not shutil.which("glusterd"):
            return "glusterfs-server is not installed"
        if os.geteuid() != 0:
            return "GlusterFS needs root"
        with socket.socket() as probe:
            if probe.connect_ex((self._address, 24007)) == 0:
                return "port 24007 is taken: another glusterd runs here"
        return None

    def start(self) -> None:
        bricks = [self.home / f"brick{number}" for number in range(DISKS)]
        for directory in [*bricks, self.mount, self.home / "daemon", self.home / "run"]:
            directory.mkdir(parents=True)
        volume_file = self.home / "glusterd.vol"
        volume_file.write_text(
            "volume management\n  type mgmt/glusterd\n"
            f"  option working-directory {self.home}/daemon\n"
            f"  option run-directory {self.home}/run\n"
            "  option transport-type socket\n  option transport.socket.listen-port 24007\n"
            f"  option transport.socket.bind-address {self._address}\n  option max-port 60999\n"
            "end-volume\n"
        )
        log_file, pid_file = self.home / "glusterd.log", self.home / "glusterd.pid"
        command("glusterd", "-f", volume_file, "-l", log_file, "-p", pid_file)
        self._wait_for_daemon()
        addresses = [f"{self._host}:{brick}" for brick in bricks]
        geometry = ["disperse", str(DISKS), "redundancy", str(PARITY)]
        self._gluster("volume", "create", "v", *geometry, "transport", "tcp", *addresses, "force")
        self._gluster("volume", "start", "v")
        client = ["glusterfs", f"--volfile-server={self._host}", "--volfile-id=v"]
        command(*client, f"--log-file={self.home}/client.log", self.mount)
        wait_until_mounted(self.mount)
        self._wait_until_writable()

    def _gluster(self, *words: str) -> str:
        return command("gluster", f"--log-file={self.home}/cli.log", "--mode=script", *words)

    def _wait_for_daemon(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                self._gluster("pool", "list")
            except CommandFailedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                return

    def _wait_until_writable(self) -> None:
        """The client connects to its bricks after the mount appears; wait for a first write."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                (self.mount / "probe").write_bytes(b"x")
                (self.mount / "probe").unlink()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                return

    def pids(self) -> list[int]:
        return [process.pid for process in processes_mentioning(str(self.home))]

    def version(self) -> str:
        return command("gluster", "--version").splitlines()[0].strip()

    def stop(self) -> None:
        subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True)
        for words in (("volume", "stop", "v", "force"), ("volume", "delete", "v")):
            with contextlib.suppress(CommandFailedError, subprocess.TimeoutExpired):
                self._gluster(*words)
        end(processes_mentioning(str(self.home)))
        super().stop()


class Dwfs(System):
    """dwfs 4+2 on six directories, as `dwfs mount` starts it."""

    name = "dwfs"
    title = "dwfs 4+2"

    @property
    def environment(self) -> dict[str, str]:
        """What every dwfs command of this system needs."""
        return {"DWFS_ROOT": str(self.home / "root"), "PYTHONPATH": str(REPOSITORY)}

    def _dwfs(self, *words: str | Path) -> str:
        return command(sys.executable, "-m", "dwfs", *words, environment=self.environment)

    def start(self) -> None:
        self.mount.mkdir(parents=True)
        keyfile = self.home / "keyfile"
        keyfile.write_bytes(os.urandom(64))
        words: list[str | Path] = []
        for number in range(DISKS):
            disk = self.home / f"disk{number}"
            disk.mkdir()
            words += ["--disk", disk]
        geometry = ["--data", str(DATA), "--parity", str(PARITY)]
        self._dwfs("init", "bench", *words, *geometry, "--keyfile", keyfile)
        self.open()

    def open(self) -> None:
        """Mount the pool that `start` made."""
        self._dwfs("mount", "bench", self.mount, "--keyfile", self.home / "keyfile")
        wait_until_mounted(self.mount)

    def close(self) -> None:
        """Unmount, and wait until the owning process has ended."""
        processes = [psutil.Process(pid) for pid in self.pids()]
        self._dwfs("umount", self.mount)
        psutil.wait_procs(processes, timeout=START_TIMEOUT_SECONDS)

    def pids(self) -> list[int]:
        return [int(json.loads(self._dwfs("status", "bench", "--json"))["pid"])]

    def version(self) -> str:
        commit = subprocess.run(
            ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        return f"dwfs {commit.stdout.strip() or 'uncommitted'}"

    def stop(self) -> None:
        with contextlib.suppress(CommandFailedError):
            self._dwfs("umount", self.mount)
        if self.mount.is_mount():
            subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True)
        end(processes_mentioning(str(self.mount)))
        super().stop()


SYSTEMS: dict[str, type[System]] = {
    "dwfs": Dwfs,
    "gocryptfs": Gocryptfs,
    "gluster": Gluster,
    "plain": System,
}

"""The story of the dead boot disk: the commands of docs/operations.md, as they stand there.

The steps are read out of the document and run one after another on small real disks, by someone who
has nothing but the recovery key on paper and types it where it is asked for. So the document can't say
anything that doesn't work.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pools import REPOSITORY, Pool, tree

MIB = 1 << 20
DISK_MIB = 256
NAMES = "abcdef"
STEP_SECONDS = 120.0
SECTION = "The boot disk died"


def commands_of(section: str) -> list[str]:
    """The indented command lines of one section, in order."""
    text = (REPOSITORY / "docs/operations.md").read_text()
    body = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return [line.strip() for line in body.splitlines() if re.match(r" {7}\S", line)]


class Box:
    """A machine: its own dwfs configuration and directories, and the disks that are plugged in."""

    def __init__(self, home: Path, pool: Pool) -> None:
        self.home = home
        self.pool = pool
        self.images: dict[str, Path] = {}
        self.recovery_key = ""
        commands = home / "bin"
        commands.mkdir()
        script = commands / "dwfs"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dwfs "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self.environment = {**pool.environment, "PATH": f"{commands}:{os.environ['PATH']}"}

    def here(self, command: str) -> str:
        """The document's paths and devices in this box."""
        command = re.sub(r"/dev/sd([b-g])1", lambda found: str(self.images[found[1]]), command)
        command = command.replace("/disks/", f"{self.home}/disks/")
        return command.replace("/srv/tank", str(self.pool.mountpoint))

    def type(self, command: str) -> tuple[int, str]:
        """Run a command on a terminal, answer questions for the key; exit code and what was shown."""
        child, terminal = pty.fork()
        if child == 0:
            os.chdir("/")
            words = ["sh", "-c", self.here(command)]
            os.execve("/bin/sh", words, self.environment)  # noqa: S606  # it names a shell
        shown, answered, deadline = b"", 0, time.monotonic() + STEP_SECONDS
        while True:
            assert time.monotonic() < deadline, (
                f"{command}: no end after {STEP_SECONDS} s: {shown!r}"
            )
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            try:
                chunk = os.read(terminal, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
            if not chunk:
                break
            shown += chunk
            if shown.count(b"Passphrase (or recovery key)") > answered:
                answered += 1
                os.write(terminal, self.recovery_key.encode() + b"\n")
        os.close(terminal)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    pool = Pool(tmp_path / "pool")
    pool.name = "tank"
    box = Box(tmp_path, pool)
    yield box
    pool.close()
    for name in NAMES:
        subprocess.run(["umount", "-l", tmp_path / "disks" / name], capture_output=True)


def first_life(box: Box) -> dict[str, tuple[int, int, str]]:
    """Disks are formatted, the pool is made and filled, then the boot disk dies with all it had."""
    for letter, name in zip("bcdefg", NAMES, strict=True):
        image = box.home / f"sd{letter}.image"
        with image.open("wb") as file:
            file.truncate(DISK_MIB * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-E", "root_owner", image], check=True)
        box.images[letter] = image
        directory = box.home / "disks" / name
        directory.mkdir(parents=True)
        subprocess.run(["mount", "-o", "loop", image, directory], check=True)
        box.pool.disks.append(directory)
    paper = box.home / "recovery"
    words = [word for disk in box.pool.disks for word in ("--disk", disk)]
    box.pool.dwfs("init", "tank", *words, "--keyfile", box.pool.keyfile, "--recovery-file", paper)
    box.recovery_key = paper.read_text().strip()
    box.pool.mount()
    photos = box.pool.mountpoint / "photos"
    photos.mkdir()
    for number in range(20):
        (photos / f"{number}.jpg").write_bytes(os.urandom(number * 50_000))
    (box.pool.mountpoint / "letter.txt").write_text("Dear all,")
    before = tree(box.pool.mountpoint)
    for path in box.pool.mountpoint.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    box.pool.kill()
    subprocess.run(["fusermount3", "-uz", box.pool.mountpoint], check=True)
    for disk in box.pool.disks:
        subprocess.run(["umount", disk], check=True)
    shutil.rmtree(box.home / "disks")
    shutil.rmtree(box.pool.root)
    box.pool.keyfile.unlink()
    paper.unlink()
    box.pool.mountpoint.rmdir()
    return before


@pytest.mark.needs_root
@pytest.mark.parametrize("dead", ["", "f", "bd"], ids=lambda dead: f"{len(dead)}-disks-dead-too")
def test_the_steps_of_the_document(box: Box, dead: str) -> None:
    before = first_life(box)
    steps = commands_of(SECTION)
    assert [step for step in steps if step.startswith("dwfs import ")], "the section has moved"
    output = {}
    for step in steps:
        if step.startswith("mount ") and step[-1] in dead:
            continue  # as the document says
        code, shown = box.type(step)
        accepted = (0, 10) if dead and step.startswith("dwfs check") else (0,)
        assert code in accepted, f"{step}: exit {code}: {shown}"
        output[step.split()[0] if step[:4] != "dwfs" else step.split()[1]] = shown
    assert "21 files in 1 directory," in output["import"]
    assert f"from {6 - len(dead)} of 6 disks" in output["import"]
    for name in dead:
        assert f"/disks/{name}" in output["import"]
        assert f"/disks/{name} is missing" in output["status"]
    assert ("NO MORE may fail" in output["import"]) == (len(dead) == 2)
    assert "letter.txt" in output["ls"]
    assert ("HEALTHY" in output["status"]) == (not dead)
    assert tree(box.pool.mountpoint) == before

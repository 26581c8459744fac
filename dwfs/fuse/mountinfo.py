"""What is mounted where: /proc/self/mountinfo (proc_pid_mountinfo(5)).

Reading it sends no request to any filesystem, so it is safe even for the process that would have to
answer, and for mounts whose process has died.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

FILESYSTEM_TYPE: Final = "fuse.dwfs"
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Mount(msgspec.Struct, frozen=True):
    """One line of mountinfo: what concerns us."""

    directory: str
    device: str  # "major:minor"
    kind: str  # filesystem type
    source: str
    options: tuple[str, ...]  # of this mount
    super_options: tuple[str, ...]  # of the filesystem


def read_mounts(path: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """All mounts of this namespace; later ones cover earlier ones at the same place."""
    mounts = []
    for line in os.fsdecode(path.read_bytes()).splitlines():
        fields = line.split(" ")
        separator = fields.index("-", 6)
        mounts.append(
            Mount(
                directory=_unescape(fields[4]),
                device=fields[2],
                kind=fields[separator + 1],
                source=_unescape(fields[separator + 2]),
                options=tuple(fields[5].split(",")),
                super_options=tuple(fields[separator + 3].split(",")),
            )
        )
    return mounts


def mount_at(directory: str) -> Mount | None:
    """The topmost mount at `directory` (absolute, resolved), or None."""
    found = [mount for mount in read_mounts() if mount.directory == directory]
    return found[-1] if found else None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)

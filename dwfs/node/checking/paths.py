"""From files to their paths.

Walks of the whole tree go in pieces with other work in between. A name that is made or moved during
the walk may be missed; the file is then told by its number, which is better than not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Final

import trio

from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.volume import Volume

_BATCH: Final = 256
_PATH_DEPTH_MAX: Final = 4096
_DIRECTORY_TYPE: Final = 4  # DT_DIR
# Whoever may write files chooses their names, and an administrator's terminal would obey them.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


async def walk(volume: Volume) -> AsyncIterator[tuple[InodeNumber, str]]:
    """Every name in the volume: its inode and its path. The root is ("", its number)."""
    yield ROOT_INODE, ""
    pending: list[tuple[InodeNumber, str]] = [(ROOT_INODE, "")]
    while pending:
        directory, path = pending.pop()
        cookie = 0
        while entries := volume.read_directory(directory, cookie, _BATCH):
            cookie = entries[-1].cookie
            for entry in entries:
                name = f"{path}/{printable(entry.name)}"
                if entry.type == _DIRECTORY_TYPE and name.count("/") < _PATH_DEPTH_MAX:
                    pending.append((entry.inode, name))
                yield entry.inode, name
            await trio.lowlevel.checkpoint()


async def find_paths(
    volume: Volume, wanted: Collection[InodeNumber]
) -> dict[InodeNumber, list[str]]:
    """All paths of some inodes, from the volume's root."""
    found: dict[InodeNumber, list[str]] = {}
    if wanted:
        async for number, path in walk(volume):
            if number in wanted:
                found.setdefault(number, []).append(path or "/")
    return found


async def paths_of_inodes(volume: Volume, inodes: Collection[InodeNumber]) -> list[str]:
    """Paths of inodes, those of one inode together; "inode N" where no path leads to it."""
    paths = await find_paths(volume, inodes)
    return [name for number in inodes for name in paths.get(number, [f"inode {number}"])]


def printable(name: bytes) -> str:
    """A name of any bytes as text on one line that does nothing to a terminal."""
    return name.decode("utf-8", errors="backslashreplace").translate(_CONTROLS)

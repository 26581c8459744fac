"""From files to their paths.

Walks of the whole tree go in pieces with other work in between. A name that is made or moved during
the walk may be missed; the file is then told by its number, which is better than not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from errno import ENOENT
from typing import Final, Protocol

import trio

from dwfs.errors import PosixError
from dwfs.types import NO_EPOCH, ROOT_INODE, Epoch, InodeNumber
from dwfs.volume import DirectoryPage, SnapshotView, Volume

_BATCH: Final = 256
_PATH_DEPTH_MAX: Final = 4096
_DIRECTORY_TYPE: Final = 4  # DT_DIR
# Whoever may write files chooses their names, and an administrator's terminal would obey them.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


class Tree(Protocol):
    """Names: a volume's, or a snapshot's."""

    def directory_page(self, parent: InodeNumber, after_cookie: int, limit: int) -> DirectoryPage:
        """As `Volume.directory_page`."""


async def walk(volume: Tree) -> AsyncIterator[tuple[InodeNumber, str]]:
    """Every name in the volume: its inode and its path. The root is ("", its number)."""
    yield ROOT_INODE, ""
    pending: list[tuple[InodeNumber, str]] = [(ROOT_INODE, "")]
    while pending:
        directory, path = pending.pop()
        following: int | None = 0
        while following is not None:
            entries, following = volume.directory_page(directory, following, _BATCH)
            for entry in entries:
                name = f"{path}/{printable(entry.name)}"
                if entry.type == _DIRECTORY_TYPE and name.count("/") < _PATH_DEPTH_MAX:
                    pending.append((entry.inode, name))
                yield entry.inode, name
            await trio.lowlevel.checkpoint()


async def find_paths(volume: Tree, wanted: Collection[InodeNumber]) -> dict[InodeNumber, list[str]]:
    """All paths of some inodes, from the tree's root."""
    found: dict[InodeNumber, list[str]] = {}
    if wanted:
        async for number, path in walk(volume):
            if number in wanted:
                found.setdefault(number, []).append(path or "/")
    return found


async def paths_of_files(volume: Volume, files: Iterable[tuple[InodeNumber, Epoch]]) -> list[str]:
    """Paths of inodes, those of one inode together; "inode N" where no path leads to it.

    Each inode with the epoch of the snapshot that is meant, whose paths are below `/.snapshots/NAME`,
    or NO_EPOCH.
    """
    by_epoch: dict[Epoch, list[InodeNumber]] = {}
    for number, epoch in files:
        by_epoch.setdefault(epoch, []).append(number)
    names: list[str] = []
    for epoch, inodes in sorted(by_epoch.items()):
        if epoch == NO_EPOCH:
            names += _named(await find_paths(volume, inodes), inodes, "")
            continue
        try:
            view, name = view_of_epoch(volume, epoch)
            paths = await find_paths(view, inodes)
        except PosixError:
            continue  # the snapshot was destroyed meanwhile, and its files with it
        names += _named(paths, inodes, f"/.snapshots/{name}")
    return names


def _named(
    paths: Mapping[InodeNumber, list[str]], inodes: Iterable[InodeNumber], place: str
) -> list[str]:
    names: list[str] = []
    for number in inodes:
        unnamed = f"inode {number} in {place}" if place else f"inode {number}"
        names += [place + path for path in paths.get(number, [])] or [unnamed]
    return names


def view_of_epoch(volume: Volume, epoch: Epoch) -> tuple[SnapshotView, str]:
    """The files of the snapshot of that epoch, and its name. Raises PosixError ENOENT if it was destroyed."""
    for snapshot in volume.snapshots():
        if snapshot.epoch == epoch:
            return volume.view(snapshot), snapshot.name
    raise PosixError(ENOENT, f"the snapshot of epoch {epoch}")


def printable(name: bytes) -> str:
    """A name of any bytes as text on one line that does nothing to a terminal."""
    return name.decode("utf-8", errors="backslashreplace").translate(_CONTROLS)

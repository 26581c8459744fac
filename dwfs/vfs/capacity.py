"""What statfs(2) says: usable space after coding, not raw space on the disks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dwfs.volume.volume import Volume

BLOCK_SIZE: Final = 4096
# State and log of one more small file, on all its disks, with room to spare. Inodes are made as
# needed; statfs wants a number all the same, and installers look at it.
INODE_COST: Final = 2048


class Space(NamedTuple):
    """Bytes of file data that the pool can hold in all, and how many more now."""

    size_bytes: int
    free_bytes: int


class FilesystemStatistics(NamedTuple):
    """As `struct statvfs`, in blocks of `BLOCK_SIZE`."""

    blocks: int
    free_blocks: int
    inodes: int
    free_inodes: int


class Capacity:
    """Answers statfs."""

    def __init__(self, volume: Volume, space: Callable[[], Space]) -> None:
        self._volume = volume
        self._space = space

    def statfs(self) -> FilesystemStatistics:
        """The volume's share of the pool."""
        space = self._space()
        inodes = self._volume.usage().inode_count
        free_inodes = space.free_bytes // INODE_COST
        return FilesystemStatistics(
            blocks=space.size_bytes // BLOCK_SIZE,
            free_blocks=space.free_bytes // BLOCK_SIZE,
            inodes=inodes + free_inodes,
            free_inodes=free_inodes,
        )

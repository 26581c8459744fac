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
        """The volume's share of the pool.

        With a quota: what is used, and what is left of the quota or of the pool, whichever is less.
        """
        space, usage, properties = self._space(), self._volume.usage(), self._volume.properties
        size_bytes, free_bytes = space
        inodes = usage.inode_count
        free_inodes = free_bytes // INODE_COST
        if properties.quota_bytes is not None:
            free_bytes = max(0, min(free_bytes, properties.quota_bytes - usage.allocated_bytes))
            size_bytes = usage.allocated_bytes + free_bytes
        if properties.quota_inodes is not None:
            free_inodes = max(0, min(free_inodes, properties.quota_inodes - inodes))
        return FilesystemStatistics(
            blocks=size_bytes // BLOCK_SIZE,
            free_blocks=free_bytes // BLOCK_SIZE,
            inodes=inodes + free_inodes,
            free_inodes=free_inodes,
        )

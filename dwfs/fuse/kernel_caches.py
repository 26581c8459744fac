"""Telling the kernel what changed without it: it keeps names and attributes as long as it likes."""

from __future__ import annotations

import contextlib

import pyfuse3
from pyfuse3 import InodeT

from dwfs.types import InodeNumber


class MountedKernel:
    """A `dwfs.vfs.trash.KernelCaches`. Use it only while pyfuse3's session is open."""

    def changed(self, number: InodeNumber) -> None:
        """Have the attributes asked for again. Never waits: cached data is left alone."""
        with contextlib.suppress(OSError):  # ENOENT: the kernel does not know the inode
            pyfuse3.invalidate_inode(InodeT(number), attr_only=True)

    def made(self, parent: InodeNumber, name: bytes) -> None:
        """Have it forgotten that there is no such name, soon: as `removed`."""
        pyfuse3.invalidate_entry_async(InodeT(parent), name, ignore_enoent=True)

    def removed(self, parent: InodeNumber, name: bytes, number: InodeNumber) -> None:
        """Have the name forgotten, soon: the kernel may have to wait for requests that we answer."""
        pyfuse3.invalidate_entry_async(
            InodeT(parent), name, deleted=InodeT(number), ignore_enoent=True
        )

"""Counting what a volume holds: also the proof that every name can be read again."""

from __future__ import annotations

import stat
from typing import Final

import msgspec
import trio

from dwfs.errors import PosixError
from dwfs.node.recovery import Report
from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.volume import DirectoryPage, Volume

_BATCH: Final = 256
_DIRECTORY_ENTRY: Final = 4  # DT_DIR


class Content(msgspec.Struct):
    """What was found by walking the whole tree."""

    files: int = 0
    directories: int = 0
    unreadable: int = 0
    last_change_ns: int = 0


async def count_content(volume: Volume, report: Report) -> Content:
    """Walk the whole tree; damaged records are counted and passed by."""
    content = Content()
    seen: set[InodeNumber] = set()  # of files with several names
    pending = [ROOT_INODE]
    content.last_change_ns = volume.inode(ROOT_INODE).ctime_ns
    total = max(0, volume.usage().inode_count - 1)
    while pending:
        directory = pending.pop()
        following: int | None = 0
        while following is not None:
            entries, following = _read_directory(volume, directory, following, content)
            for entry in entries:
                if entry.type == _DIRECTORY_ENTRY:
                    pending.append(entry.inode)
                _count_inode(volume, entry.inode, content, seen)
            report("counting files", content.files + content.directories, total)
            await trio.lowlevel.checkpoint()
    return content


def _read_directory(
    volume: Volume, directory: InodeNumber, cookie: int, content: Content
) -> DirectoryPage:
    try:
        return volume.directory_page(directory, cookie, _BATCH)
    except PosixError:
        content.unreadable += 1
        return DirectoryPage([], None)


def _count_inode(
    volume: Volume, number: InodeNumber, content: Content, seen: set[InodeNumber]
) -> None:
    if number in seen:
        return
    try:
        inode = volume.inode(number)
    except PosixError:
        content.unreadable += 1
        return
    content.last_change_ns = max(content.last_change_ns, inode.ctime_ns)
    if stat.S_ISDIR(inode.mode):
        content.directories += 1
        return
    content.files += 1
    if inode.nlink > 1:
        seen.add(number)

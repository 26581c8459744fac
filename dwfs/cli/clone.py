"""`dwfs clone`: a copy of a file that shares its space until one of the two is changed."""

from __future__ import annotations

import argparse
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from dwfs.cli.owner import ask_owner
from dwfs.config import Directories
from dwfs.errors import UsageError
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, read_mounts
from dwfs.types import INODE_NUMBER_BITS

_SILENCE_SECONDS: Final = 3600.0  # of a file of many terabytes in a million pieces


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "clone",
        help="copy a file without copying its bytes",
        description=(
            "Make TARGET a copy of the regular file SOURCE that shares its space: at once, whatever "
            "its size, and taking none of its own until one of the two is changed. Both are in one "
            "mounted pool. TARGET must not exist; if it is a directory, the copy is made in it. "
            "TARGET belongs to who gives the command, with SOURCE's permissions."
        ),
    )
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("target", metavar="TARGET", type=Path)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the file under a temporary name, have it filled, and give it its own."""
    source: Path = arguments.source
    target: Path = arguments.target
    if target.is_dir():
        target /= source.name
    # Not blocking: opening a FIFO would wait for a writer.
    handle = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(handle)
        pool = _pool_of(source, found)
        directory = target.parent
        if directory.stat().st_dev != found.st_dev:
            raise UsageError(f"{target} is not in the pool of {source}: copy it with cp")
        if os.path.lexists(target):
            raise UsageError(f"{target} exists already: remove it first, or take another name")
        os.fsync(handle)  # the kernel may hold bytes that the pool's owner has not seen
        found = os.fstat(handle)
        temporary = directory / f".dwfs-clone-{secrets.token_hex(8)}"
        _make(pool, found, temporary, target)
    finally:
        os.close(handle)
    return 0


def _pool_of(source: Path, found: os.stat_result) -> str:
    """The name of the pool in which the file is. Raises UsageError if it can't be cloned."""
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{source} is not a regular file")
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    for mount in read_mounts():
        if mount.device == device and mount.kind == FILESYSTEM_TYPE:
            if found.st_ino >> INODE_NUMBER_BITS:
                raise UsageError(f"{source} is in a snapshot, which can't be cloned: use cp")
            return mount.source
    raise UsageError(f"{source} is not in a mounted dwfs pool: copy it with cp")


def _make(pool: str, found: os.stat_result, temporary: Path, target: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    handle = os.open(temporary, flags, stat.S_IMODE(found.st_mode) & 0o777)
    try:
        if found.st_size:
            os.ftruncate(handle, found.st_size)
            ask_owner(
                Directories.from_environment(os.environ),
                pool,
                "clone",
                {
                    "source": found.st_ino,
                    "target": os.fstat(handle).st_ino,
                    "length": found.st_size,
                },
                timeout_seconds=_SILENCE_SECONDS,
            )
        try:
            os.link(temporary, target)  # unlike rename, it overwrites nothing
        except FileExistsError:
            raise UsageError(f"{target} has just been made by somebody else") from None
    finally:
        os.close(handle)
        os.unlink(temporary)

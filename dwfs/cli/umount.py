"""`dwfs umount DIR`: detach a mounted pool and wait until its owner has put everything away."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dwfs.config import Directories, is_pool_name
from dwfs.errors import ControlError, PoolBusyError, UsageError
from dwfs.fuse import unmount
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, Mount, mount_at
from dwfs.node.lock import owner_of, wait_until_unowned

_WAIT_SECONDS = 600.0  # flushing a full write buffer to slow disks takes its time


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "umount",
        help="unmount a pool",
        description="Unmount the pool at DIR. Returns when everything is durable and the pool closed.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the pool is mounted")
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="detach now even if files are open; the pool closes when the last of them is closed",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Unmount, then wait for the owner."""
    mount = find_mount(arguments.directory)
    directories = Directories.from_environment(os.environ)
    pool = mount.source
    owner = owner_of(directories, pool) if is_pool_name(pool) else None
    try:
        unmount(mount.directory, lazy=arguments.lazy)
    except PoolBusyError:
        raise PoolBusyError(
            f"{mount.directory} is in use: close what uses it (see fuser -vm {mount.directory}), "
            "or add --lazy"
        ) from None
    if owner is None or arguments.lazy:
        return 0
    if not wait_until_unowned(directories, pool, _WAIT_SECONDS):
        raise ControlError(
            f"{mount.directory} is detached, but process {owner} is still writing pool {pool!r}; "
            f"see {directories.log_file(pool)}"
        )
    return 0


def find_mount(directory: Path) -> Mount:
    """The dwfs mount at `directory`. Raises UsageError if there is none."""
    # Only the parent is resolved: looking at a dead mount itself fails with ENOTCONN.
    absolute = Path(os.path.normpath(directory.absolute()))
    resolved = os.path.join(os.path.realpath(absolute.parent), absolute.name)
    mount = mount_at(resolved) or mount_at(os.path.realpath(absolute))
    if mount is None:
        raise UsageError(f"nothing is mounted at {directory}")
    if mount.kind != FILESYSTEM_TYPE:
        raise UsageError(f"{directory} is a {mount.kind} mount, not a dwfs pool")
    return mount

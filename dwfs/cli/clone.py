"""`dwfs clone`: a copy of a file that shares its space until one of the two is changed.

The kernel checks permissions: the source is opened and the target made through the mount, by whoever
gives the command. The pool's owner then lets the one share the bytes of the other. Until that is done the
target has a temporary name.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import secrets
import signal
import stat
import sys
from pathlib import Path
from typing import Final

import msgspec

from dwfs.cli.output import ProgressLine, format_bytes, print_json
from dwfs.cli.owner import ask_owner
from dwfs.config import Directories, is_pool_name
from dwfs.errors import DwfsError, UsageError
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, read_mounts
from dwfs.node.status import CloneAnswer
from dwfs.types import CLONE_NAME_PREFIX, INODE_NUMBER_BITS

_SILENCE_SECONDS: Final = 120.0  # far longer than a step takes that the owner tells of
_RENAME_NOREPLACE: Final = 1  # linux/fs.h


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "clone",
        help="copy a file without copying its bytes",
        description=(
            "Make TARGET a copy of the regular file SOURCE that shares its space: at once, and taking "
            "none of its own until one of the two is changed; neither sees the other's changes. Both "
            "are in one mounted pool. TARGET belongs to whoever gives the command and has SOURCE's "
            "permissions, less the umask. If TARGET is a directory, the copy is made in it."
        ),
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the file, not in a snapshot")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the new file, or a directory")
    parser.add_argument(
        "--force", action="store_true", help="replace TARGET if it exists, once the clone is made"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the file under a temporary name, have it filled, and give it its own."""
    source: Path = arguments.source
    target: Path = arguments.target
    if target.is_dir():
        target /= source.name
    before = source.stat()
    if not stat.S_ISREG(before.st_mode):
        raise UsageError(f"{source} is not a regular file")
    # Not blocking: it may have become a FIFO.
    handle = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    directory = -1
    try:
        found = os.fstat(handle)
        pool = _pool_of(source, found)
        directories = Directories.from_environment(os.environ)
        _check_reach(directories, pool)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.fstat(directory).st_dev != found.st_dev:
            raise UsageError(f"{target} is not in the pool that {source} is in: copy it with cp")
        _check_target(source, found, target, force=arguments.force)
        # Whoever stops us in order shall find nothing of us.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        _bring_in(handle, source)
        answer = _clone(
            directories,
            pool,
            handle,
            directory,
            target,
            force=arguments.force,
            quiet=arguments.json,
        )
    finally:
        _close(handle)
        if directory >= 0:
            _close(directory)
    if arguments.json:
        named = {"source": _printable(source), "target": _printable(target)}
        print_json({**named, **msgspec.to_builtins(answer)})
    else:
        shared = format_bytes(answer.shared_bytes)
        print(f"{_printable(target)} shares {shared} with {_printable(source)}")
    return 0


def _printable(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


def _pool_of(source: Path, found: os.stat_result) -> str:
    """The name of the pool in which the file is. Raises UsageError if it can't be cloned."""
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    for mount in read_mounts():
        if mount.device == device and mount.kind == FILESYSTEM_TYPE and is_pool_name(mount.source):
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{source} is not a regular file")
            if found.st_ino >> INODE_NUMBER_BITS:
                raise UsageError(
                    f"{source} is in a snapshot, whose files can't be cloned: copy it with cp"
                )
            return mount.source
    raise UsageError(f"{source} is not in a mounted dwfs pool: copy it with cp")


def _check_reach(directories: Directories, pool: str) -> None:
    """Raise DwfsError if the pool's owner can't be asked, or would not answer us."""
    path = directories.control_socket(pool)
    try:
        path.stat()
        refused = not os.access(path, os.W_OK)
    except PermissionError:
        refused = True
    except OSError as error:
        raise UsageError(
            f"pool {pool} is mounted, but not from here ({path}: {error.strerror}): is DWFS_ROOT as it "
            "was for 'dwfs mount'?"
        ) from None
    if refused:
        raise DwfsError(
            f"only root and the user who mounted pool {pool} may clone in it: copy the file with cp"
        )


def _check_target(source: Path, found: os.stat_result, target: Path, *, force: bool) -> None:
    try:
        there = target.lstat()
    except FileNotFoundError:
        return
    if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
        raise UsageError(f"{source} and {target} are the same file")
    if stat.S_ISDIR(there.st_mode):
        raise UsageError(f"{target} is a directory, which no file can replace")
    if not force:
        raise _there_already(target)


def _there_already(target: Path) -> UsageError:
    return UsageError(f"{target} exists already: take another name, or give --force to replace it")


def _bring_in(handle: int, source: Path) -> None:
    """Have the kernel hand over what it holds of the file, of which the pool's owner knows nothing."""
    try:
        os.fsync(handle)
    except OSError as error:
        raise _named(error, source) from None


def _clone(
    directories: Directories,
    pool: str,
    source: int,
    directory: int,
    target: Path,
    *,
    force: bool,
    quiet: bool,
) -> CloneAnswer:
    found = os.fstat(source)
    temporary = f"{CLONE_NAME_PREFIX}{secrets.token_hex(16)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(temporary, flags, stat.S_IMODE(found.st_mode) & 0o777, dir_fd=directory)
    except OSError as error:
        raise _named(error, target) from None
    line = ProgressLine("cloning", quiet=quiet)
    try:
        os.ftruncate(handle, found.st_size)
        raw = ask_owner(
            directories,
            pool,
            "file.clone",
            {
                "source": found.st_ino,
                "directory": os.fstat(directory).st_ino,
                "name": temporary,
            },
            timeout_seconds=_SILENCE_SECONDS,
            on_progress=line.show,
        )
        answer = msgspec.json.decode(raw, type=CloneAnswer)
        # An indexer, say, may have read the new file before it had its bytes.
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.utime(handle)
        _give_name(directory, temporary, target, force=force)
    except BaseException as error:  # whatever it was, no half-made file stays; it is raised on
        with contextlib.suppress(OSError):  # the owner has ended: the first failure tells more
            os.unlink(temporary, dir_fd=directory)
        if isinstance(error, OSError) and not isinstance(error.filename, str):
            raise _named(error, target) from None
        raise
    finally:
        line.close()
        _close(handle)
    return answer


def _give_name(directory: int, temporary: str, target: Path, *, force: bool) -> None:
    """renameat2(2), which Python lacks: it can refuse to overwrite."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = 0 if force else _RENAME_NOREPLACE
    if libc.renameat2(directory, temporary.encode(), directory, os.fsencode(target.name), flags):
        code = ctypes.get_errno()
        if code == errno.EEXIST and not force:
            raise _there_already(target)
        raise OSError(code, os.strerror(code), str(target))


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # nothing was written through it that could be lost
        os.close(descriptor)


def _named(error: OSError, path: Path) -> OSError:
    """The same failure, told of the name that the user knows."""
    return OSError(error.errno, error.strerror, str(path))

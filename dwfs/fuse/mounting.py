"""mount(2), umount(2) and what surrounds them.

As root we call mount(2) ourselves and hand the open `/dev/fuse` to libfuse as `/dev/fd/N`, which it
supports for unprivileged containers. That gives what libfuse's own mount can't:

* `MS_POSIXACL`, without which the kernel applies the umask before it sends a mode, and default ACLs,
  which take the umask's place, come out wrong;
* the type `fuse.dwfs`, which mount(8), umount(8) and fstab agree on;
* errors that say what happened.

Others go through libfuse and the set-uid `fusermount3`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dwfs.errors import DwfsError, PoolBusyError, UnsupportedSystemError, UsageError
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, Mount, mount_at
from dwfs.fuse.options import MountOptions

DEVICE: Final = Path("/dev/fuse")
READ_AHEAD_KIB: Final = 4096  # one stripe: the kernel asks for as much as a disk gives in one seek

_MS_RDONLY: Final = 1  # linux/mount.h
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_SYNCHRONOUS: Final = 16
_MS_REMOUNT: Final = 32
_MS_DIRSYNC: Final = 128
_MS_NOATIME: Final = 1 << 10
_MS_NODIRATIME: Final = 1 << 11
_MS_POSIXACL: Final = 1 << 16
_MS_RELATIME: Final = 1 << 21
_MS_STRICTATIME: Final = 1 << 24
_MNT_DETACH: Final = 2

_ACCESS_FLAGS: Final = {
    "relatime": _MS_RELATIME,
    "noatime": _MS_NOATIME | _MS_NODIRATIME,
    "strictatime": _MS_STRICTATIME,
}
_SEARCH_PATH: Final = os.pathsep.join(("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"))


def check_mount_point(directory: str) -> str:
    """The directory's absolute, resolved path, if something can be mounted there.

    A mount of ours whose process has died is removed first. Raises UsageError, PoolBusyError.
    """
    # Only the parent is resolved at first: looking at a dead mount itself fails with ENOTCONN.
    absolute = os.path.abspath(directory)
    path = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    mount = mount_at(path)
    if mount is not None and mount.kind == FILESYSTEM_TYPE:
        if _is_alive(path):
            raise PoolBusyError(
                f"pool {mount.source!r} is mounted at {directory} already; "
                f"choose another directory or run 'dwfs umount {directory}'"
            )
        unmount(path, lazy=True)
    try:
        resolved = os.path.realpath(path, strict=True)
        mode = os.stat(resolved).st_mode
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise UsageError(f"can't mount at {directory}: {reason}; create the directory") from error
    if not stat.S_ISDIR(mode):
        raise UsageError(f"can't mount at {directory}: it is not a directory")
    return resolved


def check_system() -> None:
    """Raise UnsupportedSystemError unless this process can make FUSE mounts."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = {
            errno.ENOENT: "load the kernel module ('modprobe fuse') or, in a container, "
            "pass the device in (--device /dev/fuse)",
            errno.ENODEV: "load the kernel module ('modprobe fuse')",
            errno.ENXIO: "load the kernel module ('modprobe fuse')",
        }.get(error.errno or 0, "run as root or give this user access to the device")
        reason = os.strerror(error.errno or errno.EIO)
        raise UnsupportedSystemError(f"can't open {DEVICE}: {reason}; {hint}") from error
    if os.geteuid() != 0 and shutil.which("fusermount3", path=_SEARCH_PATH) is None:
        raise UnsupportedSystemError(
            "fusermount3 is not installed; install the package fuse3 or run as root"
        )


def mount(directory: str, source: str, options: MountOptions) -> int:
    """As root: make the mount; returns the descriptor through which its requests come."""
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        data = f"fd={descriptor},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
        data += ",default_permissions"
        if options.allow_other is not False:
            data += ",allow_other"
        flags = _flags(options) | _MS_POSIXACL
        _call_mount(directory, source, flags, data, f"can't mount at {directory}")
    except BaseException:  # whatever it was, nobody else closes the descriptor
        os.close(descriptor)
        raise
    return descriptor


def libfuse_options(source: str, options: MountOptions) -> set[str]:
    """For others than root: the same as options of libfuse, for `pyfuse3.init`."""
    words = {f"fsname={source}", "subtype=dwfs", "default_permissions"}
    words.add("ro" if options.read_only else "rw")
    if not options.exec:
        words.add("noexec")
    if options.synchronous:
        words.add("sync")
    if options.directory_synchronous:
        words.add("dirsync")
    if options.access_time == "noatime":
        words.add("noatime")
    if options.allow_other:
        words.add("allow_other")
    return words


def remount(directory: str, options: MountOptions) -> None:
    """`-o remount,…`: change those flags of a mount that were given, keep the others."""
    path = os.path.realpath(directory)
    present = mount_at(path)
    if present is None or present.kind != FILESYSTEM_TYPE:
        raise UsageError(f"can't remount {directory}: no pool is mounted there")
    refused = options.given & {"allow_other", "fsname", "passphrase_file", "keyfile"}
    if "allow_other" in present.super_options:
        refused -= {"allow_other"}  # mount(8) repeats what is in force
    if refused:
        raise UsageError(
            f"mount option {min(refused)} can't change with a remount; "
            f"run 'dwfs umount {directory}' and mount again"
        )
    if os.geteuid() != 0:
        raise UsageError(f"can't remount {directory}: only root may")
    flags = _flags(_merged(present, options)) | _MS_REMOUNT
    _call_mount(path, present.source, flags, "", f"can't remount {directory}")


def unmount(directory: str, *, lazy: bool = False) -> None:
    """Detach a mount; `lazy`: even if it is in use. Blocks while the kernel writes back.

    Raises PoolBusyError if it is in use, DwfsError if it can't be detached for another reason. Call it
    in a worker thread if this process answers the mount's requests.
    """
    if os.geteuid() != 0:
        program = shutil.which("fusermount3", path=_SEARCH_PATH) or "fusermount3"
        command = [program, "-u", *(["-z"] if lazy else []), "--", directory]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # a fixed program, no shell
        if result.returncode == 0 or mount_at(directory) is None:  # None: somebody was faster
            return
        reason = result.stderr.strip() or f"{program} ended with code {result.returncode}"
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.umount2(os.fsencode(directory), _MNT_DETACH if lazy else 0)
        code = ctypes.get_errno() if failed else 0
        if code in (0, errno.EINVAL):  # EINVAL: not a mount point, so somebody was faster
            return
        reason = os.strerror(code)
    if os.strerror(errno.EBUSY) in reason:  # fusermount3 says the same words, in any locale
        raise PoolBusyError(
            f"{directory} is in use: close what uses it (fuser -vm {directory}) or unmount lazily"
        )
    raise DwfsError(f"can't unmount {directory}: {reason}")


def write_back(directory: str, on_start: Callable[[int], None] | None = None) -> None:
    """syncfs(2): have the kernel send all that it holds for the mount. Blocks; see `unmount`.

    A child does it; `on_start` is told its process id before it touches the mount. A thread of the
    process that has to answer would wait where no signal reaches it, and keep `/dev/fuse` open: killed
    just then, that process would never end, and nobody be told that the mount is dead. Raises OSError.
    """
    with subprocess.Popen(  # noqa: S603  # a fixed script; the directory is an argument of it
        ["/bin/sh", "-c", 'read -r line && exec sync -f "$0"', directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": _SEARCH_PATH},
        text=True,
    ) as child:
        if on_start is not None:
            on_start(child.pid)
        _, complaint = child.communicate("go\n")
    if child.returncode != 0:
        raise OSError(
            errno.EIO, complaint.strip() or f"sync ended with {child.returncode}", directory
        )


def raise_read_ahead(directory: str) -> bool:
    """Let the kernel read further ahead than 128 KiB. False where that is not permitted."""
    present = mount_at(directory)
    if present is None:
        return False
    knob = Path("/sys/class/bdi") / present.device / "read_ahead_kb"
    try:
        knob.write_text(str(READ_AHEAD_KIB))
    except OSError:  # not root, or no sysfs in this container: slower, not wrong
        return False
    return True


def _is_alive(directory: str) -> bool:
    """Whether a FUSE mount's process still answers, as its connection's state tells."""
    try:
        os.statvfs(directory)  # stat(2) may be answered from the kernel's cache
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def _flags(options: MountOptions) -> int:
    flags = _ACCESS_FLAGS[options.access_time]
    for wanted, flag in (
        (options.read_only, _MS_RDONLY),
        (options.dev is False, _MS_NODEV),
        (options.suid is False, _MS_NOSUID),
        (not options.exec, _MS_NOEXEC),
        (options.synchronous, _MS_SYNCHRONOUS),
        (options.directory_synchronous, _MS_DIRSYNC),
    ):
        if wanted:
            flags |= flag
    return flags


def _merged(present: Mount, changes: MountOptions) -> MountOptions:
    """The mount's flags as they are, overridden by those that were given."""
    words = present.options
    fields: dict[str, object] = {
        "read_only": "ro" in words or "ro" in present.super_options,
        "dev": "nodev" not in words,
        "suid": "nosuid" not in words,
        "exec": "noexec" not in words,
        "synchronous": "sync" in present.super_options,
        "directory_synchronous": "dirsync" in present.super_options,
        "access_time": "noatime"
        if "noatime" in words
        else "relatime"
        if "relatime" in words
        else "strictatime",
    }
    fields.update((name, getattr(changes, name)) for name in changes.given if name in fields)
    return MountOptions(**fields)  # type: ignore[arg-type]  # names and types are those above


def _call_mount(directory: str, source: str, flags: int, data: str, failed: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    code = libc.mount(
        os.fsencode(source),
        os.fsencode(directory),
        FILESYSTEM_TYPE.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )
    if not code:
        return
    code = ctypes.get_errno()
    reason = os.strerror(code)
    if code == errno.EBUSY:
        raise PoolBusyError(f"{failed}: the directory is in use; close what uses it")
    if code == errno.ENODEV:
        raise UnsupportedSystemError(f"{failed}: the kernel lacks FUSE; run 'modprobe fuse'")
    if code == errno.EPERM:
        raise UnsupportedSystemError(
            f"{failed}: {reason}; in a container, mounting needs --cap-add SYS_ADMIN"
        )
    raise UsageError(f"{failed}: {reason}")

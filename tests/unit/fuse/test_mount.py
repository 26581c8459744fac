"""A real mount: what the kernel and the adapter do together."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dwfs.errors import PoolBusyError, UsageError
from dwfs.fuse import check_mount_point, parse_mount_options, remount, unmount
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, mount_at

pytestmark = pytest.mark.needs_root

REPOSITORY = Path(__file__).parents[3]
NOREPLACE, EXCHANGE = 1, 2


class Server:
    """A serving process and its mount point."""

    def __init__(self, base: Path, options: str = "") -> None:
        self.point = base / "mount point"
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.point)
        state = base / f"state {time.monotonic_ns()}"
        state.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.fuse.serve_small_pool", state, self.point, options],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            _, complaint = self.process.communicate()
            pytest.fail(f"the mount was not made: {complaint}")

    def finish(self) -> str:
        """Unmount; returns what the process printed at its end."""
        if mount_at(str(self.point)) is not None:
            unmount(str(self.point))
        output, complaint = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, complaint
        return output


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            if mount_at(str(server.point)) is not None:
                unmount(str(server.point), lazy=True)
            server.process.communicate(timeout=20)


@pytest.fixture
def point(server: Server) -> Path:
    return server.point


def as_user(uid: int, directory: Path, action: Callable[[], None]) -> int:
    """Run `action` in a child without privilege; its errno, 0 if it succeeded.

    It works in `directory`, because pytest's own directories are closed to others.
    """
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def drop_caches() -> None:
    """Make the kernel forget, so that what follows asks the filesystem."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def rename2(source: Path, target: Path, flags: int) -> None:
    """renameat2(2), which Python lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_a_clean_session(server: Server) -> None:
    mount = mount_at(str(server.point))
    assert mount is not None
    assert (mount.kind, mount.source) == (FILESYSTEM_TYPE, "small pool")
    assert {"rw", "relatime"} <= set(mount.options)
    assert not {"nodev", "nosuid"} & set(mount.options)
    read_ahead = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").read_text()
    assert int(read_ahead) == 4096
    (server.point / "f").write_bytes(b"x")
    (server.point / "f").unlink()
    assert {"unforeseen=0", "handles=0", "orphans=0"} <= set(server.finish().split())
    assert mount_at(str(server.point)) is None


def test_contents_survive_the_kernels_cache(point: Path) -> None:
    content = os.urandom(3_000_001)
    (point / "f").write_bytes(content)
    drop_caches()
    assert (point / "f").read_bytes() == content
    with (point / "f").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"patched")
        os.fsync(file.fileno())
    drop_caches()
    expected = content[:1_000_000] + b"patched" + content[1_000_007:]
    assert (point / "f").read_bytes() == expected


def test_mappings(point: Path) -> None:
    path = point / "f"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as shared:
            shared[50_000:50_006] = b"shared"
            shared.flush()
        with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as private:
            private[0:7] = b"private"
    drop_caches()
    assert path.read_bytes() == bytes(50_000) + b"shared" + bytes(49_994)


def test_direct_and_synchronous_opens(point: Path) -> None:
    path = point / "f"
    block = mmap.mmap(-1, 8192)
    block.write(b"d" * 8192)
    flags = os.O_CREAT | os.O_RDWR | os.O_DIRECT | os.O_SYNC
    descriptor = os.open(path, flags)
    assert os.pwrite(descriptor, block, 4096) == 8192
    into = mmap.mmap(-1, 8192)
    assert os.preadv(descriptor, [into], 4096) == 8192
    assert into[:] == b"d" * 8192
    with mmap.mmap(descriptor, 4096, mmap.MAP_SHARED) as mapping:
        assert mapping[:] == bytes(4096)
    os.close(descriptor)
    assert path.read_bytes() == bytes(4096) + b"d" * 8192


def test_appends(point: Path) -> None:
    path = point / "f"
    first, second = (os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for descriptor in (first, second, first):
        os.write(descriptor, b"%d" % descriptor)
    os.close(first)
    os.close(second)
    assert path.read_bytes() == b"%d%d%d" % (first, second, first)


def test_times_are_kept_to_the_nanosecond(point: Path) -> None:
    path = point / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(-1_500_000_001, 1_234_567_890_123_456_789))
    drop_caches()
    status = path.stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (-1_500_000_001, 1_234_567_890_123_456_789)


def test_the_kernels_mtime_is_kept(point: Path) -> None:
    path = point / "f"
    path.write_bytes(bytes(100_000))
    before = path.stat().st_mtime_ns
    drop_caches()
    assert path.stat().st_mtime_ns == before


def test_emptying_a_file_sets_the_time_that_the_kernel_shows(point: Path) -> None:
    path = point / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, 1))
    drop_caches()
    start = time.time_ns()
    path.open("wb").close()
    first = path.stat()
    assert first.st_mtime_ns > start - 100_000_000
    drop_caches()
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    for _ in range(20):  # within a tick of the kernel's clock
        path.write_bytes(b"y")
    shown = path.stat()
    drop_caches()
    stored = path.stat()
    assert (stored.st_mtime_ns, stored.st_ctime_ns) == (shown.st_mtime_ns, shown.st_ctime_ns)
    assert stored.st_mtime_ns >= first.st_mtime_ns


def test_unlinked_open_files(server: Server) -> None:
    path = server.point / "f"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"still here")
    path.unlink()
    drop_caches()
    assert os.pread(descriptor, 100, 0) == b"still here"
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    assert "orphans=0" in server.finish()


def test_rename_flags(point: Path) -> None:
    (point / "a").write_text("a")
    (point / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename2(point / "a", point / "b", NOREPLACE)
    rename2(point / "a", point / "b", EXCHANGE)
    assert (point / "a").read_text() == "b"
    (point / "a").rename(point / "b")
    assert os.listdir(point) == ["b"]


def test_special_files(point: Path) -> None:
    os.mkfifo(point / "fifo")
    os.mknod(point / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.symlink(b"\xff" * 300, point / "link")
    drop_caches()
    assert stat.S_ISFIFO((point / "fifo").stat().st_mode)
    assert (point / "null").read_bytes() == b""
    assert os.readlink(os.fsencode(point / "link")) == b"\xff" * 300


def test_the_umask_and_the_default_list(point: Path) -> None:
    old = os.umask(0o077)
    try:
        (point / "plain").mkdir()
        (point / "shared").mkdir()
        # u::rwx, u:1000:rwx, g::r-x, m::rwx, o::r-x
        entries = [(1, 7, -1), (2, 7, 1000), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
        value = struct.pack("<I", 2)
        value += b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(point / "shared", "system.posix_acl_default", value)
        (point / "plain" / "f").touch(0o666)
        (point / "shared" / "f").touch(0o666)
        (point / "shared" / "d").mkdir()
    finally:
        os.umask(old)
    modes = {
        str(path.relative_to(point)): stat.S_IMODE(path.stat().st_mode) for path in point.rglob("*")
    }
    assert modes["plain"] == 0o700
    assert modes["plain/f"] == 0o600
    assert modes["shared/f"] == 0o664
    assert modes["shared/d"] == 0o775
    assert os.listxattr(point / "shared/f") == ["system.posix_acl_access"]


def test_lists_are_enforced(point: Path) -> None:
    path = point / "f"
    path.write_text("x")
    path.chmod(0o600)
    point.chmod(0o755)

    def read() -> None:
        Path("f").open().close()

    assert as_user(1000, point, read) == errno.EACCES
    entries = [(1, 6, -1), (2, 4, 1000), (4, 0, -1), (16, 4, -1), (32, 0, -1)]
    value = struct.pack("<I", 2)
    value += b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", value)
    assert as_user(1000, point, read) == 0
    assert as_user(1001, point, read) == errno.EACCES
    path.chmod(0o600)  # the mask goes, and with it what it granted
    assert as_user(1000, point, read) == errno.EACCES


def test_set_user_id_is_cleared_by_others_only(point: Path) -> None:
    point.chmod(0o755)
    paths = {name: point / name for name in ("write", "truncate", "open", "root")}
    for path in paths.values():
        path.write_text("content")
        path.chmod(0o6777)

    def write() -> None:
        with Path("write").open("r+b") as file:
            file.write(b"x")

    def open_truncating() -> None:
        Path("open").open("wb").close()

    assert as_user(1000, point, write) == 0
    assert as_user(1000, point, lambda: os.truncate("truncate", 1)) == 0
    assert as_user(1000, point, open_truncating) == 0
    with paths["root"].open("r+b") as file:
        file.write(b"x")
    for _ in range(2):  # what the kernel has cached, and what we have stored
        modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in paths.items()}
        assert modes == {"write": 0o777, "truncate": 0o777, "open": 0o777, "root": 0o6777}
        drop_caches()


def test_capabilities_are_lost_by_writing(point: Path) -> None:
    path = point / "f"
    path.write_bytes(b"x")
    value = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)
    os.setxattr(path, "security.capability", value)
    with path.open("r+b") as file:
        file.write(b"y")
    assert "security.capability" not in os.listxattr(path)


def test_long_listings(point: Path) -> None:
    names = {f"name {number:05}" for number in range(3000)}
    for name in names:
        (point / name).touch()
    assert set(os.listdir(point)) == names
    drop_caches()
    with os.scandir(point) as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    assert set(listed) == names
    assert (point / "name 00042").stat().st_ino == listed["name 00042"]
    for name in names:
        (point / name).unlink()
    assert os.listdir(point) == []


def test_statfs(point: Path) -> None:
    status = os.statvfs(point)
    assert (status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize) == (
        1 << 30,
        1 << 29,
    )
    assert status.f_namemax == 255


def test_a_bug_is_an_error_and_no_more(server: Server) -> None:
    os.symlink("raise", server.point / "cursed")
    os.symlink("fine", server.point / "blessed")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            os.readlink(server.point / "cursed")
        assert caught.value.errno == errno.EIO
    assert os.readlink(server.point / "blessed") == "fine"
    assert "unforeseen=2" in server.finish()


def test_remount(point: Path) -> None:
    (point / "f").write_text("x")
    remount(str(point), parse_mount_options("remount,ro,noexec"))
    with pytest.raises(OSError) as caught:
        (point / "f").write_text("y")
    assert caught.value.errno == errno.EROFS
    mount = mount_at(str(point))
    assert mount is not None
    assert {"ro", "noexec", "relatime"} <= set(mount.options)
    remount(str(point), parse_mount_options("remount,rw"))
    (point / "f").write_text("y")
    mount = mount_at(str(point))
    assert mount is not None
    assert "noexec" in mount.options
    with pytest.raises(UsageError, match="keyfile"):
        remount(str(point), parse_mount_options("remount,keyfile=/k"))


def test_options_reach_the_kernel(tmp_path: Path) -> None:
    server = Server(tmp_path, "nodev,nosuid,noatime,ro")
    mount = mount_at(str(server.point))
    assert mount is not None
    assert {"nodev", "nosuid", "noatime", "ro"} <= set(mount.options)
    with pytest.raises(OSError):
        (server.point / "f").touch()
    server.finish()


def test_a_busy_mount_point(server: Server) -> None:
    with pytest.raises(PoolBusyError, match="small pool"):
        check_mount_point(str(server.point))
    with (server.point / "f").open("w"), pytest.raises(PoolBusyError, match="in use"):
        unmount(str(server.point))


def test_mount_points_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        check_mount_point(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="create the directory"):
        check_mount_point(str(tmp_path / "absent"))


def test_a_signal_unmounts_with_open_files(server: Server) -> None:
    descriptor = os.open(server.point / "f", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"written back at the end")
    server.process.send_signal(signal.SIGTERM)
    output, complaint = server.process.communicate(timeout=20)
    with contextlib.suppress(OSError):  # nobody answers the file any more
        os.close(descriptor)
    assert server.process.returncode == 0, complaint
    assert {"unforeseen=0", "bytes=23"} <= set(output.split())
    assert mount_at(str(server.point)) is None


def test_a_dead_mount_is_cleared_away(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.process.kill()
    server.process.communicate()
    with pytest.raises(OSError) as caught:
        os.stat(server.point)
    assert caught.value.errno == errno.ENOTCONN
    Server(tmp_path).finish()

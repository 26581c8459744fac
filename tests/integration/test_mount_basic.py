"""Names, kinds of files, and attributes on a real mount."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.integration.pools import Pool

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(source: Path, target: Path, flags: int) -> None:
    """The system call, which Python doesn't offer."""
    result = _libc.renameat2(AT_FDCWD, bytes(source), AT_FDCWD, bytes(target), ctypes.c_uint(flags))
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def test_hard_links(folder: Path) -> None:
    (folder / "a").write_text("one")
    os.link(folder / "a", folder / "b")
    assert (folder / "a").stat().st_ino == (folder / "b").stat().st_ino
    assert (folder / "b").stat().st_nlink == 2
    (folder / "a").unlink()
    assert (folder / "b").read_text() == "one"
    assert (folder / "b").stat().st_nlink == 1
    with pytest.raises(PermissionError):
        os.link(folder, folder.parent / "link-to-a-directory")


def test_symbolic_links(folder: Path) -> None:
    target = "x" * 4000
    (folder / "link").symlink_to(target)
    assert os.readlink(folder / "link") == target
    assert (folder / "link").lstat().st_size == 4000
    (folder / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        (folder / "loop").stat()


def test_fifos_and_sockets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "fifo", 0o600)
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    writer = threading.Thread(target=(folder / "fifo").write_bytes, args=(b"through",))
    writer.start()
    assert (folder / "fifo").read_bytes() == b"through"
    writer.join()
    monkeypatch.chdir(folder)  # socket addresses are short
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        assert stat.S_ISSOCK((folder / "socket").stat().st_mode)


@pytest.mark.needs_root
def test_device_nodes(folder: Path) -> None:
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (folder / "null").stat().st_rdev == os.makedev(1, 3)
    (folder / "null").write_bytes(b"gone")
    assert (folder / "null").read_bytes() == b""
    os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    assert stat.S_ISBLK((folder / "block").stat().st_mode)
    assert (folder / "block").stat().st_rdev == os.makedev(7, 300)


def test_rename_flags(folder: Path) -> None:
    (folder / "a").write_text("a")
    (folder / "b").mkdir()
    (folder / "b/inside").write_text("i")
    with pytest.raises(FileExistsError):
        renameat2(folder / "a", folder / "b", RENAME_NOREPLACE)
    renameat2(folder / "a", folder / "b", RENAME_EXCHANGE)
    assert (folder / "b").read_text() == "a"
    assert (folder / "a/inside").read_text() == "i"
    renameat2(folder / "b", folder / "c", RENAME_NOREPLACE)
    assert sorted(os.listdir(folder)) == ["a", "c"]
    with pytest.raises(OSError, match="Invalid argument"):
        os.rename(folder / "a", folder / "a/below-itself")


def test_rename_replaces(folder: Path) -> None:
    (folder / "new").write_text("new")
    (folder / "old").write_text("old")
    with (folder / "old").open() as reader:
        os.rename(folder / "new", folder / "old")
        assert reader.read() == "old"
    assert (folder / "old").read_text() == "new"
    (folder / "d1").mkdir()
    (folder / "d2").mkdir()
    (folder / "d2/full").touch()
    with pytest.raises(OSError) as caught:  # the errno is looked at below
        os.rename(folder / "d1", folder / "d2")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)


def test_unlinked_file_lives_while_open(folder: Path) -> None:
    with (folder / "f").open("w+b") as file:
        file.write(b"first" * 10_000)
        (folder / "f").unlink()
        assert os.listdir(folder) == []
        file.write(b"second")
        file.seek(0)
        assert file.read() == b"first" * 10_000 + b"second"
        assert os.fstat(file.fileno()).st_nlink == 0


@pytest.mark.parametrize(
    "name", [b"\xff\xfe\x80", b"a" * 255, b"\n\t ", bytes(range(1, 47)), "żółw".encode()]
)
def test_names_of_any_bytes(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "xb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(folder)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name
    with pytest.raises(OSError, match="too long"):
        open(path + b"x" * (256 - len(name)), "xb").close()


def test_deep_paths(folder: Path) -> None:
    depth = 200
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper-and-deeper-and-deeper", dir_fd=descriptor)
        below = os.open("deeper-and-deeper-and-deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    name = "at-the-bottom"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    assert os.listdir(descriptor) == [name]
    os.close(descriptor)
    assert sum(1 for _ in os.fwalk(folder)) == depth + 1  # its paths exceed PATH_MAX


def test_large_directory_under_change(folder: Path, long: bool, seed: int) -> None:
    count = 200_000 if long else 20_000
    lasting = {f"lasting-{number}" for number in range(count)}
    for name in lasting:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
    stop = threading.Event()

    def churn() -> None:
        """Create and remove other names while the directory is being read."""
        random_source = random.Random(seed)
        while not stop.is_set():
            name = folder / f"passing-{random_source.randrange(1000)}"
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
            os.unlink(name)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(3):
            seen = os.listdir(folder)
            kept = [name for name in seen if name.startswith("lasting-")]
            assert len(kept) == len(set(kept)), "a name was listed twice"
            assert set(kept) == lasting, "a lasting name was missed"
    finally:
        stop.set()
        thread.join()


def test_set_id_bits_are_cleared(folder: Path) -> None:
    path = folder / "program"
    path.write_bytes(b"x")
    path.chmod(0o6755)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755
    if os.geteuid() == 0:
        os.chown(path, 1234, 1234)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        path.chmod(0o6777)
        subprocess.run(  # an unprivileged writer takes the bits away
            [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "sh",
                "-c",
                f"echo y >> {path}",
            ],
            check=True,
        )
        assert stat.S_IMODE(path.stat().st_mode) & (stat.S_ISUID | stat.S_ISGID) == 0
    else:
        with path.open("ab") as file:
            file.write(b"y")
        assert stat.S_IMODE(path.stat().st_mode) & stat.S_ISUID == 0


def test_sticky_and_set_group_directories(folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o3777)
    assert stat.S_IMODE((folder / "shared").stat().st_mode) == 0o3777
    if os.geteuid() != 0:
        return
    os.chown(folder / "shared", 0, 4321)
    (folder / "shared").chmod(0o3777)
    (folder / "shared/mine").write_text("root's")
    assert (folder / "shared/mine").stat().st_gid == 4321
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run([*as_nobody, "rm", "-f", folder / "shared/mine"], capture_output=True)
    assert done.returncode != 0
    assert (folder / "shared/mine").exists()


@pytest.mark.needs_root
def test_supplementary_groups(folder: Path) -> None:
    path = folder / "for-the-group"
    path.write_text("shared")
    os.chown(path, 0, 5555)
    path.chmod(0o640)
    base = ["setpriv", "--reuid=65534", "--regid=65534"]
    member = subprocess.run([*base, "--groups=5555", "cat", path], capture_output=True)
    stranger = subprocess.run([*base, "--clear-groups", "cat", path], capture_output=True)
    assert member.stdout == b"shared"
    assert stranger.returncode != 0


def test_times_in_nanoseconds(folder: Path, shared_pool: Pool) -> None:
    path = folder / "f"
    path.touch()
    accessed, modified = 1_234_567_890_123_456_789, -5_000_000_001
    os.utime(path, ns=(accessed, modified))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (accessed, modified)
    before = path.stat().st_ctime_ns
    time.sleep(0.02)  # the kernel's own clock for files ticks in steps of some milliseconds
    path.chmod(0o600)
    assert path.stat().st_ctime_ns > before
    assert path.stat().st_mtime_ns == modified
    (folder / "link").symlink_to("f")
    os.utime(folder / "link", ns=(7, 9), follow_symlinks=False)
    assert (folder / "link").lstat().st_mtime_ns == 9
    assert path.stat().st_mtime_ns == modified


def test_extended_attributes(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    values = {"user.empty": b"", "user.binary": bytes(range(256)), "user.large": b"v" * 60_000}
    if os.geteuid() == 0:
        values |= {"trusted.secret": b"t", "security.dwfs-test": b"s"}
    for name, value in values.items():
        os.setxattr(path, name, value)
    assert set(os.listxattr(path)) >= set(values)
    assert {name: os.getxattr(path, name) for name in values} == values
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.empty", b"x", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data"):
        os.setxattr(path, "user.absent", b"x", os.XATTR_REPLACE)
    os.removexattr(path, "user.large")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.large")


@pytest.mark.needs_program("setfacl")
def test_access_control_lists(folder: Path) -> None:
    def acl(path: Path) -> list[str]:
        done = subprocess.run(
            ["getfacl", "--omit-header", "--absolute-names", "-n", path],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    path = folder / "f"
    path.touch()
    path.chmod(0o640)
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:4321:r", path], check=True)
    assert {"user:1234:rw-", "group:4321:r--", "mask::rw-"} <= set(acl(path))
    path.chmod(0o600)  # chmod sets the mask
    assert "mask::---" in acl(path)
    (folder / "d").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", folder / "d"], check=True)
    (folder / "d/child").touch()
    assert "user:1234:rwx" in acl(folder / "d/child")
    (folder / "d/below").mkdir()
    assert "default:user:1234:rwx" in acl(folder / "d/below")
    subprocess.run(["setfacl", "-b", path], check=True)
    assert not [line for line in acl(path) if "1234" in line]

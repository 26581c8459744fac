"""Snapshots on a real mount: what the kernel and programs make of them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dwfs.fuse import unmount
from dwfs.fuse.mountinfo import mount_at
from dwfs.limits import SNAPSHOT_NAME_CACHE_SECONDS
from tests.unit.fuse.test_mount import REPOSITORY, as_user, drop_caches

pytestmark = pytest.mark.needs_root


class Server:
    """A serving process that takes and destroys snapshots when it is told."""

    def __init__(self, base: Path) -> None:
        self.point = base / "mount"
        self.point.mkdir()
        state = base / "state"
        state.mkdir()
        module = "tests.unit.fuse.serve_small_pool"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, state, self.point, "", "commands"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")

    def tell(self, command: str) -> None:
        """Have a command done. What was written is there: closing a file writes it back."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        self._expect("done")

    def take(self, name: str) -> Path:
        """Take a snapshot; where it is to be seen."""
        self.tell(f"take {name}")
        return self.point / ".snapshots" / name

    def finish(self) -> str:
        """Unmount; returns what the process printed at its end."""
        if mount_at(str(self.point)) is not None:
            unmount(str(self.point))
        output, complaint = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, complaint
        return output

    def _expect(self, answer: str) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != f"{answer}\n":
            self.process.kill()
            _, complaint = self.process.communicate()
            pytest.fail(f"no {answer!r}: {complaint}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        yield server
        assert {"unforeseen=0", "orphans=0"} <= set(server.finish().split())
    finally:
        if server.process.poll() is None:
            if mount_at(str(server.point)) is not None:
                unmount(str(server.point), lazy=True)
            server.process.communicate(timeout=20)


@pytest.fixture
def point(server: Server) -> Path:
    return server.point


def errno_of(path: Path, flags: int = os.O_RDONLY) -> int:
    """The errno with which open(2) fails, 0 if it succeeds."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.errno or -1
    return 0


def run(*words: str | Path) -> str:
    """The output of a program that must succeed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def compare(left: Path, right: Path) -> None:
    """Fail unless both trees hold the same; diff can't compare fifos."""
    run("diff", "-r", "--no-dereference", "-x", "fifo", left, right)
    assert stat.S_ISFIFO((right / "fifo").stat().st_mode)


def plant(top: Path) -> None:
    """A tree with something of every kind."""
    (top / "sub" / "deep").mkdir(parents=True)
    for number in range(300):
        (top / "sub" / f"file {number}").write_bytes(b"%d" % number * number)
    (top / "big").write_bytes(os.urandom(700_000))
    os.link(top / "big", top / "sub" / "deep" / "same")
    os.symlink("big", top / "link")
    os.mkfifo(top / "fifo")
    (top / "program").write_text("#!/bin/sh\necho was\n")
    (top / "program").chmod(0o755)
    os.setxattr(top / "big", "user.colour", b"blue")
    with (top / "sparse").open("wb") as file:
        file.seek(500_000)
        file.write(b"end")


def test_programs_find_what_was(server: Server, tmp_path: Path) -> None:
    point = server.point
    plant(point)
    copy = tmp_path / "copy"
    run("cp", "-a", point, copy)
    view = server.take("s")
    run("rm", "-r", *point.iterdir())
    (point / "big").write_bytes(b"another")

    compare(copy, view)
    restored = tmp_path / "restored"
    run("cp", "-a", view, restored)
    compare(copy, restored)
    for path in (view / "big", restored / "big"):
        assert path.stat().st_nlink == 2
        assert os.getxattr(path, "user.colour") == b"blue"
    assert (view / "big").samefile(view / "sub" / "deep" / "same")
    assert not (view / "big").samefile(point / "big")
    assert run(view / "program") == "was\n"
    assert len(run("find", view).splitlines()) == len(run("find", copy).splitlines())
    usage = [int(run("du", "-sk", "--apparent-size", top).split()[0]) for top in (copy, view)]
    assert abs(usage[0] - usage[1]) < 100  # directories differ in size
    assert run("sh", "-c", f"cd {view}/sub/deep && pwd -P && cd ../../../.. && pwd -P").split() == [
        str(view / "sub" / "deep"),
        str(point),
    ]
    with (view / "big").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapping:
            assert mapping[:] == (copy / "big").read_bytes()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:100] == (copy / "big").read_bytes()[:100]
    assert os.statvfs(view).f_blocks == os.statvfs(point).f_blocks


def test_hidden_until_it_is_shown(server: Server) -> None:
    point = server.point
    (point / "f").touch()
    server.take("s")
    assert os.listdir(point) == ["f"]
    assert os.listdir(point / ".snapshots") == ["s"]
    assert len(run("find", point).splitlines()) == 2
    server.tell("show yes")
    assert sorted(os.listdir(point)) == [".snapshots", "f"]
    assert run("ls", point).split() == ["f"]
    assert len(run("find", point).splitlines()) == 5
    server.tell("show no")
    assert os.listdir(point) == ["f"]


def test_nothing_can_be_changed(server: Server) -> None:
    point = server.point
    plant(point)
    view = server.take("s")
    for path in (view / "new", view / "sub" / "new", view.parent / "new"):
        assert errno_of(path, os.O_CREAT | os.O_WRONLY) == errno.EROFS
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert errno_of(view / "big", flags) == errno.EROFS
    attempts: list[Callable[[], object]] = [
        (view / "new").mkdir,
        (view / "big").unlink,
        (view / "sub" / "deep").rmdir,
        lambda: (view / "big").rename(view / "other"),
        lambda: (view / "big").rename(point / "other"),
        lambda: (point / "big").rename(view / "other"),
        lambda: (view / "big").chmod(0o600),
        lambda: os.utime(view / "big"),
        lambda: os.setxattr(view / "big", "user.x", b""),
        lambda: os.truncate(view / "big", 0),
        view.rmdir,
        lambda: view.rename(point / "other"),
        view.parent.rmdir,
        lambda: view.parent.rename(point / "other"),
        (view.parent / "new").mkdir,
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError) as caught:
        os.link(view / "big", point / "linked")
    assert caught.value.errno == errno.EXDEV
    with pytest.raises(FileExistsError):
        view.parent.mkdir()


def test_permissions_are_those_of_then(server: Server) -> None:
    point = server.point
    point.chmod(0o755)
    (point / "secret").write_text("x")
    (point / "secret").chmod(0o600)
    view = server.take("s")
    (point / "secret").chmod(0o644)
    relative = Path(".snapshots") / "s" / "secret"
    assert as_user(1000, point, lambda: Path("secret").open().close()) == 0
    assert as_user(1000, point, lambda: relative.open().close()) == errno.EACCES
    assert stat.S_IMODE((view / "secret").stat().st_mode) == 0o600


def test_positions_in_a_listing(server: Server) -> None:
    point = server.point
    for number in range(1000):
        (point / f"name {number}").touch()
    view = server.take("s")
    run("rm", "-r", *point.iterdir())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long

    def name(entry: int) -> bytes:
        return ctypes.string_at(entry + 19)  # struct dirent: inode, offset, length, type, name

    stream = ctypes.c_void_p(libc.opendir(os.fsencode(view)))
    places, names = [], []
    while True:
        place = libc.telldir(stream)
        entry = libc.readdir(stream)
        if not entry:
            break
        places.append(place)
        names.append(name(entry))
    assert len(names) == len(set(names)) == 1002
    for index in (700, 3, 1001, 0, 500):
        libc.seekdir(stream, ctypes.c_long(places[index]))
        assert name(libc.readdir(stream)) == names[index]
    libc.closedir(stream)


def test_new_and_destroyed_snapshots_are_noticed(server: Server) -> None:
    point = server.point
    (point / "f").write_bytes(b"first")
    view = point / ".snapshots" / "s"
    assert not view.exists()
    server.take("s")
    assert (view / "f").read_bytes() == b"first"
    (point / "f").write_bytes(b"second")
    server.tell("destroy s")
    server.take("s")
    time.sleep(SNAPSHOT_NAME_CACHE_SECONDS + 0.1)
    assert (view / "f").read_bytes() == b"second"
    server.tell("destroy s")
    time.sleep(SNAPSHOT_NAME_CACHE_SECONDS + 0.1)
    assert not view.exists()
    assert os.listdir(view.parent) == []


def test_a_snapshot_is_destroyed_under_its_users(server: Server) -> None:
    point = server.point
    content = os.urandom(3_000_000)
    (point / "d").mkdir()
    (point / "d" / "f").write_bytes(content)
    view = server.take("s")
    (point / "d" / "f").write_bytes(b"another")
    old = os.getcwd()
    drop_caches()
    with (view / "d" / "f").open("rb", buffering=0) as file:
        assert file.read(5000) == content[:5000]
        os.chdir(view / "d")
        try:
            server.tell("destroy s")
            drop_caches()
            with pytest.raises(OSError) as caught:
                file.seek(2_000_000)
                file.read(5000)
            assert caught.value.errno == errno.ESTALE
            for attempt in (lambda: os.listdir("."), lambda: Path("f").read_bytes()):
                with pytest.raises(OSError) as caught:
                    attempt()
                assert caught.value.errno == errno.ESTALE
            server.take("s")  # in the meantime another has the name
            with pytest.raises(OSError):
                file.read(5000)
            time.sleep(SNAPSHOT_NAME_CACHE_SECONDS + 0.1)
            assert (view / "d" / "f").read_bytes() == b"another"
            with contextlib.suppress(OSError):
                assert os.listdir(".") == []  # never the other's
        finally:
            os.chdir(old)
    assert (point / "d" / "f").read_bytes() == b"another"


def test_numbers_that_are_used_again(server: Server) -> None:
    """As after 32,766 snapshots: the kernel still holds files of a number that now means others."""
    point = server.point
    (point / "d").mkdir()
    (point / "d" / "f").write_bytes(b"then")
    server.tell("slot 5")
    view = server.take("s")
    number = (view / "d" / "f").stat().st_ino
    descriptor = os.open(view / "d" / "f", os.O_RDONLY)
    assert os.pread(descriptor, 100, 0) == b"then"
    (point / "d" / "f").write_bytes(b"now, and longer")
    (point / "d" / "new").touch()
    server.tell("destroy s")
    server.take("s")
    time.sleep(SNAPSHOT_NAME_CACHE_SECONDS + 0.1)
    assert (view / "d" / "f").read_bytes() == b"now, and longer"
    assert (view / "d" / "f").stat().st_ino == number
    assert sorted(os.listdir(view / "d")) == ["f", "new"]
    # By its generation the kernel knows that the old file is gone: it refuses even to close it.
    for use in (lambda: os.pread(descriptor, 100, 0), lambda: os.close(descriptor)):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno == errno.EIO


def handle_of(path: Path) -> bytes:
    """What name_to_handle_at(2) gives, as the kernel's NFS server uses it."""
    handle = ctypes.create_string_buffer(struct.pack("=II", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.name_to_handle_at(-100, os.fsencode(path), handle, ctypes.byref(mount), 0)
    assert not failed, os.strerror(ctypes.get_errno())
    return handle.raw


def read_by_handle(point: Path, handle: bytes) -> bytes:
    """The content of the file that open_by_handle_at(2) finds."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory = os.open(point, os.O_RDONLY)
    try:
        descriptor = libc.open_by_handle_at(directory, handle, os.O_RDONLY)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(directory)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_files_are_found_by_handle(server: Server) -> None:
    point = server.point
    (point / "d").mkdir()
    (point / "d" / "f").write_bytes(b"then")
    view = server.take("s")
    now, then = handle_of(point / "d" / "f"), handle_of(view / "d" / "f")
    (point / "d" / "f").write_bytes(b"now")
    for _ in range(2):  # what the kernel has cached, and what it has to ask for
        assert read_by_handle(point, now) == b"now"
        assert read_by_handle(point, then) == b"then"
        drop_caches()
    server.tell("destroy s")
    drop_caches()
    with pytest.raises(OSError) as caught:
        read_by_handle(point, then)
    assert caught.value.errno == errno.ESTALE
    assert read_by_handle(point, now) == b"now"

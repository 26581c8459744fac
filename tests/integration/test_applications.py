"""Programs that people run, on the mount, without a complaint."""

from __future__ import annotations

import os
import pwd
import sqlite3
import subprocess
import sysconfig
import tempfile
import threading
from pathlib import Path

import pytest

from tests.integration.pools import Pool, copy_tree, tree
from tests.programs import installed

LIBRARY = Path(sysconfig.get_path("stdlib"))


def sh(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a program; any complaint on stderr fails as well."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, f"{words}: exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.needs_program("git")
def test_git(folder: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    identity = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    sh("git", "init", "-q", "-b", "main", origin)
    for package in ("email", "asyncio", "json", "unittest"):
        copy_tree(LIBRARY / package, origin / package)
        sh("git", "add", "-A", cwd=origin)
        sh(*identity, "commit", "-q", "-m", package, cwd=origin)
    sh("git", "clone", "-q", "--no-hardlinks", origin, folder / "clone")
    for number in range(3):
        (folder / "clone" / f"new-{number}").write_text("x" * number)
        sh("git", "add", "-A", cwd=folder / "clone")
        sh(*identity, "commit", "-q", "-m", "more", cwd=folder / "clone")
    sh("git", "gc", "-q", "--aggressive", "--prune=now", cwd=folder / "clone")
    sh("git", "fsck", "--full", "--strict", cwd=folder / "clone")
    assert sh("git", "status", "--porcelain", cwd=folder / "clone") == ""


def test_sqlite_write_ahead_log(mounted: Pool) -> None:
    path = mounted.mountpoint / "database"
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        connection.execute("CREATE TABLE t (writer INTEGER, number INTEGER, payload BLOB)")
    connection.close()

    def write(writer: int) -> None:
        mine = sqlite3.connect(path, timeout=60)
        for number in range(100):
            with mine:
                mine.execute("INSERT INTO t VALUES (?, ?, ?)", (writer, number, os.urandom(3000)))
        mine.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(2):
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (300,)
        connection.close()
        mounted.remount()


def make_odd_tree(directory: Path) -> None:
    """A tree with what archivers get wrong: links, holes, attributes, modes, times."""
    directory.mkdir()
    copy_tree(LIBRARY / "json", directory / "json")
    (directory / "one").write_bytes(os.urandom(50_000))
    os.link(directory / "one", directory / "two")
    (directory / "link").symlink_to("one")
    (directory / "dangling").symlink_to("nowhere")
    with (directory / "sparse").open("wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"middle")
    os.setxattr(directory / "one", "user.kind", b"odd")
    os.mkfifo(directory / "fifo")
    (directory / "one").chmod(0o2751)
    os.utime(directory / "sparse", ns=(1, 987_654_321_123_456_789))


@pytest.mark.needs_program("rsync")
def test_rsync_round_trip(folder: Path, tmp_path: Path) -> None:
    make_odd_tree(tmp_path / "source")
    sh("rsync", "-aHAX", "--sparse", f"{tmp_path}/source/", folder / "copy")
    assert sh("rsync", "-aHAXnic", "--delete", f"{tmp_path}/source/", f"{folder}/copy") == ""
    sh("rsync", "-aHAX", "--sparse", f"{folder}/copy/", tmp_path / "back")
    assert sh("rsync", "-aHAXnic", "--delete", f"{tmp_path}/source/", f"{tmp_path}/back") == ""
    assert (folder / "copy/one").stat().st_ino == (folder / "copy/two").stat().st_ino


def test_tar_round_trip(folder: Path, tmp_path: Path) -> None:
    make_odd_tree(tmp_path / "source")
    flags = ["--xattrs", "--xattrs-include=user.*", "--acls", "--sparse"]
    archive = folder / "archive.tar"
    sh("tar", *flags, "-C", tmp_path / "source", "-cf", archive, ".")
    (folder / "out").mkdir()
    sh("tar", *flags, "-C", folder / "out", "-xpf", archive)
    assert tree(folder / "out") == tree(tmp_path / "source")
    assert os.getxattr(folder / "out/one", "user.kind") == b"odd"
    assert (folder / "out/one").stat().st_nlink == 2


@pytest.mark.needs_program("initdb")
def test_postgresql(folder: Path) -> None:
    initdb = installed("initdb")
    assert initdb is not None
    programs = initdb.parent
    become: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pg") as short:  # socket paths are short
        if os.geteuid() == 0:  # the server refuses to run as root
            owner = pwd.getpwnam("nobody")
            become = [
                "setpriv",
                f"--reuid={owner.pw_uid}",
                f"--regid={owner.pw_gid}",
                "--clear-groups",
            ]
            for path in (folder, Path(short)):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        data, log = folder / "data", Path(short) / "log"
        sh(*become, programs / "initdb", "-k", "-U", "t", "-A", "trust", "-D", data)
        settings = (
            f"-c listen_addresses='' -c unix_socket_directories={short} -c max_wal_size=128MB"
        )
        control = [*become, str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(log)]
        bench = [*become, str(programs / "pgbench"), "-h", short, "-U", "t"]
        sh(*control, "-o", settings, "start")
        try:
            sh(*bench, "-i", "-q", "-s", "1", "postgres")
            sh(*bench, "-c", "4", "-j", "2", "-T", "6", "postgres")
            sh(
                *become,
                programs / "pg_amcheck",
                "-h",
                short,
                "-U",
                "t",
                "--install-missing",
                "postgres",
            )
        finally:
            sh(*control, "-m", "fast", "stop")
        sh(*become, programs / "pg_checksums", "--check", "-D", data)

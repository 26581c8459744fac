"""`.snapshots/NAME` on a real pool: a real tree, compared after everything in it has changed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from dwfs.limits import SNAPSHOT_NAME_CACHE_SECONDS
from tests.integration.pools import Pool, copy_tree, tree

LIBRARY = Path(sysconfig.get_path("stdlib")) / "asyncio"
LARGE_LIBRARY = Path(sysconfig.get_path("stdlib"))


def view_of(pool: Pool, name: str) -> Path:
    """Where a snapshot is to be seen."""
    return pool.mountpoint / ".snapshots" / name


def run(*words: str | Path) -> str:
    """The output of a program that must succeed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout[:2000]}{done.stderr[:2000]}"
    return done.stdout


def compare(original: Path, view: Path) -> None:
    """Fail unless both trees hold the same: by programs, and by what Python sees."""
    run("diff", "-r", "--no-dereference", original, view)
    assert tree(view) == tree(original)


def plant(top: Path, source: Path) -> None:
    """Files of every kind: many small ones, large ones, sparse ones, links."""
    assert copy_tree(source, top / "library") > 20
    (top / "large").write_bytes(os.urandom(1 << 20) * 24)
    os.setxattr(top / "large", "user.colour", b"blue")
    os.link(top / "large", top / "library" / "same")
    (top / "link").symlink_to("large")
    with (top / "sparse").open("wb") as file:
        file.seek(10_000_000)
        file.write(os.urandom(100_000))
        file.truncate(30_000_000)


def change_everything(top: Path, chance: random.Random) -> None:
    """Leave no file as it was: rewritten, cut, grown, renamed, deleted or with other attributes."""
    changes = ("rewrite", "patch", "cut", "grow", "rename", "delete", "attributes")
    for path in sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink()):
        change = chance.choice(changes)
        if change == "rewrite":
            path.write_bytes(chance.randbytes(chance.randrange(20_000)))
        elif change == "patch":
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(b"patched")
        elif change == "cut":
            os.truncate(path, path.stat().st_size // 3)
        elif change == "grow":
            with path.open("ab") as file:
                file.write(b"grown")
        elif change == "rename":
            path.rename(path.with_name(path.name + ".renamed"))
        elif change == "delete":
            path.unlink()
        else:
            path.chmod(0o600)
            os.utime(path, ns=(1, 1))
            os.setxattr(path, "user.colour", b"red")
    (top / "link").unlink()
    (top / "library").rename(top / "books")
    (top / "new").mkdir()
    (top / "new" / "file").write_bytes(chance.randbytes(3_000_000))


def test_a_real_tree_stays_as_it_was(mounted: Pool, long: bool, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    top = mounted.mountpoint / "top"
    top.mkdir()
    plant(top, LARGE_LIBRARY if long else LIBRARY)
    first = tmp_path / "first"
    run("cp", "-a", top, first)
    mounted.dwfs("snapshot", "create", "pool@first")
    change_everything(top, chance)
    second = tmp_path / "second"
    run("cp", "-a", top, second)
    mounted.dwfs("snapshot", "create", "pool@second")
    shutil.rmtree(top)
    top.mkdir()
    (top / "large").write_bytes(b"not what it was")

    def compare_both() -> None:
        compare(first, view_of(mounted, "first") / "top")
        compare(second, view_of(mounted, "second") / "top")
        assert os.listdir(top) == ["large"]

    compare_both()
    large = view_of(mounted, "first") / "top" / "large"
    assert os.getxattr(large, "user.colour") == b"blue"
    assert large.samefile(large.parent / "library" / "same")
    mounted.remount()
    compare_both()
    mounted.umount()
    hidden = [mounted.disks[number] for number in chance.sample(range(6), 2)]
    for disk in hidden:
        disk.rename(disk.with_suffix(".hidden"))
    mounted.mount()
    compare_both()
    mounted.umount()
    for disk in hidden:
        disk.with_suffix(".hidden").rename(disk)
    mounted.mount()

    mounted.dwfs("snapshot", "destroy", "--yes", "pool@first")
    compare(second, view_of(mounted, "second") / "top")
    restored = top / "restored"
    run("cp", "-a", view_of(mounted, "second") / "top", restored)
    compare(second, restored)
    time.sleep(SNAPSHOT_NAME_CACHE_SECONDS + 0.1)
    assert os.listdir(view_of(mounted, "second").parent) == ["second"]
    assert not view_of(mounted, "first").exists()
    mounted.remount()
    compare(second, view_of(mounted, "second") / "top")
    mounted.umount()
    mounted.dwfs("check", "pool", "--keyfile", mounted.keyfile)


def test_it_holds_what_was_written_a_moment_before(mounted: Pool) -> None:
    path = mounted.mountpoint / "f"
    for number in range(5):
        path.write_bytes(b"%d" % number * 100_000)
        mounted.dwfs("snapshot", "create", f"pool@s{number}")
    path.unlink()
    for number in range(5):
        assert (view_of(mounted, f"s{number}") / "f").read_bytes() == b"%d" % number * 100_000


def test_snapshots_while_files_are_written(mounted: Pool) -> None:
    """Each shows one moment: no record without those that were synced before it."""
    path = mounted.mountpoint / "journal"
    stop = threading.Event()

    def write() -> None:
        number = 0
        with path.open("wb", buffering=0) as file:
            while not stop.is_set():
                file.write(number.to_bytes(8, "big"))
                number += 1
                if number % 50 == 0:
                    os.fsync(file.fileno())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not path.exists() or not path.stat().st_size:
            time.sleep(0.01)
        sizes = []
        for number in range(4):
            mounted.dwfs("snapshot", "create", f"pool@s{number}")
            sizes.append((view_of(mounted, f"s{number}") / "journal").stat().st_size)
    finally:
        stop.set()
        writer.join()
    assert 0 < sizes[0] <= sizes[1] <= sizes[2] <= sizes[3] <= path.stat().st_size
    for number, size in enumerate(sizes):
        content = (view_of(mounted, f"s{number}") / "journal").read_bytes()
        assert len(content) == size
        records = size // 8
        assert content[: 8 * records] == b"".join(n.to_bytes(8, "big") for n in range(records))


def test_a_snapshot_is_destroyed_while_it_is_read(mounted: Pool) -> None:
    size = 32 << 20
    path = mounted.mountpoint / "f"
    path.write_bytes(os.urandom(1 << 20) * 32)
    expected = path.read_bytes()
    mounted.dwfs("snapshot", "create", "pool@s")
    path.write_bytes(b"now")
    mounted.remount()  # so that the kernel has nothing of it
    failure: list[OSError] = []
    wrong: list[int] = []
    begun = threading.Event()

    def read() -> None:
        with (view_of(mounted, "s") / "f").open("rb", buffering=0) as file:
            chance = random.Random(1)
            while not failure:
                offset = chance.randrange(size - 4096)
                try:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    piece = os.pread(file.fileno(), 4096, offset)
                except OSError as error:
                    failure.append(error)
                    return
                begun.set()
                if piece != expected[offset : offset + 4096]:
                    wrong.append(offset)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    mounted.dwfs("snapshot", "destroy", "--yes", "pool@s")
    mounted.dwfs("snapshot", "create", "pool@s")  # another of that name
    reader.join(60)
    assert not reader.is_alive()
    assert failure[0].errno == errno.ESTALE
    assert wrong == []
    time.sleep(SNAPSHOT_NAME_CACHE_SECONDS + 0.1)
    assert (view_of(mounted, "s") / "f").read_bytes() == b"now"
    mounted.umount()  # which looks whether anything unforeseen has happened


def test_nothing_is_written_through_it(mounted: Pool) -> None:
    (mounted.mountpoint / "f").write_bytes(b"x")
    mounted.dwfs("snapshot", "create", "pool@s")
    view = view_of(mounted, "s")
    for action in (
        (view / "new").touch,
        (view / "f").unlink,
        view.rmdir,
        view.parent.rmdir,
        lambda: (view / "f").write_bytes(b"y"),
        lambda: (view / "f").rename(mounted.mountpoint / "g"),
    ):
        with pytest.raises(OSError) as caught:
            action()
        assert caught.value.errno == errno.EROFS
    assert (view / "f").read_bytes() == b"x"

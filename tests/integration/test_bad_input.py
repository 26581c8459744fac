"""Every bad input of the command line: one clear line, an exit code, and nothing changed."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pools import Pool, digest

USAGE, NO_POOL, BUSY, WRONG_KEY, FORMAT, FEW_DISKS, NO_SPACE, UNSUPPORTED = 2, 3, 4, 5, 6, 7, 8, 9


def everything(pool: Pool) -> dict[str, str]:
    """Path → digest of all that the pool has on this machine, but its log and lock."""
    found = {}
    for path in sorted(pool.home.rglob("*")):
        inside = path.relative_to(pool.home).parts
        if inside[:2] == ("root", "run") or inside[0] == "mnt":
            continue
        found[str(path)] = digest(path) if path.is_file() and not path.is_symlink() else "-"
    return found


def refuse(pool: Pool, code: int, *words: str | Path, hint: str) -> None:
    """Run the command: it must refuse with one line that holds `hint`, and change nothing."""
    before = everything(pool)
    done = pool.run(*words, environment={"DWFS_DEBUG": "0"})
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("dwfs: ")
    assert hint.lower() in lines[0].lower()
    assert "Traceback" not in done.stderr
    created = {
        path
        for path in set(everything(pool)) - set(before)
        if not path.endswith(("/root", "/root/etc", "/root/lib"))
    }
    assert not created
    assert {path: everything(pool)[path] for path in before} == before


def init(pool: Pool, *disks: Path, data: int = 4, parity: int = 2) -> list[str | Path]:
    """The words of an `init` command."""
    words: list[str | Path] = ["init", pool.name]
    for disk in disks:
        words += ["--disk", disk]
    return [*words, "--data", str(data), "--parity", str(parity), "--keyfile", pool.keyfile]


@pytest.fixture
def folders(bare_pool: Pool) -> list[Path]:
    """Six empty directories."""
    made = [bare_pool.home / f"disk{number}" for number in range(6)]
    for path in made:
        path.mkdir()
    return made


def test_fewer_disks_than_shards(bare_pool: Pool, folders: list[Path]) -> None:
    refuse(bare_pool, FEW_DISKS, *init(bare_pool, *folders[:5]), hint="6")


def test_the_same_disk_twice(bare_pool: Pool, folders: list[Path]) -> None:
    words = init(bare_pool, *folders[:5], folders[0])
    refuse(bare_pool, USAGE, *words, hint="disk0")
    alias = bare_pool.home / "alias"
    alias.symlink_to(folders[0])
    refuse(bare_pool, USAGE, *init(bare_pool, *folders[:5], alias), hint="same")


def test_a_directory_of_another_pool(pool: Pool, tmp_path: Path) -> None:
    other = Pool(tmp_path / "other")
    fresh = [other.home / f"d{number}" for number in range(5)]
    for path in fresh:
        path.mkdir()
    before = everything(pool)
    refuse(other, FORMAT, *init(other, *fresh, pool.disks[0]), hint="pool")
    assert everything(pool) == before


@pytest.fixture
def tiny_disk(bare_pool: Pool) -> Iterator[Path]:
    """A disk with hardly any space."""
    path = bare_pool.home / "tiny"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.needs_root
def test_a_disk_without_space(bare_pool: Pool, folders: list[Path], tiny_disk: Path) -> None:
    refuse(bare_pool, NO_SPACE, *init(bare_pool, *folders[:5], tiny_disk), hint="tiny")


def test_a_wrong_passphrase(pool: Pool) -> None:
    wrong = pool.home / "wrong"
    wrong.write_text("not the passphrase, nor the content of the key file\n")
    wrong.chmod(0o600)
    words = ["mount", pool.name, str(pool.mountpoint)]
    refuse(pool, WRONG_KEY, *words, "--passphrase-file", wrong, hint="key")
    refuse(pool, WRONG_KEY, *words, "--keyfile", wrong, hint="key")
    assert not pool.mountpoint.is_mount()


def mount_words(pool: Pool) -> list[str | Path]:
    """The words of a plain mount."""
    return ["mount", pool.name, pool.mountpoint, "--keyfile", pool.keyfile]


def test_truncated_headers(pool: Pool) -> None:
    for disk in pool.disks:
        for path in disk.glob("dwfs-disk*"):
            os.truncate(path, 40)
    done = pool.run(*mount_words(pool), environment={"DWFS_DEBUG": "0"})
    assert done.returncode in (FORMAT, FEW_DISKS)
    assert len(done.stderr.strip().splitlines()) == 1


def test_one_truncated_header_costs_one_disk_at_most(pool: Pool) -> None:
    os.truncate(pool.disks[0] / "dwfs-disk", 40)
    pool.mount()
    assert pool.status()["health"] in ("healthy", "degraded")


def test_a_newer_format_version(pool: Pool) -> None:
    for disk in pool.disks:
        for path in disk.glob("dwfs-disk*"):
            content = bytearray(path.read_bytes())
            content[8:12] = struct.pack("<I", 99)  # docs/formats.md: the version follows the magic
            path.write_bytes(content)
    refuse(pool, FORMAT, *mount_words(pool), hint="newer")


def test_a_busy_mount_point(mounted: Pool, tmp_path: Path) -> None:
    other = Pool(tmp_path / "other").create()
    other.mountpoint = mounted.mountpoint
    refuse(other, BUSY, *mount_words(other), hint="mount")
    assert mounted.status()["health"] == "healthy"


def test_a_mount_point_that_is_none(pool: Pool) -> None:
    words = mount_words(pool)
    words[2] = pool.home / "absent"
    refuse(pool, USAGE, *words, hint="absent")
    words[2] = pool.keyfile
    refuse(pool, USAGE, *words, hint="directory")


def test_a_pool_already_open(mounted: Pool) -> None:
    second = mounted.home / "second"
    second.mkdir()
    done = mounted.run(
        "mount", mounted.name, second, "--keyfile", mounted.keyfile, environment={"DWFS_DEBUG": "0"}
    )
    assert done.returncode == BUSY
    assert len(done.stderr.strip().splitlines()) == 1
    assert not second.is_mount()
    assert mounted.status()["health"] == "healthy"


@pytest.mark.needs_root
def test_a_missing_dev_fuse(pool: Pool) -> None:
    script = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && chmod 666 /dev/null && exec "$@"'
    words = [str(word) for word in mount_words(pool)]
    before = everything(pool)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "dwfs", *words],
        env={**pool.environment, "DWFS_DEBUG": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == UNSUPPORTED, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "/dev/fuse" in done.stderr
    assert everything(pool) == before


def test_an_unknown_pool(bare_pool: Pool) -> None:
    refuse(bare_pool, NO_POOL, "status", "nowhere", hint="nowhere")
    refuse(bare_pool, NO_POOL, "mount", "nowhere", bare_pool.mountpoint, hint="nowhere")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["init"],
        ["init", "p"],
        ["mount"],
        ["init", "../p", "--disk", "/tmp"],
        ["bench", "/absent"],
    ],
    ids=" ".join,
)
def test_wrong_usage(bare_pool: Pool, words: list[str]) -> None:
    refuse(bare_pool, USAGE, *words, hint="")


@pytest.mark.parametrize(("data", "parity"), [(0, 2), (-1, 2), (99, 2), (4, -1), (4, 99)])
def test_impossible_geometries(
    bare_pool: Pool, folders: list[Path], data: int, parity: int
) -> None:
    words = init(bare_pool, *folders, data=data, parity=parity)
    refuse(bare_pool, USAGE, *words, hint="--data" if parity == 2 else "--parity")

"""Nothing readable leaves the pool: known contents and names are in no byte of disks or state."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from tests.integration.pools import Pool

MIB = 1 << 20


def files_below(*directories: Path) -> Iterator[Path]:
    """Every regular file that isn't empty."""
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                yield path


def find(needles: dict[str, bytes], *directories: Path) -> list[str]:
    """Which needles are in a byte, or in a name, of which file."""
    found = []
    for path in files_below(*directories):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            found += [
                f"{what} in {path}" for what, needle in needles.items() if content.find(needle) >= 0
            ]
        found += [
            f"{what} in the name {path}"
            for what, needle in needles.items()
            if needle in os.fsencode(path)
        ]
    return found


def make_secrets(directory: Path) -> dict[str, bytes]:
    """Put markers into every place that a user can write to; what → bytes to look for."""
    markers = {
        what: f"{what}-{secrets.token_hex(12)}".encode()
        for what in (
            "small",
            "large",
            "name",
            "folder",
            "link",
            "attribute",
            "value",
            "inline",
            "mapped",
        )
    }
    (directory / "small").write_bytes(markers["small"] * 20)
    (directory / "large").write_bytes((markers["large"] + bytes(1000)) * 9000)
    (directory / os.fsdecode(markers["name"])).touch()
    (directory / os.fsdecode(markers["folder"])).mkdir()
    (directory / "link").symlink_to(os.fsdecode(markers["link"]))
    os.setxattr(directory / "small", b"user." + markers["attribute"], markers["value"])
    with (directory / "synced").open("wb", buffering=0) as file:
        for _ in range(20):  # small synchronous writes ride in the log
            file.write(markers["inline"])
            os.fsync(file.fileno())
    with (directory / "map").open("w+b") as file:
        file.truncate(MIB)
        with mmap.mmap(file.fileno(), MIB) as mapping:
            mapping[5000 : 5000 + len(markers["mapped"])] = markers["mapped"]
            mapping.flush()
        os.fsync(file.fileno())
    return markers


def test_no_plaintext_anywhere(mounted: Pool) -> None:
    markers = make_secrets(mounted.mountpoint)
    control = mounted.home / "control"
    control.mkdir()
    (control / "f").write_bytes(b"..." + markers["large"])
    assert len(find(markers, control)) == 1, "the search itself works"
    places = [mounted.root, *mounted.disks]
    assert find(markers, *places) == [], "while mounted"
    mounted.umount()
    assert find(markers, *places) == [], "after unmounting"
    mounted.mount()
    mounted.kill()
    assert find(markers, *places) == [], "after a crash"


def test_no_key_on_disk_or_in_the_environment(mounted: Pool) -> None:
    key = mounted.keyfile.read_bytes()
    needles = {"key file": key, "key file, beginning": key[:24]}
    assert find(needles, mounted.root, *mounted.disks) == []
    pid = mounted.status()["pid"]
    for name in ("cmdline", "environ"):
        assert key[:16] not in Path(f"/proc/{pid}/{name}").read_bytes()

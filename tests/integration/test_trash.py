"""The trash on a real mount: deleted by one user, taken back, kept from others, pruned."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.pools import Pool, open_the_way

pytestmark = pytest.mark.needs_root


def as_user(uid: int, command: str, place: Path) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sh", "-c", command]
    return subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=30)


def only(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


@pytest.fixture
def pool_with_trash(pool: Pool) -> Pool:
    pool.mount()
    open_the_way(pool.mountpoint)
    pool.mountpoint.chmod(0o1777)
    pool.dwfs("volume", "set", pool.name, "trash=7")
    return pool


def test_deleted_and_taken_back(pool_with_trash: Pool) -> None:
    place = pool_with_trash.mountpoint
    assert not (place / ".trash").exists()
    note = place / "note"
    note.write_text("dear diary")
    note.chmod(0o640)
    before = note.stat()
    note.unlink()
    assert not note.exists()
    kept = only(place / ".trash" / "0")
    assert kept.name.startswith("note~20")
    assert kept.name.endswith(f"Z~{before.st_ino}")
    pool_with_trash.remount()
    os.rename(kept, note)
    after = note.stat()
    assert note.read_text() == "dear diary"
    for field in ("st_ino", "st_mode", "st_uid", "st_mtime_ns", "st_nlink"):
        assert getattr(before, field) == getattr(after, field)
    note.unlink()
    only(place / ".trash" / "0").unlink()
    assert not list((place / ".trash" / "0").iterdir())


def test_what_was_private_stays_private(pool_with_trash: Pool) -> None:
    place = pool_with_trash.mountpoint
    said = as_user(
        1000,
        "mkdir -m 700 home && echo secret > home/key && chmod 644 home/key && rm -r home",
        place,
    )
    assert said.returncode == 0, said.stderr
    kept = only(place / ".trash" / "1000")
    assert kept.stat().st_uid == 1000
    for command in (f"cat '{kept}'", "ls .trash/1000", "mkdir .trash/1001", "rm -rf .trash"):
        assert as_user(1001, command, place).returncode != 0
    assert as_user(1000, f"mv '{kept}' back && cat back", place).stdout == "secret\n"
    as_user(1000, "rm back", place)
    assert as_user(1000, "rm .trash/1000/back*", place).returncode == 0
    assert not list((place / ".trash" / "1000").iterdir())


def test_open_and_mapped_files_are_kept_with_all_that_was_written(pool_with_trash: Pool) -> None:
    place = pool_with_trash.mountpoint
    descriptor = os.open(place / "f", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"before, ")
    os.unlink(place / "f")
    os.write(descriptor, b"after")
    os.close(descriptor)
    pool_with_trash.remount()
    assert only(place / ".trash" / "0").read_bytes() == b"before, after"


def test_pruned_when_the_time_has_come(pool_with_trash: Pool) -> None:
    place = pool_with_trash.mountpoint
    for name in ("old", "young"):
        (place / name).write_bytes(bytes(1_000_000))
        (place / name).unlink()
    trash = place / ".trash" / "0"
    kept = {path.name.split("~")[0]: path for path in trash.iterdir()}
    for name, days in (("old", 8), ("young", 6)):
        when = datetime.now(UTC) - timedelta(days=days)
        inode = kept[name].stat().st_ino
        kept[name] = kept[name].rename(trash / f"{name}~{when:%Y%m%dT%H%M%SZ}~{inode}")
    (trash / "by hand").touch()
    pool_with_trash.dwfs("volume", "set", pool_with_trash.name, "trash=7")  # looks at once
    deadline = time.monotonic() + 20
    while kept["old"].exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {path.name for path in trash.iterdir()} == {kept["young"].name, "by hand"}
    while True:  # the space is back, too, although the kernel had looked at the file
        shown = pool_with_trash.dwfs("volume", "get", pool_with_trash.name, "--json")
        if '"used_bytes": 1000000,' in shown:
            break
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)
    pool_with_trash.umount()
    assert "everything is as it should be" in pool_with_trash.dwfs(
        "check", pool_with_trash.name, "--keyfile", pool_with_trash.keyfile
    )


def test_it_counts_as_used_and_can_be_emptied_when_the_quota_is_full(pool_with_trash: Pool) -> None:
    place = pool_with_trash.mountpoint
    pool_with_trash.dwfs("volume", "set", pool_with_trash.name, "quota=1M")
    (place / "f").write_bytes(bytes(1 << 20))
    (place / "f").unlink()
    descriptor = os.open(place / "g", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"x")
    with pytest.raises(OSError, match="quota"):
        os.fsync(descriptor)
    os.close(descriptor)
    only(place / ".trash" / "0").unlink()
    (place / "g").write_bytes(bytes(1 << 20))
    pool_with_trash.umount()

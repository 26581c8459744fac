"""The commands: what `status` says, unmounting, keys, checking, fstab's helper, bench."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.pools import Pool


def test_status_as_json(mounted: Pool) -> None:
    (mounted.mountpoint / "f").write_bytes(os.urandom(5 << 20))
    status = mounted.status()
    assert status["pool"] == mounted.name
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", status["uuid"])
    command = Path(f"/proc/{status['pid']}/cmdline").read_bytes()
    assert b"dwfs" in command
    assert (status["health"], status["redundancy_left"]) == ("healthy", 2)
    assert (status["data"], status["parity"]) == (4, 2)
    assert {disk["path"] for disk in status["disks"]} == {str(disk) for disk in mounted.disks}
    for disk in status["disks"]:
        assert set(disk) >= {"id", "path", "state", "size_bytes", "used_bytes", "errors"}
        assert disk["size_bytes"] > 0
        assert disk["errors"] == 0
    assert set(status["usage"]) >= {"logical_bytes", "stored_bytes", "free_bytes"}
    assert isinstance(status["work"], list)
    usage = mounted.wait_for(lambda status: status["usage"]["stored_bytes"] >= 7 << 20)["usage"]
    assert 5 << 20 <= usage["logical_bytes"] < 6 << 20
    assert usage["stored_bytes"] < 10 << 20


def test_status_for_people(mounted: Pool) -> None:
    text = mounted.dwfs("status", mounted.name)
    assert "healthy" in text.lower()
    assert "2" in text
    mounted.umount()
    assert mounted.status()["pid"] is None
    assert mounted.status()["health"] == "healthy"


def test_unmounting(mounted: Pool) -> None:
    busy = os.open(mounted.mountpoint, os.O_RDONLY)
    done = mounted.run("umount", mounted.mountpoint)
    assert done.returncode == 4
    assert "in use" in done.stderr
    os.close(busy)
    mounted.umount()
    assert mounted.run("umount", mounted.mountpoint).returncode == 2
    mounted.mount()
    subprocess.run(["fusermount3", "-u", mounted.mountpoint], check=True)  # as any FUSE mount
    mounted.wait_for(lambda status: status["pid"] is None)


def test_foreground_ends_on_a_signal(pool: Pool) -> None:
    words = ["mount", pool.name, str(pool.mountpoint), "--keyfile", str(pool.keyfile)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dwfs", *words, "--foreground"], env=pool.environment
    )
    try:
        pool.wait_for(lambda status: status["pid"] == process.pid and pool.mountpoint.is_mount())
        (pool.mountpoint / "f").write_text("kept")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    pool.mount()
    assert (pool.mountpoint / "f").read_text() == "kept"


def test_keys(pool: Pool) -> None:
    unlock = ["--keyfile", str(pool.keyfile)]
    passphrase = pool.home / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("correct horse battery staple\n")
    pool.dwfs(
        "key", "add", pool.name, *unlock, "--new-passphrase-file", passphrase, "--label", "desk"
    )
    slots = json.loads(pool.dwfs("key", "list", pool.name, "--json"))
    assert sorted(slot["kind"] for slot in slots) == ["keyfile", "passphrase", "recovery"]
    pool.dwfs("mount", pool.name, pool.mountpoint, "--passphrase-file", passphrase)
    (pool.mountpoint / "f").write_text("text")
    slot = next(slot["id"] for slot in slots if slot["kind"] == "keyfile")
    pool.dwfs("key", "remove", pool.name, slot, "--passphrase-file", passphrase)  # while it is open
    pool.umount()
    assert pool.run("mount", pool.name, pool.mountpoint, *unlock).returncode == 5
    pool.dwfs("mount", pool.name, pool.mountpoint, "--passphrase-file", passphrase)
    assert (pool.mountpoint / "f").read_text() == "text"


def test_recovery_key(pool: Pool) -> None:
    text = pool.dwfs("key", "recovery", pool.name, "--keyfile", pool.keyfile)
    key = max(text.split(), key=len)
    assert "-" in key
    file = pool.home / "recovery"
    file.touch(mode=0o600)
    file.write_text(key + "\n")
    pool.dwfs("mount", pool.name, pool.mountpoint, "--recovery-key-file", file)
    pool.umount()
    file.write_text(key[:-1] + ("A" if key[-1] != "A" else "B"))
    done = pool.run("mount", pool.name, pool.mountpoint, "--recovery-key-file", file)
    assert done.returncode in (2, 5)


def test_check_finds_nothing_wrong(mounted: Pool) -> None:
    for number in range(50):
        (mounted.mountpoint / f"f{number}").write_bytes(os.urandom(20_000))
    mounted.dwfs("check", mounted.name)
    mounted.umount()
    mounted.dwfs("check", mounted.name, "--keyfile", mounted.keyfile)


def test_check_names_lost_files(mounted: Pool) -> None:
    (mounted.mountpoint / "folder").mkdir()
    (mounted.mountpoint / "folder/precious").write_bytes(os.urandom(3 << 20))
    mounted.umount()
    mounted.lose(0, 1, 2)
    done = mounted.run("check", mounted.name, "--keyfile", mounted.keyfile)
    assert done.returncode == 10
    assert "folder/precious" in done.stdout + done.stderr


@pytest.mark.needs_root
def test_mount_by_mount_8_as_fstab_would(pool: Pool) -> None:
    assert Path("/sbin/mount.fuse.dwfs").exists(), "./run setup links it, as root"
    options = f"keyfile={pool.keyfile},noauto,x-systemd.automount,noatime"
    mount = ["mount", "-t", "fuse.dwfs", pool.name, str(pool.mountpoint)]
    done = subprocess.run(
        [*mount, "-o", options], env=pool.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert pool.mountpoint.is_mount()
    line = next(
        line
        for line in Path("/proc/mounts").read_text().splitlines()
        if str(pool.mountpoint) in line
    )
    assert "noatime" in line
    assert "fuse.dwfs" in line
    for option, word in (("remount,ro", "ro"), ("remount,rw", "rw")):
        subprocess.run(
            ["mount", "-o", option, str(pool.mountpoint)], env=pool.environment, check=True
        )
        mounts = Path("/proc/mounts").read_text().splitlines()
        line = next(line for line in mounts if str(pool.mountpoint) in line)
        assert line.split()[3].split(",")[0] == word


def test_bench(mounted: Pool) -> None:
    figures = json.loads(mounted.dwfs("bench", mounted.mountpoint, "--json", "--size-mib", "16"))
    assert {"sequential_write", "random_read_4k_cold", "create", "tree_copy"} <= set(figures)
    assert os.listdir(mounted.mountpoint) == []


def test_help_is_complete() -> None:
    done = subprocess.run([sys.executable, "-m", "dwfs", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("init", "mount", "umount", "status", "check", "key", "bench"):
        assert command in done.stdout

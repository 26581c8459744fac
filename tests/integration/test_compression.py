"""Compression on a real mount: space, mixed settings, crashes, lost disks, rot, import."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from tests.integration.pools import Pool, copy_tree, digest, tree

MIB = 1 << 20
SOURCES = Path(sysconfig.get_path("stdlib")) / "asyncio"
BLOCK = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.py")))


def set_compression(pool: Pool, setting: str) -> None:
    pool.dwfs("volume", "set", pool.name, f"compression={setting}")


def volume(pool: Pool) -> dict[str, Any]:  # Any: JSON
    found = json.loads(pool.dwfs("volume", "get", pool.name, "--json"))
    assert isinstance(found, dict)
    return found


def packed(pool: Pool) -> tuple[Any, ...]:  # Any: JSON
    """What no reopening may change."""
    status = volume(pool)
    return status["compression"], status["data_bytes"], status["packed_bytes"]


def segment_bytes(pool: Pool) -> int:
    files = [path for disk in pool.disks for path in disk.glob("segments/*.seg")]
    return sum(path.stat().st_blocks * 512 for path in files)


def write(path: Path, data: bytes) -> bytes:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def sources(size: int, seed: int) -> bytes:
    """Source code, from another place each time."""
    start = random.Random(seed).randrange(len(BLOCK))
    return (BLOCK[start:] + BLOCK * (size // len(BLOCK) + 1))[:size]


def write_with_every_setting(pool: Pool, seed: int) -> dict[Path, bytes]:
    """Files of text, noise and both, written under changing settings; some are then overwritten."""
    choice = random.Random(seed)
    files: dict[Path, bytes] = {}
    for setting in ("off", "zstd", "zstd-1", "off", "zstd-7"):
        set_compression(pool, setting)
        for kind in ("text", "noise", "both"):
            path = pool.mountpoint / f"{len(files)}-{setting}-{kind}"
            size = choice.choice([3_000, 300_000, 3 * MIB])
            text, noise = sources(size, size), choice.randbytes(size)
            both = b"".join(
                choice.choice((text, noise))[at : at + 50_000] for at in range(0, size, 50_000)
            )
            files[path] = write(path, {"text": text, "noise": noise, "both": both}[kind])
    for path in choice.sample(sorted(files), 5):
        content = bytearray(files[path])
        offset = choice.randrange(len(content))
        piece = sources(min(70_000, len(content) - offset), offset)
        content[offset : offset + len(piece)] = piece
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        files[path] = bytes(content)
    return files


def check(files: dict[Path, bytes], seed: int) -> None:
    """At random offsets first, as that is what whole reads would hide; then all of it."""
    choice = random.Random(seed)
    for path, content in files.items():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(20):
            offset = choice.randrange(len(content))
            length = choice.choice([1, 4096, 100_000, MIB])
            assert os.pread(descriptor, length, offset) == content[offset : offset + length]
        os.close(descriptor)
        assert path.read_bytes() == content, path


def test_a_source_tree_takes_a_third_of_the_room(mounted: Pool, tmp_path: Path) -> None:
    set_compression(mounted, "zstd")
    copy_tree(SOURCES, mounted.mountpoint / "copy")
    write(mounted.mountpoint / "last", b"x")
    status = volume(mounted)
    assert status["compression"] == "zstd"
    assert status["packed_bytes"] * 3 < status["data_bytes"]
    assert status["data_bytes"] >= sum(path.stat().st_size for path in SOURCES.rglob("*.py"))
    assert segment_bytes(mounted) < status["data_bytes"]  # with parity of 4+2
    before = packed(mounted)
    mounted.remount()
    copy_tree(SOURCES, tmp_path / "expected")
    assert tree(mounted.mountpoint / "copy") == tree(tmp_path / "expected")
    assert packed(mounted) == before


def test_old_and_new_settings_side_by_side_survive_crash_and_lost_disks(
    mounted: Pool, seed: int
) -> None:
    files = write_with_every_setting(mounted, seed)
    check(files, seed)
    mounted.kill()
    subprocess.run(["fusermount3", "-uz", mounted.mountpoint], check=True)
    mounted.mount()
    check(files, seed)
    mounted.umount()
    mounted.lose(0, 3)
    mounted.mount()
    check(files, seed)


def test_rot_is_scrubbed_away_and_check_finds_nothing_else(mounted: Pool, seed: int) -> None:
    files = write_with_every_setting(mounted, seed)
    mounted.umount()
    choice = random.Random(seed)
    for disk in mounted.disks[:2]:
        for segment in disk.glob("segments/*.seg"):
            with segment.open("r+b") as file:
                size = segment.stat().st_size
                for _ in range(size // 100_000):
                    file.seek(choice.randrange(4096, size - 64))
                    file.write(choice.randbytes(16))
    mounted.mount()
    check(files, seed)
    mounted.dwfs("scrub", mounted.name, "--wait")
    mounted.wait_for(lambda status: status["health"] == "healthy")
    mounted.lose(4, 5)  # what was mended must now be enough
    mounted.remount()
    check(files, seed)


def test_another_box_reads_compressed_stripes(mounted: Pool, seed: int) -> None:
    files = write_with_every_setting(mounted, seed)
    digests = {path: digest(path) for path in files}
    mounted.umount()
    before = packed(mounted)  # with what was in the log alone
    mounted.root = mounted.home / "other-root"
    mounted.environment["DWFS_ROOT"] = str(mounted.root)
    words = ["--keyfile", str(mounted.keyfile), "--disk", *map(str, mounted.disks)]
    mounted.dwfs("import", *words)
    assert packed(mounted) == before
    mounted.mount()
    assert {path: digest(path) for path in files} == digests

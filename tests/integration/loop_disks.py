"""Small real disks: filesystems in sparse files on loop devices, which can be filled, frozen and cut off.

What a test breaks is put right again when the `LoopDisks` are closed: a frozen filesystem is thawed first,
because nothing that waits for it can be killed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from random import Random

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32); XFS knows the same number
SHUTDOWN_WITHOUT_LOG_FLUSH = 2
MIB = 1 << 20
XFS_SIZE_MIN_MIB = 300
OPTIONS = {"ext4": "loop,errors=remount-ro", "xfs": "loop"}


class LoopDisks:
    """Filesystems below `home`; `directories` are the pool's disks on them."""

    def __init__(
        self, home: Path, sizes_mib: Sequence[int], kinds: Sequence[str] = ("ext4",)
    ) -> None:
        """One filesystem for each size; kinds ("ext4", "xfs") are taken in turn, where xfs fits."""
        self.home = home
        self._kinds: list[str] = []
        self.mounts: list[Path] = []
        self.directories: list[Path] = []
        self.frozen: set[int] = set()
        try:
            for number, size in enumerate(sizes_mib):
                kind = kinds[number % len(kinds)]
                self.add(size, kind if size >= XFS_SIZE_MIN_MIB else "ext4")
        except BaseException:  # whatever it was: nobody else unmounts them
            self.close()
            raise

    def add(self, size_mib: int, kind: str = "ext4") -> Path:
        """One more disk; returns its directory."""
        number = len(self.mounts)
        self._kinds.append(kind)
        image = self.home / f"loop-{number}.image"
        mount = self.home / f"loop-{number}"
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        mount.mkdir()
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-t", kind, "-o", OPTIONS[kind], image, mount], check=True)
        directory = mount / "share"
        self.mounts.append(mount)
        directory.mkdir()
        self.directories.append(directory)
        return directory

    def freeze(self, number: int) -> None:
        """From now on every write and sync on the disk hangs, uninterruptibly."""
        subprocess.run(["fsfreeze", "-f", self.mounts[number]], check=True)
        self.frozen.add(number)

    def thaw(self, number: int) -> None:
        """Let what hangs go on."""
        subprocess.run(["fsfreeze", "-u", self.mounts[number]], check=True)
        self.frozen.discard(number)

    def fail_to_read_only(self, number: int) -> None:
        """Have an ext4 filesystem find an error in itself: the kernel makes it read-only."""
        device = os.stat(self.mounts[number]).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("dwfs test")

    def fail(self, number: int) -> None:
        """The disk answers EIO from now on, and what it had not written back is lost."""
        descriptor = os.open(self.mounts[number], os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def detach(self, number: int) -> None:
        """Unmount: the directory is empty then, as when a cable is pulled."""
        subprocess.run(["umount", "-l", self.mounts[number]], check=True)

    def attach(self, number: int, at: int | None = None) -> None:
        """Mount the disk again, or mount it in the place of another."""
        image = self.home / f"loop-{number}.image"
        target = self.mounts[number if at is None else at]
        subprocess.run(["mount", "-o", OPTIONS[self._kinds[number]], image, target], check=True)

    def close(self) -> None:
        """Thaw and unmount everything."""
        for number in list(self.frozen):
            self.thaw(number)
        for mount in self.mounts:
            while os.path.ismount(mount):
                done = subprocess.run(["umount", "-l", mount], capture_output=True)
                if done.returncode != 0:
                    break


def flip_bytes(directory: Path, fraction: float, choice: Random) -> int:
    """Change that fraction of the allocated bytes of all segments, in runs of 1 to 4096 bytes.

    Returns how many bytes were changed. The page cache is told to forget the files.
    """
    changed = 0
    for path in sorted((directory / "segments").iterdir()):
        descriptor = os.open(path, os.O_RDWR)
        try:
            wanted = int(os.fstat(descriptor).st_blocks * 512 * fraction)
            size = os.fstat(descriptor).st_size
            while wanted > 0 and size:
                length = min(wanted, choice.choice((1, 16, 512, 4096)))
                offset = choice.randrange(size)
                before = os.pread(descriptor, length, offset)
                if not any(before):
                    if choice.random() < 0.01:
                        wanted -= 1  # a file that is all holes must not keep us for ever
                    continue
                os.pwrite(
                    descriptor, bytes(byte ^ choice.randrange(1, 256) for byte in before), offset
                )
                wanted -= len(before)
                changed += len(before)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return changed

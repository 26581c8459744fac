"""A directory of streams: what `dwfs backup` writes, and `dwfs receive --from-backup` reads.

A file is there under its name only when it is whole and durable. While it is being written it has another
name that tells for which snapshot it is, so that a backup that was interrupted leaves nothing that the next
one can't clear away, in the pool either.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from dwfs.errors import DamageError, FormatError, PoolBusyError
from dwfs.limits import SEND_HEADER_SIZE_MAX
from dwfs.send.chains import Backup
from dwfs.send.format import Header, StreamDecoder

SUFFIX: Final = ".dwfs"
_PARTIAL: Final = re.compile(r"\.(?P<pool>.+)-(?P<stamp>\d{8}T\d{6}Z)-(full|increment)\.partial")
_HEAD_SIZE: Final = SEND_HEADER_SIZE_MAX + 64  # with prefix and checksum


class Scan(NamedTuple):
    """What is in a directory."""

    backups: list[Backup]
    unreadable: list[str]  # one line each, for people


class BackupDirectory:
    """One directory. All methods block; they raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes it. Raises PoolBusyError."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PoolBusyError(f"another 'dwfs backup' is writing to {self.path}") from None
            yield
        finally:
            os.close(descriptor)

    def scan(self) -> Scan:
        """All whole streams, by their headers."""
        found = Scan([], [])
        for path in sorted(self.path.glob(f"*{SUFFIX}")):
            try:
                header = read_header(path)
                size_bytes = path.stat().st_size
            except (FormatError, DamageError) as error:
                found.unreadable.append(f"{path}: {error}")
                continue
            found.backups.append(
                Backup(
                    path,
                    header.snapshot,
                    header.base,
                    size_bytes,
                    header.inode_count,
                    header.allocated_bytes,
                )
            )
        return found

    def leftovers(self, pool: str) -> dict[Path, str]:
        """Files of backups that were interrupted, with the names of their snapshots."""
        found = {}
        for path in sorted(self.path.iterdir()):
            match = _PARTIAL.fullmatch(path.name)
            if match is not None and match["pool"] == pool:
                found[path] = snapshot_name(match["stamp"])
        return found

    def begin(self, pool: str, stamp: str, *, full: bool) -> Writing:
        """Start a file."""
        return Writing(self.path, f"{pool}-{stamp}-{'full' if full else 'increment'}")

    def remove(self, backup: Backup) -> None:
        """Delete a stream."""
        backup.path.unlink()


class Writing:
    """A stream's file while it is being written."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._partial = directory / f".{name}.partial"
        self.path = directory / f"{name}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._partial, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self) -> None:
        """Make it durable, and let it have its name."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        os.rename(self._partial, self.path)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def abandon(self) -> None:
        """Leave nothing."""
        os.close(self._descriptor)
        self._partial.unlink(missing_ok=True)


def snapshot_name(stamp: str) -> str:
    """What the snapshot of a backup is called."""
    return f"backup-{stamp}"


def read_header(path: Path) -> Header:
    """The header of a stream's file. Raises FormatError, DamageError, OSError."""
    decoder = StreamDecoder()
    with path.open("rb") as file:
        decoder.feed(file.read(_HEAD_SIZE))
    header = decoder.header()
    if header is None:
        raise DamageError("cut short")
    return header

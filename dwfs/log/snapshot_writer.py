"""Writing a state snapshot to several disks at once; blocks, so it runs in a worker thread.

The file grows under a temporary name and gets its own only when it is durable, so a name ending in
`.snap` is a promise. A disk that fails is dropped and the others go on; a disk that did not take
part makes up for it at the end, by a copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from dwfs import limits
from dwfs.disk.medium import Medium
from dwfs.errors import NoSpaceError
from dwfs.log import snapshot_format as fmt
from dwfs.log.copies import create_part, part_path
from dwfs.log.ports import LogDisk, RecordCipher
from dwfs.log.watching import GivenUpError, Watch
from dwfs.types import DiskId

Progress = Callable[[int, int], None]  # pairs and bytes so far; may sleep to pace the writing


class SnapshotStoppedError(Exception):
    """`should_stop` said so; nothing was left behind."""


class SnapshotResult(msgspec.Struct, frozen=True):
    """A durable snapshot."""

    header: fmt.SnapshotHeader
    size_bytes: int  # of one copy
    pairs: int
    disks: tuple[DiskId, ...]  # that hold a copy
    failures: dict[DiskId, OSError]


class SnapshotTargets:
    """The copies that are being written. A copy that fails is dropped and its error kept."""

    def __init__(self, medium: Medium, disks: Sequence[LogDisk], name: str, watch: Watch) -> None:
        self._medium = medium
        self._watch = watch
        self._handles: dict[DiskId, int] = {}
        self.paths: dict[DiskId, Path] = {}
        self.failures: dict[DiskId, OSError] = {}
        self.offset = 0
        for disk in disks:
            path = disk.directory / fmt.SNAPSHOT_DIRECTORY / name
            watch.enter(disk.disk)
            try:
                medium.make_directory(path.parent)
                self._handles[disk.disk] = create_part(medium, path)
                self.paths[disk.disk] = path
            except OSError as error:
                self.failures[disk.disk] = error

    def append(self, *parts: bytes) -> None:
        """Write to all that are left. Raises NoSpaceError if none is."""
        for disk in list(self._handles):
            self._watch.enter(disk)
            try:
                self._medium.write(self._handles[disk], self.offset, parts)
            except OSError as error:
                self._drop(disk, error)
        if not self._handles:
            cause = "; ".join(
                f"disk {disk.hex()[:8]}: {error.strerror}" for disk, error in self.failures.items()
            )
            raise NoSpaceError(f"no disk takes the state snapshot: {cause or 'none is writable'}")
        self.offset += sum(len(part) for part in parts)

    def publish(self) -> list[DiskId]:
        """Make durable and visible; returns the disks where that worked."""
        for disk in list(self._handles):
            path = self.paths[disk]
            self._watch.enter(disk)
            try:
                self._medium.sync(self._handles[disk])
                self._watch.enter(disk)
                self._medium.rename(part_path(path), path)
                self._medium.sync_directory(path.parent)
            except OSError as error:
                self._drop(disk, error)
        done = list(self._handles)
        self.close()
        return done

    def close(self) -> None:
        """Give the handles back."""
        for handle in self._handles.values():
            self._medium.close(handle)
        self._handles.clear()

    def discard(self) -> None:
        """Close, and remove what was written."""
        self.close()
        for path in self.paths.values():
            with contextlib.suppress(OSError):  # `remove_older` sweeps what stays
                self._medium.remove(part_path(path))

    def _drop(self, disk: DiskId, error: OSError) -> None:
        self.failures[disk] = error
        self._medium.close(self._handles.pop(disk))
        with contextlib.suppress(OSError):
            self._medium.remove(part_path(self.paths[disk]))


class _Stream:
    """Seals chunks, and counts and hashes what went by."""

    def __init__(
        self, header: fmt.SnapshotHeader, cipher: RecordCipher, targets: SnapshotTargets
    ) -> None:
        self._cipher = cipher
        self._targets = targets
        encoded, self._header_digest = fmt.encode_header(header)
        self._running = blake2b(self._header_digest, digest_size=fmt.DIGEST_SIZE)
        self._plaintext_bytes = 0
        self._chunks = 0
        targets.append(encoded)

    def chunk(self, plaintext: bytes) -> None:
        """Append a chunk."""
        self._running.update(self._frame(fmt.KIND_CHUNK, plaintext))
        self._chunks += 1
        self._plaintext_bytes += len(plaintext)

    def footer(self, pairs: int) -> None:
        """Append the footer."""
        footer = fmt.Footer(pairs, self._chunks, self._plaintext_bytes, self._running.digest())
        self._frame(fmt.KIND_FOOTER, fmt.encode_footer(footer))

    def _frame(self, kind: int, plaintext: bytes) -> bytes:
        aad = fmt.frame_aad(self._header_digest, kind, self._chunks)
        sealed = self._cipher.seal(plaintext, aad)
        head, digest = fmt.encode_frame(kind, self._chunks, sealed)
        self._targets.append(head, sealed)
        return digest


def write_snapshot(
    header: fmt.SnapshotHeader,
    pairs: Iterable[tuple[bytes, bytes]],
    cipher: RecordCipher,
    disks: Sequence[LogDisk],
    copies: int,
    *,
    medium: Medium,
    on_progress: Progress = lambda _pairs, _bytes: None,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> SnapshotResult:
    """Write a snapshot to the first `copies` of `disks`; the rest stand in for those that fail.

    `header.snapshot_id` must be random. Memory: about three chunks. Raises NoSpaceError if no disk
    takes it, SnapshotStoppedError if asked to stop; nothing is left behind then.
    """
    assert header.snapshot_id != bytes(16), "copies are told apart by a random id"
    name = fmt.file_name(header.sequence, header.volume)
    watch = watch if watch is not None else Watch()
    targets = SnapshotTargets(medium, disks[:copies], name, watch)
    count = 0
    try:
        stream = _Stream(header, cipher, targets)
        chunk = bytearray()
        for key, value in pairs:
            chunk += fmt.pack_pair(key, value)
            count += 1
            if len(chunk) >= fmt.CHUNK_SIZE:
                stream.chunk(bytes(chunk))
                chunk.clear()
                on_progress(count, targets.offset)
                if should_stop():
                    raise SnapshotStoppedError
        if chunk:
            stream.chunk(bytes(chunk))
        stream.footer(count)
        on_progress(count, targets.offset)
        if should_stop():
            raise SnapshotStoppedError
        done = targets.publish()
    except GivenUpError:
        targets.close()  # another attempt may be using the names
        raise
    except BaseException:  # whatever it was, nothing half-written stays behind
        targets.discard()
        raise
    failures = dict(targets.failures)
    for spare in disks[copies:]:
        if not done or len(done) >= copies:
            break
        failure = _copy(medium, done[0], targets.paths[done[0]], spare, name, watch)
        if failure is None:
            done.append(spare.disk)
        else:
            failures[spare.disk] = failure
    if not done:
        raise NoSpaceError("no disk could make the state snapshot durable; check the disks")
    return SnapshotResult(header, targets.offset, count, tuple(done), failures)


def _copy(
    medium: Medium, holder: DiskId, source: Path, spare: LogDisk, name: str, watch: Watch
) -> OSError | None:
    """Copy a finished snapshot to another disk."""
    target = SnapshotTargets(medium, [spare], name, watch)
    try:
        watch.enter(holder)
        handle = medium.open(source)
        try:
            while block := medium.read(handle, target.offset, limits.MIB):
                target.append(block)
                watch.enter(holder)
        finally:
            medium.close(handle)
        if target.publish():
            return None
    except OSError as error:
        target.discard()
        return error
    except GivenUpError:
        target.close()
        raise
    except NoSpaceError:
        target.discard()
    return target.failures[spare.disk]

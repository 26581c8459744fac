"""Finding and reading the newest whole state snapshot.

Copies of one snapshot are merged frame by frame, as they are byte-identical: rot in one is made up
for by another. `find_snapshot` reads all of a candidate once, which authenticates it through the
footer; only then are pairs handed out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path

from dwfs.disk.medium import Medium
from dwfs.errors import AuthenticationError, DamageError
from dwfs.log import snapshot_format as fmt
from dwfs.log.chain import ByteSource
from dwfs.log.copies import open_sources
from dwfs.log.ports import RecordCipher
from dwfs.log.watching import Watch
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId


class Snapshot:
    """A whole snapshot, verified. `notes` says what newer or damaged ones were passed over."""

    def __init__(
        self,
        header: fmt.SnapshotHeader,
        footer: fmt.Footer,
        copies: Mapping[DiskId, Path],
        cipher: RecordCipher,
        medium: Medium,
        size_bytes: int,
        notes: list[str],
    ) -> None:
        self.header = header
        self.footer = footer
        self.disks = tuple(copies)
        self.size_bytes = size_bytes
        self.notes = notes
        self._copies = dict(copies)
        self._cipher = cipher
        self._medium = medium

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """All pairs, in the order in which they were written. Raises DamageError."""
        count = 0
        with ExitStack() as stack:
            walk = FrameWalk(open_sources(self._medium, self._copies, stack), self.header)
            for frame, sealed in walk.frames():
                if frame.kind == fmt.KIND_CHUNK:
                    plaintext = walk.open(self._cipher, frame, sealed)
                    for pair in fmt.unpack_pairs(plaintext):
                        count += 1
                        yield pair
        if count != self.footer.pairs:
            raise DamageError(
                f"state snapshot {self.header.sequence:016x}: became unreadable after {count} of "
                f"{self.footer.pairs} entries; check the disks and try again"
            )


class FrameWalk:
    """One walk over the merged copies of a snapshot."""

    def __init__(self, sources: Mapping[DiskId, ByteSource], header: fmt.SnapshotHeader) -> None:
        self._sources = sources
        _, self.header_digest = fmt.encode_header(header)
        self.running = blake2b(self.header_digest, digest_size=fmt.DIGEST_SIZE)
        self.end = fmt.HEADER_SIZE
        self.chunks = 0
        self.header_bytes, _ = fmt.encode_header(header)

    def frames(self) -> Iterator[tuple[fmt.FrameHeader, bytes]]:
        """Whole frames up to the footer, or to where no copy has the next."""
        while (found := self._next()) is not None:
            frame, sealed = found
            self.end += fmt.FRAME_HEADER_SIZE + len(sealed)
            if frame.kind == fmt.KIND_CHUNK:
                self.running.update(frame.digest)
                self.chunks += 1
            yield frame, sealed
            if frame.kind == fmt.KIND_FOOTER:
                return

    def footer(
        self, cipher: RecordCipher, frame: fmt.FrameHeader, sealed: bytes
    ) -> fmt.Footer | None:
        """The footer, if it opens and stands for all that came before it."""
        try:
            footer = fmt.decode_footer(self.open(cipher, frame, sealed))
        except DamageError:
            return None
        if footer is None or (footer.chunks, footer.running) != (
            self.chunks,
            self.running.digest(),
        ):
            return None
        return footer

    def lacking(self, offset: int, raw: bytes) -> set[DiskId]:
        """Copies that do not hold those bytes there."""
        return {
            disk for disk, source in self._sources.items() if source.read(offset, len(raw)) != raw
        }

    def open(self, cipher: RecordCipher, frame: fmt.FrameHeader, sealed: bytes) -> bytes:
        """A frame's plaintext. Raises DamageError."""
        try:
            return cipher.open(sealed, fmt.frame_aad(self.header_digest, frame.kind, frame.number))
        except AuthenticationError as error:
            raise DamageError(
                f"part {frame.number} of a state snapshot is whole but does not open with this "
                "volume's key: forged, or the wrong key"
            ) from error

    def _next(self) -> tuple[fmt.FrameHeader, bytes] | None:
        for source in self._sources.values():
            head = source.read(self.end, fmt.FRAME_HEADER_SIZE)
            frame = fmt.decode_frame(head)
            if frame is None or frame.number != self.chunks:
                continue
            sealed = source.read(self.end + fmt.FRAME_HEADER_SIZE, frame.sealed_length)
            if fmt.frame_is_whole(frame, head, sealed):
                return frame, sealed
        return None


def find_snapshot(
    directories: Mapping[DiskId, Path],
    pool: PoolId,
    volume: VolumeId,
    cipher: RecordCipher,
    medium: Medium,
) -> Snapshot | None:
    """The newest whole snapshot of the volume, or None if there never was one.

    Blocks: reads all of it. Raises DamageError if there are snapshots, but none is whole.
    """
    notes: list[str] = []
    candidates, found = list_snapshots(directories, pool, volume, medium, notes)
    for header, copies in candidates:
        # All copies merged; should one be forged rather than damaged, each by itself.
        subsets = [copies]
        if len(copies) > 1:
            subsets.extend({disk: path} for disk, path in copies.items())
        for subset in subsets:
            verified = _verify(header, subset, cipher, medium)
            if verified is not None:
                footer, size_bytes = verified
                return Snapshot(header, footer, subset, cipher, medium, size_bytes, notes)
        notes.append(f"snapshot {header.sequence:016x}: damaged on all {len(copies)} disks")
    if found:
        raise DamageError(
            f"volume {volume.hex()[:8]}: no state snapshot is whole ({'; '.join(notes)}); "
            "attach the missing disks"
        )
    return None


def list_snapshots(
    directories: Mapping[DiskId, Path],
    pool: PoolId,
    volume: VolumeId,
    medium: Medium,
    notes: list[str],
    watch: Watch | None = None,
) -> tuple[list[tuple[fmt.SnapshotHeader, dict[DiskId, Path]]], bool]:
    """(headers and copies of the volume's snapshots, the newest first; whether there is any file).

    Reads headers only.
    """
    watch = watch if watch is not None else Watch()
    candidates: dict[tuple[LogSequence, int, bytes], tuple[fmt.SnapshotHeader, dict[DiskId, Path]]]
    candidates = {}
    found = False
    for disk, path, sequence in _named(directories, volume, medium, notes, watch):
        header = _peek(medium, disk, path, watch)
        if header is None:
            found = True
            notes.append(f"disk {disk.hex()[:8]}: snapshot {sequence:016x} has a damaged header")
        elif (header.pool, header.volume) == (pool, volume):
            found = True
            key = (header.sequence, header.created_ns, header.snapshot_id)
            candidates.setdefault(key, (header, {}))[1][disk] = path
    return [candidates[key] for key in sorted(candidates, reverse=True)], found


def _verify(
    header: fmt.SnapshotHeader,
    copies: Mapping[DiskId, Path],
    cipher: RecordCipher,
    medium: Medium,
) -> tuple[fmt.Footer, int] | None:
    with ExitStack() as stack:
        walk = FrameWalk(open_sources(medium, copies, stack), header)
        for frame, sealed in walk.frames():
            if frame.kind == fmt.KIND_FOOTER:
                footer = walk.footer(cipher, frame, sealed)
                return None if footer is None else (footer, walk.end)
    return None


def _peek(medium: Medium, disk: DiskId, path: Path, watch: Watch) -> fmt.SnapshotHeader | None:
    with ExitStack() as stack:
        source = open_sources(medium, {disk: path}, stack, watch).get(disk)
        decoded = None if source is None else fmt.decode_header(source.read(0, fmt.HEADER_SIZE))
        return None if decoded is None else decoded[0]


def _named(
    directories: Mapping[DiskId, Path],
    volume: VolumeId,
    medium: Medium,
    notes: list[str],
    watch: Watch,
) -> Iterator[tuple[DiskId, Path, int]]:
    for disk, directory in directories.items():
        folder = directory / fmt.SNAPSHOT_DIRECTORY
        watch.enter(disk)
        try:
            names = medium.names(folder)
        except OSError as error:
            notes.append(f"disk {disk.hex()[:8]}: snapshots can't be listed: {error.strerror}")
            continue
        for name in names:
            parsed = fmt.parse_file_name(name)
            if parsed is not None and parsed[1] == volume.hex()[:16]:
                yield disk, folder / name, parsed[0]


def remove_older(
    directories: Mapping[DiskId, Path],
    volume: VolumeId,
    keep_sequence: LogSequence,
    medium: Medium,
    watch: Watch | None = None,
) -> dict[DiskId, OSError]:
    """Remove the volume's snapshots below `keep_sequence` and unfinished ones; returns failures.

    Call it when no snapshot of the volume is being written. Blocks. The names of those that stay are
    made durable first: a process that died before it did so may have left the newest one here.
    """
    failures: dict[DiskId, OSError] = {}
    watch = watch if watch is not None else Watch()
    for disk, directory in directories.items():
        folder = directory / fmt.SNAPSHOT_DIRECTORY
        watch.enter(disk)
        try:
            with contextlib.suppress(FileNotFoundError):
                medium.sync_directory(folder)
            for name in medium.names(folder):
                watch.enter(disk)
                parsed = fmt.parse_file_name(name.removesuffix(".part"))
                if parsed is None or parsed[1] != volume.hex()[:16]:
                    continue
                if parsed[0] < keep_sequence or name.endswith(".part"):
                    medium.remove(folder / name)
            with contextlib.suppress(FileNotFoundError):
                medium.sync_directory(folder)
        except OSError as error:
            failures[disk] = error
    return failures

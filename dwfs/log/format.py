"""Bytes of a log file: one file header, then records back to back. Little endian throughout.

A digest (BLAKE2b-128) ends each header; it covers the header and, for a record, its sealed payload.
It finds torn and rotten bytes without a key. The next record repeats it as `chain`, and the first
record chains to the file header's digest, so a record opens only at its own place in its own file:
the header fields, chain included, are the additional data of the record's AEAD.

Digests are not keyed. What an attacker could forge is caught by the AEAD: the file header carries
a sealed tag (an empty payload with the header as additional data) of the pool's header cipher.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

import msgspec

from dwfs import limits
from dwfs.errors import FormatError
from dwfs.types import DiskId, LogSequence, PoolId, VolumeId

FORMAT_VERSION: Final = 1
DIGEST_SIZE: Final = 16
IDENTITY_SIZE: Final = 16
HEADER_SIZE_MAX: Final = limits.MIB  # bounds what a damaged length can make us read
# Sealing pads and tags; a sealed payload is never longer than this.
SEALED_SIZE_MAX: Final = limits.LOG_RECORD_SIZE_MAX + 4096

KIND_START: Final = 0  # the file is whole on all its members; its declarations count
KIND_BATCH: Final = 1

FILE_MAGIC: Final = b"dwfslog\x1a"
RECORD_MAGIC: Final = b"dwLR"
NO_STREAM: Final = VolumeId(bytes(16))
NO_IDENTITY: Final = bytes(IDENTITY_SIZE)

# magic 8 | version 2 | members 2 | whole header length 4 | pool 16 | file id 16
# | file sequence 8 | incarnation 8 | streams 4; then the members (16 each), the stream starts,
# tag length 2, tag, digest 16.
_FILE: Final = struct.Struct("<8sHHI16s16sQQI")
# stream 16 | next position 8 | next command sequence 8 | identity of the record before it 16
_START: Final = struct.Struct("<16sQQ16s")
_TAG_LENGTH: Final = struct.Struct("<H")

# magic 4 | version 2 | kind 2 | number in the file 4 | sealed length 4 | file tag 8 | stream 16
# | position in the stream 8 | first 8 | last 8 | identity 16 | chain 16; then digest 16.
_RECORD: Final = struct.Struct("<4sHHII8s16sQQQ16s16s")
_FILE_PREFIX: Final = struct.Struct("<8sHHI")
RECORD_HEADER_SIZE: Final = _RECORD.size + DIGEST_SIZE
_LENGTH_OFFSET: Final = 12  # of the sealed length in the record header
FILE_TAG_SIZE: Final = 8


class StreamStart(msgspec.Struct, frozen=True):
    """Where a stream stands when a file begins: the declaration that ties files together."""

    stream: VolumeId
    position: int  # the stream's next record, counted from 1 over its whole life
    sequence: LogSequence  # its next command
    previous: bytes  # identity of the record at position - 1; zeros if there is none


class FileHeader(msgspec.Struct, frozen=True):
    """What a log file says of itself."""

    pool: PoolId
    file_id: bytes  # 16 random bytes
    sequence: int  # in the file's name; unique among the pool's log files
    incarnation: int  # grows with every mount
    members: tuple[DiskId, ...]  # disks that got a copy at first
    starts: tuple[StreamStart, ...]

    @property
    def tag(self) -> bytes:
        """The short form of the file id that every record repeats."""
        return self.file_id[:FILE_TAG_SIZE]


class RecordHeader(msgspec.Struct, frozen=True):
    """One record's description. `last == first - 1` for a record that carries no commands."""

    kind: int
    number: int  # in the file, from 0
    sealed_length: int
    file_tag: bytes
    stream: VolumeId
    position: int
    first: LogSequence
    last: LogSequence
    identity: bytes  # random; the same when a failed append is repeated in another file
    chain: bytes  # digest of what stands before it in the file
    digest: bytes = b""

    @property
    def total_length(self) -> int:
        """Bytes of the record in the file."""
        return RECORD_HEADER_SIZE + self.sealed_length

    @property
    def reach(self) -> int:
        """The command sequence that a trim must pass before the record may go.

        A record without commands carries facts that came after command `first - 1`; a state
        snapshot that covers only that command need not have them.
        """
        return max(self.first, self.last)


def file_name(sequence: int) -> str:
    """The name of a log file."""
    return f"{sequence:016x}.log"


def parse_file_name(name: str) -> int | None:
    """The sequence in a log file's name, or None for other files."""
    stem, dot, suffix = name.partition(".")
    if not dot or suffix != "log" or len(stem) != 16:
        return None
    try:
        return int(stem, 16)
    except ValueError:
        return None


def _digest(*parts: bytes) -> bytes:
    state = blake2b(digest_size=DIGEST_SIZE)
    for part in parts:
        state.update(part)
    return state.digest()


def file_header_aad(header: FileHeader, tag_length: int) -> bytes:
    """The file header up to its tag: what the tag authenticates."""
    length = (
        _FILE.size
        + 16 * len(header.members)
        + _START.size * len(header.starts)
        + _TAG_LENGTH.size
        + tag_length
        + DIGEST_SIZE
    )
    parts = [
        _FILE.pack(
            FILE_MAGIC,
            FORMAT_VERSION,
            len(header.members),
            length,
            header.pool,
            header.file_id,
            header.sequence,
            header.incarnation,
            len(header.starts),
        ),
        *header.members,
    ]
    parts.extend(
        _START.pack(start.stream, start.position, start.sequence, start.previous)
        for start in header.starts
    )
    parts.append(_TAG_LENGTH.pack(tag_length))
    return b"".join(parts)


def encode_file_header(aad: bytes, tag: bytes) -> tuple[bytes, bytes]:
    """(bytes of the whole header, its digest)."""
    digest = _digest(aad, tag)
    return aad + tag + digest, digest


def file_header_length(data: bytes) -> int | None:
    """Length of the header that `data` begins, or None if it is none. Same for all versions."""
    if len(data) < _FILE_PREFIX.size:
        return None
    magic, _, _, length = _FILE_PREFIX.unpack_from(data)
    if magic != FILE_MAGIC or not _FILE.size + DIGEST_SIZE < length <= HEADER_SIZE_MAX:
        return None
    return int(length)


FILE_PREFIX_SIZE: Final = _FILE_PREFIX.size


def decode_file_header(data: bytes) -> tuple[FileHeader, bytes, bytes, bytes] | None:
    """(header, aad, tag, digest) of a whole header, or None if it is damaged.

    Raises FormatError for a version that this program does not know. The digest ends the header in
    every version, so that rot in the version field is not taken for one.
    """
    if len(data) < _FILE.size + DIGEST_SIZE or _digest(data[:-DIGEST_SIZE]) != data[-DIGEST_SIZE:]:
        return None
    _, version, members, length, pool, file_id, sequence, incarnation, streams = _FILE.unpack_from(
        data
    )
    if version != FORMAT_VERSION:
        raise FormatError(
            f"log format {version} is not known to this dwfs (it knows {FORMAT_VERSION}); "
            "use the version that wrote the pool"
        )
    position = _FILE.size
    fixed = position + 16 * members + _START.size * streams + _TAG_LENGTH.size
    if length != len(data) or fixed + DIGEST_SIZE > length:
        return None
    disks = tuple(DiskId(data[position + 16 * i : position + 16 * (i + 1)]) for i in range(members))
    position += 16 * members
    starts = []
    for _ in range(streams):
        stream, next_position, next_sequence, previous = _START.unpack_from(data, position)
        starts.append(
            StreamStart(VolumeId(stream), next_position, LogSequence(next_sequence), previous)
        )
        position += _START.size
    (tag_length,) = _TAG_LENGTH.unpack_from(data, position)
    if fixed + tag_length + DIGEST_SIZE != length:
        return None
    header = FileHeader(PoolId(pool), file_id, sequence, incarnation, disks, tuple(starts))
    return header, data[:fixed], data[fixed:-DIGEST_SIZE], data[-DIGEST_SIZE:]


def record_aad(header: RecordHeader) -> bytes:
    """The record header with its sealed length as zero: the additional data of its AEAD.

    The length is not known before sealing; the AEAD itself binds it.
    """
    return _RECORD.pack(
        RECORD_MAGIC,
        FORMAT_VERSION,
        header.kind,
        header.number,
        0,
        header.file_tag,
        header.stream,
        header.position,
        header.first,
        header.last,
        header.identity,
        header.chain,
    )


def encode_record(aad: bytes, sealed: bytes) -> tuple[bytes, bytes]:
    """(record header bytes, digest) for a payload sealed with `aad`."""
    length = len(sealed).to_bytes(4, "little")
    head = aad[:_LENGTH_OFFSET] + length + aad[_LENGTH_OFFSET + 4 :]
    digest = _digest(head, sealed)
    return head + digest, digest


def decode_record_header(data: bytes) -> RecordHeader | None:
    """The header at the start of `data`, unchecked but for magic, version and bounds."""
    if len(data) < RECORD_HEADER_SIZE or data[:4] != RECORD_MAGIC:
        return None
    _, version, kind, number, length, tag, stream, position, first, last, identity, chain = (
        _RECORD.unpack_from(data)
    )
    if version != FORMAT_VERSION or length > SEALED_SIZE_MAX:
        return None
    return RecordHeader(
        kind,
        number,
        length,
        tag,
        VolumeId(stream),
        position,
        LogSequence(first),
        LogSequence(last),
        identity,
        chain,
        data[_RECORD.size : RECORD_HEADER_SIZE],
    )


def record_is_whole(header: RecordHeader, raw: bytes) -> bool:
    """Whether the record's bytes (header and sealed payload) bear their digest."""
    if len(raw) != header.total_length:
        return False
    view = memoryview(raw)
    state = blake2b(view[: _RECORD.size], digest_size=DIGEST_SIZE)
    state.update(view[RECORD_HEADER_SIZE:])
    return state.digest() == header.digest

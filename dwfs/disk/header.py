"""The pool header: what a disk says about itself and its pool, so that disks alone can be imported.

One small file, `dwfs-disk`, replaced as a whole. Three things guard it:

- a checksum over everything, which anyone can check: it tells a torn or rotten copy from a good one
  before any key is known;
- a MAC with a key that derives from the pool's root key: once the pool is unlocked, it tells that
  members, geometry and keyslots were not rearranged by someone who had the disk in hand;
- the copy before it, `dwfs-disk.previous`, which is read when the newest one is torn or missing. At
  every instant at least one of the two is whole, because the new file is complete and synced before it
  takes the name, and `previous` is only ever replaced by a copy of a `dwfs-disk` that was whole.

Layout: docs/formats.md, "Pool header". Every later version keeps magic, version, length and the
trailing checksum where they are, so that "newer" can always be told from "damaged".
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import struct
from pathlib import Path
from typing import Final

import msgspec

from dwfs import limits
from dwfs.codec import CHECKSUM_SIZE, checksum
from dwfs.disk.medium import POSIX_MEDIUM, Medium
from dwfs.errors import DwfsError, ForeignFormatError, FormatError, NewerFormatError
from dwfs.types import DiskId, Geometry, PoolId, VolumeId

HEADER_NAME: Final = "dwfs-disk"
PREVIOUS_NAME: Final = "dwfs-disk.previous"
TEMPORARY_SUFFIX: Final = ".new"
FORMAT_VERSION: Final = 2

MAGIC: Final = b"\x89dwfs\r\n\x1a"
MAC_SIZE: Final = 32
_PREFIX: Final = struct.Struct("<8sII")  # magic, format version, body length
_MAC_PURPOSE: Final = b"dwfs pool header"  # BLAKE2b personalisation: 16 bytes


class DiskMember(msgspec.Struct, frozen=True, array_like=True):
    """One disk of the pool, as the pool's owner knows it."""

    id: DiskId
    label: str  # for people: the directory it was added under
    state: str = "active"  # "active", "offline", "removing", "failed": the node layer's words


class PoolHeader(msgspec.Struct, frozen=True, array_like=True):
    """The pool's description. Equal on all disks but for `disk`.

    Invariants (`validate`): ids are 16 bytes, `generation` ≥ 1 and grows with each change, members
    are distinct and include `disk`.
    """

    pool: PoolId
    name: str
    generation: int
    geometry: Geometry
    disk: DiskId  # whose copy this is
    members: tuple[DiskMember, ...]
    keyslots: tuple[bytes, ...]  # each a keyslot as dwfs.crypto encoded it; opaque here
    root_volume: VolumeId
    created_ns: int  # nanoseconds since the Unix epoch
    coding: str = "zfec"  # the code that defines parity bytes
    format_version: int = FORMAT_VERSION
    state_id: bytes = b""  # 16 random bytes: which state directory is up to date; b"": none yet

    def validate(self) -> None:
        """Raise FormatError unless the invariants hold."""
        ids = [member.id for member in self.members]
        sound = (
            all(len(identity) == 16 for identity in (self.pool, self.root_volume, *ids))
            and self.generation >= 1
            and len(set(ids)) == len(ids)
            and self.disk in ids
            and len(self.state_id) in (0, 16)
            and 1 <= self.geometry.data <= limits.DATA_SHARDS_MAX
            and 0 <= self.geometry.parity <= limits.PARITY_SHARDS_MAX
        )
        if not sound:
            raise FormatError(f"the pool header of {self.name!r} contradicts itself")


class StoredHeader(msgspec.Struct, frozen=True):
    """A header as it was found, still to be verified with the key."""

    header: PoolHeader
    directory: Path
    authenticated: bytes  # the bytes that the MAC covers
    mac: bytes
    fallback: bool  # read from `dwfs-disk.previous`, because `dwfs-disk` was torn or missing


# Made once, here: msgspec (0.22) builds what it needs of a type at the type's first use, and two
# threads that do so at the same time crash the process.
_HEADER_DECODER: Final = msgspec.msgpack.Decoder(PoolHeader)


def encode_header(header: PoolHeader, header_key: bytes | bytearray | memoryview) -> bytes:
    """The file's content. `header_key` is 32..64 bytes."""
    header.validate()
    body = msgspec.msgpack.encode(header)
    authenticated = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(body)) + body
    content = authenticated + _mac(authenticated, header_key)
    if len(content) > limits.POOL_HEADER_SIZE_MAX:
        raise FormatError(f"the pool header would exceed {limits.POOL_HEADER_SIZE_MAX} bytes")
    return content + checksum(content)


def decode_header(content: bytes, directory: Path, *, fallback: bool = False) -> StoredHeader:
    """Parse and check a file's content. Raises FormatError with a line for people."""
    where = directory / (PREVIOUS_NAME if fallback else HEADER_NAME)
    if content[: len(MAGIC)] != MAGIC:
        if MAGIC.startswith(content):
            raise FormatError(f"{where} is truncated: restore it from another disk of the pool")
        raise ForeignFormatError(
            f"{where} was not made by dwfs: is {directory} the right directory?"
        )
    if len(content) < _PREFIX.size:
        raise FormatError(f"{where} is truncated: restore it from another disk of the pool")
    _, version, body_length = _PREFIX.unpack_from(content)
    whole = checksum(content[:-CHECKSUM_SIZE]) == content[-CHECKSUM_SIZE:]
    if whole and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{directory} was made by a newer dwfs (format {version});"
            f" this one reads up to {FORMAT_VERSION}: upgrade dwfs"
        )
    if whole and version < FORMAT_VERSION:
        raise FormatError(
            f"{directory} was made by a development version of dwfs (format {version}), which this one"
            f" does not read: copy the data with that version to a pool made by this one"
        )
    end = _PREFIX.size + body_length
    if len(content) < end + MAC_SIZE + CHECKSUM_SIZE:
        raise FormatError(f"{where} is truncated: restore it from another disk of the pool")
    if not whole or len(content) != end + MAC_SIZE + CHECKSUM_SIZE:
        raise FormatError(f"{where} is damaged: restore it from another disk of the pool")
    try:
        header = _HEADER_DECODER.decode(content[_PREFIX.size : end])
    except msgspec.MsgspecError as error:
        raise FormatError(f"{where} can't be understood ({error})") from error
    header.validate()
    return StoredHeader(header, directory, content[:end], content[end : end + MAC_SIZE], fallback)


def verify_header(stored: StoredHeader, header_key: bytes | bytearray | memoryview) -> None:
    """Raise FormatError unless the header was written by someone who held the pool's key."""
    if not hmac.compare_digest(_mac(stored.authenticated, header_key), stored.mac):
        raise FormatError(
            f"the pool header in {stored.directory} was altered without the pool's key:"
            " don't trust this disk; replace it"
        )


def read_header(directory: Path, medium: Medium = POSIX_MEDIUM) -> StoredHeader:
    """The newest whole copy in `directory`; blocking.

    Raises FormatError if there is none or a newer dwfs made it, DwfsError if it can't be read.
    """
    problem: DwfsError
    try:
        return decode_header(_read(medium, directory / HEADER_NAME), directory)
    except FileNotFoundError:
        problem = FormatError(
            f"{directory} is not a disk of a dwfs pool: it has no file {HEADER_NAME};"
            " is the disk mounted?"
        )
    except NewerFormatError:
        raise
    except FormatError as error:
        problem = error
    except OSError as error:  # one bad sector must not cost a disk
        problem = _unreadable(directory / HEADER_NAME, error)
    try:
        return decode_header(_read(medium, directory / PREVIOUS_NAME), directory, fallback=True)
    except (FileNotFoundError, FormatError):
        raise problem from None
    except OSError as error:
        raise _unreadable(directory / PREVIOUS_NAME, error) from error


def write_header(
    directory: Path,
    header: PoolHeader,
    header_key: bytes | bytearray | memoryview,
    medium: Medium = POSIX_MEDIUM,
) -> None:
    """Replace the disk's header durably and atomically; blocking. Raises OSError, FormatError."""
    content = encode_header(header, header_key)
    current = _whole_content(medium, directory)
    if current is not None:
        replace_file(medium, directory, PREVIOUS_NAME, current)
    replace_file(medium, directory, HEADER_NAME, content)


def replace_file(medium: Medium, directory: Path, name: str, content: bytes) -> None:
    """Give `name` that content, whole and durable, or leave it as it is. Raises OSError."""
    temporary = directory / (name + TEMPORARY_SUFFIX)
    try:
        handle = medium.create(temporary, replace=True)
        try:
            medium.write(handle, 0, [content])
            medium.sync(handle)
        finally:
            medium.close(handle)
    except BaseException:  # whatever it was, nothing half-written stays behind
        with contextlib.suppress(OSError):
            medium.remove(temporary)
        raise
    medium.rename(temporary, directory / name)
    medium.sync_directory(directory)


def _mac(content: bytes, key: bytes | bytearray | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=MAC_SIZE, key=key, person=_MAC_PURPOSE).digest()


def _read(medium: Medium, path: Path) -> bytes:
    handle = medium.open(path)
    try:
        return medium.read(handle, 0, limits.POOL_HEADER_SIZE_MAX + CHECKSUM_SIZE + 1)
    finally:
        medium.close(handle)


def _whole_content(medium: Medium, directory: Path) -> bytes | None:
    """The bytes of `dwfs-disk` if it is whole: only such a copy may become the previous one."""
    try:
        content = _read(medium, directory / HEADER_NAME)
        decode_header(content, directory)
    except (OSError, FormatError):  # not there, or not to be read any more
        return None
    return content


def _unreadable(path: Path, error: OSError) -> DwfsError:
    return DwfsError(f"can't read {path}: {error.strerror}; check the disk and its permissions")

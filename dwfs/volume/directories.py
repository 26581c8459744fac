"""Directories: names in buckets under a keyed hash, which is also the readdir cookie.

A bucket holds the names of one directory that share a 60-bit hash: practically always one, at most
eight. Each name has a slot in its bucket that it keeps for life; cookie = hash | slot. A listing
goes through the hashes in order, so a name that stays is returned exactly once, whatever is created
or removed meanwhile.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Final

import msgspec

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import InodeNumber
from dwfs.volume.records import Dentry, DirectoryEntry, DirectoryPage
from dwfs.volume.store import KIND_DENTRY
from dwfs.volume.table import Table
from dwfs.volume.versions import SUFFIX_SIZE, Versions

SLOTS: Final = 8
PAGE_KEYS_MAX: Final = 4_096  # looked at for one page: some 10 ms
DIRTY_QUOTA: Final = limits.DIRTY_OBJECTS_MAX // 4

_dentry_key = Struct(">cQQ").pack
_directory_prefix = Struct(">cQ").pack
_encoder = msgspec.msgpack.Encoder()


def _identity(key: bytes) -> bytes:
    return key


def find_in(bucket: list[Dentry], name: bytes) -> Dentry | None:
    """The entry called `name`, or None."""
    for dentry in bucket:
        if dentry[1] == name:
            return dentry
    return None


def first_key(parent: int, after_cookie: int) -> bytes:
    """Where a listing of a directory goes on after a cookie."""
    return _directory_prefix(KIND_DENTRY, parent) + (after_cookie & ~7).to_bytes(8, "big")


def entries_in(
    buckets: Iterable[tuple[bytes, list[Dentry]]], after_cookie: int, limit: int
) -> list[DirectoryEntry]:
    """Up to `limit` entries with cookies above `after_cookie`; buckets come with their keys."""
    entries: list[DirectoryEntry] = []
    for key, bucket in buckets:
        base = int.from_bytes(key[9:17], "big")
        for slot, name, inode, d_type in bucket if len(bucket) == 1 else sorted(bucket):
            if base | slot > after_cookie:
                entries.append(DirectoryEntry(base | slot, name, inode, d_type))
        if len(entries) >= limit:
            return entries[:limit]
    return entries


def page_of(
    found: Iterable[tuple[bytes, bytes]],
    decode: Callable[[bytes, bytes], list[Dentry]],
    after_cookie: int,
    limit: int,
) -> DirectoryPage:
    """What a scan with pauses gives until it pauses, and where to go on."""
    paused = 0

    def buckets() -> Iterator[tuple[bytes, list[Dentry]]]:
        nonlocal paused
        for key, sealed in found:
            if not sealed:
                paused = int.from_bytes(key[9:17], "big")
                return
            yield key, decode(key, sealed)

    entries = entries_in(buckets(), after_cookie, limit)
    if len(entries) == limit:
        return DirectoryPage(entries, entries[-1].cookie)
    return DirectoryPage(entries, paused - 1 if paused else None)


def directory_prefix(parent: int) -> bytes:
    """What the keys of a directory's buckets begin with."""
    return _directory_prefix(KIND_DENTRY, parent)


def dentry_key(parent: int, name_hash: int) -> bytes:
    """Key of the bucket for names with that hash."""
    return _dentry_key(KIND_DENTRY, parent, name_hash)


class Directories:
    """All directories' entries. Validation (is the parent a directory?) is the machine's."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._hash = versions.store.names.dentry
        self.table: Table[bytes, list[Dentry]] = Table(
            versions,
            _identity,
            _encoder.encode,
            msgspec.msgpack.Decoder(list[Dentry]).decode,
            limits.DENTRY_CACHE_ENTRIES,
            DIRTY_QUOTA,
        )
        # A look-up is mostly followed by a change of the same name: hash it once.
        self._keys: dict[tuple[int, bytes], bytes] = {}

    def _key(self, parent: int, name: bytes) -> bytes:
        pair = (parent, name)
        key = self._keys.get(pair)
        if key is None:
            key = _dentry_key(KIND_DENTRY, parent, self._hash(parent, name))
            if len(self._keys) >= limits.DENTRY_CACHE_ENTRIES:
                self._keys = {}
            self._keys[pair] = key
        return key

    def find(self, parent: InodeNumber, name: bytes) -> Dentry | None:
        """The entry called `name`, or None."""
        bucket = self.table.get(self._key(parent, name))
        if bucket is not None:
            for dentry in bucket:
                if dentry[1] == name:
                    return dentry
        return None

    def insert(self, parent: InodeNumber, name: bytes, inode: InodeNumber, d_type: int) -> None:
        """Add a name that is not there. Raises PosixError ENOSPC for a ninth equal hash."""
        key = self._key(parent, name)
        bucket = self.table.get(key)
        if bucket is None:
            bucket = [(0, name, inode, d_type)]
        else:
            taken = {dentry[0] for dentry in bucket}
            slot = next((slot for slot in range(SLOTS) if slot not in taken), None)
            if slot is None:
                raise PosixError(errno.ENOSPC, "too many names with one hash")
            bucket.append((slot, name, inode, d_type))
        self.table.put(key, bucket)

    def replace(self, parent: InodeNumber, name: bytes, inode: InodeNumber, d_type: int) -> None:
        """Let a name that is there mean another inode."""
        key = self._key(parent, name)
        bucket = self.table.get(key)
        assert bucket is not None, "replace of a missing name"
        for index, dentry in enumerate(bucket):
            if dentry[1] == name:
                bucket[index] = (dentry[0], name, inode, d_type)
        self.table.put(key, bucket)

    def remove(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name that is there."""
        key = self._key(parent, name)
        bucket = self.table.get(key)
        assert bucket is not None, "removal of a missing name"
        if len(bucket) == 1:
            self.table.delete(key)
            return
        bucket[:] = [dentry for dentry in bucket if dentry[1] != name]
        self.table.put(key, bucket)

    def read(self, parent: InodeNumber, after_cookie: int, limit: int) -> list[DirectoryEntry]:
        """Up to `limit` entries with cookies above `after_cookie`, in cookie order."""
        prefix = self._flush(parent)
        buckets = (
            (key, self._bucket(key, sealed))
            for key, sealed in self._versions.scan(prefix, first_key(parent, after_cookie))
        )
        return entries_in(buckets, after_cookie, limit)

    def page(self, parent: InodeNumber, after_cookie: int, limit: int) -> DirectoryPage:
        """As `read`, in bounded time however many deleted names snapshots keep in between."""
        found = self._versions.scan(
            self._flush(parent), first_key(parent, after_cookie), pause=PAGE_KEYS_MAX
        )
        return page_of(found, self._bucket, after_cookie, limit)

    def _flush(self, parent: InodeNumber) -> bytes:
        """Have the store know the directory; returns what its keys begin with."""
        prefix = _directory_prefix(KIND_DENTRY, parent)
        unflushed = [key for key in self.table.dirty if key.startswith(prefix)]
        if unflushed:
            self.table.flush(unflushed)
        return prefix

    def _bucket(self, key: bytes, sealed: bytes) -> list[Dentry]:
        return self.table.peek(key[:-SUFFIX_SIZE]) or self.table.decode(key, sealed)

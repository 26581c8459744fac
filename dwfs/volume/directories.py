"""Directories: names in buckets under a keyed hash, which is also the readdir cookie.

A bucket holds the names of one directory that share a 60-bit hash: practically always one, at most
eight. Each name has a slot in its bucket that it keeps for life; cookie = hash | slot. A listing
goes through the hashes in order, so a name that stays is returned exactly once, whatever is created
or removed meanwhile.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import Final

import msgspec

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import InodeNumber
from dwfs.volume.records import Dentry, DirectoryEntry
from dwfs.volume.store import EPOCH_SUFFIX, KIND_DENTRY, StateStore
from dwfs.volume.table import Table

SLOTS: Final = 8
DIRTY_QUOTA: Final = limits.DIRTY_OBJECTS_MAX // 4

_dentry_key = Struct(">cQQ4s").pack
_directory_prefix = Struct(">cQ").pack
_encoder = msgspec.msgpack.Encoder()


def _identity(key: bytes) -> bytes:
    return key


class Directories:
    """All directories' entries. Validation (is the parent a directory?) is the machine's."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._hash = store.names.dentry
        self.table: Table[bytes, list[Dentry]] = Table(
            store,
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
            key = _dentry_key(KIND_DENTRY, parent, self._hash(parent, name), EPOCH_SUFFIX)
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
        prefix = _directory_prefix(KIND_DENTRY, parent)
        table = self.table
        unflushed = [key for key in table.dirty if key.startswith(prefix)]
        if unflushed:
            table.flush(unflushed)
        entries: list[DirectoryEntry] = []
        start = prefix + (after_cookie & ~7).to_bytes(8, "big")
        for key, sealed in self._store.scan(prefix, start):
            base = int.from_bytes(key[9:17], "big")
            bucket = table.peek(key) or table.decode(key, sealed)
            for slot, name, inode, d_type in bucket if len(bucket) == 1 else sorted(bucket):
                if base | slot > after_cookie:
                    entries.append(DirectoryEntry(base | slot, name, inode, d_type))
            if len(entries) >= limit:
                return entries[:limit]
        return entries

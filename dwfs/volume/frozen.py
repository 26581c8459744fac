"""Records as snapshots see them: decoded once, shared by all views, never changed.

A version may be seen by many snapshots, so records are cached by the key under which the version is
stored. Whoever changes a version in place that a snapshot sees, or allows that, clears the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

from dwfs.types import Epoch, Extent, InodeNumber
from dwfs.volume.records import Dentry, Inode
from dwfs.volume.store import KIND_INODE, KIND_NODE
from dwfs.volume.versions import Versions

KeyT = TypeVar("KeyT")
RecordT = TypeVar("RecordT")

INODES_CACHED: Final = 4_096
BUCKETS_CACHED: Final = 4_096
NODES_CACHED: Final = 512
XATTR_BUCKETS_CACHED: Final = 64

Pairs = list[tuple[bytes, bytes]]


class FrozenTable(Generic[KeyT, RecordT]):
    """Records of one kind at any epoch."""

    def __init__(
        self,
        versions: Versions,
        make_key: Callable[[KeyT], bytes],
        decode: Callable[[bytes], RecordT],
        capacity: int,
    ) -> None:
        self._versions = versions
        self._make_key = make_key
        self._decode = decode
        self._capacity = capacity
        self._records: dict[bytes, RecordT] = {}  # by stored key

    def get(self, key: KeyT, epoch: Epoch) -> RecordT | None:
        """What is seen at `epoch`, or None. Raises StateDamagedError."""
        found = self._versions.find(self._make_key(key), epoch)
        return None if found is None else self.decode(*found)

    def decode(self, stored: bytes, sealed: bytes) -> RecordT:
        """The record of a version that was found. Raises StateDamagedError."""
        record = self._records.get(stored)
        if record is None:
            record = self._decode(self._versions.unseal(stored, sealed))
            if len(self._records) >= self._capacity:
                del self._records[next(iter(self._records))]
            self._records[stored] = record
        return record

    def clear(self) -> None:
        """Forget all."""
        self._records.clear()


def _logical(key: bytes) -> bytes:
    return key


class FrozenRecords:
    """The tables of what snapshots see."""

    def __init__(self, versions: Versions) -> None:
        node_hash = versions.store.names.node
        self.inodes: FrozenTable[InodeNumber, Inode] = FrozenTable(
            versions,
            lambda number: KIND_INODE + number.to_bytes(8, "big"),
            msgspec.msgpack.Decoder(Inode).decode,
            INODES_CACHED,
        )
        self.nodes: FrozenTable[tuple[InodeNumber, int], list[Extent]] = FrozenTable(
            versions,
            lambda pair: KIND_NODE + node_hash(pair[0], pair[1]),
            msgspec.msgpack.Decoder(list[Extent]).decode,
            NODES_CACHED,
        )
        self.buckets: FrozenTable[bytes, list[Dentry]] = FrozenTable(
            versions, _logical, msgspec.msgpack.Decoder(list[Dentry]).decode, BUCKETS_CACHED
        )
        self.xattrs: FrozenTable[bytes, Pairs] = FrozenTable(
            versions, _logical, msgspec.msgpack.Decoder(Pairs).decode, XATTR_BUCKETS_CACHED
        )

    def clear(self) -> None:
        """Forget everything that is cached."""
        self.inodes.clear()
        self.nodes.clear()
        self.buckets.clear()
        self.xattrs.clear()

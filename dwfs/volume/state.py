"""`VolumeState`: the decoded state of one volume, as the machine sees it.

Holds the tables, the meta record and the set of orphans, and knows how to flush them into the
store. It decides nothing: the rules are in `machine` and the modules that it dispatches to.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec

from dwfs import limits
from dwfs.errors import FormatError
from dwfs.types import Extent, InodeNumber
from dwfs.volume.directories import Directories
from dwfs.volume.records import STATE_FORMAT, Inode, Meta
from dwfs.volume.store import (
    EPOCH_SUFFIX,
    KIND_INODE,
    KIND_NODE,
    KIND_ORPHAN,
    KIND_XATTR,
    META_KEY,
    StateStore,
)
from dwfs.volume.stripes import StripeTable
from dwfs.volume.table import Table

DIRTY_QUOTA: Final = limits.DIRTY_OBJECTS_MAX // 4
XATTR_BUCKETS_CACHED: Final = 256  # of at most 64 KiB each, so some 16 MiB
XATTR_DIRTY_QUOTA: Final = 64

_encoder = msgspec.msgpack.Encoder()
_number_key = Struct(">cQ4s").pack


def _inode_key(number: int) -> bytes:
    return _number_key(KIND_INODE, number, EPOCH_SUFFIX)


def _orphan_key(number: int) -> bytes:
    return _number_key(KIND_ORPHAN, number, EPOCH_SUFFIX)


def _xattr_key(key: bytes) -> bytes:
    return key


def xattr_prefix(number: int) -> bytes:
    """What the keys of an inode's extended attributes begin with."""
    return KIND_XATTR + number.to_bytes(8, "big")


class VolumeState:
    """The tables of one volume. Open it on a store that is empty or was filled by this class."""

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self.meta = self._read_meta()
        node_hash = store.names.node
        self.inodes: Table[InodeNumber, Inode] = Table(
            store,
            _inode_key,
            _encoder.encode,
            msgspec.msgpack.Decoder(Inode).decode,
            limits.INODE_CACHE_ENTRIES,
            DIRTY_QUOTA,
        )
        self.nodes: Table[tuple[int, int], list[Extent]] = Table(
            store,
            lambda pair: KIND_NODE + node_hash(pair[0], pair[1]) + EPOCH_SUFFIX,
            _encoder.encode,
            msgspec.msgpack.Decoder(list[Extent]).decode,
            limits.EXTENT_NODE_CACHE_ENTRIES,
            DIRTY_QUOTA,
        )
        self.xattrs: Table[bytes, list[tuple[bytes, bytes]]] = Table(
            store,
            _xattr_key,
            _encoder.encode,
            msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode,
            XATTR_BUCKETS_CACHED,
            XATTR_DIRTY_QUOTA,
        )
        self.directories = Directories(store)
        self.stripes = StripeTable(store)
        self._stored_orphans: Table[InodeNumber, bool] = Table(
            store,
            _orphan_key,
            _encoder.encode,
            msgspec.msgpack.Decoder(bool).decode,
            2,
            DIRTY_QUOTA,
        )
        self.orphans: dict[InodeNumber, None] = {
            InodeNumber(int.from_bytes(key[1:9], "big")): None for key, _ in store.scan(KIND_ORPHAN)
        }

    def _read_meta(self) -> Meta:
        value = self.store.get(META_KEY)
        if value is None:
            return Meta()
        meta = msgspec.msgpack.decode(value, type=Meta)
        if meta.format_version != STATE_FORMAT:
            raise FormatError(
                f"volume state has format {meta.format_version}, this dwfs reads {STATE_FORMAT}; "
                "use the version of dwfs that wrote it"
            )
        return meta

    def xattr_key(self, number: int, name: bytes) -> bytes:
        """Key of the bucket that holds an inode's attribute `name`."""
        return xattr_prefix(number) + self.store.names.xattr(number, name) + EPOCH_SUFFIX

    def add_orphan(self, number: InodeNumber) -> None:
        """Note an inode without names, to be purged when nobody has it open."""
        self.orphans[number] = None
        self._stored_orphans.put(number, True)

    def remove_orphan(self, number: InodeNumber) -> None:
        """The orphan is gone."""
        del self.orphans[number]
        self._stored_orphans.delete(number)

    def relieve(self) -> None:
        """Between commands: write back the oldest dirty records beyond the quotas."""
        self.inodes.relieve()
        self.directories.table.relieve()
        self.nodes.relieve()
        self.stripes.table.relieve()
        self.xattrs.relieve()
        self._stored_orphans.relieve()

    def flush(self) -> None:
        """Write back everything, into the open transaction."""
        self.inodes.flush()
        self.directories.table.flush()
        self.nodes.flush()
        self.stripes.table.flush()
        self.xattrs.flush()
        self._stored_orphans.flush()
        self.store.put(META_KEY, _encoder.encode(self.meta))

    def commit(self) -> None:
        """Flush and end the transaction: the store now holds this state."""
        self.flush()
        self.store.commit()

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
from dwfs.types import FIRST_EPOCH, NO_EPOCH, Extent, InodeNumber
from dwfs.volume.directories import Directories
from dwfs.volume.extents import Kept
from dwfs.volume.frozen import FrozenRecords
from dwfs.volume.kept import KeptTable
from dwfs.volume.properties import Properties, decode_properties, encode_properties
from dwfs.volume.records import STATE_FORMAT, Inode, Meta
from dwfs.volume.snapshots import SnapshotTable
from dwfs.volume.store import (
    KIND_INODE,
    KIND_NODE,
    KIND_ORPHAN,
    KIND_XATTR,
    META_KEY,
    PROPERTIES_KEY,
    RECEIVE_KEY,
    StateStore,
)
from dwfs.volume.stripes import StripeTable
from dwfs.volume.table import Table
from dwfs.volume.transfer import ReceiveState, decode_receive_state, encode_receive_state
from dwfs.volume.versions import FIRST_SUFFIX, Versions

DIRTY_QUOTA: Final = limits.DIRTY_OBJECTS_MAX // 4
XATTR_BUCKETS_CACHED: Final = 256  # of at most 64 KiB each, so some 16 MiB
XATTR_DIRTY_QUOTA: Final = 64

_encoder = msgspec.msgpack.Encoder()
_meta_decoder = msgspec.msgpack.Decoder(Meta)
_number_key = Struct(">cQ").pack


def inode_key(number: int) -> bytes:
    """Logical key of an inode."""
    return _number_key(KIND_INODE, number)


def _orphan_key(number: int) -> bytes:
    return _number_key(KIND_ORPHAN, number) + FIRST_SUFFIX


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
        self.properties = decode_properties(store.get(PROPERTIES_KEY))
        self._properties_changed = False
        self.receive = decode_receive_state(store.get(RECEIVE_KEY))
        self._receive_changed = False
        self.versions = Versions(store)
        self.snapshots = SnapshotTable(store)
        self.kept = KeptTable(store, self.meta)
        self.frozen = FrozenRecords(self.versions)
        node_hash = store.names.node
        self.inodes: Table[InodeNumber, Inode] = Table(
            self.versions,
            inode_key,
            _encoder.encode,
            msgspec.msgpack.Decoder(Inode).decode,
            limits.INODE_CACHE_ENTRIES,
            DIRTY_QUOTA,
        )
        self.nodes: Table[tuple[int, int], list[Extent]] = Table(
            self.versions,
            lambda pair: KIND_NODE + node_hash(pair[0], pair[1]),
            _encoder.encode,
            msgspec.msgpack.Decoder(list[Extent]).decode,
            limits.EXTENT_NODE_CACHE_ENTRIES,
            DIRTY_QUOTA,
        )
        self.xattrs: Table[bytes, list[tuple[bytes, bytes]]] = Table(
            self.versions,
            _xattr_key,
            _encoder.encode,
            msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode,
            XATTR_BUCKETS_CACHED,
            XATTR_DIRTY_QUOTA,
        )
        self.directories = Directories(self.versions)
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
        self.follow_snapshots()

    def _read_meta(self) -> Meta:
        value = self.store.get(META_KEY)
        if value is None:
            return Meta()
        meta = _meta_decoder.decode(value)
        if meta.format_version != STATE_FORMAT:
            raise FormatError(
                f"volume state has format {meta.format_version}, this dwfs reads {STATE_FORMAT}; "
                "use the version of dwfs that wrote it"
            )
        return meta

    def set_properties(self, properties: Properties) -> None:
        """Take new properties; written with the next flush."""
        self.properties = properties
        self._properties_changed = True

    def set_receive(self, receive: ReceiveState) -> None:
        """Take what is known of streams now; written with the next flush."""
        self.receive = receive
        self._receive_changed = True

    def xattr_key(self, number: int, name: bytes) -> bytes:
        """Key of the bucket that holds an inode's attribute `name`."""
        return xattr_prefix(number) + self.store.names.xattr(number, name)

    def node_key(self, number: int, index: int) -> bytes:
        """Logical key of an extent node."""
        return KIND_NODE + self.store.names.node(number, index)

    def follow_snapshots(self) -> None:
        """The epoch or the set of snapshots has changed: say so to those who write versions."""
        self.versions.follow(self.meta.epoch, self.snapshots.newest())
        self.extent_epoch = NO_EPOCH if self.meta.epoch == FIRST_EPOCH else self.meta.epoch

    def new_kept(self) -> Kept | None:
        """To account what a command takes from the map and the newest snapshot keeps, if there is one."""
        last = self.versions.last
        return Kept(last) if last else None

    def forget_current(self) -> None:
        """Drop all cached records of versioned kinds, changed ones too."""
        self.inodes.forget()
        self.directories.table.forget()
        self.nodes.forget()
        self.xattrs.forget()
        self.follow_snapshots()

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
        self.kept.relieve()

    def flush_current(self) -> None:
        """Write back all changed records of versioned kinds: the store has the current state."""
        self.inodes.flush()
        self.directories.table.flush()
        self.nodes.flush()
        self.xattrs.flush()

    def flush_orphans(self) -> None:
        """Write back which inodes are orphans."""
        self._stored_orphans.flush()

    def flush(self) -> None:
        """Write back everything, into the open transaction."""
        self.flush_current()
        self.stripes.table.flush()
        self._stored_orphans.flush()
        self.kept.flush()
        self.store.put(META_KEY, _encoder.encode(self.meta))
        if self._properties_changed:
            self.store.put(PROPERTIES_KEY, encode_properties(self.properties))
            self._properties_changed = False
        if self._receive_changed:
            self.store.put(RECEIVE_KEY, encode_receive_state(self.receive))
            self._receive_changed = False

    def commit(self) -> None:
        """Flush and end the transaction: the store now holds this state."""
        self.flush()
        self.store.commit()

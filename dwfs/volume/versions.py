"""Versions: several values of one key, each good from the epoch in which it was born.

A *logical key* (an inode, a bucket of names, an extent node, a bucket of attributes) is stored as
key + complement of the epoch in which the version was born, so that newer versions come first. What
is seen at an epoch is the newest version born in it or before. An empty value is a *tombstone*: from
that epoch on there is nothing.

A version that no snapshot sees is overwritten in place. One that the newest snapshot sees stays; the
new one is born beside it, and a *note* (kind `V`) under that snapshot's epoch says that the old one is
there for it. So every version but the newest has exactly one note, under the newest snapshot that
sees it, and whoever destroys a snapshot finds by its notes what may go (`dwfs.volume.reaping`).

When a version is stored depends on when a table's dirty records are flushed, which is not part of the
command sequence. So the same commands may leave different versions here, but never different
contents at the epoch of a snapshot: taking one flushes everything. Nothing that commands decide may
depend on more than that.

Until the first snapshot all versions have epoch 1, and keys are known without looking.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, cast

from dwfs.types import FIRST_EPOCH, NO_EPOCH, Epoch
from dwfs.volume.store import (
    KIND_DENTRY,
    KIND_INODE,
    KIND_KEPT_VERSION,
    KIND_NODE,
    KIND_XATTR,
    ONLY_VOLUME,
    Delete,
    Get,
    Put,
    StateStore,
)

_EPOCH_MAX: Final = 0xFFFFFFFF
SUFFIX_SIZE: Final = 4
CURRENT: Final = Epoch(_EPOCH_MAX)  # later than every version
UNSEEN_MAX: Final = 16_384  # some 2 MiB
VERSIONED_KINDS: Final = (KIND_DENTRY, KIND_NODE, KIND_INODE, KIND_XATTR)
_NOTE_PREFIX: Final = KIND_KEPT_VERSION + ONLY_VOLUME
_BEYOND_VERSIONS: Final = b"\xff" * SUFFIX_SIZE  # epoch 0, in which nothing is born


class Version(NamedTuple):
    """One version of a logical key as it is stored."""

    born: Epoch
    key: bytes  # with the suffix
    sealed: bytes  # empty: a tombstone


def suffix(born: int) -> bytes:
    """What follows the logical key of a version."""
    return (_EPOCH_MAX - born).to_bytes(SUFFIX_SIZE, "big")


def born_of(key: bytes) -> Epoch:
    """The epoch in which the version under a stored key was born."""
    return Epoch(_EPOCH_MAX - int.from_bytes(key[-SUFFIX_SIZE:], "big"))


FIRST_SUFFIX: Final = suffix(FIRST_EPOCH)


def note_prefix(seen_by: int) -> bytes:
    """What the keys of all notes under a snapshot's epoch begin with."""
    return _NOTE_PREFIX + seen_by.to_bytes(4, "big")


def note_key(seen_by: int, born: int, logical: bytes) -> bytes:
    """Key of the note that the version of `logical` born then is kept for a snapshot."""
    return note_prefix(seen_by) + born.to_bytes(4, "big") + logical


def parse_note(key: bytes) -> tuple[Epoch, Epoch, bytes]:
    """(epoch of the snapshot, epoch of birth, logical key) of a note."""
    start = len(_NOTE_PREFIX)
    seen_by = Epoch(int.from_bytes(key[start : start + 4], "big"))
    return seen_by, Epoch(int.from_bytes(key[start + 4 : start + 8], "big")), key[start + 8 :]


class Versions:
    """Logical keys over a `StateStore`. `get`, `put` and `delete` are about the current state."""

    __slots__ = ("_unseen", "delete", "epoch", "get", "last", "put", "store")

    # About the current value of a logical key; which functions these are depends on the epoch.
    get: Get  # raises StateDamagedError
    put: Put
    delete: Delete

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self.follow(FIRST_EPOCH, NO_EPOCH)

    def follow(self, epoch: Epoch, last: Epoch) -> None:
        """The epoch, the newest snapshot or the store's content has changed."""
        self.epoch = epoch  # in which changes are made now
        self.last = last  # of the newest snapshot
        # Logical keys whose newest version is known to be seen by no snapshot, and where it is.
        self._unseen: dict[bytes, bytes] = {}
        if epoch == FIRST_EPOCH:
            self.get, self.put, self.delete = self.store.with_suffix(FIRST_SUFFIX)
        else:
            self.get, self.put, self.delete = self._get, self._put, self._delete

    def _get(self, key: bytes) -> bytes | None:
        found = self.find(key, CURRENT)
        return None if found is None else self.store.unseal(*found)

    def find(self, key: bytes, epoch: Epoch) -> tuple[bytes, bytes] | None:
        """(stored key, sealed value) of what is seen at `epoch`."""
        found = self.store.seek(key + suffix(epoch))
        if found is None or not found[1] or found[0][:-SUFFIX_SIZE] != key:
            return None
        return found

    def _put(self, key: bytes, value: bytes) -> None:
        stored = self._unseen.get(key)
        if stored is None:
            stored = key + suffix(self.epoch)
            newest = self._newest(key)
            if newest is not None:
                if newest.born > self.last:
                    stored = newest.key
                else:
                    self.store.mark(note_key(self.last, newest.born, key))
            if len(self._unseen) >= UNSEEN_MAX:
                self._unseen = {}
            self._unseen[key] = stored
        self.store.put(stored, value)

    def _delete(self, key: bytes) -> None:
        self._unseen.pop(key, None)
        newest = self._newest(key)
        if newest is None or not newest.sealed:
            return
        if newest.born <= self.last:
            self.store.mark(note_key(self.last, newest.born, key))
            self.store.mark(key + suffix(self.epoch))
        elif self.older(newest.key) is None:
            self.store.delete(newest.key)
        else:
            self.store.mark(newest.key)

    def _newest(self, key: bytes) -> Version | None:
        found = self.store.seek(key)
        if found is None or found[0][:-SUFFIX_SIZE] != key:
            return None
        return Version(born_of(found[0]), *found)

    def older(self, stored: bytes) -> Version | None:
        """The next older version than the one under this stored key."""
        found = self.store.seek(stored + b"\0")
        if found is None or found[0][:-SUFFIX_SIZE] != stored[:-SUFFIX_SIZE]:
            return None
        return Version(born_of(found[0]), *found)

    def newer(self, stored: bytes) -> Version | None:
        """The next newer version than the one that is or was under this stored key."""
        found = self.store.seek_before(stored)
        if found is None or found[0][:-SUFFIX_SIZE] != stored[:-SUFFIX_SIZE]:
            return None
        return Version(born_of(found[0]), *found)

    def all_of(self, key: bytes) -> list[Version]:
        """All versions of a logical key, newest first, tombstones too."""
        return [
            Version(born_of(stored), stored, sealed)
            for stored, sealed in self.store.scan(key)
            if len(stored) == len(key) + SUFFIX_SIZE
        ]

    def unseal(self, key: bytes, sealed: bytes) -> bytes:
        """Open what a scan delivered. Raises StateDamagedError."""
        return self.store.unseal(key, sealed)

    def scan(
        self, prefix: bytes, start: bytes = b"", epoch: Epoch = CURRENT, pause: int = 0
    ) -> Iterator[tuple[bytes, bytes]]:
        """(stored key, sealed value) of what is seen at `epoch`, in order, from `start` on.

        Between two of them may lie any number of keys that are not seen. With a `pause`, a key at
        which to go on another time is delivered after so many, with an empty value.

        The state must not be changed while the iterator is in use.
        """
        if self.epoch == FIRST_EPOCH:
            return self.store.scan(prefix, start)
        return self._scan(prefix, start, epoch, pause)

    def _scan(
        self, prefix: bytes, start: bytes, epoch: Epoch, pause: int
    ) -> Iterator[tuple[bytes, bytes]]:
        cursor = self.store.cursor()
        present = cursor.set_range(start or prefix)
        looked = 0
        while present:
            stored, sealed = cast("tuple[bytes, bytes]", cursor.item())
            if not stored.startswith(prefix):
                return
            looked += 1
            if looked == pause:
                yield stored, b""
            logical = stored[:-SUFFIX_SIZE]
            if born_of(stored) > epoch:
                present = cursor.set_range(logical + suffix(epoch))
                continue  # at a version that is old enough, or at the next logical key
            if sealed:
                yield stored, sealed
            present = cursor.next()
            if present and bytes(cursor.key()[:-SUFFIX_SIZE]) == logical:
                present = cursor.set_range(logical + _BEYOND_VERSIONS)

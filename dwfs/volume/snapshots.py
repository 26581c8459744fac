"""The snapshots of a volume: their records, by name and by epoch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

import msgspec

from dwfs import limits
from dwfs.types import NO_EPOCH, Epoch
from dwfs.volume.records import Snapshot
from dwfs.volume.store import KIND_SNAPSHOT, ONLY_VOLUME, StateStore

_prefix = KIND_SNAPSHOT + ONLY_VOLUME
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def is_name(name: str) -> bool:
    """Whether a snapshot can be called so.

    It becomes a directory's name and a command's argument: no `/`, `@` or control characters, no
    `-` in front, 1 to 255 bytes of valid UTF-8.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return (
        0 < size <= limits.NAME_LENGTH_MAX
        and name not in (".", "..")
        and not name.startswith("-")
        and not any(c in "/@" or c < " " or "\x7f" <= c < "\xa0" for c in name)
    )


def _key(epoch: Epoch) -> bytes:
    return _prefix + epoch.to_bytes(4, "big")


class SnapshotTable:
    """All records in memory, written through to the store."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.by_name: dict[str, Snapshot] = {}
        self.epochs: list[Epoch] = []  # ascending
        self._slots: set[int] = set()
        for key, sealed in store.scan(_prefix):
            self._note(_decoder.decode(store.unseal(key, sealed)))

    def _note(self, snapshot: Snapshot) -> None:
        self.by_name[snapshot.name] = snapshot
        insort(self.epochs, snapshot.epoch)
        self._slots.add(snapshot.slot)

    def add(self, snapshot: Snapshot) -> None:
        """Take a new one."""
        self._store.put(_key(snapshot.epoch), _encoder.encode(snapshot))
        self._note(snapshot)

    def remove(self, snapshot: Snapshot) -> None:
        """Forget one that is there."""
        self._store.delete(_key(snapshot.epoch))
        del self.by_name[snapshot.name]
        del self.epochs[bisect_left(self.epochs, snapshot.epoch)]
        self._slots.remove(snapshot.slot)

    def slot_for(self, epoch: Epoch) -> int:
        """A slot for a new snapshot. One comes back only after all others were used.

        Kernels remember inode numbers of destroyed snapshots; they must not soon mean others' files.
        """
        slot = (epoch - 1) % limits.SNAPSHOT_SLOTS_MAX + 1
        while slot in self._slots:
            slot = slot % limits.SNAPSHOT_SLOTS_MAX + 1
        return slot

    def newest(self) -> Epoch:
        """Epoch of the newest snapshot, or NO_EPOCH."""
        return self.epochs[-1] if self.epochs else NO_EPOCH

    def has(self, epoch: Epoch) -> bool:
        """Whether there is a snapshot of that epoch."""
        place = bisect_left(self.epochs, epoch)
        return place < len(self.epochs) and self.epochs[place] == epoch

    def newest_within(self, first: int, last: int) -> Epoch:
        """Epoch of the newest snapshot in [first, last], or NO_EPOCH."""
        place = bisect_right(self.epochs, last)
        found = self.epochs[place - 1] if place else NO_EPOCH
        return found if found >= first else NO_EPOCH

    def before(self, epoch: int) -> Epoch:
        """Epoch of the newest snapshot before that epoch, or NO_EPOCH."""
        return self.newest_within(0, epoch - 1)

    def at(self, epoch: Epoch) -> Snapshot:
        """The snapshot of an epoch, which exists."""
        return next(one for one in self.by_name.values() if one.epoch == epoch)

"""Commands that take and destroy snapshots.

Both take the same time whatever the volume holds. Taking one writes back the changed records (there
are at most a few hundred in each table) so that the store has the state of the moment, and counts
the epoch on: what is changed from now on is born later. Destroying one takes its record away and puts
its epoch in the queue of `dwfs.volume.reaping`.
"""

from __future__ import annotations

import errno

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import Epoch
from dwfs.volume.commands import DestroySnapshot, TakeSnapshot
from dwfs.volume.records import Snapshot
from dwfs.volume.snapshots import is_name
from dwfs.volume.state import VolumeState


def take_snapshot(state: VolumeState, command: TakeSnapshot) -> None:
    """EINVAL for the name, EEXIST, ENOSPC."""
    if not is_name(command.name):
        raise PosixError(errno.EINVAL, "not a name for a snapshot")
    if command.name in state.snapshots.by_name:
        raise PosixError(errno.EEXIST, f"snapshot {command.name}")
    if len(state.snapshots.epochs) >= limits.SNAPSHOTS_MAX:
        raise PosixError(errno.ENOSPC, f"a volume has at most {limits.SNAPSHOTS_MAX} snapshots")
    state.flush_current()
    meta = state.meta
    state.snapshots.add(
        Snapshot(
            command.name,
            meta.epoch,
            state.snapshots.slot_for(meta.epoch),
            command.time_ns,
            meta.inode_count,
            meta.allocated_bytes,
            command.automatic,
        )
    )
    meta.epoch = Epoch(meta.epoch + 1)
    state.follow_snapshots()


def destroy_snapshot(state: VolumeState, command: DestroySnapshot) -> None:
    """ENOENT."""
    snapshot = state.snapshots.by_name.get(command.name)
    if snapshot is None:
        raise PosixError(errno.ENOENT, f"snapshot {command.name}")
    state.snapshots.remove(snapshot)
    state.meta.reaping.append(snapshot.epoch)
    state.follow_snapshots()
    # A version that only it saw may be overwritten in place now, and be seen by a later one.
    state.frozen.clear()

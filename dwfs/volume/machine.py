"""The state machine: one command in, a result or a POSIX errno out.

`apply` is pure apart from the state that it is handed: no clock, no randomness, no I/O but the
state's own transaction. It validates before it changes, so a `PosixError` means that nothing was
changed and the command must not be logged. (One exception: `StateDamagedError`, a value of the
state that does not authenticate, may come after some changes. The replicator then freezes the
volume, and the torn state is never committed.)
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from dwfs.errors import PosixError
from dwfs.volume import (
    attributes,
    cloning,
    data,
    epochs,
    namespace,
    reaping,
    receiving,
    relocation,
    rollback,
    xattrs,
)
from dwfs.volume.commands import (
    AbortReceive,
    BeginReceive,
    CloneRange,
    Command,
    Create,
    DestroySnapshot,
    DropStripes,
    FinishReceive,
    Link,
    MarkReceived,
    MoveShards,
    PunchHole,
    Purge,
    ReapSnapshots,
    ReceiveRecords,
    Relocate,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    Rollback,
    RollbackStep,
    SetAttributes,
    SetProperties,
    SetXattr,
    TakeSnapshot,
    Unlink,
    WriteExtents,
)
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState


def _set_properties(state: VolumeState, command: SetProperties) -> None:
    """EINVAL."""
    try:
        command.properties.validate()
    except ValueError as error:
        raise PosixError(errno.EINVAL, str(error)) from None
    state.set_properties(command.properties)


# Any: each handler takes its own kind of command, which its key in the table guarantees.
_HANDLERS: Final[dict[type, Callable[[VolumeState, Any], Inode | None]]] = {
    Create: namespace.create,
    Link: namespace.link,
    Unlink: namespace.unlink,
    RemoveDirectory: namespace.remove_directory,
    Rename: namespace.rename,
    SetAttributes: attributes.set_attributes,
    Purge: attributes.purge,
    WriteExtents: data.write_extents,
    PunchHole: data.punch_hole,
    CloneRange: cloning.clone_range,
    Relocate: relocation.relocate,
    DropStripes: data.drop_stripes,
    MoveShards: data.move_shards,
    SetXattr: xattrs.set_xattr,
    RemoveXattr: xattrs.remove_xattr,
    SetProperties: _set_properties,
    BeginReceive: receiving.begin,
    ReceiveRecords: receiving.records,
    MarkReceived: receiving.mark,
    FinishReceive: receiving.finish,
    AbortReceive: receiving.abort,
    TakeSnapshot: epochs.take_snapshot,
    DestroySnapshot: epochs.destroy_snapshot,
    ReapSnapshots: reaping.reap,
    Rollback: rollback.begin,
    RollbackStep: rollback.step,
}


# A stream's own commands and the upkeep of stripes go on; so does an abort's rollback.
_BARRED_WHILE_RECEIVING: Final = frozenset(
    (
        Create,
        Link,
        Unlink,
        RemoveDirectory,
        Rename,
        SetAttributes,
        PunchHole,
        CloneRange,
        SetXattr,
        RemoveXattr,
        TakeSnapshot,
        DestroySnapshot,
    )
)


def apply(state: VolumeState, command: Command) -> Inode | None:
    """The inode concerned (see each handler), or None. Raises PosixError with nothing changed."""
    if state.meta.rolling_back and type(command) is not RollbackStep:
        raise PosixError(errno.EBUSY, "the volume is being rolled back to a snapshot")
    unfinished = state.receive.unfinished
    if unfinished is not None and (
        type(command) in _BARRED_WHILE_RECEIVING
        or (type(command) is Rollback and not unfinished.aborting)
    ):
        raise PosixError(errno.EBUSY, "the volume is in the middle of receiving a stream")
    return _HANDLERS[type(command)](state, command)

"""The state machine: one command in, a result or a POSIX errno out.

`apply` is pure apart from the state that it is handed: no clock, no randomness, no I/O but the
state's own transaction. It validates before it changes, so a `PosixError` means that nothing was
changed and the command must not be logged. (One exception: `StateDamagedError`, a value of the
state that does not authenticate, may come after some changes. The replicator then freezes the
volume, and the torn state is never committed.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dwfs.volume import attributes, data, namespace, xattrs
from dwfs.volume.commands import (
    Command,
    Create,
    DropStripes,
    Link,
    MoveShards,
    PunchHole,
    Purge,
    Relocate,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    WriteExtents,
)
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState

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
    Relocate: data.relocate,
    DropStripes: data.drop_stripes,
    MoveShards: data.move_shards,
    SetXattr: xattrs.set_xattr,
    RemoveXattr: xattrs.remove_xattr,
}


def apply(state: VolumeState, command: Command) -> Inode | None:
    """The inode concerned (see each handler), or None. Raises PosixError with nothing changed."""
    return _HANDLERS[type(command)](state, command)

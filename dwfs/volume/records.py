"""Records of a volume's state: what the values under the LMDB keys decode to.

Mutable msgspec structs: as cheap as `__slots__` objects to read and write, and encoded by native
code. The state's tables hand out the cached object itself. Only the machine changes one, and only
inside `apply`; everybody else reads, and does not keep it across an `await`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from dwfs.types import FIRST_EPOCH, NO_EPOCH, Epoch, Extent, InodeNumber, LogSequence, StripeSeal

ACL_ACCESS: Final = 1  # bit in Inode.acl_flags: system.posix_acl_access is present
ACL_DEFAULT: Final = 2  # bit in Inode.acl_flags: system.posix_acl_default is present

STATE_FORMAT: Final = 2


class Inode(msgspec.Struct, array_like=True, eq=False):
    """A file of any type. Times are nanoseconds since the Unix epoch."""

    number: InodeNumber
    mode: int  # with the file type
    nlink: int  # directories: 2 + subdirectories; 0 = orphan
    uid: int
    gid: int
    device: int  # st_rdev of device nodes
    size: int  # bytes; 0 for directories, length of the target for symbolic links
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    parent: InodeNumber  # of a directory: authoritative ("..", 0 once removed); else a hint
    entry_count: int = 0  # directories: names in it, without "." and ".."
    xattr_count: int = 0
    acl_flags: int = 0
    allocated_bytes: int = 0  # sum of extent lengths
    target: bytes = b""  # of a symbolic link
    # Extents of the first node while they are few; None: the node has a record of its own.
    inline: list[Extent] | None = msgspec.field(default_factory=list)
    # Sorted, disjoint (first, last) ranges of node numbers; every stored node is in one of them.
    extent_runs: list[tuple[int, int]] = msgspec.field(default_factory=list)


class StripeRecord(msgspec.Struct, array_like=True, eq=False):
    """What the state knows of a stripe; the seal's summary is kept apart, under key kind 'Y'."""

    live_bytes: int  # mapped by the current state or a snapshot
    seal: StripeSeal | None  # None: not sealed as far as the state knows


class Meta(msgspec.Struct, array_like=True, eq=False):
    """The one record of the volume as a whole."""

    format_version: int = STATE_FORMAT
    applied: LogSequence = LogSequence(0)  # last command in this state
    replay_from: LogSequence = LogSequence(1)  # first log record recovery needs
    next_inode: InodeNumber = InodeNumber(1)  # above every inode ever created
    epoch: Epoch = FIRST_EPOCH
    inode_count: int = 0  # orphans included
    allocated_bytes: int = 0  # sum over inodes
    kept_bytes: int = 0  # that only snapshots map: sum of all `B` records
    reaping: list[Epoch] = msgspec.field(default_factory=list)  # destroyed; bytes not settled yet
    sweeping: list[Epoch] = msgspec.field(default_factory=list)  # settled; versions not removed yet
    rolling_back: Epoch = NO_EPOCH  # to this snapshot; then nothing else is possible
    rollback_cursor: bytes = b""  # keys before it are done


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A moment of the volume that is kept, by the name under which people know it."""

    name: str
    epoch: Epoch  # it has everything that was applied in this epoch or before
    slot: int  # 1 … SNAPSHOT_SLOTS_MAX: the upper bits of inode numbers in views of it
    time_ns: int  # when it was taken, since the Unix epoch
    inode_count: int
    allocated_bytes: int
    automatic: bool = False  # made by a schedule, which may prune it


class DirectoryEntry(NamedTuple):
    """One name in a directory; `cookie` resumes a listing after it."""

    cookie: int  # > 2; 1 and 2 are "." and "..", which the VFS adds
    name: bytes
    inode: InodeNumber
    type: int  # file type as in d_type: mode >> 12


class DirectoryPage(NamedTuple):
    """Some of a directory's names."""

    entries: list[DirectoryEntry]
    following: int | None  # the cookie from which to go on; None: there are no more


class Usage(NamedTuple):
    """Totals of the volume."""

    inode_count: int  # orphans included
    allocated_bytes: int  # logical bytes mapped to stripes


# (slot, name, inode, d_type); the slot is the low bits of the cookie and never moves.
Dentry = tuple[int, bytes, InodeNumber, int]

"""POSIX semantics, defined here and only here.

`Filesystem` is the facade. Behind it: `namespace` (names), `attributes` (stat and times), `content`
(bytes), `directories` (listings), `xattrs` and `acl`, `readers` and `snapshots` (which state is
read), `capacity` (statfs), `handles` and `references` (who has what open, and when an unlinked file
can go).
"""

from dwfs.vfs.attributes import AccessTime
from dwfs.vfs.caller import SYSTEM, Caller, Credentials, GroupsOf
from dwfs.vfs.capacity import BLOCK_SIZE, FilesystemStatistics, Space
from dwfs.vfs.filesystem import Filesystem, FilesystemOptions
from dwfs.vfs.snapshots import FIRST_SNAPSHOT_INODE, SnapshotInode
from dwfs.vfs.trash import Trash

__all__ = [
    "BLOCK_SIZE",
    "FIRST_SNAPSHOT_INODE",
    "SYSTEM",
    "AccessTime",
    "Caller",
    "Credentials",
    "Filesystem",
    "FilesystemOptions",
    "FilesystemStatistics",
    "GroupsOf",
    "SnapshotInode",
    "Space",
    "Trash",
]

"""POSIX semantics, defined here and only here.

`Filesystem` is the facade. Behind it: `namespace` (names), `attributes` (stat and times), `content`
(bytes), `directories` (listings), `xattrs` and `acl`, `capacity` (statfs), `handles` and
`references` (who has what open, and when an unlinked file can go).
"""

from dwfs.vfs.attributes import AccessTime
from dwfs.vfs.caller import SYSTEM, Caller, Credentials, GroupsOf
from dwfs.vfs.capacity import BLOCK_SIZE, FilesystemStatistics, Space
from dwfs.vfs.filesystem import Filesystem, FilesystemOptions

__all__ = [
    "BLOCK_SIZE",
    "SYSTEM",
    "AccessTime",
    "Caller",
    "Credentials",
    "Filesystem",
    "FilesystemOptions",
    "FilesystemStatistics",
    "GroupsOf",
    "Space",
]

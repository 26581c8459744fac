"""The kernel's FUSE requests, answered by `dwfs.vfs`: a thin adapter over pyfuse3.

`options` reads `-o` options, `mounting` and `mountinfo` talk to mount(2), `receive` makes pyfuse3's
loop cheap, `gateway` turns every exception into an errno, `operations` translates the requests,
`session` runs one mount from start to end. POSIX semantics live in `dwfs.vfs` and nowhere here.
"""

from dwfs.fuse.memory import keep_buffers_in_heap, release_free_memory
from dwfs.fuse.mounting import check_mount_point, check_system, remount, unmount
from dwfs.fuse.operations import DwfsOperations
from dwfs.fuse.options import MountOptions, parse_mount_options
from dwfs.fuse.session import FuseSession, supplementary_groups

__all__ = [
    "DwfsOperations",
    "FuseSession",
    "MountOptions",
    "check_mount_point",
    "check_system",
    "keep_buffers_in_heap",
    "parse_mount_options",
    "release_free_memory",
    "remount",
    "supplementary_groups",
    "unmount",
]

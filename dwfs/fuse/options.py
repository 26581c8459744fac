"""`-o` options of `dwfs mount`, mount(8) and fstab(5).

Three kinds: those that the kernel enforces, ours, and those that only concern whoever reads
fstab, which are ignored here. Anything else is refused by name, because a mistyped option that is
silently dropped is one that the operator believes to be in force.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from dwfs.errors import UsageError
from dwfs.vfs import AccessTime

# Kernel flags: word → (field, value). Later words override earlier ones, as with mount(8).
_SWITCHES: Final[dict[str, tuple[str, bool | AccessTime]]] = {
    "rw": ("read_only", False),
    "ro": ("read_only", True),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "exec": ("exec", True),
    "noexec": ("exec", False),
    "sync": ("synchronous", True),
    "async": ("synchronous", False),
    "dirsync": ("directory_synchronous", True),
    "atime": ("access_time", "relatime"),
    "noatime": ("access_time", "noatime"),
    "relatime": ("access_time", "relatime"),
    "norelatime": ("access_time", "strictatime"),
    "strictatime": ("access_time", "strictatime"),
    "nostrictatime": ("access_time", "relatime"),
    "allow_other": ("allow_other", True),
    "remount": ("remount", True),
}
_IGNORED: Final = frozenset(
    [
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "default_permissions",
        "diratime",
        "nodiratime",
        "lazytime",
        "nolazytime",
        "nonempty",
        "acl",
        "user_xattr",
        "nouuid",
        "bg",
        "fg",
    ]
)
_IGNORED_PREFIXES: Final = (
    "x-",
    "X-",
    "comment=",
    "user=",
    "subtype=",
    "uhelper=",
    "helper=",
    # What the kernel reports of a FUSE mount: mount(8) hands it back when it remounts.
    "user_id=",
    "group_id=",
    "max_read=",
    "blksize=",
)
_FILES: Final = ("passphrase_file", "keyfile")


class MountOptions(msgspec.Struct, frozen=True):
    """How to mount. `dev` and `suid` of None: on for root, off for others, as libfuse requires."""

    read_only: bool = False
    dev: bool | None = None
    suid: bool | None = None
    exec: bool = True
    synchronous: bool = False
    directory_synchronous: bool = False
    access_time: AccessTime = "relatime"
    allow_other: bool | None = None  # None: for root only
    remount: bool = False
    fsname: str | None = None  # None: the pool's name, which `dwfs umount` relies on
    durable_seconds: float | None = None
    passphrase_file: str | None = None
    keyfile: str | None = None
    given: frozenset[str] = frozenset()  # fields that were set: a remount changes only these


def parse_mount_options(text: str) -> MountOptions:
    """Read comma-separated options. Raises UsageError that names what is wrong."""
    fields: dict[str, object] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = word.partition("=")
        if word in _SWITCHES:
            field, setting = _SWITCHES[word]
            fields[field] = setting
        elif separator and name == "durable_seconds":
            fields[name] = _seconds(value)
        elif separator and name in _FILES:
            if not value:
                raise UsageError(f"mount option {name} needs a path: -o {name}=/path/to/file")
            fields[name] = value
        elif separator and name == "fsname" and value:
            fields[name] = value
        elif word in _IGNORED or word.startswith(_IGNORED_PREFIXES):
            continue
        else:
            raise UsageError(f"unknown mount option {word!r}; see 'dwfs mount --help' for the list")
    if "passphrase_file" in fields and "keyfile" in fields:
        raise UsageError("give either passphrase_file or keyfile as mount option, not both")
    given = frozenset(fields)
    return msgspec.convert({**fields, "given": given}, MountOptions)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 3600:  # NaN fails this as well
        raise UsageError(
            f"mount option durable_seconds={value!r} is not a number of seconds from 0.1 to 3600"
        )
    return seconds

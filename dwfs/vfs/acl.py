"""POSIX access control lists (POSIX.1e draft 17, acl(5)): their xattr form and their algebra.

The kernel checks access against them; the filesystem stores them, keeps them consistent with the
mode, and lets new files inherit. Pure functions over tuples of entries.

The xattr form is that of Linux's `system.posix_acl_access` and `system.posix_acl_default`: a
little-endian u32 version (2), then for each entry u16 tag, u16 permissions, u32 id (all ones where
the tag has none).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from dwfs.errors import PosixError

ACCESS_NAME: Final = b"system.posix_acl_access"
DEFAULT_NAME: Final = b"system.posix_acl_default"

USER_OWNER: Final = 0x01
USER: Final = 0x02
GROUP_OWNER: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
NO_ID: Final = 0xFFFFFFFF

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")

# The order in which tags must come; the kernel refuses any other.
_RANK: Final = {USER_OWNER: 0, USER: 1, GROUP_OWNER: 2, GROUP: 3, MASK: 4, OTHER: 5}
_ONCE: Final = (USER_OWNER, GROUP_OWNER, OTHER)


class Entry(NamedTuple):
    """One line of a list: who (`tag`, `id`) may do what (`permissions`, rwx as 4, 2, 1)."""

    tag: int
    permissions: int
    id: int = NO_ID


Acl: TypeAlias = tuple[Entry, ...]


def decode(value: bytes) -> Acl:
    """The list in an xattr value; empty for none. Raises PosixError EINVAL or EOPNOTSUPP."""
    if not value:
        return ()
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise PosixError(errno.EINVAL, "length of an ACL")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise PosixError(errno.EOPNOTSUPP, "version of an ACL")
    acl = tuple(Entry(tag, mode, who) for tag, mode, who in _ENTRY.iter_unpack(value[4:]))
    if acl:
        validate(acl)
    return acl


def encode(acl: Acl) -> bytes:
    """The xattr form of a list."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def validate(acl: Acl) -> None:
    """Raise PosixError EINVAL unless the list is well formed (acl(5), "VALID ACLs")."""
    tags = [entry.tag for entry in acl]
    ranks = [_RANK.get(tag, -1) for tag in tags]
    extended = USER in tags or GROUP in tags
    well_formed = (
        -1 not in ranks
        and ranks == sorted(ranks)
        and all(tags.count(tag) == 1 for tag in _ONCE)
        and tags.count(MASK) in ((1,) if extended else (0, 1))
        and all(entry.permissions & ~0o7 == 0 for entry in acl)
        and all(entry.id != NO_ID for entry in acl if entry.tag in (USER, GROUP))
        and len({(entry.tag, entry.id) for entry in acl if entry.tag in (USER, GROUP)})
        == sum(tag in (USER, GROUP) for tag in tags)
    )
    if not well_formed:
        raise PosixError(errno.EINVAL, "malformed ACL")


def is_trivial(acl: Acl) -> bool:
    """Whether the nine permission bits say all that the list says, so that none need be stored."""
    return len(acl) == len(_ONCE)


def permissions_of(acl: Acl) -> int:
    """The nine permission bits that stat shows: the group's are the mask, if there is one."""
    by_tag = {entry.tag: entry.permissions for entry in acl}
    group = by_tag.get(MASK, by_tag[GROUP_OWNER])
    return by_tag[USER_OWNER] << 6 | group << 3 | by_tag[OTHER]


def with_permissions(acl: Acl, mode: int) -> Acl:
    """The list after chmod: owner and other take their bits, the mask (or group) the group's."""
    return _map_classes(acl, lambda permissions, allowed: allowed, mode)


def inherit(default: Acl, mode: int) -> tuple[Acl, int]:
    """(access list, mode) of a file created with `mode` in a directory with a default list.

    The default list takes the place of the umask: each class gets at most what both the list and
    the creator allow (acl(5), "OBJECT CREATION AND DEFAULT ACLs").
    """
    access = _map_classes(default, lambda permissions, allowed: permissions & allowed, mode)
    return access, mode & ~0o777 | permissions_of(access)


def _map_classes(acl: Acl, combine: Callable[[int, int], int], mode: int) -> Acl:
    """Combine the entries that stand for the three classes of `mode` with its bits."""
    has_mask = any(entry.tag == MASK for entry in acl)
    shifts = {USER_OWNER: 6, MASK if has_mask else GROUP_OWNER: 3, OTHER: 0}
    return tuple(
        entry._replace(permissions=combine(entry.permissions, mode >> shifts[entry.tag] & 0o7))
        if entry.tag in shifts
        else entry
        for entry in acl
    )

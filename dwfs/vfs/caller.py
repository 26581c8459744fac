"""Who makes a request, as far as POSIX semantics need to know.

Permission checks are the kernel's (`default_permissions`); what remains is ownership of new files,
the umask, and the few rules that depend on privilege or group membership.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Protocol

import msgspec

GroupsOf = Callable[[int], Set[int]]  # process id → supplementary groups; OSError if unknown


class Caller(Protocol):
    """The identity of a request. pyfuse3's `RequestContext` is one as it stands."""

    @property
    def uid(self) -> int:
        """Filesystem user id."""

    @property
    def gid(self) -> int:
        """Filesystem group id."""

    @property
    def pid(self) -> int:
        """Process id, 0 if unknown: where to ask for supplementary groups."""

    @property
    def umask(self) -> int:
        """Permission bits that new files shall not get."""


class Credentials(msgspec.Struct, frozen=True):
    """A caller made by hand: for adapters other than FUSE and for tests."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0


SYSTEM = Credentials()


def no_groups(process: int) -> Set[int]:
    """A `GroupsOf` for adapters whose callers have none."""
    return frozenset()


def is_in_group(caller: Caller, group: int, groups_of: GroupsOf) -> bool:
    """Whether the caller may keep set-group-id bits of files of `group`: root and members may."""
    if caller.uid == 0 or caller.gid == group:
        return True
    try:
        return group in groups_of(caller.pid)
    except OSError:  # the process has ended: without proof of membership the safe answer is no
        return False

"""Judging the headers of many directories together: which is the pool's truth, which copies are odd.

The newest generation wins. Two different headers of one generation can exist after the pool was
changed twice by crashed owners that saw different disks; then the one on more disks wins, and between
equals the smaller encoding, so that everyone who looks at the same disks decides the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from dwfs.disk.header import PoolHeader, StoredHeader
from dwfs.errors import FormatError
from dwfs.types import DiskId, PoolId


class HeaderSurvey(msgspec.Struct, frozen=True):
    """What a set of directories holds. Every header given is in exactly one of the lists."""

    newest: StoredHeader  # the copy to take the pool's description from
    current: tuple[StoredHeader, ...]  # agree with `newest`; one per disk
    stale: tuple[StoredHeader, ...]  # members that missed changes; their header is to be rewritten
    removed: tuple[StoredHeader, ...]  # of this pool once, but no longer a member
    foreign: tuple[StoredHeader, ...]  # of another pool
    duplicates: tuple[StoredHeader, ...]  # further directories of a disk already listed

    def missing(self) -> tuple[DiskId, ...]:
        """Members of the pool that no directory held."""
        seen = {stored.header.disk for stored in (*self.current, *self.stale)}
        members = self.newest.header.members
        return tuple(member.id for member in members if member.id not in seen)


def survey_headers(found: Iterable[StoredHeader], pool: PoolId | None = None) -> HeaderSurvey:
    """Sort headers by what they mean for `pool`, or for the only pool there is.

    Raises FormatError if no header belongs to the pool, or if `pool` is None and there are several.
    """
    headers = list(found)
    pools = {stored.header.pool: stored.header.name for stored in headers}
    if pool is None:
        if len(pools) > 1:
            names = ", ".join(sorted(f"{name} ({key.hex()[:8]})" for key, name in pools.items()))
            raise FormatError(
                f"the directories belong to different pools: {names}; name only one's"
            )
        pool = next(iter(pools), None)
    ours = [stored for stored in headers if stored.header.pool == pool]
    if not ours:
        raise FormatError("none of the directories belongs to the pool: are its disks mounted?")
    newest = _newest(ours)
    truth = _shared_part(newest.header)
    members = {member.id for member in newest.header.members}
    lists: defaultdict[str, list[StoredHeader]] = defaultdict(list)
    seen: set[DiskId] = set()
    # The newest first, so that of two directories of one disk the better one is listed as the disk.
    for stored in sorted(ours, key=lambda one: (-one.header.generation, one is not newest)):
        if stored.header.disk in seen:
            lists["duplicates"].append(stored)
            continue
        seen.add(stored.header.disk)
        if stored.header.disk not in members:
            lists["removed"].append(stored)
        elif _shared_part(stored.header) == truth and not stored.fallback:
            lists["current"].append(stored)
        else:
            lists["stale"].append(stored)
    return HeaderSurvey(
        newest=newest,
        current=tuple(lists["current"]),
        stale=tuple(lists["stale"]),
        removed=tuple(lists["removed"]),
        foreign=tuple(stored for stored in headers if stored.header.pool != pool),
        duplicates=tuple(lists["duplicates"]),
    )


def _newest(headers: list[StoredHeader]) -> StoredHeader:
    generation = max(stored.header.generation for stored in headers)
    candidates = [stored for stored in headers if stored.header.generation == generation]
    votes = Counter(_shared_part(stored.header) for stored in candidates)
    return min(
        candidates,
        key=lambda stored: (
            -votes[_shared_part(stored.header)],
            _shared_part(stored.header),
            stored.fallback,
        ),
    )


def _shared_part(header: PoolHeader) -> bytes:
    """The header without what differs from disk to disk, in comparable form."""
    return msgspec.msgpack.encode(msgspec.structs.replace(header, disk=DiskId(bytes(16))))

"""What a pool's disks can hold, and what it could hold with another one. Pure.

With unequal disks the answer is not the sum times k / (k + m): each stripe needs k + m *distinct*
disks, so a disk that is much larger than the others can't be filled. The water level S of
`placement` says it exactly: a disk gives min(f, S) bytes, the pool holds k · S, and what disks have
above S is *stranded* until others grow or join. People plan with these numbers, so they are the same
ones by which writes are admitted and disks are chosen.

The pool's geometry is fixed when it is made. `recommend` finds the one that would hold most with the
same number of disks that may fail: for the advice in `dwfs status`, and for a pool to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dwfs.disk.space import reserve_bytes
from dwfs.limits import DATA_SHARDS_MAX
from dwfs.stripe.placement import water_level
from dwfs.stripe.space import attainable_geometry, plaintext_bytes, usable_bytes
from dwfs.types import DiskId, DiskSpace, Geometry

NEW_DISK = DiskId(b"")


class DiskRoom(NamedTuple):
    """One disk, as far as shards are concerned."""

    disk: DiskId
    capacity_bytes: int  # that shards could take were the disk empty of them
    free_bytes: int  # that shards can take now


class DiskShare(NamedTuple):
    """What one disk contributes to a pool that is filled to the brim."""

    disk: DiskId
    filled_bytes: int
    stranded_bytes: int


class Forecast(NamedTuple):
    """Bytes; `usable_bytes` and `free_bytes` are file data, the others are bytes on disks."""

    geometry: Geometry  # what so few disks allow, if they are too few for the pool's own
    usable_bytes: int  # by an empty pool
    free_bytes: int  # now
    stranded_bytes: int  # that no stripe can ever use with these disks
    shares: tuple[DiskShare, ...]


def room_of(disk: DiskId, space: DiskSpace) -> DiskRoom:
    """A disk's room from what it reports."""
    return DiskRoom(disk, space.available_bytes + space.used_bytes, space.available_bytes)


def new_room(size_bytes: int) -> DiskRoom:
    """The room that an empty disk of that size would bring."""
    room = max(0, size_bytes - reserve_bytes(size_bytes))
    return DiskRoom(NEW_DISK, room, room)


def forecast(
    disks: Sequence[DiskRoom], geometry: Geometry, added_bytes: int | None = None
) -> Forecast:
    """What `disks` hold, or what they would hold with one more of `added_bytes` in size."""
    rooms = list(disks)
    if added_bytes is not None:
        rooms.append(new_room(added_bytes))
    attainable = attainable_geometry(geometry, len(rooms))
    capacities = [room.capacity_bytes for room in rooms]
    if attainable is None:
        shares = tuple(DiskShare(room.disk, 0, room.capacity_bytes) for room in rooms)
        return Forecast(geometry, 0, 0, sum(capacities), shares)
    level = water_level(capacities, attainable.total)
    shares = tuple(
        DiskShare(room.disk, min(room.capacity_bytes, level), max(0, room.capacity_bytes - level))
        for room in rooms
    )
    return Forecast(
        geometry=attainable,
        usable_bytes=plaintext_bytes(usable_bytes(capacities, attainable)),
        free_bytes=plaintext_bytes(usable_bytes([room.free_bytes for room in rooms], attainable)),
        stranded_bytes=sum(share.stranded_bytes for share in shares),
        shares=shares,
    )


def recommend(capacities: Sequence[int], parity: int) -> Geometry | None:
    """The geometry with that parity that holds most on such disks; None if they are too few.

    Of two that hold within 1 % the same, the narrower one: it leaves a disk to rebuild on.
    """
    best: Geometry | None = None
    most = 0
    for data in range(1, min(len(capacities) - parity, DATA_SHARDS_MAX) + 1):
        geometry = Geometry(data, parity)
        usable = usable_bytes(capacities, geometry)
        if best is None or usable > most * 1.01:
            best, most = geometry, usable
    return best

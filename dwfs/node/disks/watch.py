"""Watching the disks: is each still there, and is one back that was away?

A disk's own errors are only seen when it is used; one that vanishes while nobody reads must be found
too, because the next failure counts from there. So every disk's identity is looked at once a
second, past the page cache, in a thread of its own: a disk that hangs must not hide the others.

A missing disk is looked for wherever the configuration knows of a disk, for mounts may have changed
places. It is known by its identity alone, and taken back only when

- exactly one directory has it: of two copies nobody can tell which one missed what;
- its header carries the MAC of the pool's key, names this pool and a present member, and is not newer
  than ours, which would mean that somebody else changed the pool while we have it open.

Then it gets its missing header changes, new threads and a new store (the old ones may still hang
somewhere), is swept for what was deleted or moved meanwhile, and is repaired by what it lacks: the
work is that of what has changed, not of what it holds.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Final

import trio

from dwfs.disk import (
    ATTENDANCE_NAME,
    DiskCondition,
    Executor,
    Medium,
    StoredHeader,
    probe,
    read_header,
)
from dwfs.disk.header import TEMPORARY_SUFFIX
from dwfs.errors import DwfsError, MediumError
from dwfs.node.disks.listing import PoolDisk, write_event
from dwfs.node.disks.states import DiskEvent
from dwfs.node.foundation import Foundation

_log = logging.getLogger(__name__)

_VERDICTS: Final[dict[DiskCondition, tuple[DiskEvent, str]]] = {
    DiskCondition.OK: (DiskEvent.PROBE_OK, "it works again"),
    DiskCondition.MISSING: (
        DiskEvent.PROBE_MISSING,
        "its directory is gone or holds no dwfs disk",
    ),
    DiskCondition.FOREIGN: (DiskEvent.PROBE_FOREIGN, "another disk is in its place"),
    DiskCondition.UNREADABLE: (DiskEvent.PROBE_UNREADABLE, "its identity can't be read"),
    DiskCondition.READ_ONLY: (DiskEvent.READ_ONLY, "its filesystem has become read-only"),
}


_PROBE_SIZE: Final = 4096  # of what a disk on probation must write


async def watch_disks(foundation: Foundation) -> None:
    """Watch all disks for ever, also those that join later."""
    watched: set[PoolDisk] = set()
    async with trio.open_nursery() as nursery:
        while True:
            generation = foundation.changes.generation
            present = set(foundation.disks.all())
            for disk in foundation.disks.all():
                if disk not in watched:
                    nursery.start_soon(_watch, foundation, disk)
            watched = present
            await foundation.changes.after(generation)


async def _watch(foundation: Foundation, disk: PoolDisk) -> None:
    disk.prober = foundation.platform.make_executor(f"probe-{disk.id.hex()[:8]}", 1)
    try:
        while foundation.disks.find(disk.id) is disk:
            await trio.sleep(foundation.timing.probe_seconds)
            await _look(foundation, disk, disk.prober)
    finally:
        disk.prober.abandon()
        disk.prober = None


async def _look(foundation: Foundation, disk: PoolDisk, prober: Executor) -> None:
    if disk.state == "offline":
        return  # people may do with it what they want
    if disk.state == "missing":
        await _look_for(foundation, disk, prober)
        return
    medium = foundation.platform.medium
    try:
        condition = await prober.run(probe, Path(disk.directory), disk.id, medium)
        if condition is DiskCondition.OK and disk.state == "suspect":
            await prober.run(_try_writing, Path(disk.directory), medium)
    except OSError as error:
        # If it was given up, whoever keeps the deadlines has told the disk's state.
        if error.errno != errno.ETIMEDOUT:
            reason = f"a probe can't write: {error.strerror or error}"
            foundation.disks.note(disk.id, write_event(error), reason)
        return
    foundation.disks.note(disk.id, *_VERDICTS[condition])
    # One that was taken offline meanwhile still belongs to who does that, and is let go in order.
    if not disk.readable and disk.wish != "offline":
        foundation.take_down(disk)


def _try_writing(directory: Path, medium: Medium) -> None:
    """A disk on probation must show that it can write, not only that it is there; blocking."""
    path = directory / (ATTENDANCE_NAME + TEMPORARY_SUFFIX)  # a name that is erased with the disk
    try:
        handle = medium.create(path, replace=True)
        try:
            medium.write(handle, 0, [bytes(_PROBE_SIZE)])
            medium.sync(handle)
        finally:
            medium.close(handle)
        medium.remove(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # full is no fault
            raise


async def look_now(foundation: Foundation, disk: PoolDisk) -> None:
    """Look for a missing disk without waiting for the next round."""
    if disk.prober is not None:
        await _look_for(foundation, disk, disk.prober)


async def _look_for(foundation: Foundation, disk: PoolDisk, prober: Executor) -> None:
    """Look for a missing disk, and take it back if it is there."""
    async with disk.returning:
        if disk.state != "missing":
            return
        foundation.take_down(disk)
        if not prober.stalled:
            await _search(foundation, disk, prober)


async def _search(foundation: Foundation, disk: PoolDisk, prober: Executor) -> None:
    found: list[StoredHeader] = []
    medium = foundation.platform.medium
    for directory in _places(foundation, disk):
        try:
            stored = await prober.run(read_header, directory, medium)
        except (OSError, DwfsError):
            continue
        if stored.header.disk == disk.id and stored.header.pool == foundation.header.pool:
            found.append(stored)
    if len(found) > 1:
        places = " and ".join(str(stored.directory) for stored in found)
        disk.machine.reason = f"{places} hold copies of it: remove all but one"
    elif found and disk.state == "missing":
        try:
            await _take_back(foundation, disk, found[0])
        except (OSError, DwfsError, MediumError) as error:
            if disk.machine.reason != str(error):
                _log.warning("disk %s can't be used: %s", found[0].directory, error)
            disk.machine.reason = str(error)


def _places(foundation: Foundation, disk: PoolDisk) -> list[Path]:
    """Directories where the disk may be: all that are known, but for those of disks that work."""
    places = {disk.directory: None, Path(disk.label or disk.directory): None}
    places.update((configured.path, None) for configured in foundation.config.disks)
    taken = {other.directory for other in foundation.disks.all() if other.readable}
    return [place for place in places if place not in taken and place.is_absolute()]


async def _take_back(foundation: Foundation, disk: PoolDisk, stored: StoredHeader) -> None:
    """Open a disk that was away, verified by its header. Raises FormatError, OSError, MediumError.

    Its state must be "missing"; if an administrator changes that meanwhile, it stays closed.
    """
    membership = foundation.membership
    membership.verify(stored)
    generation = membership.header.generation
    executor = foundation.make_disk_executor(disk.id)
    disk.executor = executor  # from here on its deadlines are kept
    try:
        condition = await executor.run(probe, stored.directory, disk.id, foundation.platform.medium)
        if condition is DiskCondition.OK:
            await membership.refresh(stored, executor)
        store = await foundation.open_store(
            disk.id,
            stored.directory,
            executor,
            first_number=disk.first_segment,
        )
    except BaseException:  # whatever it was: nobody else lets go of the threads
        if disk.executor is executor:
            disk.executor = None
        executor.abandon()
        raise
    # No await until it is opened: its state and its store change together.
    if disk.state != "missing" or foundation.disks.find(disk.id) is not disk:
        store.retire()
        disk.executor = None
        executor.abandon()
        return
    for other in foundation.disks.all():
        if other is not disk and other.directory == stored.directory:
            # It isn't there any more: most likely the two have changed places. Either way the
            # configuration must not forget the directory that is free now.
            other.directory = disk.directory
    disk.directory = stored.directory
    disk.store = store
    foundation.disks.note(disk.id, DiskEvent.RETURNED, "it is back")
    if condition is not DiskCondition.OK:
        foundation.disks.note(disk.id, *_VERDICTS[condition])
    foundation.disks.opened(disk)
    if membership.header.generation != generation:
        # Opening may take minutes, and a change that was made meanwhile passed it over.
        try:
            await membership.refresh(stored, executor)
        except OSError as error:
            foundation.disks.note(disk.id, write_event(error), f"pool header: {error}")
    await foundation.note_places()

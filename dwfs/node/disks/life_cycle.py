"""What an administrator does to the disks of an open pool: add, remove, replace, offline, online.

Nothing here moves a shard. A wish becomes durable in the pool header, the disk's role follows from it
(`DiskRole.LEAVE` for one that is to be removed), and repair does the work, however long it takes and
however often the pool is closed meanwhile. `finish_removal` is the last step, when nothing is left.

Requests that would cost redundancy, or can't come to an end for want of disks or space, are refused
before anything changes, with the numbers and with what would help.

Order of writing, so that a crash at any point leaves a pool that opens with all its data:

- joining: header on the new disk, then the configuration, then the header on the others;
- leaving: header on the others, then the configuration, then the leaving disk's files are deleted.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from dwfs.config import format_uuid
from dwfs.disk import DiskCondition, DiskMember, Medium, PoolHeader, erase_disk, probe
from dwfs.errors import (
    DwfsError,
    MediumError,
    NoSpaceError,
    NotEnoughDisksError,
    PosixError,
    UsageError,
)
from dwfs.limits import MIB, POOL_DISKS_MAX
from dwfs.log import LogDisk, MirroredLog, SnapshotKeeper
from dwfs.node.disks.holdings import holding_of, unreadable_without
from dwfs.node.disks.listing import PoolDisk, make_disk
from dwfs.node.disks.newcomer import Newcomer, inspect_newcomer, prepare_newcomer
from dwfs.node.disks.states import DiskEvent, Wish
from dwfs.node.disks.watch import look_now
from dwfs.node.foundation import Foundation
from dwfs.stripe import StripeStore
from dwfs.stripe.placement import water_level
from dwfs.stripe.planning import DiskRoom, room_of
from dwfs.types import DiskId
from dwfs.volume import Volume

_log = logging.getLogger(__name__)

_PREFIX_MIN = 4  # characters of a disk's id that may stand for it
_MOVES_SECONDS = 10.0  # how long moves under way may hold up the last step of a removal
_WORKING = frozenset({"online", "suspect"})


class LifeCycle:
    """Changes of the disks, one at a time. Belongs to the loop thread of an open pool."""

    def __init__(
        self,
        foundation: Foundation,
        volume: Volume,
        stripes: StripeStore,
        log: MirroredLog | None,
        snapshots: SnapshotKeeper | None = None,
        mountpoint: str | None = None,
    ) -> None:
        self._mountpoint = None if mountpoint is None else Path(mountpoint)
        self._foundation = foundation
        self._disks = foundation.disks
        self._volume = volume
        self._stripes = stripes
        self._log = log
        self._snapshots = snapshots
        self._lock = trio.Lock()
        self._successors: dict[DiskId, DiskId] = {}
        self._sharers: dict[DiskId, Path] = {}

    def find(self, text: str) -> PoolDisk:
        """The member that people mean: path, UUID, beginning of it, or label. Raises UsageError."""
        wanted = text.replace("-", "").lower()
        path = text.rstrip("/") or "/"
        exact = [
            disk
            for disk in self._disks.all()
            if path == str(disk.directory) or wanted == disk.id.hex()
        ]
        labelled = [disk for disk in self._disks.all() if text == disk.label]
        begun = [
            disk
            for disk in self._disks.all()
            if len(wanted) >= _PREFIX_MIN and disk.id.hex().startswith(wanted)
        ]
        for found in (exact, labelled, begun):
            if len(found) == 1:
                return found[0]
            if found:
                raise UsageError(
                    f"{text!r} may mean several disks: give the whole id (see 'dwfs disk list')"
                )
        known = ", ".join(str(disk.directory) for disk in self._disks.all())
        raise UsageError(
            f"pool {self._foundation.header.name!r} has no disk {text!r} (it has {known})"
        )

    def successor_of(self, disk: DiskId) -> DiskId | None:
        """Where the shards of a disk that is being replaced go first."""
        return self._successors.get(disk)

    def sharer_of(self, disk: DiskId) -> Path | None:
        """Another disk that was on the same filesystem when this one was added."""
        return self._sharers.get(disk)

    # --- joining -----------------------------------------------------------------------------

    async def add(self, directory: Path, label: str = "") -> PoolDisk:
        """Take a directory into the pool. Raises UsageError, FormatError, NoSpaceError, OSError."""
        self._refuse_read_only()
        async with self._lock:
            newcomer = await self._inspect(directory)
            return await self._join(newcomer, label)

    async def replace(self, old: DiskId, directory: Path) -> PoolDisk:
        """Take a directory into the pool in the place of a disk, which is removed then.

        Also for a disk that is gone. Raises NoSpaceError if the new one can't hold what the old one
        does, otherwise as `add`.
        """
        self._refuse_read_only()
        async with self._lock:
            leaving = self._member(old)
            newcomer = await self._inspect(directory)
            needed = (await holding_of(self._volume.catalog, old)).size_bytes
            if newcomer.available_bytes < needed:
                raise NoSpaceError(
                    f"{directory} has room for {_mib(newcomer.available_bytes)}, but disk"
                    f" {leaving.directory} holds {_mib(needed)}: give a larger disk, or add this one"
                    " and remove the other"
                )
            joined = await self._join(newcomer, "", leaving)
            self._successors[old] = joined.id
            return joined

    async def _inspect(self, directory: Path) -> Newcomer:
        foundation = self._foundation
        header = foundation.header
        if len(header.members) >= POOL_DISKS_MAX:
            raise UsageError(f"a pool has at most {POOL_DISKS_MAX} disks")
        if self._mountpoint is not None and directory.is_relative_to(self._mountpoint):
            raise UsageError(
                f"{directory} lies in the pool itself: give a directory of another disk"
            )
        members = {disk.directory: disk.state for disk in self._disks.all()}
        try:
            newcomer = await foundation.run_guarded(
                inspect_newcomer,
                directory,
                header,
                members,
                foundation.membership.check_mac,
                foundation.platform.medium,
            )
        except OSError as error:
            raise UsageError(f"can't use {directory}: {error.strerror or error}") from error
        if newcomer.shares_with is not None:
            _log.warning(
                "disk %s shares a filesystem with %s: if it fails, both do",
                directory,
                newcomer.shares_with,
            )
        return newcomer

    async def _join(
        self, newcomer: Newcomer, label: str, leaving: PoolDisk | None = None
    ) -> PoolDisk:
        foundation = self._foundation
        identity = DiskId(foundation.platform.randomness.bytes(16))
        member = DiskMember(identity, label or str(newcomer.directory))

        def change(header: PoolHeader) -> PoolHeader:
            kept = header if leaving is None else _with_wish(header, leaving.id, "removing")
            return msgspec.structs.replace(kept, members=(*kept.members, member))

        async def prepare(header: PoolHeader) -> None:
            mine = msgspec.structs.replace(header, disk=identity)
            try:
                with foundation.keys.header_key().view() as key:
                    await foundation.run_guarded(
                        prepare_newcomer, newcomer, mine, key, foundation.platform.medium
                    )
                await foundation.write_config({identity: newcomer.directory})
            except BaseException:  # whatever it was: a directory that is no disk is left as it was
                with trio.CancelScope(shield=True):
                    await self._erase(newcomer.directory, identity)
                raise

        try:
            await foundation.membership.change_header(change, prepare)
        except OSError as error:
            raise UsageError(
                f"can't use {newcomer.directory}: {error.strerror or error}"
            ) from error
        joined = make_disk(
            identity,
            newcomer.directory,
            "active",
            foundation.platform.clock,
            present=True,
            label=member.label,
            rules=foundation.timing.rules,
        )
        await self._open(joined)
        if leaving is not None:
            self._disks.note(leaving.id, DiskEvent.WISH_REMOVE, f"replaced by {joined.directory}")
        if newcomer.shares_with is not None:
            self._sharers[joined.id] = newcomer.shares_with
        _log.info("disk %s has joined the pool", joined.directory)
        return joined

    async def _open(self, disk: PoolDisk) -> None:
        """Open a new member's store; a failure makes it a missing one, for it is a member by now."""
        disk.executor = self._foundation.make_disk_executor(disk.id)
        with trio.CancelScope(shield=True):
            self._disks.admit(disk)
            try:
                store = await self._foundation.open_store(
                    disk.id, disk.directory, disk.executor, trusted=False
                )
            except (MediumError, OSError) as error:
                self._disks.note(disk.id, DiskEvent.UNUSABLE, str(error))
                self._foundation.take_down(disk)
                return
            disk.store = store
            self._disks.opened(disk)

    # --- leaving -----------------------------------------------------------------------------

    async def remove(self, disk: DiskId) -> None:
        """Wish that a disk leaves. Raises UsageError, NotEnoughDisksError, NoSpaceError."""
        self._refuse_read_only()
        async with self._lock:
            leaving = self._member(disk)
            if leaving.wish == "removing":
                raise UsageError(f"disk {leaving.directory} is being removed already")
            others = [
                one
                for one in self._disks.all()
                if one is not leaving and one.wish == "active" and one.state in _WORKING
            ]
            self._refuse_too_few(leaving, others)
            await self._refuse_too_small(leaving, others)
            await self._change_wish(leaving, "removing")
            self._disks.note(disk, DiskEvent.WISH_REMOVE, "it is being removed")

    async def keep(self, disk: DiskId) -> None:
        """Take back the wish that a disk leaves. Raises UsageError."""
        async with self._lock:
            member = self._member(disk)
            if member.wish != "removing":
                raise UsageError(f"disk {member.directory} is not being removed")
            await self._change_wish(member, "active")
            self._successors.pop(disk, None)
            self._disks.note(disk, DiskEvent.WISH_KEEP, "it is to stay")

    async def finish_removal(self, disk: DiskId) -> None:
        """Take a disk out of the pool on which nothing is left that is needed.

        Raises UsageError if it isn't being removed, NotEnoughDisksError if something is still needed;
        nothing has changed then.
        """
        self._refuse_read_only()
        async with self._lock:
            leaving = self._member(disk)
            if leaving.wish != "removing":
                raise UsageError(f"disk {leaving.directory} is not being removed")
            await self._wait_for_moves(leaving)
            # Stripes that were placed before the wish may only now be about to be sealed.
            await self._volume.destage()
            holding = await holding_of(self._volume.catalog, disk)
            if holding.shards:
                raise NotEnoughDisksError(
                    f"{holding.shards} shards ({_mib(holding.size_bytes)}) still have their place on"
                    f" disk {leaving.directory}"
                )
            # What was moved away since is to be durable before its only other copy is deleted.
            await self._volume.barrier()
            await self._drop_log_copies(leaving)
            await self._leave(leaving)

    async def _wait_for_moves(self, leaving: PoolDisk) -> None:
        """Let moves end that may have chosen the disk as their target before it was to leave.

        Those that have begun since choose others, so what the seals say afterwards is the last word.
        """
        with trio.move_on_after(_MOVES_SECONDS):
            await self._stripes.moves_settled()
            return
        raise NotEnoughDisksError(
            f"shards may still be on their way to disk {leaving.directory}: it is tried again"
        )

    async def _drop_log_copies(self, leaving: PoolDisk) -> None:
        if not leaving.readable:
            return  # whatever is there can't be had any more
        copies = LogDisk(leaving.id, leaving.directory)
        if self._log is not None:
            await self._log.drop_copies(copies)
        if self._snapshots is not None:
            await self._snapshots.drop_copies(copies)

    async def _leave(self, leaving: PoolDisk) -> None:
        foundation = self._foundation

        def change(header: PoolHeader) -> PoolHeader:
            members = tuple(member for member in header.members if member.id != leaving.id)
            return msgspec.structs.replace(header, members=members)

        await foundation.membership.change_header(change)
        with trio.CancelScope(shield=True):
            was_there = leaving.readable
            store, executor = leaving.store, leaving.executor
            self._disks.dismiss(leaving.id)
            leaving.store = leaving.executor = None
            if store is not None:
                store.retire()
            if executor is not None:
                executor.abandon()
            foundation.forget_index(leaving.id)
            self._successors.pop(leaving.id, None)
            await foundation.note_places()
            if was_there:
                await self._erase(leaving.directory, leaving.id)
        _log.info("disk %s has left the pool", leaving.directory)

    async def _erase(self, directory: Path, disk: DiskId) -> None:
        foundation = self._foundation
        try:
            await foundation.run_guarded(_erase, directory, disk, foundation.platform.medium)
        except OSError as error:
            _log.warning(
                "can't delete the files of dwfs in %s (%s): delete them by hand, or leave them",
                directory,
                error,
            )

    # --- service -----------------------------------------------------------------------------

    async def offline(self, disk: DiskId) -> None:
        """Let go of a disk for a while. Raises UsageError, NotEnoughDisksError."""
        self._refuse_read_only()
        async with self._lock:
            member = self._member(disk)
            if member.wish == "offline":
                raise UsageError(f"disk {member.directory} is offline already")
            if member.wish == "removing":
                raise UsageError(
                    f"disk {member.directory} is being removed: wait for the end, or cancel that"
                )
            await self._refuse_unreadable(member)
            await self._change_wish(member, "offline")
            self._disks.note(disk, DiskEvent.WISH_OFFLINE, "taken offline by an administrator")
            try:
                # The log lets go of the disk's files; stripes on their way to it come to their end.
                if self._log is not None:
                    await self._log.heal()
                    # Not the stripes' own `settle`: the seals that it hands out belong in the log.
                    await self._volume.destage()
            except (DwfsError, PosixError, MediumError) as error:
                _log.warning("while disk %s went offline: %s", member.directory, error)
            finally:
                await self._foundation.shut(member)

    async def online(self, disk: DiskId) -> None:
        """Use a disk again: one that was offline, or one that is failing or suspect and was seen to.

        A disk that isn't there then is missing, and is taken back as soon as it is found.
        """
        async with self._lock:
            member = self._member(disk)
            if member.wish == "removing":
                raise UsageError(f"disk {member.directory} is being removed: cancel that instead")
            was_offline = member.wish == "offline"
            if was_offline:
                await self._change_wish(member, "active")
            self._disks.note(disk, DiskEvent.WISH_ONLINE, "an administrator wants it back")
            if member.state == "missing":
                if was_offline:  # what people read if it can't be found
                    member.machine.reason = "it is wanted back, but not there; is the disk mounted?"
                await look_now(self._foundation, member)

    # --- refusals ----------------------------------------------------------------------------

    def _refuse_read_only(self) -> None:
        if self._log is None:
            raise NotEnoughDisksError(
                "the pool is read-only because too many disks are gone: attach them and mount again"
            )

    def _refuse_too_few(self, leaving: PoolDisk, others: Sequence[PoolDisk]) -> None:
        geometry = self._foundation.header.geometry
        if len(others) < geometry.total:
            raise NotEnoughDisksError(
                f"{geometry.data}+{geometry.parity} needs {geometry.total} disks that work, but"
                f" without {leaving.directory} there would be {len(others)}: add a disk first, or"
                " replace this one"
            )

    async def _refuse_too_small(self, leaving: PoolDisk, others: Sequence[PoolDisk]) -> None:
        geometry = self._foundation.header.geometry
        going = [one for one in self._disks.all() if one.wish == "removing"] + [leaving]
        to_move = 0
        for one in going:
            to_move += (await holding_of(self._volume.catalog, one.id)).size_bytes
        rooms = _rooms(others)
        free = sum(room.free_bytes for room in rooms)
        # What all stripes together take, and what the disks that stay could hold of such stripes.
        stored = to_move + sum(room.capacity_bytes - room.free_bytes for room in rooms)
        level = water_level([room.capacity_bytes for room in rooms], geometry.total)
        if to_move > free or stored > level * geometry.total:
            could = min(free, max(0, level * geometry.total - (stored - to_move)))
            raise NoSpaceError(
                f"{_mib(to_move)} would have to move off disk {leaving.directory}, but the other"
                f" disks have room for {_mib(could)}: add a disk, or delete files first"
            )

    async def _refuse_unreadable(self, member: PoolDisk) -> None:
        parity = self._foundation.header.geometry.parity
        gone = [one for one in self._foundation.lost_disks if one is not member]
        if len(gone) + 1 > parity:
            names = "".join(f"; {one.directory} is {one.state}" for one in gone)
            raise NotEnoughDisksError(
                f"with {member.directory} offline, {len(gone) + 1} disks would be away and only"
                f" {parity} may be{names}"
            )
        count = await unreadable_without(self._volume.catalog, self._disks, member.id)
        if count:
            raise NotEnoughDisksError(
                f"{count} stripes lack shards elsewhere and could not be read without disk"
                f" {member.directory}: wait until they are repaired (see 'dwfs status')"
            )

    # --- the rest ----------------------------------------------------------------------------

    def _member(self, disk: DiskId) -> PoolDisk:
        found = self._disks.find(disk)
        if found is None:
            raise UsageError(f"{format_uuid(disk)} is no disk of this pool any more")
        return found

    async def _change_wish(self, disk: PoolDisk, wish: Wish) -> None:
        await self._foundation.membership.change_header(
            lambda header: _with_wish(header, disk.id, wish)
        )


def _erase(directory: Path, disk: DiskId, medium: Medium) -> None:
    """Erase a disk, but not another that was mounted in its place meanwhile; blocking."""
    if probe(directory, disk, medium) is DiskCondition.FOREIGN:
        raise OSError(errno.ENODEV, "another disk is in its place")
    erase_disk(directory, medium)


def _with_wish(header: PoolHeader, disk: DiskId, wish: Wish) -> PoolHeader:
    members = tuple(
        msgspec.structs.replace(member, state=wish) if member.id == disk else member
        for member in header.members
    )
    return msgspec.structs.replace(header, members=members)


def _rooms(disks: Sequence[PoolDisk]) -> list[DiskRoom]:
    return [room_of(disk.id, disk.store.space()) for disk in disks if disk.store is not None]


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"

"""The one owner of every change of the pool header: members, their wishes, keyslots, state id.

A change makes a header of the next generation and writes it to every disk that can be reached, all at
once, each through its own threads, so that one that hangs delays nobody for longer than its deadline.
Changes are made one after another, under one lock.

Crash safety: whatever subset of the disks got the new header, each has a whole one, the newest
generation wins at the next opening, and that opening rewrites the others. Disks that are away get it
when they are back. A change that reached no disk has not happened.

A change that adds a disk has an order of its own: the new disk first, then the configuration, which
says where to look for it, then the others. So a crash leaves either a directory that nobody looks at
(and that can be added again), or a member that the next opening finds.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio

from dwfs.crypto import RootKeys
from dwfs.disk import Executor, PoolHeader, StoredHeader, verify_header, write_header
from dwfs.errors import DwfsError, FormatError, NotEnoughDisksError
from dwfs.node.disks.listing import PoolDisk, PoolDisks, write_event
from dwfs.node.disks.states import DiskEvent
from dwfs.node.keyslots import KeyChange, SlotChange
from dwfs.node.system import Platform
from dwfs.types import DiskId

_log = logging.getLogger(__name__)

HeaderStep = Callable[[PoolHeader], Awaitable[None]]


class Membership:
    """The header of an open pool. Belongs to the loop thread; `keys` outlives it."""

    def __init__(
        self, header: PoolHeader, keys: RootKeys, disks: PoolDisks, platform: Platform
    ) -> None:
        self.header = header
        self._keys = keys
        self._disks = disks
        self._platform = platform
        self._lock = trio.Lock()

    async def change_header(
        self,
        change: Callable[[PoolHeader], PoolHeader],
        before_others: HeaderStep | None = None,
    ) -> list[str]:
        """Change the header; returns the paths of members that were not reached.

        `change` may block. `before_others` is awaited with the new header before any present member
        gets it; if it raises, nothing has changed. Raises what `change` raises, and
        NotEnoughDisksError if no disk could be written.
        """
        async with self._lock:
            changed = await self._platform.run_blocking(change, self.header)
            header = _next_generation(changed, self.header.generation)
            if before_others is not None:
                await before_others(header)
            # From here on the new header may be on a disk: there is no way back.
            with trio.CancelScope(shield=True):
                try:
                    missed = await self._write_everywhere(header)
                except NotEnoughDisksError:
                    # A disk that was given up may have it all the same: it must not seem to know more
                    # than we do when it is back, and no other header may be of this generation.
                    self.header = msgspec.structs.replace(self.header, generation=header.generation)
                    raise
                self.header = header
            self._disks.changes.note()
            return missed

    async def change_keyslots(self, change: Callable[[PoolHeader], SlotChange]) -> KeyChange:
        """Change the keyslots: `change` is one of `keyslots.with_key` and its like."""
        done: list[SlotChange] = []

        def apply(header: PoolHeader) -> PoolHeader:
            done.append(change(header))
            return done[-1].header

        missed = await self.change_header(apply)
        return KeyChange(done[-1].slot, missed, done[-1].recovery_key)

    def verify(self, stored: StoredHeader) -> None:
        """Refuse a disk that is not the member it claims to be. Raises FormatError."""
        header = self.header
        if stored.header.pool != header.pool:
            raise FormatError(f"{stored.directory} holds a disk of pool {stored.header.name!r}")
        self.check_mac(stored)
        if not any(member.id == stored.header.disk for member in header.members):
            raise FormatError(
                f"{stored.directory} holds a disk that was removed from pool {header.name!r}"
            )
        if stored.header.generation > header.generation:
            raise FormatError(
                f"{stored.directory} knows of a change of the pool that was made elsewhere, while it"
                " is open here: unmount the pool and mount it again to take the change over"
            )

    def check_mac(self, stored: StoredHeader) -> None:
        """Raise FormatError unless the header was written with the pool's key. In any thread."""
        with self._keys.header_key().view() as key:
            verify_header(stored, key)

    async def refresh(self, stored: StoredHeader, executor: Executor) -> None:
        """Bring a verified copy of the header up to date, if it is not. Raises OSError."""
        async with self._lock:
            mine = msgspec.structs.replace(self.header, disk=stored.header.disk)
            if mine != stored.header or stored.fallback:
                await self.write_copy(PendingCopy(stored.header.disk, stored.directory, executor))

    async def write_copy(self, copy: PendingCopy, header: PoolHeader | None = None) -> None:
        """Write the header to one disk. Raises OSError."""
        content = msgspec.structs.replace(header or self.header, disk=copy.disk)
        with self._keys.header_key().view() as key:
            await copy.executor.run(
                write_header, copy.directory, content, key, self._platform.medium
            )

    async def _write_everywhere(self, header: PoolHeader) -> list[str]:
        members = {member.id for member in header.members}
        missed: list[str] = []
        written: list[DiskId] = []

        # The executor is taken now: the disk may be taken down before its task begins.
        async def write(disk: PoolDisk, executor: Executor) -> None:
            try:
                await self.write_copy(PendingCopy(disk.id, disk.directory, executor), header)
            except (OSError, DwfsError) as error:
                _log.warning("can't write the header in %s: %s", disk.directory, error)
                event = write_event(error) if isinstance(error, OSError) else DiskEvent.WRITE_ERROR
                self._disks.note(disk.id, event, f"pool header: {error}")
                missed.append(str(disk.directory))
            else:
                written.append(disk.id)

        async with trio.open_nursery() as nursery:
            for disk in self._disks.all():
                if disk.id not in members:
                    continue
                if disk.executor is None or disk.state in ("missing", "offline"):
                    missed.append(str(disk.directory))
                else:
                    nursery.start_soon(write, disk, disk.executor)
        if not written:
            raise NotEnoughDisksError("the change could be written to no disk; nothing was changed")
        return sorted(missed)


def _next_generation(header: PoolHeader, generation: int) -> PoolHeader:
    """The header as it is kept in memory: the copy of a member, whichever. Raises FormatError."""
    members = [member.id for member in header.members]
    disk = header.disk if header.disk in members else members[0]
    following = msgspec.structs.replace(header, disk=disk, generation=generation + 1)
    following.validate()
    return following


class PendingCopy(msgspec.Struct, frozen=True):
    """A disk that is to get its copy of the header."""

    disk: DiskId
    directory: Path
    executor: Executor

"""The requests that concern snapshots: `dwfs snapshot …` in the process that owns the pool."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import NoReturn

import trio

from dwfs.errors import NoSpaceError, PoolBusyError, PosixError, UsageError
from dwfs.limits import SNAPSHOTS_MAX
from dwfs.node.arguments import flag, text, texts
from dwfs.node.assembly import Pool
from dwfs.node.control import Arguments, Handler, Progress
from dwfs.node.disk_administration import services_of
from dwfs.node.status import SnapshotAnswer, SnapshotList, SnapshotStatus
from dwfs.volume.records import Snapshot

_NAMED_MAX = 10  # snapshots that an error names; `dwfs snapshot list` has them all


class SnapshotAdministration:
    """The requests of one open pool that concern its snapshots."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def handlers(self) -> Mapping[str, Handler]:
        """Requests by name."""
        return {
            "snapshot.list": self.list_snapshots,
            "snapshot.create": self.create,
            "snapshot.destroy": self.destroy,
            "snapshot.rollback": self.roll_back,
        }

    async def list_snapshots(self, arguments: Arguments, progress: Progress) -> object:
        """All snapshots, or the one of a `name`; oldest first."""
        volume = self._pool.volume
        name = text(arguments, "name", "")
        chosen = [self._find(name)] if name else volume.snapshots()
        found = []
        for snapshot in chosen:
            try:
                found.append(self._status(snapshot))
            except PosixError:
                continue  # destroyed meanwhile
            await trio.lowlevel.checkpoint()
        return SnapshotList(self._pool.name, found, volume.kept_bytes, volume.reaping)

    async def create(self, arguments: Arguments, progress: Progress) -> object:
        """Take a snapshot called `name`."""
        name = text(arguments, "name")
        service = services_of(self._pool).snapshots
        await progress({"what": "bringing in what is being written", "done": 0, "total": None})
        try:
            taken = await service.take(name)
        except PosixError as error:
            self._explain(error, name)
        said = f"took the snapshot {self._pool.name}@{name}"
        if not taken.complete:
            said += "; what programs were just writing may not all be in it"
        return SnapshotAnswer(said, [self._status(taken.snapshot)], taken.complete)

    async def destroy(self, arguments: Arguments, progress: Progress) -> object:
        """Destroy the snapshots called `names`: all of them, or none."""
        names = list(dict.fromkeys(texts(arguments, "names")))
        statuses = []
        for name in names:
            statuses.append(self._status(self._find(name)))
            await trio.lowlevel.checkpoint()
        await services_of(self._pool).snapshots.destroy(names)
        what = ", ".join(f"{self._pool.name}@{name}" for name in names)
        return SnapshotAnswer(f"destroyed {what}; its space comes back by and by", statuses)

    async def roll_back(self, arguments: Arguments, progress: Progress) -> object:
        """Make the volume as it was at the snapshot `name`; newer ones go only if `destroy_newer`."""
        pool = self._pool
        if pool.options.mountpoint is not None:
            raise PoolBusyError(
                f"pool {pool.name} is mounted at {pool.options.mountpoint}, and a rollback changes "
                f"everything below its users: 'dwfs umount {pool.options.mountpoint}' first"
            )
        snapshot = self._find(text(arguments, "name"))
        service = services_of(pool).snapshots
        newer = [one.name for one in pool.volume.snapshots() if one.epoch > snapshot.epoch]
        if newer and not flag(arguments, "destroy_newer"):
            raise UsageError(
                f"{pool.name}@{snapshot.name} is not the newest snapshot; going back to it destroys "
                f"{_listed(newer)}: give --destroy-newer to have that done"
            )
        if newer:
            await service.destroy(newer)

        async def tell(done: int, total: int | None) -> None:
            await progress({"what": "rolling back", "done": done, "total": total})
            await trio.lowlevel.checkpoint()  # it is then that it can be interrupted

        await pool.volume.rollback(snapshot.name, tell)
        await pool.volume.barrier()
        said = f"pool {pool.name} is as it was at @{snapshot.name}"
        if newer:
            said += f"; destroyed {_listed(newer)}"
        return SnapshotAnswer(said, [self._status(snapshot)])

    def _find(self, name: str) -> Snapshot:
        try:
            return self._pool.volume.snapshot(name)
        except PosixError as error:
            self._explain(error, name)

    def _explain(self, error: PosixError, name: str) -> NoReturn:
        """Raise what the operator should read in the place of an errno."""
        pool = self._pool.name
        match error.errno:
            case errno.ENOENT:
                raise UsageError(
                    f"pool {pool} has no snapshot {name!r}: 'dwfs snapshot list {pool}' shows them"
                ) from None
            case errno.EEXIST:
                raise UsageError(
                    f"pool {pool} has a snapshot {name!r} already: destroy that one first, or take "
                    "another name"
                ) from None
            case errno.EINVAL:
                raise UsageError(bad_name(name)) from None
            case errno.ENOSPC if len(self._pool.volume.snapshots()) >= SNAPSHOTS_MAX:
                raise NoSpaceError(
                    f"pool {pool} has {SNAPSHOTS_MAX} snapshots, which is the most: destroy some first"
                ) from None
            case _:
                raise error

    def _status(self, snapshot: Snapshot) -> SnapshotStatus:
        """Raises PosixError ENOENT if it was destroyed meanwhile."""
        return SnapshotStatus(
            name=snapshot.name,
            created_ns=snapshot.time_ns,
            unique_bytes=self._pool.volume.unique_bytes(snapshot.name),
            logical_bytes=snapshot.allocated_bytes,
            inodes=snapshot.inode_count,
            automatic=snapshot.automatic,
        )


def bad_name(name: str) -> str:
    """What is wrong with a name that no snapshot can have."""
    return (
        f"bad snapshot name {name!r}: use 1 to 255 bytes of UTF-8 without '/', '@' and control "
        "characters, not '.' or '..', and not beginning with '-'"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"@{name}" for name in names[:_NAMED_MAX])
    more = len(names) - _NAMED_MAX
    return f"{shown} and {more} more" if more > 0 else shown

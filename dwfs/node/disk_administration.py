"""The requests that concern disks: `dwfs disk …` in the process that owns the pool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dwfs.errors import NotEnoughDisksError, UsageError
from dwfs.node.arguments import flag, text
from dwfs.node.assembly import Pool
from dwfs.node.control import Arguments, Handler, Progress
from dwfs.node.disks.listing import PoolDisk
from dwfs.node.pool_status import disk_status, disk_statuses
from dwfs.node.services.jobs import follow
from dwfs.node.services.pool_services import PoolServices
from dwfs.node.status import DiskAnswer, JobStatus


def services_of(pool: Pool) -> PoolServices:
    """The pool's services. Raises NotEnoughDisksError if it is open read-only."""
    if pool.services is None:
        raise NotEnoughDisksError(
            "the pool is open read-only, because too many disks are gone; attach them and mount again"
        )
    return pool.services


class DiskAdministration:
    """The requests of one open pool that concern its disks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def handlers(self) -> Mapping[str, Handler]:
        """Requests by name."""
        return {
            "disk.list": self.list_disks,
            "disk.add": self.add,
            "disk.remove": self.remove,
            "disk.remove.cancel": self.keep,
            "disk.replace": self.replace,
            "disk.offline": self.offline,
            "disk.online": self.online,
            "disk.balance.start": self.start_balance,
            "disk.balance.stop": self.stop_balance,
        }

    async def list_disks(self, arguments: Arguments, progress: Progress) -> object:
        """All disks."""
        return {"disks": disk_statuses(self._pool)}

    async def add(self, arguments: Arguments, progress: Progress) -> object:
        """Take a new disk into the pool; data is moved onto it unless `balance` is false."""
        directory = _path(arguments)
        services = services_of(self._pool)
        disk = await self._pool.life_cycle.add(directory, text(arguments, "label", ""))
        job = None
        if flag(arguments, "balance", otherwise=True):
            job = services.balance.start()
            if flag(arguments, "wait"):
                job = await follow(services.balance.follow(), progress)
        said = f"{disk.directory} is part of the pool now"
        sharer = self._pool.life_cycle.sharer_of(disk.id)
        if sharer is not None:
            said += f"; it shares a filesystem with {sharer}: if that fails, both do"
        return self._answer(disk, said, job)

    async def remove(self, arguments: Arguments, progress: Progress) -> object:
        """Empty a disk and take it out of the pool; or wait for a removal that is under way."""
        disk = self._find(arguments)
        removal = services_of(self._pool).removal
        if disk.wish == "removing" and flag(arguments, "wait"):
            job = removal.job_of(disk)
        else:
            await self._pool.life_cycle.remove(disk.id)
            job = removal.note_begin(disk, "remove")
        return await self._emptied(disk, job, arguments, progress)

    async def keep(self, arguments: Arguments, progress: Progress) -> object:
        """Call a removal off; what was moved stays where it is."""
        disk = self._find(arguments)
        services = services_of(self._pool)
        await self._pool.life_cycle.keep(disk.id)
        services.removal.note_cancel(disk)
        return self._answer(disk, f"{disk.directory} stays in the pool")

    async def replace(self, arguments: Arguments, progress: Progress) -> object:
        """Take a new disk into the pool in the place of another, which is emptied and removed.

        Or wait for a replacement that is under way.
        """
        disk = self._find(arguments)
        directory = _path(arguments)
        services = services_of(self._pool)
        if disk.wish == "removing" and flag(arguments, "wait") and self._is_member(directory):
            # The command was given again after an interruption: it waits for what it began.
            job = services.removal.job_of(disk)
        else:
            await self._pool.life_cycle.replace(disk.id, directory)
            job = services.removal.note_begin(disk, "replace")
        return await self._emptied(disk, job, arguments, progress)

    async def offline(self, arguments: Arguments, progress: Progress) -> object:
        """Leave a disk alone, for service; nothing is rebuilt meanwhile."""
        disk = self._find(arguments)
        await self._pool.life_cycle.offline(disk.id)
        return self._answer(disk, f"{disk.directory} is offline and may be taken away for a while")

    async def online(self, arguments: Arguments, progress: Progress) -> object:
        """Use a disk again; it catches up with what changed while it was away."""
        disk = self._find(arguments)
        await self._pool.life_cycle.online(disk.id)
        if disk.state == "missing":
            said = f"{disk.directory} is not there; it is used again as soon as it is found"
            return self._answer(disk, said)
        return self._answer(disk, f"{disk.directory} is in use again")

    async def start_balance(self, arguments: Arguments, progress: Progress) -> object:
        """Move shards from full disks to empty ones."""
        balance = services_of(self._pool).balance
        job = balance.start()
        if flag(arguments, "wait"):
            job = await follow(balance.follow(), progress)
            return DiskAnswer(None, job.result or job.detail, job, done=job.state == "finished")
        return DiskAnswer(None, "the pool is being balanced", job, done=False)

    async def stop_balance(self, arguments: Arguments, progress: Progress) -> object:
        """Stop moving shards; a later start goes on."""
        job = services_of(self._pool).balance.stop()
        return DiskAnswer(None, "balancing is stopped", job)

    async def _emptied(
        self, disk: PoolDisk, job: JobStatus, arguments: Arguments, progress: Progress
    ) -> DiskAnswer:
        if flag(arguments, "wait"):
            job = await follow(services_of(self._pool).removal.follow(disk), progress)
            said = f"{job.disk}: {job.result}"
            # Called off is not done: nobody may take the disk out for that.
            return DiskAnswer(
                disk_status(self._pool, disk), said, job, done=job.state == "finished"
            )
        return DiskAnswer(
            disk_status(self._pool, disk),
            f"{disk.directory} is being {'emptied' if disk.readable else 'rebuilt on the others'}; it"
            " leaves the pool when that is done",
            job,
            done=False,
        )

    def _answer(self, disk: PoolDisk, said: str, job: JobStatus | None = None) -> DiskAnswer:
        done = job is None or job.state in ("finished", "stopped")
        return DiskAnswer(disk_status(self._pool, disk), said, job, done)

    def _is_member(self, directory: Path) -> bool:
        return any(disk.directory == directory for disk in self._pool.foundation.disks.all())

    def _find(self, arguments: Arguments) -> PoolDisk:
        return self._pool.life_cycle.find(text(arguments, "disk"))


def _path(arguments: Arguments) -> Path:
    path = Path(text(arguments, "path"))
    if not path.is_absolute():
        raise UsageError(f"{path} is no absolute path")
    return path

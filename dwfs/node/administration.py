"""What administrators may ask of the process that owns a pool, and how it is answered.

Each request of the control socket is a method here, or of `DiskAdministration`,
`SnapshotAdministration`, `VolumeAdministration` or `CloneAdministration`. Arguments come from outside
and are checked; secrets among them are used and forgotten.

A request with `wait` is answered when the work that it started has ended, and tells meanwhile how far
it is. Whoever goes away while waiting changes nothing: the work belongs to the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from dwfs.node import keyslots
from dwfs.node.arguments import flag, positive_number, text
from dwfs.node.assembly import Pool
from dwfs.node.check import check_pool
from dwfs.node.clone_administration import CloneAdministration
from dwfs.node.control import Arguments, Handler, Progress
from dwfs.node.credential import decode_credential
from dwfs.node.disk_administration import DiskAdministration, services_of
from dwfs.node.pool_status import report_status
from dwfs.node.services.jobs import follow
from dwfs.node.snapshot_administration import SnapshotAdministration
from dwfs.node.volume_administration import VolumeAdministration


class Administration:
    """The requests of one open pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._disks = DiskAdministration(pool)
        self._snapshots = SnapshotAdministration(pool)
        self._volumes = VolumeAdministration(pool)
        self._clones = CloneAdministration(pool)

    def handlers(self) -> Mapping[str, Handler]:
        """Requests by name."""
        return {
            "status": self.status,
            "sync": self.sync,
            "check": self.check,
            "stop": self.stop,
            "key.add": self.add_key,
            "key.remove": self.remove_key,
            "key.recovery": self.new_recovery_key,
            "scrub.start": self.start_scrub,
            "scrub.stop": self.stop_scrub,
            "scrub.status": self.scrub_status,
            **self._disks.handlers(),
            **self._snapshots.handlers(),
            **self._volumes.handlers(),
            **self._clones.handlers(),
        }

    async def status(self, arguments: Arguments, progress: Progress) -> object:
        """The pool's status."""
        return report_status(self._pool, positive_number(arguments, "if_added"))

    async def sync(self, arguments: Arguments, progress: Progress) -> object:
        """Make everything durable."""
        await self._pool.volume.barrier()
        return {}

    async def check(self, arguments: Arguments, progress: Progress) -> object:
        """Check the pool while it is in use, and mend what can be mended then."""
        return await check_pool(
            self._pool,
            read=flag(arguments, "read"),
            repair=flag(arguments, "repair"),
            progress=progress,
        )

    async def stop(self, arguments: Arguments, progress: Progress) -> object:
        """Ask the owner to unmount and end; answered before that happens."""
        self._pool.stop_requested.set()
        return {}

    # --- scrub ---------------------------------------------------------------------------------

    async def start_scrub(self, arguments: Arguments, progress: Progress) -> object:
        """Begin a scrub, or go on with one that was stopped."""
        scrub = services_of(self._pool).scrub
        scrub.start()
        # Who is told that it runs may rely on it: it is there after a crash, too. Not on a machine
        # whose disk is full; that is no reason against scrubbing, and saving is tried again.
        with suppress(OSError):
            await services_of(self._pool).jobs.save()
        if flag(arguments, "wait"):
            await follow(scrub.follow(), progress)
        return scrub.status()

    async def stop_scrub(self, arguments: Arguments, progress: Progress) -> object:
        """Stop the scrub where it is."""
        scrub = services_of(self._pool).scrub
        scrub.stop()
        return scrub.status()

    async def scrub_status(self, arguments: Arguments, progress: Progress) -> object:
        """The scrub at hand, or the last one."""
        return services_of(self._pool).scrub.status()

    # --- keys ----------------------------------------------------------------------------------

    async def add_key(self, arguments: Arguments, progress: Progress) -> object:
        """Add a keyslot."""
        current = decode_credential(arguments.get("current"))
        fresh = decode_credential(arguments.get("fresh"))
        label = text(arguments, "label", "")
        membership = self._pool.foundation.membership
        return await membership.change_keyslots(
            partial(keyslots.with_key, current=current, fresh=fresh, label=label)
        )

    async def remove_key(self, arguments: Arguments, progress: Progress) -> object:
        """Remove a keyslot."""
        current = decode_credential(arguments.get("current"))
        slot_id = keyslots.parse_slot_id(arguments.get("slot"))
        membership = self._pool.foundation.membership
        return await membership.change_keyslots(
            partial(keyslots.without_key, current=current, slot_id=slot_id)
        )

    async def new_recovery_key(self, arguments: Arguments, progress: Progress) -> object:
        """Replace the recovery key; the answer carries it."""
        current = decode_credential(arguments.get("current"))
        membership = self._pool.foundation.membership
        return await membership.change_keyslots(
            partial(keyslots.with_new_recovery_key, current=current)
        )

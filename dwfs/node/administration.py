"""What administrators may ask of the process that owns a pool, and how it is answered.

Each request of the control socket is a method here. Arguments come from outside and are checked;
secrets among them are used and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from dwfs.errors import UsageError
from dwfs.node.assembly import Pool
from dwfs.node.check import check_pool
from dwfs.node.control import Arguments, Handler, Progress
from dwfs.node.credential import decode_credential
from dwfs.node.keyslots import KeyChange, add_key, new_recovery_slot, parse_slot_id, remove_key
from dwfs.node.pool_status import report_status


class Administration:
    """The requests of one open pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._keys = trio.Lock()  # changes of the header one after another

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
        }

    async def status(self, arguments: Arguments, progress: Progress) -> object:
        """The pool's status."""
        return report_status(self._pool)

    async def sync(self, arguments: Arguments, progress: Progress) -> object:
        """Make everything durable."""
        await self._pool.volume.barrier()
        return {}

    async def check(self, arguments: Arguments, progress: Progress) -> object:
        """Check the pool while it is in use."""
        read = arguments.get("read", False)
        return await check_pool(self._pool, read=read is True, progress=progress)

    async def stop(self, arguments: Arguments, progress: Progress) -> object:
        """Ask the owner to unmount and end; answered before that happens."""
        self._pool.stop_requested.set()
        return {}

    async def add_key(self, arguments: Arguments, progress: Progress) -> object:
        """Add a keyslot."""
        current = decode_credential(arguments.get("current"))
        fresh = decode_credential(arguments.get("fresh"))
        label = arguments.get("label", "")
        if not isinstance(label, str):
            raise UsageError("a keyslot's label is text")
        config = self._pool.config
        return await self._change(lambda: add_key(config, current, fresh, label))

    async def remove_key(self, arguments: Arguments, progress: Progress) -> object:
        """Remove a keyslot."""
        current = decode_credential(arguments.get("current"))
        slot_id = parse_slot_id(arguments.get("slot"))
        config = self._pool.config
        return await self._change(lambda: remove_key(config, current, slot_id))

    async def new_recovery_key(self, arguments: Arguments, progress: Progress) -> object:
        """Replace the recovery key; the answer carries it."""
        current = decode_credential(arguments.get("current"))
        config = self._pool.config
        return await self._change(lambda: new_recovery_slot(config, current))

    async def _change(self, change: Callable[[], KeyChange]) -> KeyChange:
        async with self._keys:
            return await trio.to_thread.run_sync(change)

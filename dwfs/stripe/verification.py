"""Believing that a shard is on a disk: only after a sync, and after reading it back from the medium.

A put that returned may still be in a page cache, and a sync that returned has been known to mean
little. What is read back past the cache, and is what was written, is there. Until then nothing that
it is to replace may be touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from dwfs.codec import checksum
from dwfs.errors import MediumError, ShardDamagedError
from dwfs.ports import DiskListing, ShardStore
from dwfs.stripe.moving import Job, Put
from dwfs.stripe.parallel import in_parallel
from dwfs.types import DiskId

READ_BACKS_AT_ONCE: Final = 8  # a shard each


class PutVerifier:
    """Verifies what a mover has put."""

    def __init__(self, disks: DiskListing) -> None:
        self._disks = disks
        self._read_backs = trio.Semaphore(READ_BACKS_AT_ONCE)

    async def verify(self, jobs: Sequence[Job]) -> list[tuple[Job, Put]]:
        """Sync and read back. Puts that fail are taken out of their jobs and returned."""
        stores = {put.store.disk: put.store for job in jobs for put in job.puts}
        failed: set[DiskId] = set()

        async def sync(store: ShardStore) -> None:
            try:
                await store.sync()
            except MediumError as error:
                failed.add(store.disk)
                self._disks.failed(error, store.disk)

        async def check(job: Job, put: Put) -> None:
            async with self._read_backs:
                sound = put.store.disk not in failed and await self._reads_back(job, put)
            if not sound:
                job.failed = True
                doubtful.append((job, put))

        doubtful: list[tuple[Job, Put]] = []
        await in_parallel(sync(store) for store in stores.values())
        await in_parallel(check(job, put) for job in jobs for put in job.puts)
        for job, put in doubtful:
            job.puts.remove(put)
        return doubtful

    async def _reads_back(self, job: Job, put: Put) -> bool:
        disk = put.store.disk
        try:
            header, payload = await put.store.read_back(job.key(put))
        except MediumError as error:
            self._disks.failed(error, disk)
            return False
        if header == put.header and checksum(payload) == put.digest:
            return True
        detail = "another shard than the one just written was read back"
        self._disks.failed(ShardDamagedError(disk, "verify", detail), disk)
        return False

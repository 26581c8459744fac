"""`open_pool`: own a pool for the length of a block, and close it in order.

Who owns what, from the bottom: the lock, the foundation (keys, disks, databases), the log, the stripe
store, the volume, the filesystem. All tasks live in one nursery. Closing goes the other way: the
filesystem lets go of what is open, the volume is destaged and committed, the databases are synced,
and only if all of that succeeded does the marker say that the pool was closed in order.

If closing fails half-way (disks gone, state directory full), nothing that was durable is lost:
the next opening recovers from the log, exactly as after a crash.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from dwfs.config import Directories, PoolConfig
from dwfs.errors import DwfsError, MediumError, PosixError
from dwfs.node import background, marker
from dwfs.node.administration import Administration
from dwfs.node.assembly import OpenOptions, Pool, assemble
from dwfs.node.control import ControlServer
from dwfs.node.credential import Credential
from dwfs.node.disk_watch import watch_disks, watch_space
from dwfs.node.foundation import Foundation, lay_foundation
from dwfs.node.lock import PoolLock

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_pool(
    directories: Directories,
    config: PoolConfig,
    credential: Credential,
    options: OpenOptions | None = None,
) -> AsyncIterator[Pool]:
    """Open the pool, own it for the length of the block, close it in order.

    Raises PoolBusyError, WrongKeyError, FormatError, NotEnoughDisksError, DamageError; with the disks
    unchanged, but for what recovery after a crash has to do.
    """
    if options is None:
        options = OpenOptions()
    failure: Exception | None = None
    with PoolLock.acquire(directories, config.name):
        foundation = await lay_foundation(directories, config, credential)
        try:
            async with trio.open_nursery() as stripe_tasks:
                try:
                    pool = await assemble(foundation, config, options, stripe_tasks)
                    try:
                        async with trio.open_nursery() as nursery:
                            _start_tasks(pool, directories, nursery)
                            try:
                                yield pool
                            finally:
                                nursery.cancel_scope.cancel()
                    finally:
                        with trio.CancelScope(shield=True):
                            await _close(pool)
                # Kept for after the nurseries, which would wrap it in a group; raised below.
                except Exception as error:
                    failure = error
                stripe_tasks.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await foundation.close()
    if failure is not None:
        raise sole_cause(failure)


def sole_cause(error: Exception) -> Exception:
    """The exception inside groups of one; other groups stay what they are."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _start_tasks(pool: Pool, directories: Directories, nursery: trio.Nursery) -> None:
    keep = pool.supervisor.keep
    foundation, volume, work = pool.foundation, pool.volume, pool.work
    server = ControlServer(
        directories.control_socket(pool.name),
        Administration(pool).handlers(),
        pool.supervisor.count_unforeseen,
    )
    nursery.start_soon(server.serve)
    nursery.start_soon(keep, "disk watch", partial(watch_disks, foundation.disks))
    nursery.start_soon(keep, "space watch", partial(watch_space, foundation.disks))
    nursery.start_soon(keep, "redundancy count", pool.redundancy.run)
    if pool.log is None or pool.snapshotter is None:
        _log.warning("too many disks are missing: pool %s is open read-only", pool.name)
        return
    within = pool.options.durable_seconds or pool.config.tunables.durable_seconds
    nursery.start_soon(keep, "durability", partial(background.keep_durable, volume, within))
    nursery.start_soon(keep, "commit", pool.committer.run)
    nursery.start_soon(keep, "snapshot", pool.snapshotter.run)
    nursery.start_soon(keep, "purge", pool.filesystem.run_purger)
    nursery.start_soon(keep, "reclaim", pool.cleaner.run)
    heal = partial(background.heal_log, foundation, pool.log, work)
    nursery.start_soon(keep, "log healing", heal)
    sweep = partial(background.sweep_orphans, foundation, volume, pool.stripes, work)
    nursery.start_soon(keep, "sweep", sweep)


async def _close(pool: Pool) -> None:
    """Make everything durable and say so; a failure is logged, and the next opening recovers."""
    try:
        if pool.log is not None:
            await pool.filesystem.close()
            await pool.volume.destage()
            await pool.committer.commit()
            await _sync_databases(pool.foundation)
    except (DwfsError, PosixError, MediumError, OSError) as error:
        _log.error(
            "pool %s could not be closed in order (%s); the next mount recovers it",
            pool.name,
            error,
        )
    finally:
        if pool.log is not None:
            await pool.log.close()


async def _sync_databases(foundation: Foundation) -> None:
    index, store = foundation.index, foundation.state_store
    assert index is not None
    assert store is not None
    await foundation.close_stores()
    index.commit()
    await trio.to_thread.run_sync(index.sync)
    await trio.to_thread.run_sync(store.sync)
    await trio.to_thread.run_sync(
        partial(marker.mark, foundation.state_directory, foundation.header.pool, clean=True)
    )


def first_opening(directories: Directories, config: PoolConfig, credential: Credential) -> None:
    """Open a pool that was made a moment ago, and close it: its root is durable then. Blocking."""

    async def run() -> None:
        options = OpenOptions(first_opening=True)
        async with open_pool(directories, config, credential, options):
            pass

    trio.run(run)

"""`open_pool`: own a pool for the length of a block, and close it in order.

Who owns what, from the bottom: the lock, the foundation (keys, disks, databases), the log, the stripe
store, the volume, the filesystem. All tasks live in one nursery. Closing goes the other way: the
filesystem lets go of what is open, the volume is destaged and committed, the databases are synced,
and only if all of that succeeded does the marker say that the pool was closed in order.

Background work stops at once, wherever it is: repair, drain, scrub and balance go on at the next
opening, because what they have to do is found on the disks or stands in the job book.

If closing fails half-way (disks gone, state directory full), nothing that was durable is lost:
the next opening recovers from the log, exactly as after a crash.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import lmdb
import trio

from dwfs.config import Directories, PoolConfig
from dwfs.errors import DwfsError, MediumError, PosixError, StateError
from dwfs.node import background, marker
from dwfs.node.administration import Administration
from dwfs.node.assembly import OpenOptions, Pool, assemble
from dwfs.node.causes import sole_cause
from dwfs.node.control import ControlServer
from dwfs.node.credential import Credential
from dwfs.node.disks.room import watch_space
from dwfs.node.disks.watch import watch_disks
from dwfs.node.foundation import Foundation, lay_foundation
from dwfs.node.lock import PoolLock
from dwfs.node.sending import Sending
from dwfs.node.services.pool_services import Activity
from dwfs.volume.store import StateDamagedError

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
        foundation = await lay_foundation(
            directories, config, credential, options.platform, options.timing
        )
        try:
            async with _lasting_tasks() as stripe_tasks:
                pool = await _assemble(foundation, config, options, stripe_tasks)
                try:
                    async with trio.open_nursery() as nursery:
                        _start_tasks(pool, directories, nursery)
                        try:
                            yield pool
                        finally:
                            if pool.snapshotter is not None:
                                pool.snapshotter.stop()
                            nursery.cancel_scope.cancel()
                finally:
                    with trio.CancelScope(shield=True):
                        await _close(pool)
        # Whatever failed, the lasting tasks included; raised below, without the nurseries' groups.
        except Exception as error:
            failure = error
        finally:
            with trio.CancelScope(shield=True):
                await foundation.close()
    if failure is not None:
        raise sole_cause(failure)


async def _assemble(
    foundation: Foundation, config: PoolConfig, options: OpenOptions, stripe_tasks: trio.Nursery
) -> Pool:
    """As `assemble`; databases that turn out to be damaged are not believed by the next opening."""
    try:
        return await assemble(foundation, config, options, stripe_tasks)
    except Exception as failure:  # raised again, whatever it is; databases are only judged by it
        error = sole_cause(failure)
        directory = foundation.state_directory
        if not isinstance(error, lmdb.Error | StateError | StateDamagedError):
            if isinstance(error, DwfsError | PosixError | MediumError | OSError):
                await _forgive(foundation)
            raise
        if foundation.beyond_redundancy:
            raise StateError(
                f"the databases in {directory} are damaged ({error}): attach the missing disks, from "
                "which they are then made anew"
            ) from error
        await foundation.platform.run_blocking(marker.distrust, directory)
        raise StateError(
            f"the databases in {directory} are damaged ({error}): give the command again, and they "
            "are made anew from the disks"
        ) from error
    except BaseException:  # interrupted: no fault of the databases either
        with trio.CancelScope(shield=True):
            await _forgive(foundation)
        raise


async def _forgive(foundation: Foundation) -> None:
    header = foundation.header
    await foundation.platform.run_blocking(
        marker.forgive_opening, foundation.state_directory, header.pool, header.state_id
    )


@asynccontextmanager
async def _lasting_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks end with the block, and never by a cancellation from around it.

    Closing waits for stripes that are being written: if whoever owns the pool is cancelled, those tasks
    must not be cancelled with him, or closing would wait for ever.
    """

    async def host(task_status: trio.TaskStatus[trio.Nursery]) -> None:
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as tasks:
                    task_status.started(tasks)
                    await trio.sleep_forever()
            # Whatever it was: it is told now, as closing may take long, and raised again.
            except Exception:
                _log.exception("a task below the filesystem failed; the pool closes")
                raise

    async with trio.open_nursery() as hosts:
        with trio.CancelScope(shield=True):  # or the host might start where nobody ends it
            tasks = await hosts.start(host)
        try:
            yield tasks
        finally:
            tasks.cancel_scope.cancel()


def _start_tasks(pool: Pool, directories: Directories, nursery: trio.Nursery) -> None:
    """Start all that an open pool does by itself. Nothing of it outlives the nursery."""
    server = ControlServer(
        directories.control_socket(pool.name),
        Administration(pool).handlers(),
        pool.supervisor.count_unforeseen,
        Sending(pool).streams(),
    )
    nursery.start_soon(server.serve)
    for name, activity in (*_watching(pool), *_working(pool)):
        nursery.start_soon(pool.supervisor.keep, name, activity)
    if pool.read_only:
        _log.warning("too many disks are missing: pool %s is open read-only", pool.name)


def _watching(pool: Pool) -> Iterator[tuple[str, Activity]]:
    """What runs in every pool."""
    foundation = pool.foundation
    yield "disk watch", partial(watch_disks, foundation)
    yield (
        "space watch",
        partial(watch_space, foundation.disks, foundation.platform.medium, foundation.timing),
    )
    yield "redundancy count", pool.redundancy.run


def _working(pool: Pool) -> Iterator[tuple[str, Activity]]:
    """What runs in a pool that can be written to."""
    if pool.log is None or pool.snapshotter is None or pool.copies is None:
        return
    assert pool.services is not None, "made together with the snapshotter"
    within = pool.options.durable_seconds or pool.config.tunables.durable_seconds
    yield "durability", partial(background.keep_durable, pool.volume, within)
    yield "commit", pool.committer.run
    yield "snapshot", pool.snapshotter.run
    yield "purge", pool.filesystem.run_purger
    yield "trash", pool.trash.run
    yield "reclaim", pool.cleaner.run
    yield "log healing", pool.copies.run
    yield "sweep", pool.sweep.run
    yield from pool.services.activities()


async def _close(pool: Pool) -> None:
    """Make everything durable and say so; a failure is logged, and the next opening recovers."""
    if pool.services is not None:
        try:
            await pool.services.jobs.save()
        except OSError as error:
            _log.warning("where scrub and balance were is forgotten: %s", error)
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
        if pool.snapshots is not None:
            await pool.snapshots.close()


async def _sync_databases(foundation: Foundation) -> None:
    index, store = foundation.index, foundation.state_store
    assert index is not None
    assert store is not None
    await foundation.close_stores(sign_out=True)
    index.commit()
    run_blocking = foundation.platform.run_blocking
    await run_blocking(index.sync)
    await run_blocking(store.sync)
    await run_blocking(
        partial(
            marker.mark,
            foundation.state_directory,
            foundation.header.pool,
            foundation.header.state_id,
            clean=True,
        )
    )


def first_opening(directories: Directories, config: PoolConfig, credential: Credential) -> None:
    """Open a pool that was made a moment ago, and close it: its root is durable then. Blocking."""

    async def run() -> None:
        options = OpenOptions(first_opening=True)
        async with open_pool(directories, config, credential, options):
            pass

    trio.run(run)

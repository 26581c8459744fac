"""`dwfs check` of a pool that nobody has open, with the one repair that an open pool can't have.

A state that contradicts itself, or an index that disagrees with its segments, is thrown away and
rebuilt from what is true in any case: the snapshots, the log and the segments on the disks. The state
directory that this replaces is kept aside until the rebuilt one has been opened; a rebuild that fails
before puts it back. A crash in between leaves it aside and a new one half-made, which the next
opening finishes, because a state directory without a marker is always rebuilt.

A rebuild begins with a new `state_id` on the disks, which disowns the old state. So the old one is
believed again only because it is given that id. It may be: the pool was not used meanwhile. Once the
rebuilt pool has been open that is no longer so, and the old state is gone for good.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

import trio

from dwfs.config import Directories, PoolConfig
from dwfs.errors import DwfsError, PoolBusyError
from dwfs.node import marker
from dwfs.node.check import CheckReport, check_pool
from dwfs.node.checking.report import Progress
from dwfs.node.credential import Credential
from dwfs.node.disks.survey import read_newest_header
from dwfs.node.lock import PoolLock
from dwfs.node.pool import open_pool

_log = logging.getLogger(__name__)

_ASIDE: Final = ".before-check"  # appended to the state directory's name


async def check_closed_pool(
    directories: Directories,
    config: PoolConfig,
    credential: Credential,
    *,
    read: bool,
    repair: bool,
    progress: Progress,
) -> CheckReport:
    """Check a pool that nobody has open; with `repair` up to a rebuild of its state directory.

    Raises whatever opening the pool raises.
    """
    async with open_pool(directories, config, credential) as pool:
        report = await check_pool(pool, read=read, repair=repair, progress=progress)
        read_only = pool.read_only
    if not repair or not report.needs_reopen or read_only:
        return report
    await progress({"what": "rebuilding the state from the disks", "done": 0, "total": None})
    directory = directories.state_directory(config.name)
    aside = directory.with_name(directory.name + _ASIDE)
    await trio.to_thread.run_sync(_set_aside, directories, config.name, aside)
    opened = False
    try:
        async with open_pool(directories, config, credential) as pool:
            opened = True
            again = await check_pool(pool, read=read, repair=repair, progress=progress)
    finally:
        with trio.CancelScope(shield=True):
            if opened:
                await trio.to_thread.run_sync(shutil.rmtree, aside, True)
            else:
                await trio.to_thread.run_sync(_put_back, directories, config, aside)
    again.repaired = [
        *report.repaired,
        "the state directory was rebuilt from snapshot, log and segments",
        *again.repaired,
    ]
    return again


def _set_aside(directories: Directories, name: str, aside: Path) -> None:
    with PoolLock.acquire(directories, name):
        shutil.rmtree(aside, ignore_errors=True)
        directories.state_directory(name).rename(aside)


def _put_back(directories: Directories, config: PoolConfig, aside: Path) -> None:
    directory = directories.state_directory(config.name)
    try:
        with PoolLock.acquire(directories, config.name):
            shutil.rmtree(directory, ignore_errors=True)
            aside.rename(directory)
            marker.readopt(directory, read_newest_header(config).state_id)
    except PoolBusyError:
        return  # somebody has opened the pool meanwhile, and so made its state anew
    except (OSError, DwfsError) as error:
        _log.warning("the old state in %s can't be used any more: %s", directory, error)
        return
    _log.warning("the rebuild of %s failed; the old state is in its place again", directory)

"""`dwfs mount POOL DIR`: own a pool and serve it as a filesystem until it is unmounted."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import trio

from dwfs.cli.background import Ready, run_in_background, run_in_foreground
from dwfs.cli.unlocking import add_unlock_options, find_credential, warn_of_exposed_files
from dwfs.config import Directories, PoolConfig, load_config
from dwfs.crypto import harden_process
from dwfs.errors import PoolBusyError, UsageError
from dwfs.fuse import (
    DwfsOperations,
    FuseSession,
    MountOptions,
    check_mount_point,
    check_system,
    keep_buffers_in_heap,
    parse_mount_options,
    release_free_memory,
    remount,
    supplementary_groups,
)
from dwfs.fuse.gateway import Gateway
from dwfs.fuse.write_back import WriteBack
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.credential import Credential, read_credential
from dwfs.node.lock import owner_of
from dwfs.node.pool import open_pool
from dwfs.vfs import FilesystemOptions

_log = logging.getLogger(__name__)

# Worker threads finish I/O and need the GIL for a moment to say so; the default of 5 ms would make
# every such moment wait that long while the loop is busy.
_SWITCH_INTERVAL_SECONDS = 0.0005

# The default of 700 new objects a collection fits scripts. The caches here hold hundreds of thousands
# that live long and form no cycles; what start-up made is frozen for good.
_COLLECT_AFTER_OBJECTS = 20_000

_IDLE_SECONDS = 5.0
_IDLE_SHARE = 0.05  # of one processor; the background's own work takes about a fifth of that

_OPTIONS_HELP = """\
mount options (-o, fstab, or mount_options in the configuration):
  ro rw              read-only or not
  dev nodev suid nosuid exec noexec sync async dirsync
                     as for any filesystem
  relatime noatime strictatime
                     when access times are kept (default relatime)
  allow_other        let other users in (default for root)
  durable_seconds=S  un-synced data is durable after S seconds (default 5)
  keyfile=F passphrase_file=F
                     how to unlock
  remount            change the flags of a mount that is there
  noauto, nofail, _netdev, x-systemd.automount and the like are for fstab and pass by
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "mount",
        help="mount a pool",
        description=(
            "Mount a pool at DIR, in the background once it is ready. Asks for the passphrase on "
            "the terminal unless a file is named here or in the configuration."
        ),
        epilog=_OPTIONS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument(
        "-o", dest="options", metavar="OPTIONS", action="append", default=[], help="see below"
    )
    parser.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr"
    )
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Mount; returns when the filesystem can be used (or, in the foreground, when it is gone)."""
    directories = Directories.from_environment(os.environ)
    config = load_config(directories, arguments.pool)
    options = parse_mount_options(",".join([*config.mount_options, *arguments.options]))
    directory = str(arguments.directory)
    if options.remount:
        remount(directory, parse_mount_options(",".join(arguments.options)))
        return 0
    check_system()
    owner = owner_of(directories, config.name)
    if owner is not None:
        raise PoolBusyError(
            f"pool {config.name!r} is already open in process {owner}; unmount it first"
        )
    mountpoint = check_mount_point(directory)
    _check_overlap(config, mountpoint)
    credential = _credential(arguments, options, config)
    work = partial(serve, directories, config, credential, mountpoint, options)
    if arguments.foreground:
        return run_in_foreground("dwfs", work)
    code = run_in_background(work, directories.log_file(config.name))
    warn_of_exposed_files(arguments)
    return code


def serve(
    directories: Directories,
    config: PoolConfig,
    credential: Credential,
    mountpoint: str,
    options: MountOptions,
    ready: Ready,
) -> int:
    """Be the pool's owner until it is unmounted. Calls `ready` once files can be used."""
    harden_process()
    keep_buffers_in_heap()  # before there are threads, which would get heaps of their own
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    trio.run(_own_and_serve, directories, config, credential, mountpoint, options, ready)
    return 0


async def _own_and_serve(
    directories: Directories,
    config: PoolConfig,
    credential: Credential,
    mountpoint: str,
    options: MountOptions,
    ready: Ready,
) -> None:
    gateway, write_back = Gateway(), WriteBack(mountpoint)
    opening = OpenOptions(
        mountpoint=mountpoint,
        filesystem=FilesystemOptions(
            # Who looks at a read-only mount leaves no trace: 'dwfs receive' would find a change.
            access_time="noatime" if options.read_only else options.access_time,
            groups_of=supplementary_groups,
        ),
        durable_seconds=options.durable_seconds,
        unforeseen_errors=lambda: gateway.unforeseen_errors,
        activity=lambda: gateway.requests,
        write_back=write_back.run,
    )
    async with open_pool(directories, config, credential, opening) as pool:
        credential.wipe()
        if pool.read_only and not options.read_only:
            options = _read_only(options)
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER_OBJECTS, 20, 20)
        operations = DwfsOperations(pool.filesystem, gateway)
        write_back.watch(operations)
        session = FuseSession(operations, mountpoint, options, config.name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, session)
            nursery.start_soon(_stop_on_request, session, pool)
            nursery.start_soon(_return_memory_when_idle, pool)
            await session.serve(ready)
            nursery.cancel_scope.cancel()
    _log.info("pool %s is unmounted and closed", config.name)


async def _stop_on_signal(session: FuseSession) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("%s: unmounting", signal.Signals(number).name)
            await session.stop()


async def _stop_on_request(session: FuseSession, pool: Pool) -> None:
    await pool.stop_requested.wait()
    await session.stop()


async def _return_memory_when_idle(pool: Pool) -> None:
    """Give free memory back once after each busy time; `keep_buffers_in_heap` hoards it till then."""
    used, returned = time.process_time(), True
    while True:
        await trio.sleep(_IDLE_SECONDS)
        before, used = used, time.process_time()
        idle = used - before < _IDLE_SHARE * _IDLE_SECONDS
        if idle and not returned:
            pool.stripes.release_idle()
            release_free_memory()
        returned = idle


def _read_only(options: MountOptions) -> MountOptions:
    _log.warning("mounting read-only: too many disks are gone")
    fields = {name: getattr(options, name) for name in options.__struct_fields__}
    return MountOptions(**{**fields, "read_only": True, "access_time": "noatime"})


def _credential(
    arguments: argparse.Namespace, options: MountOptions, config: PoolConfig
) -> Credential:
    if options.keyfile is not None:
        return read_credential("keyfile", Path(options.keyfile))
    if options.passphrase_file is not None:
        return read_credential("passphrase", Path(options.passphrase_file))
    return find_credential(arguments, config)


def _check_overlap(config: PoolConfig, mountpoint: str) -> None:
    """Refuse a mount that would hide one of the pool's disks, or lie on one."""
    place = Path(mountpoint)
    for disk in config.disks:
        real = Path(os.path.realpath(disk.path))
        if real.is_relative_to(place) or place.is_relative_to(real):
            raise UsageError(
                f"can't mount at {mountpoint}: it and the disk {disk.path} lie within each other"
            )

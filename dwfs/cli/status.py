"""`dwfs status [POOL]`: health first; then disks, space, and what is being done."""

from __future__ import annotations

import argparse
import os

import msgspec

from dwfs.cli.output import format_bytes, print_json, render_table
from dwfs.cli.owner import ask_owner, is_open
from dwfs.config import Directories, load_config
from dwfs.errors import ControlError
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, read_mounts
from dwfs.node.client import NotListeningError
from dwfs.node.lock import owner_of
from dwfs.node.status import PoolStatus, WorkStatus
from dwfs.node.survey import survey_pool


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "status",
        help="show health, disks and space",
        description=(
            "Show a pool's health, or that of every pool known on this machine. Works without a "
            "key when the pool is not open, but then knows nothing about the space in use."
        ),
    )
    parser.add_argument("pool", metavar="POOL", nargs="?", help="default: all pools")
    parser.add_argument("--json", action="store_true", help="print JSON (a list without POOL)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the status; exit code 0 whatever the health is: the question was answered."""
    directories = Directories.from_environment(os.environ)
    if arguments.pool is not None:
        status = query_status(directories, arguments.pool)
        if arguments.json:
            print_json(status)
        else:
            print(render_status(status))
        return 0
    statuses = [query_status(directories, name) for name in directories.pools()]
    if arguments.json:
        print_json(statuses)
    elif not statuses:
        print(f"No pools here ({directories.config}). Make one with: dwfs init POOL --disk DIR …")
    else:
        print("\n\n".join(render_status(status) for status in statuses))
    return 0


def query_status(directories: Directories, pool: str) -> PoolStatus:
    """Ask the owner, or look at the disks if there is none."""
    config = load_config(directories, pool)
    if is_open(directories, pool):
        try:
            return msgspec.json.decode(ask_owner(directories, pool, "status"), type=PoolStatus)
        except NotListeningError:
            owner = owner_of(directories, pool)
            if owner is not None:
                opening = [WorkStatus("open", f"process {owner} is opening or closing the pool")]
                seen = survey_pool(config, _mountpoint_of(pool))
                return msgspec.structs.replace(seen, pid=owner, work=opening)
        except ControlError:
            if is_open(directories, pool):
                raise
    return survey_pool(config, _mountpoint_of(pool))


def _mountpoint_of(pool: str) -> str | None:
    """Where the pool is mounted although nobody owns it: what a killed owner leaves behind."""
    for mount in reversed(read_mounts()):
        if mount.kind == FILESYSTEM_TYPE and mount.source == pool:
            return mount.directory
    return None


def render_status(status: PoolStatus) -> str:
    """The status for people."""
    owner = f"open in process {status.pid}" if status.pid else "not open"
    where = f", mounted at {status.mountpoint}" if status.mountpoint else ""
    read_only = ", read-only" if status.read_only else ""
    lines = [f"{status.pool}: {status.health.upper()}  ({owner}{where}{read_only})"]
    lines += [f"  {text}" for text in status.advice]
    lines.append("")
    rows = [
        [
            disk.path,
            disk.state,
            format_bytes(disk.size_bytes),
            format_bytes(disk.used_bytes),
            str(disk.errors),
        ]
        for disk in status.disks
    ]
    lines.append(render_table(["disk", "state", "size", "used", "errors"], rows, {2, 3, 4}))
    lines.append("")
    usage = status.usage
    if usage.logical_bytes is not None:
        lines.append(
            f"  stored {format_bytes(usage.logical_bytes)} as {format_bytes(usage.stored_bytes)} "
            f"on the disks; room for {format_bytes(usage.free_bytes)} more"
        )
    coder = f", coder {status.erasure}" if status.erasure else ""
    lines.append(f"  {status.data}+{status.parity} erasure code{coder}, uuid {status.uuid}")
    for work in status.work:
        done = f" ({work.done} of {work.total})" if work.total is not None else ""
        lines.append(f"  working: {work.detail or work.kind}{done}")
    if status.unforeseen_errors:
        lines.append(f"  {status.unforeseen_errors} unforeseen errors: see the log, please report")
    return "\n".join(lines)

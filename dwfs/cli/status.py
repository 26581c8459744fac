"""`dwfs status [POOL]`: health first; then disks, space, and what is being done."""

from __future__ import annotations

import argparse
import os
from typing import Final

import msgspec

from dwfs.cli.output import (
    format_bytes,
    format_count,
    format_duration,
    format_time,
    parse_bytes,
    print_json,
    render_table,
    warn,
)
from dwfs.cli.owner import ask_owner, is_open
from dwfs.config import Directories, load_config
from dwfs.errors import ControlError
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, read_mounts
from dwfs.node.client import NotListeningError
from dwfs.node.disks.survey import survey_pool
from dwfs.node.lock import owner_of
from dwfs.node.status import JobStatus, PoolStatus, ScrubStatus, SnapshotSummary, WorkStatus

_STRANDED_SHARE_TOLD: Final = 0.01  # less is rounding
_CHANGES_SHOWN: Final = 5  # of the disks' history; --json has them all


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
    parser.add_argument(
        "--if-added",
        metavar="SIZE",
        help="tell what a disk of this size would give, as 4T or 500GB (default: as the largest)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the status; exit code 0 whatever the health is: the question was answered."""
    directories = Directories.from_environment(os.environ)
    if_added = None if arguments.if_added is None else parse_bytes(arguments.if_added)
    if arguments.pool is not None:
        status = query_status(directories, arguments.pool, if_added)
        if if_added is not None and status.space is None:
            warn("what a disk would give is known only while the pool is open: mount it first")
        if arguments.json:
            print_json(status)
        else:
            print(render_status(status))
        return 0
    statuses = [query_status(directories, name, if_added) for name in directories.pools()]
    if arguments.json:
        print_json(statuses)
    elif not statuses:
        print(
            f"No pools are known here ({directories.config}).\n"
            "If the disks of one are here, nothing is lost: dwfs import --disk DIR …\n"
            "To make a new one on empty disks: dwfs init POOL --disk DIR …"
        )
    else:
        print("\n\n".join(render_status(status) for status in statuses))
    return 0


def query_status(
    directories: Directories, pool: str, if_added_bytes: int | None = None
) -> PoolStatus:
    """Ask the owner, or look at the disks if there is none (which then can't plan space)."""
    config = load_config(directories, pool)
    values = {} if if_added_bytes is None else {"if_added": if_added_bytes}
    if is_open(directories, pool):
        try:
            return msgspec.json.decode(
                ask_owner(directories, pool, "status", values), type=PoolStatus
            )
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
    """The status for people: health first, then disks, space, and what goes on."""
    owner = f"open in process {status.pid}" if status.pid else "not open"
    where = f", mounted at {status.mountpoint}" if status.mountpoint else ""
    read_only = ", read-only" if status.read_only else ""
    lines = [f"{status.pool}: {status.health.upper()}  ({owner}{where}{read_only})"]
    lines += [f"  {text}" for text in status.advice]
    lines += ["", _render_disks(status), "", *_render_space(status)]
    coder = f", coder {status.erasure}" if status.erasure else ""
    lines.append(f"  {status.data}+{status.parity} erasure code{coder}, uuid {status.uuid}")
    lines += [f"  {render_job(job)}" for job in status.jobs]
    for work in status.work:
        done = f" ({work.done} of {work.total})" if work.total is not None else ""
        lines.append(f"  working: {work.detail or work.kind}{done}")
    if status.scrub is not None:
        lines += _render_scrub(status.pool, status.scrub)
    lines += [
        f"  {format_time(change.at_ns)}: {change.disk} went from {change.before} to "
        f"{change.after}: {change.reason}"
        for change in status.history[-_CHANGES_SHOWN:]
    ]
    if status.unforeseen_errors:
        lines.append(f"  {status.unforeseen_errors} unforeseen errors: see the log, please report")
    return "\n".join(lines)


def _render_disks(status: PoolStatus) -> str:
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
    return render_table(["disk", "state", "size", "used", "errors"], rows, {2, 3, 4})


def _render_space(status: PoolStatus) -> list[str]:
    lines = []
    usage, space = status.usage, status.space
    if usage.logical_bytes is not None:
        lines.append(
            f"  stored {format_bytes(usage.logical_bytes)} as {format_bytes(usage.stored_bytes)} "
            f"on the disks; room for {format_bytes(usage.free_bytes)} more"
        )
    if status.snapshots is not None:
        lines += _render_snapshots(status.snapshots)
    if space is None:
        return lines
    lines.append(f"  these disks hold {format_bytes(space.usable_bytes)} of data in all")
    if space.stranded_bytes > _STRANDED_SHARE_TOLD * space.usable_bytes:
        lines.append(
            f"  {format_bytes(space.stranded_bytes)} of the disks can't be used, because their "
            "room differs"
        )
    if space.if_added is not None:
        more = space.if_added
        working = sum(disk.state == "online" for disk in status.disks)
        if not more.gained_bytes and working < status.data + status.parity:
            lines.append(
                f"  {format_count(working, 'disk')} can take new data, but a {status.data}+{status.parity} code needs "
                f"{status.data + status.parity}: what is written now lacks redundancy until there "
                "are as many"
            )
            return lines
        lines.append(
            f"  one more disk of {format_bytes(more.disk_bytes)} would give room for "
            f"{format_bytes(more.gained_bytes)} more ({format_bytes(more.usable_bytes)} in all)"
        )
    if space.geometry_advice:
        lines.append(f"  {space.geometry_advice}")
    return lines


def _render_snapshots(snapshots: SnapshotSummary) -> list[str]:
    if not snapshots.count and not snapshots.reaping:
        return []
    lines = []
    if snapshots.count:
        newest = "" if snapshots.newest_ns is None else format_time(snapshots.newest_ns)
        kept = format_bytes(snapshots.kept_bytes) if snapshots.kept_bytes else "nothing"
        lines.append(
            f"  {format_count(snapshots.count, 'snapshot')}, the newest of {newest}; {kept} is kept "
            f"for {'it' if snapshots.count == 1 else 'them'} alone"
        )
    if snapshots.reaping:
        lines.append(
            f"  the space of {format_count(snapshots.reaping, 'destroyed snapshot')} is coming back"
        )
    return lines


def render_job(job: JobStatus) -> str:
    """One job in one line."""
    about = f" {job.disk}" if job.disk else ""
    pieces = [f"{job.kind}{about}: {job.state}"]
    if job.detail:
        pieces.append(job.detail)
    if job.total_bytes:
        share = 100 * min(1.0, job.done_bytes / job.total_bytes)
        pieces.append(
            f"{share:.0f} % ({format_bytes(job.done_bytes)} of {format_bytes(job.total_bytes)})"
        )
    if job.bytes_per_second:
        pieces.append(f"{format_bytes(int(job.bytes_per_second))}/s")
    if job.seconds_left is not None:
        pieces.append(f"{format_duration(job.seconds_left)} left")
    return ", ".join(pieces)


def _render_scrub(pool: str, scrub: ScrubStatus) -> list[str]:
    if scrub.state in ("running", "stopped"):
        return []  # it is among the jobs
    last = "never scrubbed"
    if scrub.state == "idle" and scrub.ended_ns is not None:
        found = sum(scrub.faults.values())
        verdict = "all was well"
        if found:
            repaired = format_count(scrub.repaired, "shard")
            verdict = f"{format_count(found, 'fault')} found, {repaired} repaired"
        last = f"last scrub ended {format_time(scrub.ended_ns)}: {verdict}"
    due = f"; the next is due {format_time(scrub.due_ns)}" if scrub.due_ns is not None else ""
    lines = [f"  {last}{due}"]
    if scrub.unrepairable:
        lines.append(f"  some data was beyond repair: 'dwfs scrub {pool} --status' names the files")
    return lines

"""`dwfs scrub POOL`: read everything on every disk, and repair what is damaged or missing."""

from __future__ import annotations

import argparse

from dwfs.cli.output import format_bytes, format_count, format_duration, format_time, print_json
from dwfs.cli.request import Desk
from dwfs.cli.unlocking import add_unlock_options
from dwfs.errors import DamageError, DwfsError
from dwfs.node.status import ScrubStatus

_FILES_SHOWN_MAX = 100


class _StoppedError(DwfsError):
    """A scrub that was waited for was stopped by somebody else."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "scrub",
        help="read everything, repair what is damaged",
        description=(
            "Start a scrub: every shard on every disk is read and verified, in the background of "
            "the mounted pool; what is missing or damaged is repaired, and each repair is read back. "
            "A pool that is not mounted is opened and scrubbed by the command itself, which needs "
            "the key. Exit code 10 if --wait meets what can't be repaired, or not yet."
        ),
    )
    parser.add_argument("pool", metavar="POOL")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--wait", action="store_true", help="return when it is done; Ctrl-C stops only the waiting"
    )
    group.add_argument(
        "--stop", action="store_true", help="stop the one that runs; the next goes on from there"
    )
    group.add_argument(
        "--status", action="store_true", help="how far it is, or what the last one found"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start, stop, or tell."""
    desk = Desk(arguments, f"scrubbing {arguments.pool}")
    pool = desk.config.name
    wait = False
    if arguments.stop or arguments.status:
        request = "scrub.stop" if arguments.stop else "scrub.status"
        status = desk.carry_out(request, {}, ScrubStatus, outlives=False)
    else:
        wait = arguments.wait or not desk.open_elsewhere
        status = desk.carry_out("scrub.start", {"wait": wait}, ScrubStatus, outlives=wait)
    if arguments.json:
        print_json(status)
    else:
        print(render_scrub(pool, status))
    if wait and status.state == "stopped":
        raise _StoppedError(
            f"the scrub was stopped before it was done; 'dwfs scrub {pool}' goes on"
        )
    bad = status.unrepairable or status.unrepaired
    return DamageError.exit_code if wait and bad else 0


def render_scrub(pool: str, status: ScrubStatus) -> str:
    """The scrub for people: what is going on, then what was found."""
    lines = [f"{pool}: {_headline(status)}"]
    found = sum(status.faults.values())
    if status.state != "never":
        if found:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(status.faults.items()))
            lines.append(f"  found {kinds}; repaired {status.repaired}")
        else:
            lines.append("  nothing damaged or missing so far")
    if status.state == "idle" and not found:
        lines[-1] = "  nothing was damaged or missing"
    if status.unrepaired:
        lines.append(
            f"  {format_count(status.unrepaired, 'shard')} not repaired yet, for want of a disk that "
            f"takes them: see 'dwfs status {pool}'; it is tried again by itself"
        )
    if status.state == "idle":
        lines += [
            f"  {disk.path} was not read: it was not in use"
            for disk in status.disks
            if disk.state == "skipped"
        ]
    if status.unrepairable:
        lines.append(f"  BEYOND REPAIR: {format_count(status.unrepairable, 'stripe')}")
        lines += [f"    {path}" for path in status.damaged_files[:_FILES_SHOWN_MAX]]
        left_out = len(status.damaged_files) - _FILES_SHOWN_MAX
        if left_out > 0:
            lines.append(f"    … and {left_out} more files (see --json)")
        lines.append("  restore these files from a backup, or bring back a disk that is away")
    if status.state == "running":
        lines += [
            f"  {disk.path}: {disk.state}, {format_bytes(disk.done_bytes)} of "
            f"{format_bytes(disk.total_bytes)}"
            for disk in status.disks
        ]
    if status.due_ns is not None and status.state in ("never", "idle"):
        lines.append(f"  the next begins by itself on {format_time(status.due_ns)}")
    elif status.every_days is None:
        lines.append("  none begins by itself: see every_days under [scrub] in the configuration")
    return "\n".join(lines)


def _headline(status: ScrubStatus) -> str:
    done = format_bytes(status.done_bytes)
    total = f" of {format_bytes(status.total_bytes)}" if status.total_bytes else ""
    match status.state:
        case "never":
            return "never scrubbed"
        case "running":
            speed = ""
            if status.bytes_per_second:
                speed = f", {format_bytes(int(status.bytes_per_second))}/s"
            left = ""
            if status.seconds_left is not None:
                left = f", {format_duration(status.seconds_left)} left"
            return f"scrub under way: {done}{total}{speed}{left}"
        case "stopped":
            return f"scrub stopped at {done}{total}; 'dwfs scrub' goes on from there"
        case _:
            ended = format_time(status.ended_ns) if status.ended_ns else "?"
            return f"last scrub ended {ended}, {done} read"

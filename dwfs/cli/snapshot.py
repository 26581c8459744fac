"""`dwfs snapshot …`: keep the pool as it is now under a name, and go back to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from dwfs.cli.confirmation import confirm
from dwfs.cli.output import format_bytes, format_count, format_time, print_json, render_table
from dwfs.cli.request import Desk
from dwfs.cli.unlocking import add_unlock_options, warn_of_exposed_files
from dwfs.errors import PoolBusyError, UsageError
from dwfs.node.status import SnapshotAnswer, SnapshotList

_SILENCE_SECONDS = 600.0  # one among a great many of snapshots is weighed in one piece


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its parts."""
    parser = subparsers.add_parser(
        "snapshot",
        help="list, create, destroy and go back to snapshots",
        description=(
            "Snapshots of a pool: its whole content as it was at one moment. They take no time to "
            "make, whatever the pool's size, and only the space of what is changed or deleted "
            "later. They are read below .snapshots/NAME in the mounted pool. A pool that is not "
            "mounted is opened by the command, which needs the key."
        ),
    )
    parts = parser.add_subparsers(
        title="parts", dest="part", metavar="list|create|destroy|rollback"
    )
    parts.required = True
    listing = _part(
        parts,
        "list",
        "show the snapshots",
        "Show the snapshots, oldest first, with the space that comes back when one of them alone is "
        "destroyed. What several of them share comes back with the last of these.",
    )
    listing.add_argument("target", metavar="POOL[@NAME]")
    listing.set_defaults(run=run_list)
    create = _part(
        parts,
        "create",
        "take a snapshot",
        "Take a snapshot of the pool as it is now. It is durable when the command returns, and has "
        "all that was written before.",
    )
    create.add_argument("target", metavar="POOL@NAME")
    create.set_defaults(run=run_create)
    destroy = _part(
        parts,
        "destroy",
        "give up snapshots",
        "Destroy snapshots, in any order: all that are named, or none. They are gone at once; their "
        "space comes back in the background.",
    )
    destroy.add_argument("targets", metavar="POOL@NAME", nargs="+")
    _add_yes(destroy)
    destroy.set_defaults(run=run_destroy)
    rollback = _part(
        parts,
        "rollback",
        "make the pool as it was",
        "Make a pool that is not mounted as it was at a snapshot. What was written since is lost; "
        "the snapshot stays. May be interrupted: the pool's next opening ends it. For single "
        "files, copy them out of .snapshots instead.",
    )
    rollback.add_argument("target", metavar="POOL@NAME")
    rollback.add_argument(
        "--destroy-newer",
        action="store_true",
        help="destroy the snapshots that are newer than this one, which is needed if there are any",
    )
    _add_yes(rollback)
    rollback.set_defaults(run=run_rollback)


def _part(
    parts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, short: str, long: str
) -> argparse.ArgumentParser:
    parser = parts.add_parser(name, help=short, description=long)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_unlock_options(parser)
    return parser


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do it without asking")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the snapshots."""
    pool, name = split_target(arguments.target)
    desk = _desk(arguments, pool, f"listing the snapshots of {pool}")
    values = {} if name is None else {"name": name}
    found = desk.carry_out(
        "snapshot.list", values, SnapshotList, outlives=False, silence_seconds=_SILENCE_SECONDS
    )
    if arguments.json:
        print_json(found)
    else:
        print(render_snapshots(found))
    return 0


def render_snapshots(found: SnapshotList) -> str:
    """A table of the snapshots, and what they keep together."""
    if not found.snapshots:
        lines = [f"{found.pool} has no snapshots"]
    else:
        rows = [
            [
                f"{found.pool}@{one.name}",
                format_time(one.created_ns),
                format_bytes(one.unique_bytes),
                format_bytes(one.logical_bytes),
                "schedule" if one.automatic else "hand",
            ]
            for one in found.snapshots
        ]
        header = ["snapshot", "taken", "unique", "holds", "by"]
        lines = [render_table(header, rows, {2, 3})]
    if found.kept_bytes or found.snapshots:
        kept = format_bytes(found.kept_bytes) if found.kept_bytes else "nothing"
        lines.append(f"{kept} is kept for snapshots alone")
    if found.reaping:
        lines.append(
            f"the space of {format_count(found.reaping, 'destroyed snapshot')} is coming back"
        )
    return "\n".join(lines)


def run_create(arguments: argparse.Namespace) -> int:
    """Take a snapshot."""
    pool, name = _split_named(arguments.target)
    desk = _desk(arguments, pool, f"taking a snapshot of {pool}")
    if not desk.open_elsewhere:
        _check_name(name)  # before a key is asked for
    return _change(arguments, desk, "snapshot.create", {"name": name})


def _check_name(name: str) -> None:
    # Only here, because an owner checks it himself and asking one needs no storage engine.
    from dwfs.node.snapshot_administration import bad_name
    from dwfs.volume.snapshots import is_name

    if not is_name(name):
        raise UsageError(bad_name(name))


def run_destroy(arguments: argparse.Namespace) -> int:
    """Destroy snapshots."""
    targets = [_split_named(target) for target in arguments.targets]
    pools = dict.fromkeys(pool for pool, _ in targets)
    if len(pools) > 1:
        raise UsageError(
            f"these are snapshots of {len(pools)} pools ({', '.join(pools)}): one pool at a time"
        )
    names = list(dict.fromkeys(name for _, name in targets))
    pool = targets[0][0]
    desk = _desk(arguments, pool, f"destroying snapshots of {pool}")
    if not arguments.yes:
        what = ", ".join(f"{pool}@{name}" for name in names)
        confirm(f"this destroys {what}, for good")
    return _change(arguments, desk, "snapshot.destroy", {"names": names})


def run_rollback(arguments: argparse.Namespace) -> int:
    """Go back to a snapshot."""
    pool, name = _split_named(arguments.target)
    desk = _desk(arguments, pool, f"rolling back {pool}")
    if desk.open_elsewhere:
        _refuse_open(desk)
    if not arguments.yes:
        newer = ", and all snapshots taken since" if arguments.destroy_newer else ""
        confirm(f"this loses all that was changed in pool {pool} since @{name}{newer}")
    values = {"name": name, "destroy_newer": arguments.destroy_newer}
    return _change(arguments, desk, "snapshot.rollback", values, outlives=True)


def _refuse_open(desk: Desk) -> None:
    # Only here: it needs more than asking an owner does.
    from dwfs.cli.status import query_status

    pool = desk.config.name
    status = query_status(desk.directories, pool)
    if status.mountpoint is not None:
        raise PoolBusyError(
            f"pool {pool} is mounted at {status.mountpoint}, and a rollback changes everything below "
            f"its users: 'dwfs umount {status.mountpoint}' first"
        )
    raise PoolBusyError(f"pool {pool} is open in process {status.pid}: wait until that has ended")


def _change(
    arguments: argparse.Namespace,
    desk: Desk,
    request: str,
    values: Mapping[str, object],
    *,
    outlives: bool = False,
) -> int:
    answer = desk.carry_out(
        request, values, SnapshotAnswer, outlives=outlives, silence_seconds=_SILENCE_SECONDS
    )
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(answer)
    else:
        print(answer.text)
    return 0


def _desk(arguments: argparse.Namespace, pool: str, label: str) -> Desk:
    arguments.pool = pool  # where the desk and the questions for a key look for it
    return Desk(arguments, label)


def split_target(target: str) -> tuple[str, str | None]:
    """Pool and snapshot of `POOL[@NAME]`. Raises UsageError."""
    pool, separator, name = target.partition("@")
    try:
        target.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name {target!r} is not valid UTF-8") from None
    if not pool:
        raise UsageError(f"{target!r} names no pool: write POOL@NAME")
    if separator and not name:
        raise UsageError(f"{target!r} names no snapshot: write POOL@NAME")
    return pool, name or None


def _split_named(target: str) -> tuple[str, str]:
    pool, name = split_target(target)
    if name is None:
        raise UsageError(
            f"{target!r} names no snapshot: write {pool}@NAME, as in {pool}@before-upgrade"
        )
    return pool, name

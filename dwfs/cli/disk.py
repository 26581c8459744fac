"""`dwfs disk …`: the life of a pool's disks, from joining to leaving."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from dwfs.cli.output import format_bytes, print_json, render_table
from dwfs.cli.request import Desk
from dwfs.cli.status import query_status
from dwfs.cli.unlocking import add_unlock_options, warn_of_exposed_files
from dwfs.config import Directories, load_config
from dwfs.errors import DwfsError, UsageError
from dwfs.fuse.mountinfo import FILESYSTEM_TYPE, read_mounts
from dwfs.node.status import DiskAnswer, DiskStatus

_DISK_HELP = "the disk: its directory, its label, or its id (or the beginning of it)"


class _NotFinishedError(DwfsError):
    """Work that was waited for ended without being done."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its parts."""
    parser = subparsers.add_parser(
        "disk",
        help="list, add, remove and replace disks",
        description=(
            "The disks of a pool. Works while the pool is mounted, and then in its background. A "
            "pool that is not mounted is opened by the command, which needs the key, and which then "
            "does the whole work itself."
        ),
    )
    parts = parser.add_subparsers(
        title="parts", dest="part", metavar="list|add|remove|replace|offline|online|balance"
    )
    parts.required = True
    _add_list(parts)
    _add_add(parts)
    _add_remove(parts)
    _add_replace(parts)
    offline = _part(
        parts,
        "offline",
        "stop using a disk for a while",
        "Stop using a disk, so that it can be unplugged or serviced. The pool works without it, with "
        "less redundancy, until 'online'; refused if data would become unreadable. Not for good: for "
        "that there are 'remove' and 'replace'.",
    )
    offline.add_argument("disk", metavar="DISK", help=_DISK_HELP)
    offline.set_defaults(run=run_offline)
    online = _part(
        parts,
        "online",
        "use a disk again",
        "Use a disk again that was set offline. It is brought in step by what changed meanwhile.",
    )
    online.add_argument("disk", metavar="DISK", help=_DISK_HELP)
    online.set_defaults(run=run_online)
    _add_balance(parts)


def _part(
    parts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, short: str, long: str
) -> argparse.ArgumentParser:
    parser = parts.add_parser(name, help=short, description=long)
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    if name != "list":
        add_unlock_options(parser)
    return parser


def _add_wait(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="return when it is done; Ctrl-C stops only the waiting"
    )


def _add_list(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _part(
        parts,
        "list",
        "show the disks",
        "Show each disk's state, space, errors and id. Needs no key.",
    )
    parser.set_defaults(run=run_list)


def _add_add(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _part(
        parts,
        "add",
        "give the pool one more disk",
        "Add a disk of any size. New data uses it at once; what is there is spread onto it in the "
        "background, unless --no-balance is given.",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="where it is mounted; empty or not yet there"
    )
    parser.add_argument("--label", default="", metavar="TEXT", help="a name for people")
    parser.add_argument("--no-balance", action="store_true", help="leave what is there where it is")
    _add_wait(parser)
    parser.set_defaults(run=run_add)


def _add_remove(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _part(
        parts,
        "remove",
        "take a disk out of the pool",
        "Move everything away from a disk and take it out of the pool; redundancy is never lowered "
        "on the way. Refused, with the numbers, if too few disks or too little space would be left.",
    )
    parser.add_argument("disk", metavar="DISK", help=_DISK_HELP)
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--cancel", action="store_true", help="keep a disk that is just being removed"
    )
    _add_wait(group)
    parser.set_defaults(run=run_remove)


def _add_replace(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _part(
        parts,
        "replace",
        "put a new disk in the place of another",
        "Put a new disk in the place of one that is dead, dying, or too small. What can be read of "
        "the old one is copied, the rest is rebuilt. The old one leaves the pool when that is done.",
    )
    parser.add_argument("disk", metavar="OLD", help=f"{_DISK_HELP}; it need not be there any more")
    parser.add_argument(
        "directory", metavar="NEW-DIR", type=Path, help="the new disk; empty or not yet there"
    )
    _add_wait(parser)
    parser.set_defaults(run=run_replace)


def _add_balance(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _part(
        parts,
        "balance",
        "spread the data evenly",
        "Move data from fuller disks to emptier ones, in the background, until they are equally "
        "full. Survives restarts; --stop ends it, and a later one goes on from there.",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--stop", action="store_true", help="stop the one that runs")
    _add_wait(group)
    parser.set_defaults(run=run_balance)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the disks."""
    directories = Directories.from_environment(os.environ)
    disks = query_status(directories, arguments.pool).disks
    if arguments.json:
        print_json(disks)
    else:
        print(render_disks(disks))
    return 0


def render_disks(disks: list[DiskStatus]) -> str:
    """A table of the disks, with a line below it for each one that needs words."""
    header = ["disk", "state", "size", "used", "free", "errors", "id"]
    rows = [
        [
            disk.path,
            disk.state,
            format_bytes(disk.size_bytes),
            format_bytes(disk.used_bytes),
            format_bytes(disk.free_bytes),
            _errors(disk),
            disk.id,
        ]
        for disk in disks
    ]
    labels = [disk.label if disk.label != disk.path else "" for disk in disks]
    if any(labels):
        header.append("label")
        rows = [[*row, label] for row, label in zip(rows, labels, strict=True)]
    lines = [render_table(header, rows, {2, 3, 4, 5})]
    lines += [f"{disk.path}: {disk.reason}" for disk in disks if disk.reason]
    lines += [f"{disk.path} is slow: {disk.slow}" for disk in disks if disk.slow]
    return "\n".join(lines)


def _errors(disk: DiskStatus) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(disk.errors_by_kind.items()))
    return kinds or str(disk.errors)


def run_add(arguments: argparse.Namespace) -> int:
    """Add a disk."""
    values: dict[str, object] = {
        "path": _new_directory(arguments.pool, arguments.directory),
        "label": arguments.label,
        "balance": not arguments.no_balance,
    }
    return _change(arguments, "disk.add", values, lasting=False)


def run_remove(arguments: argparse.Namespace) -> int:
    """Begin to remove a disk, or take that back."""
    values = {"disk": _name_of_disk(arguments)}
    if arguments.cancel:
        return _change(arguments, "disk.remove.cancel", values, lasting=False)
    return _change(arguments, "disk.remove", values, lasting=True)


def run_replace(arguments: argparse.Namespace) -> int:
    """Put a new disk in the place of another."""
    values = {
        "disk": _name_of_disk(arguments),
        "path": _new_directory(arguments.pool, arguments.directory),
    }
    return _change(arguments, "disk.replace", values, lasting=True)


def run_offline(arguments: argparse.Namespace) -> int:
    """Stop using a disk."""
    return _change(arguments, "disk.offline", {"disk": _name_of_disk(arguments)}, lasting=False)


def run_online(arguments: argparse.Namespace) -> int:
    """Use a disk again."""
    return _change(arguments, "disk.online", {"disk": _name_of_disk(arguments)}, lasting=False)


def run_balance(arguments: argparse.Namespace) -> int:
    """Start or stop balancing."""
    if arguments.stop:
        return _change(arguments, "disk.balance.stop", {}, lasting=False)
    return _change(arguments, "disk.balance.start", {}, lasting=True)


def _change(
    arguments: argparse.Namespace, request: str, values: Mapping[str, object], *, lasting: bool
) -> int:
    """Have it done and say what came of it. `lasting`: begins work that only an open pool does."""
    verb = request.removeprefix("disk.").split(".")[0]
    desk = Desk(arguments, f"{verb} {arguments.pool}")
    owned = desk.open_elsewhere
    wait = getattr(arguments, "wait", False) or (lasting and not owned)
    if hasattr(arguments, "wait"):
        values = {**values, "wait": wait}
    answer = desk.carry_out(request, values, DiskAnswer, outlives=wait)
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(answer)
    else:
        print(answer.text)
        if not answer.done and not wait:
            pool = desk.config.name
            what = "Data is spread onto it" if request == "disk.add" else "It goes on"
            if owned:
                print(f"{what} in the background: 'dwfs status {pool}' tells how far it is.")
            else:
                print("The rest is done in the background when the pool is mounted.")
    if wait and not answer.done:
        job = answer.job
        state = "is not done" if job is None else f"{job.state}: {job.result or job.detail}"
        raise _NotFinishedError(f"{verb} {state}")
    return 0


def _new_directory(pool: str, path: Path) -> str:
    """The path of a disk that is to join. Raises UsageError if the pool itself is mounted there.

    A pool that kept its data in itself would wait for itself at the next write.
    """
    text = os.path.abspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the path {os.fsencode(text)!r} is not valid UTF-8") from None
    real = Path(os.path.realpath(text))
    for mount in read_mounts():
        place = Path(mount.directory)
        if mount.kind != FILESYSTEM_TYPE or mount.source != pool:
            continue
        if real.is_relative_to(place) or place.is_relative_to(real):
            raise UsageError(
                f"{text} and the place where pool {pool!r} is mounted ({place}) lie within each "
                "other: give a directory on a disk of its own"
            )
    return text


def _name_of_disk(arguments: argparse.Namespace) -> str:
    """A path as the owner knows it, whatever directory we are in; an id or a label as it is."""
    text: str = arguments.disk
    if not text:
        raise UsageError("an empty DISK names no disk: give its directory or its id")
    path = os.path.abspath(text)
    config = load_config(Directories.from_environment(os.environ), arguments.pool)
    # A dead disk's directory may be gone, and is meant all the same.
    known = any(str(disk.path) == path for disk in config.disks)
    return path if known or "/" in text or Path(text).is_dir() else text

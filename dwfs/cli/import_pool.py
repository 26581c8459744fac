"""`dwfs import`: make a pool known here from its disks alone."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import trio

from dwfs.cli.background import log_to_file
from dwfs.cli.output import ProgressLine, format_bytes, format_count, format_time, print_json, warn
from dwfs.cli.request import StoppedWaitingError, until_interrupted
from dwfs.cli.unlocking import add_unlock_options, find_credential, warn_of_exposed_files
from dwfs.config import Directories, SnapshotSchedule
from dwfs.crypto import harden_process
from dwfs.node.importing import ImportedPool, ImportPlan, import_pool, plan_import


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "import",
        help="make a pool known here from its disks alone",
        description=(
            "Make a pool known on this machine from its disks alone: after the boot disk died, or "
            "when the disks were moved to another box. As many disks may be missing as the pool "
            "has parity. Asks for the passphrase or the recovery key unless a file is named. "
            "Safe to interrupt and to repeat."
        ),
    )
    parser.add_argument(
        "--disk",
        dest="disks",
        metavar="DIR",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        help="where a disk is mounted; all that are there, in any order",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="what to call the pool here (default: as it was called)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Import, or fail with one line."""
    directories = Directories.from_environment(os.environ)
    places = [path.absolute() for path in arguments.disks]
    plan = plan_import(directories, places, arguments.name)
    for note in plan.notes:
        warn(note)
    credential = find_credential(arguments, plan.config)
    harden_process()
    line = ProgressLine(f"importing {plan.config.name}", quiet=arguments.json)
    work = partial(
        import_pool,
        directories,
        plan,
        credential,
        keyfile=arguments.keyfile.absolute() if arguments.keyfile else None,
        before_changes=lambda: log_to_file(directories.log_file(plan.config.name)),
        report=lambda what, done, total: line.update(done, total or None, what=what),
    )
    try:
        imported = trio.run(until_interrupted, work)
    finally:
        line.close()
    if imported is None:
        raise StoppedWaitingError("the import was interrupted; give the same command again")
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(imported)
    else:
        print(render_import(plan, imported))
    return 0


def render_import(plan: ImportPlan, imported: ImportedPool) -> str:
    """The result for people: what is there again, and what to do next."""
    again = "again " if plan.known else ""
    files = format_count(imported.files, "file")
    folders = format_count(imported.directories, "directory", "directories")
    stored = format_bytes(imported.stored_bytes)
    disks = f"{len(imported.disks)} of {len(imported.disks) + len(imported.missing)} disks"
    lines = [
        f"Imported pool {imported.pool} ({imported.uuid}) {again}from {disks}.",
        f"  {files} in {folders}, {stored} stored",
        f"  last change {format_time(imported.last_change_ns)}",
    ]
    if imported.snapshots:
        lines.append(f"  {format_count(imported.snapshots, 'snapshot')}")
    if imported.scheduled_snapshots and plan.config.snapshots == SnapshotSchedule():
        lines.append(
            "  the schedule that took snapshots was on the old machine: see [snapshots] in the "
            "configuration; until then none is taken and none destroyed"
        )
    if imported.unreadable:
        lines.append(
            f"  {format_count(imported.unreadable, 'record')} could not be read: run "
            f"'dwfs check {imported.pool}' to learn which files are affected"
        )
    if imported.missing:
        left = imported.parity - len(imported.missing)
        more = f"{left} more may fail" if left else "NO MORE may fail without loss of data"
        lines.append(f"  missing: {', '.join(imported.missing)}; nothing is lost, but {more}")
        lines.append(
            "  attach what is missing, or replace it once the pool is mounted: "
            f"dwfs disk replace {imported.pool} OLD NEW-DIR"
        )
    lines.append(f"Mount it with: dwfs mount {imported.pool} DIR")
    return "\n".join(lines)

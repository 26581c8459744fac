"""`dwfs check POOL`: is everything there, and does it fit together?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from dwfs.cli.output import print_json, warn
from dwfs.cli.request import Desk
from dwfs.cli.unlocking import add_unlock_options
from dwfs.errors import DamageError
from dwfs.node.checking.report import CheckReport
from dwfs.node.control import Progress
from dwfs.node.credential import Credential

_SILENCE_SECONDS = 600.0  # a state of many millions of files is checked in one piece
_TEXT_FINDINGS_MAX = 100


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "check",
        help="check a pool for damage",
        description=(
            "Check header copies, log, file system state and every stripe's shards. A pool that is "
            "mounted is checked by its owner while it is in use; one that is not needs its key. "
            "With --repair, mends what can be derived from what is intact. "
            "Names the files that lost data. Exit code 10 if data or redundancy is missing."
        ),
    )
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="mend what can be derived: indexes, orphans, headers, log copies, shards, state",
    )
    parser.add_argument(
        "--read", action="store_true", help="read every shard and verify its checksum (slow)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and tell by the exit code."""
    desk = Desk(arguments, f"checking {arguments.pool}")

    async def check_here(
        request: str, values: Mapping[str, object], credential: Credential, progress: Progress
    ) -> CheckReport:
        # Only here, because asking an owner needs no storage engine.
        from dwfs.node.closed_check import check_closed_pool

        return await check_closed_pool(
            desk.directories,
            desk.config,
            credential,
            read=arguments.read,
            repair=arguments.repair,
            progress=progress,
        )

    report = desk.carry_out(
        "check",
        {"read": arguments.read, "repair": arguments.repair},
        CheckReport,
        outlives=False,
        silence_seconds=_SILENCE_SECONDS,
        here=check_here,
    )
    if arguments.json:
        print_json(report)
    else:
        print(render_report(report))
    if report.needs_reopen and arguments.repair:
        warn(
            "the file system's state can be rebuilt from the disks, but only while nobody uses it: "
            f"unmount the pool, then run 'dwfs check {arguments.pool} --repair' again"
        )
    return 0 if report.sound else DamageError.exit_code


def render_report(report: CheckReport) -> str:
    """The report for people: the verdict first."""
    how = "read and verified" if report.read else "looked up"
    repaired = [f"  repaired: {text}" for text in report.repaired[:_TEXT_FINDINGS_MAX]]
    if report.clean:
        verdict = f"everything is as it should be ({report.stripes} stripes {how})"
        return "\n".join([f"{report.pool}: {verdict}", *repaired])
    damage = sum(1 for finding in report.findings if finding.severity == "damage")
    if damage:
        verdict = f"DAMAGED: {damage} findings mean lost or contradictory data"
    elif report.sound:
        verdict = (
            "all data and all redundancy is there; what is left over, the next scrub clears away"
        )
    else:
        verdict = "no data is lost, but redundancy is not what it should be"
    lines = [f"{report.pool}: {verdict}", *repaired]
    shown = report.findings[:_TEXT_FINDINGS_MAX]
    lines += [f"  {finding.area}: {finding.text}" for finding in shown]
    left_out = len(report.findings) - len(shown) + report.findings_left_out
    if left_out:
        lines.append(f"  … and {left_out} more (see --json)")
    lines.append(
        f"  {report.stripes} stripes {how}: {report.stripes_short} short of shards, "
        f"{report.stripes_lost} lost; {report.shards_missing} shards missing, "
        f"{report.shards_damaged} damaged"
    )
    return "\n".join(lines)

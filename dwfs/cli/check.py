"""`dwfs check POOL`: is everything there, and does it fit together?"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

import msgspec
import trio

from dwfs.cli.output import ProgressLine, print_json
from dwfs.cli.owner import ask_owner, is_open
from dwfs.cli.unlocking import add_unlock_options, find_credential
from dwfs.config import Directories, load_config
from dwfs.errors import DamageError
from dwfs.node.check import CheckReport, check_pool
from dwfs.node.credential import Credential
from dwfs.node.pool import open_pool

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
            "Names the files that lost data. Exit code 10 if anything is not as it should be."
        ),
    )
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument(
        "--read", action="store_true", help="read every shard and verify its checksum (slow)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and tell by the exit code."""
    directories = Directories.from_environment(os.environ)
    config = load_config(directories, arguments.pool)
    line = ProgressLine(f"checking {config.name}", quiet=arguments.json)

    def show(event: Mapping[str, object]) -> None:
        done, total = event.get("done"), event.get("total")
        if isinstance(done, int):
            line.update(done, total if isinstance(total, int) else None, str(event.get("what")))

    if is_open(directories, config.name):
        request = {"read": arguments.read}
        raw = ask_owner(
            directories,
            config.name,
            "check",
            request,
            timeout_seconds=_SILENCE_SECONDS,
            on_progress=show,
        )
        report = msgspec.json.decode(raw, type=CheckReport)
    else:
        credential = find_credential(arguments, config)

        async def check_here(credential: Credential) -> CheckReport:
            async def progress(event: Mapping[str, object]) -> None:
                show(event)

            async with open_pool(directories, config, credential) as pool:
                return await check_pool(pool, read=arguments.read, progress=progress)

        report = trio.run(check_here, credential)
    line.close()
    if arguments.json:
        print_json(report)
    else:
        print(render_report(report))
    return 0 if report.clean else DamageError.exit_code


def render_report(report: CheckReport) -> str:
    """The report for people: the verdict first."""
    how = "read and verified" if report.read else "looked up"
    if report.clean:
        return f"{report.pool}: everything is as it should be ({report.stripes} stripes {how})"
    damage = sum(1 for finding in report.findings if finding.severity == "damage")
    if damage:
        verdict = f"DAMAGED: {damage} findings mean lost or contradictory data"
    else:
        verdict = "no data is lost, but redundancy is not what it should be"
    lines = [f"{report.pool}: {verdict}"]
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

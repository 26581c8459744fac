"""`dwfs init`: make a pool on a few directories."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from dwfs.cli.output import print_json, warn
from dwfs.cli.unlocking import given_credential, new_passphrase, warn_of_exposed_files
from dwfs.config import Directories, Unlock
from dwfs.errors import UsageError
from dwfs.limits import DATA_SHARDS_MAX, PARITY_SHARDS_MAX
from dwfs.node.creation import PoolPlan, check_plan, create_pool
from dwfs.node.pool import first_opening
from dwfs.types import Geometry


class Created(msgspec.Struct):
    """What `init --json` prints."""

    pool: str
    uuid: str
    data: int
    parity: int
    disks: list[str]
    recovery_key: str | None  # null if it was written to --recovery-file
    warnings: list[str]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "init",
        help="make a new pool",
        description=(
            "Make a pool on several directories, normally the mount points of whole disks. Every "
            "piece of data is cut in DATA parts and PARITY redundant parts on as many disks; any "
            "PARITY disks may be lost. Prints a recovery key once: keep it on paper, elsewhere."
        ),
    )
    parser.add_argument("pool", metavar="POOL", help="the pool's name on this machine")
    parser.add_argument(
        "--disk",
        dest="disks",
        metavar="DIR",
        type=Path,
        action="append",
        required=True,
        help="a disk's directory, empty or not yet there; give it once for each disk",
    )
    parser.add_argument("--data", type=int, default=4, metavar="N", help="data parts (default 4)")
    parser.add_argument(
        "--parity", type=int, default=2, metavar="N", help="redundant parts (default 2)"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="take the passphrase from FILE"
    )
    group.add_argument("--keyfile", type=Path, metavar="FILE", help="FILE's content is the key")
    parser.add_argument(
        "--recovery-file",
        type=Path,
        metavar="FILE",
        help="write the recovery key to this new file (mode 0600) instead of showing it",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the pool, or fail with nothing changed."""
    directories = Directories.from_environment(os.environ)
    plan = PoolPlan(
        name=arguments.pool,
        disks=tuple(path.absolute() for path in arguments.disks),
        geometry=_geometry(arguments.data, arguments.parity),
        recovery_file=arguments.recovery_file.absolute() if arguments.recovery_file else None,
        # A passphrase's file is not noted: it is often a temporary one, and a person can be asked.
        unlock=Unlock(keyfile=arguments.keyfile.absolute() if arguments.keyfile else None),
    )
    warnings = check_plan(directories, plan)
    credential = given_credential(arguments) or new_passphrase("passphrase of the new pool")
    made = create_pool(directories, plan, credential, first_opening)
    for text in warnings:
        warn(text)
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(
            Created(
                pool=plan.name,
                uuid=made.uuid,
                data=plan.geometry.data,
                parity=plan.geometry.parity,
                disks=[str(path) for path in plan.disks],
                recovery_key=None if plan.recovery_file else made.recovery_key,
                warnings=warnings,
            )
        )
        return 0
    count, parity = len(plan.disks), plan.geometry.parity
    print(f"Made pool {plan.name} ({made.uuid}) on {count} disks; any {parity} may be lost.")
    if plan.recovery_file is None:
        print("Recovery key, shown this once. Keep it on paper, away from this machine:\n")
        print(f"    {made.recovery_key}\n")
        sys.stdout.flush()
    else:
        print(f"The recovery key is in {plan.recovery_file}: move it away from this machine.")
    print(f"Mount it with: dwfs mount {plan.name} DIR")
    return 0


def _geometry(data: int, parity: int) -> Geometry:
    if not 1 <= data <= DATA_SHARDS_MAX:
        raise UsageError(f"--data must be 1 to {DATA_SHARDS_MAX}, not {data}")
    if not 1 <= parity <= PARITY_SHARDS_MAX:
        raise UsageError(f"--parity must be 1 to {PARITY_SHARDS_MAX}, not {parity}")
    return Geometry(data, parity)

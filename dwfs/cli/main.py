"""The command line: parses, dispatches, and turns every failure into one line and an exit code.

Each command is a module with `add_parser(subparsers)` and `run(arguments) -> int`. Modules that pull
in the storage engine are imported only when their command runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import dwfs
from dwfs.cli.failure import guarded
from dwfs.errors import UsageError

_COMMANDS: Final = {
    "init": "dwfs.cli.init",
    "mount": "dwfs.cli.mount",
    "umount": "dwfs.cli.umount",
    "status": "dwfs.cli.status",
    "disk": "dwfs.cli.disk",
    "snapshot": "dwfs.cli.snapshot",
    "volume": "dwfs.cli.volume",
    "clone": "dwfs.cli.clone",
    "send": "dwfs.cli.send",
    "receive": "dwfs.cli.receive",
    "backup": "dwfs.cli.backup",
    "scrub": "dwfs.cli.scrub",
    "check": "dwfs.cli.check",
    "import": "dwfs.cli.import_pool",
    "key": "dwfs.cli.key",
    "bench": "dwfs.cli.bench",
}

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 bad usage, 3 no such pool, 4 busy, 5 wrong key, 6 unreadable or
foreign format, 7 not enough disks, 8 no space, 9 unsupported system, 10 damage found,
11 owner not reachable, 70 defect in dwfs
"""


class CommandParser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line (and an exception) instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the mistake and where to read more."""
        raise UsageError(f"{message} (see '{self.prog} --help')")


def build_parser(only: str | None = None) -> CommandParser:
    """The whole command line, or what is needed of it when the command is known already.

    A command's module pulls in the layers that it needs, the storage engine takes half a second.
    """
    parser = CommandParser(
        prog="dwfs",
        description="An encrypted filesystem over several disks that survives the loss of some.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dwfs {dwfs.__version__}")
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name in [only] if only in _COMMANDS else _COMMANDS:
        importlib.import_module(_COMMANDS[name]).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return guarded("dwfs", lambda: run_command(argv))


def run_command(argv: Sequence[str] | None) -> int:
    """As `main`, but failures are raised."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser(words[0] if words else None).parse_args(words)
    code: int = arguments.run(arguments)
    sys.stdout.flush()  # here, so that a closed pipe is met inside the guard
    return code


if __name__ == "__main__":
    sys.exit(main())

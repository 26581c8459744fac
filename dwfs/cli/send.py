"""`dwfs send POOL@NAME`: a snapshot, or what changed since an earlier one, as a stream on stdout."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import msgspec
import trio

from dwfs.cli.failure import EXIT_BROKEN_PIPE
from dwfs.cli.output import format_bytes, format_count, print_json, warn
from dwfs.cli.request import Desk
from dwfs.cli.snapshot import split_target
from dwfs.cli.unlocking import add_unlock_options, warn_of_exposed_files
from dwfs.errors import DwfsError, NoSpaceError, UsageError
from dwfs.node.control import Progress
from dwfs.node.credential import Credential, is_exposed, read_credential
from dwfs.node.stream_answers import SendAnswer

_SILENCE_SECONDS = 600.0  # of an owner that looks for what changed among a great many of files


class ReaderGoneError(DwfsError):
    """Whoever took the stream has closed the pipe."""

    exit_code: ClassVar[int] = EXIT_BROKEN_PIPE


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "send",
        help="write a snapshot as a stream, for a backup elsewhere",
        description=(
            "Write a snapshot to standard output as an encrypted stream, whole or as what changed "
            "since an earlier snapshot. 'dwfs receive' makes the same of it in another pool. The "
            "pool may be mounted."
        ),
    )
    parser.add_argument("target", metavar="POOL@NAME", help="the snapshot")
    parser.add_argument(
        "--from",
        dest="base",
        metavar="@OLDER",
        help="send only what changed since this snapshot, which the receiver has already",
    )
    add_stream_key_options(parser)
    parser.add_argument(
        "--estimate", action="store_true", help="only tell how large the stream would be"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a summary as JSON: to stderr, with --estimate to stdout",
    )
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def add_stream_key_options(parser: argparse.ArgumentParser) -> None:
    """Options that name the secret of a stream, apart from the pool's."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--stream-keyfile",
        metavar="FILE",
        type=Path,
        help="seal the stream with this key file (both sides need it), not with the pool's root key",
    )
    group.add_argument(
        "--stream-passphrase-file",
        metavar="FILE",
        type=Path,
        help="the same with a passphrase: the file's content without the last newline",
    )


def stream_credential(arguments: argparse.Namespace) -> Credential | None:
    """The secret of the stream that the command line names; None: the pool's root key."""
    keyfile: Path | None = arguments.stream_keyfile
    passphrase_file: Path | None = arguments.stream_passphrase_file
    path = keyfile or passphrase_file
    if path is None:
        return None
    credential = read_credential("passphrase" if keyfile is None else "keyfile", path)
    credential.protector()  # says at once if it can't be a key
    if is_exposed(path):
        warn(f"other users may read {path}; make it private with: chmod 600 {path}")
    return credential


def run(arguments: argparse.Namespace) -> int:
    """Send, or estimate."""
    pool, name, base = parse_targets(arguments.target, arguments.base)
    arguments.pool = pool  # where the desk and the questions for a key look for it
    if not arguments.estimate and sys.stdout.isatty():
        raise UsageError(
            "the stream is not for a terminal: redirect it to a file, or pipe it to 'dwfs receive' "
            "on the machine that is to have the copy"
        )
    desk = Desk(arguments, f"sending {pool}@{name}")
    credential = stream_credential(arguments)
    values: dict[str, object] = {"name": name, "measure": arguments.estimate}
    if base is not None:
        values["base"] = base
    if credential is not None:
        values["credential"] = credential.encoded()
    output = _Output()
    try:
        answer = desk.carry_out(
            "send",
            values,
            SendAnswer,
            outlives=False,
            silence_seconds=_SILENCE_SECONDS,
            here=partial(_send_here, desk, output),
            on_data=output.write,
        )
    finally:
        if credential is not None:
            credential.wipe()
    warn_of_exposed_files(arguments)
    _tell(arguments, answer)
    return 0


def parse_targets(target: str, base: str | None) -> tuple[str, str, str | None]:
    """Pool, snapshot and older snapshot. Raises UsageError."""
    pool, name = split_target(target)
    if name is None:
        raise UsageError(f"{target!r} names no snapshot: write {pool}@NAME, as in {pool}@monday")
    if base is None:
        return pool, name, None
    base_pool, separator, base_name = base.partition("@")
    if not separator or not base_name or base_pool not in ("", pool):
        raise UsageError(f"{base!r} names no snapshot of pool {pool}: write --from @NAME")
    return pool, name, base_name


def _tell(arguments: argparse.Namespace, answer: SendAnswer) -> None:
    if arguments.json:
        if arguments.estimate:
            print_json(answer)
        else:
            print(msgspec.json.encode(answer).decode(), file=sys.stderr)
        return
    since = "" if answer.base is None else f" since @{answer.base}"
    what = f"{answer.pool}@{answer.snapshot}{since}"
    data = f"{format_bytes(answer.data_bytes)} of data"
    records = format_count(answer.records, "record")
    if arguments.estimate:
        size = format_bytes(answer.stream_bytes)
        print(f"the stream of {what} would take about {size}: {data} and {records}")
    else:
        size = format_bytes(answer.stream_bytes)
        print(f"sent {what}: {size}, {data} and {records}", file=sys.stderr)


class _Output:
    """Standard output, for a stream. What fails is raised as DwfsError: it is not the pool's fault."""

    def write(self, data: bytes) -> None:
        """Write all of it, however long that takes."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(sys.stdout.fileno(), view) :]
        except BrokenPipeError:
            raise ReaderGoneError(
                "whoever takes the stream has gone before its end; when the receiver is ready, send it "
                "again: a receive that was interrupted goes on where it was"
            ) from None
        except OSError as error:
            text = f"can't write the stream: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(text) from None
            raise DwfsError(text) from None

    async def write_in_thread(self, data: bytes) -> None:
        """The same, from a loop that has other things to do."""
        await trio.to_thread.run_sync(self.write, data, abandon_on_cancel=True)


async def _send_here(
    desk: Desk,
    output: _Output,
    request: str,
    values: Mapping[str, object],
    credential: Credential,
    progress: Progress,
) -> object:
    from dwfs.node.assembly import OpenOptions
    from dwfs.node.pool import open_pool
    from dwfs.node.sending import Sending

    options = OpenOptions(report=desk.report_opening)
    async with open_pool(desk.directories, desk.config, credential, options) as pool:
        handler = Sending(pool).streams()[request]
        return await handler(dict(values), progress, output.write_in_thread)

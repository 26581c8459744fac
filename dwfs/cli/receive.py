"""`dwfs receive POOL`: make a snapshot out of the stream on stdin."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from dwfs.cli.output import format_bytes, format_count, print_json, warn
from dwfs.cli.request import Desk
from dwfs.cli.send import add_stream_key_options, stream_credential
from dwfs.cli.status import query_status
from dwfs.cli.unlocking import add_unlock_options, warn_of_exposed_files
from dwfs.errors import DwfsError, PoolBusyError, PosixError, UsageError
from dwfs.limits import MIB
from dwfs.node.control import Progress
from dwfs.node.credential import Credential
from dwfs.node.stream_answers import ReceiveAnswer

if TYPE_CHECKING:
    from dwfs.node.assembly import OpenOptions

_READ_SIZE = MIB


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "receive",
        help="make a snapshot out of a stream of 'dwfs send'",
        description=(
            "Read a stream of 'dwfs send' from standard input and make the same of it here: files, "
            "and the snapshot. The pool must not be mounted. A full stream needs a new, empty pool; an "
            "increment needs the snapshot that it starts from, with nothing changed since. What was "
            "interrupted goes on when the stream is piped in again."
        ),
    )
    parser.add_argument("pool", metavar="POOL")
    add_stream_key_options(parser)
    parser.add_argument(
        "--abort",
        action="store_true",
        help="give up a receive that was interrupted: the pool is as it was before",
    )
    parser.add_argument(
        "--from-backup",
        metavar="DIR",
        type=Path,
        help="receive what 'dwfs backup' has written to a directory, in order",
    )
    parser.add_argument(
        "--at", metavar="NAME", help="with --from-backup: up to this snapshot, not to the newest"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Receive, or give up."""
    source: Path | None = arguments.from_backup
    if arguments.at is not None and source is None:
        raise UsageError("--at goes with --from-backup DIR")
    if not arguments.abort and source is None and sys.stdin.isatty():
        raise UsageError(
            "there is no stream on a terminal: pipe it in, as in 'dwfs receive POOL < FILE'"
        )
    desk = Desk(arguments, f"receiving into {arguments.pool}")
    if desk.open_elsewhere:
        _refuse_open(desk)
    if arguments.abort:
        return _give_up(arguments, desk)
    files = [] if source is None else _chain(source, arguments.at)
    here = _Here(desk, stream_credential(arguments), files)
    try:
        answer = desk.carry_out("receive", {}, ReceiveAnswer, outlives=False, here=here.receive)
    except (KeyboardInterrupt, DwfsError, PosixError):
        if here.unfinished:
            warn(
                f"pool {desk.config.name} has a part of @{here.unfinished} now: pipe the stream in again "
                "and it goes on where it was, or give it up with 'dwfs receive --abort "
                f"{desk.config.name}'"
            )
        raise
    finally:
        here.wipe()
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(answer)
    else:
        print(render_received(answer))
    return 0


def _chain(directory: Path, name: str | None) -> list[Path]:
    from dwfs.node.backup_directory import BackupDirectory
    from dwfs.send.chains import select

    found = BackupDirectory(directory).scan()
    for line in found.unreadable:
        warn(f"passed over {line}")
    return [one.path for one in select(found.backups, None if name is None else name.lstrip("@"))]


def _give_up(arguments: argparse.Namespace, desk: Desk) -> int:
    said = desk.carry_out("receive.abort", {}, str, outlives=False, here=_Here(desk).give_up)
    if arguments.json:
        print_json({"text": said})
    else:
        print(said)
    return 0


def render_received(answer: ReceiveAnswer) -> str:
    """The result for people."""
    since = "" if answer.base is None else f" (since @{answer.base})"
    skipped = ""
    if answer.skipped_bytes:
        skipped = f", of which {format_bytes(answer.skipped_bytes)} had come in before"
    return (
        f"received {answer.pool}@{answer.snapshot}{since}: {format_bytes(answer.stream_bytes)}{skipped}; "
        f"{format_count(answer.inodes, 'file')} with {format_bytes(answer.logical_bytes)} now"
    )


def _refuse_open(desk: Desk) -> None:
    pool = desk.config.name
    status = query_status(desk.directories, pool)
    if status.mountpoint is not None:
        raise PoolBusyError(
            f"pool {pool} is mounted at {status.mountpoint}, and receiving changes everything below its "
            f"users: 'dwfs umount {status.mountpoint}' first"
        )
    raise PoolBusyError(f"pool {pool} is open in process {status.pid}: wait until that has ended")


async def _read_stdin(count: int) -> bytes:
    """Up to so many bytes; none at the end. In a thread: a pipe may be silent for long."""
    return await trio.to_thread.run_sync(
        os.read, sys.stdin.fileno(), min(count, _READ_SIZE), abandon_on_cancel=True
    )


class _Here:
    """The work, in this process."""

    def __init__(
        self, desk: Desk, stream: Credential | None = None, files: Sequence[Path] = ()
    ) -> None:
        """`files`: what to receive, one after the other; none: what comes on stdin."""
        self.unfinished = ""  # the snapshot of which a part has come in
        self._desk = desk
        self._stream = stream
        self._files = files

    def wipe(self) -> None:
        """Forget the stream's secret."""
        if self._stream is not None:
            self._stream.wipe()

    async def receive(
        self,
        request: str,
        values: Mapping[str, object],
        credential: Credential,
        progress: Progress,
    ) -> object:
        """Take the stream in."""
        from dwfs.node.pool import open_pool
        from dwfs.node.receiving import receive_files, receive_stream

        desk = self._desk
        async with open_pool(desk.directories, desk.config, credential, self._options()) as pool:
            try:
                if not self._files:
                    return await receive_stream(pool, self._stream, _read_stdin, progress)
                return await receive_files(pool, self._stream, self._files, progress)
            finally:
                unfinished = pool.volume.receive_state.unfinished
                self.unfinished = "" if unfinished is None else unfinished.origin.name

    async def give_up(
        self,
        request: str,
        values: Mapping[str, object],
        credential: Credential,
        progress: Progress,
    ) -> object:
        """Go back to what was there before."""
        from dwfs.node.pool import open_pool
        from dwfs.node.receiving import give_up_receive

        desk = self._desk
        async with open_pool(desk.directories, desk.config, credential, self._options()) as pool:
            return await give_up_receive(pool, progress)

    def _options(self) -> OpenOptions:
        from dwfs.node.assembly import OpenOptions

        return OpenOptions(report=self._desk.report_opening)

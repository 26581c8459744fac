"""`dwfs backup POOL --to DIR`: keep a pool's snapshots as streams in a directory elsewhere."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from dwfs.cli.output import format_bytes, format_count, format_time, print_json, render_table, warn
from dwfs.cli.owner import ask_owner
from dwfs.cli.request import Desk, until_interrupted
from dwfs.cli.send import add_stream_key_options, stream_credential
from dwfs.cli.unlocking import add_unlock_options, find_credential, warn_of_exposed_files
from dwfs.errors import DwfsError, NoSpaceError, UsageError
from dwfs.node.client import OnData
from dwfs.node.credential import Credential
from dwfs.node.status import SnapshotAnswer, SnapshotList
from dwfs.node.stream_answers import SendAnswer

if TYPE_CHECKING:
    from dwfs.node.backup_directory import BackupDirectory
    from dwfs.send.chains import Backup

ResultT = TypeVar("ResultT")

_SILENCE_SECONDS = 600.0
_FULL_EVERY = 30


class BackupAnswer(msgspec.Struct, frozen=True):
    """What `dwfs backup --json` prints."""

    pool: str
    snapshot: str
    base: str | None  # None: a full stream
    file: str
    stream_bytes: int
    removed: list[str]  # files that are not wanted any more


class ListedBackup(msgspec.Struct, frozen=True):
    """A file in what `dwfs backup --list --json` prints."""

    file: str
    snapshot: str
    created_ns: int
    base: str | None
    size_bytes: int
    inodes: int
    logical_bytes: int
    whole: bool  # all files that it starts from are there


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "backup",
        help="keep snapshots as encrypted files in a directory elsewhere",
        description=(
            "Take a snapshot and write it to a directory as an encrypted stream: whole at first and "
            "now and then, else what changed since the last time. For a directory on another machine "
            "or disk. 'dwfs receive --from-backup' brings it back. Made to be run by a timer."
        ),
    )
    parser.add_argument("pool", metavar="POOL", nargs="?", help="the pool")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--to", metavar="DIR", type=Path, help="where the files are kept")
    place.add_argument("--list", metavar="DIR", type=Path, help="show what is in a directory")
    add_stream_key_options(parser)
    parser.add_argument(
        "--full-every",
        metavar="N",
        type=int,
        default=_FULL_EVERY,
        help=f"every Nth is full, those in between need it (default {_FULL_EVERY})",
    )
    parser.add_argument(
        "--keep",
        metavar="N",
        type=int,
        help="keep the newest N, and what they need; delete other files (default: keep all)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_unlock_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Back up, or list."""
    from dwfs.node.backup_directory import BackupDirectory

    place: Path = arguments.list or arguments.to
    if not place.is_dir():
        raise UsageError(f"{place} is no directory: make it, or mount what it is on")
    directory = BackupDirectory(place.absolute())
    if arguments.list is not None:
        return _list(arguments, directory)
    if arguments.pool is None:
        raise UsageError("which pool? Write 'dwfs backup POOL --to DIR'")
    if arguments.full_every < 1 or (arguments.keep is not None and arguments.keep < 1):
        raise UsageError("--full-every and --keep are at least 1")
    credential = stream_credential(arguments)
    if credential is None:
        warn(
            "without --stream-keyfile or --stream-passphrase-file the files are sealed with the pool's "
            "root key: they are lost with the pool"
        )
    desk = Desk(arguments, f"backing up {arguments.pool}")
    backing = _Backing(arguments, desk, directory, credential)
    try:
        with directory.locked():
            answer = _with_owner(arguments, desk, backing.run)
    finally:
        desk.line.close()
        if credential is not None:
            credential.wipe()
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(answer)
    else:
        print(render_backup(answer))
    return 0


def render_backup(answer: BackupAnswer) -> str:
    """The result for people."""
    since = "all of it" if answer.base is None else f"what changed since @{answer.base}"
    removed = format_count(len(answer.removed), "older file")
    return (
        f"wrote {answer.file}: {answer.pool}@{answer.snapshot}, {since}, "
        f"{format_bytes(answer.stream_bytes)}" + (f"; deleted {removed}" if answer.removed else "")
    )


def _with_owner(arguments: argparse.Namespace, desk: Desk, work: Callable[[], ResultT]) -> ResultT:
    """Call `work` while somebody owns the pool: who does already, or we."""
    if desk.open_elsewhere:
        return work()
    from dwfs.cli.background import log_to_file
    from dwfs.crypto import harden_process
    from dwfs.node.assembly import OpenOptions
    from dwfs.node.pool import open_pool

    credential = find_credential(arguments, desk.config)
    harden_process()
    log_to_file(desk.directories.log_file(desk.config.name))

    async def own() -> ResultT:
        options = OpenOptions(report=desk.report_opening)
        async with open_pool(desk.directories, desk.config, credential, options):
            # It asks this very process, through the socket, as it asks any other.
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    answer = trio.run(until_interrupted, own)
    if answer is None:
        raise KeyboardInterrupt
    return answer


class _WriteError(Exception):
    """The file could not be written; not an OSError, which would be taken for the connection's."""


class _Backing:
    """One backup."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        desk: Desk,
        directory: BackupDirectory,
        credential: Credential | None,
    ) -> None:
        self._arguments = arguments
        self._desk = desk
        self._pool = desk.config.name
        self._directory = directory
        self._credential = credential

    def run(self) -> BackupAnswer:
        """Take a snapshot, write it, give up what is not needed any more."""
        from dwfs.node.backup_directory import snapshot_name
        from dwfs.send.chains import next_base, surplus

        backups = self._ours()
        self._clear_leftovers()
        present = {(one.name, one.created_ns) for one in self._snapshots().snapshots}
        base = next_base(backups, present, self._arguments.full_every)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = snapshot_name(stamp)
        # The file first: should we die, its name tells which snapshot was taken for it.
        writing = self._directory.begin(self._pool, stamp, full=base is None)
        taken = False
        try:
            self._ask("snapshot.create", {"name": name}, SnapshotAnswer)
            taken = True
            sent = self._send(name, None if base is None else base.snapshot.name, writing.write)
            writing.finish()
        except BaseException:  # whatever it was, nothing half-done stays
            with suppress(OSError):
                writing.abandon()
            if taken:
                with suppress(DwfsError):
                    self._ask("snapshot.destroy", {"names": [name]}, SnapshotAnswer)
            raise
        older = [one.snapshot.name for one in backups if _key(one) in present]
        if older:
            self._ask("snapshot.destroy", {"names": list(dict.fromkeys(older))}, SnapshotAnswer)
        removed = []
        if self._arguments.keep is not None:
            for backup in surplus(self._ours(), self._arguments.keep):
                self._directory.remove(backup)
                removed.append(backup.path.name)
        return BackupAnswer(
            self._pool, name, sent.base, str(writing.path), sent.stream_bytes, removed
        )

    def _ours(self) -> list[Backup]:
        """What the directory has of this pool."""
        found = self._directory.scan()
        for line in found.unreadable:
            warn(f"passed over {line}")
        if any(one.snapshot.pool != self._desk.config.pool for one in found.backups):
            raise UsageError(
                f"{self._directory.path} has backups of another pool: give each a directory of its own"
            )
        return found.backups

    def _clear_leftovers(self) -> None:
        leftovers = self._directory.leftovers(self._pool)
        if not leftovers:
            return
        present = {one.name for one in self._snapshots().snapshots}
        for path, name in leftovers.items():
            if name in present:
                self._ask("snapshot.destroy", {"names": [name]}, SnapshotAnswer)
            path.unlink()

    def _snapshots(self) -> SnapshotList:
        return self._ask("snapshot.list", {}, SnapshotList)

    def _send(self, name: str, base: str | None, write: OnData) -> SendAnswer:
        values: dict[str, object] = {"name": name}
        if base is not None:
            values["base"] = base
        if self._credential is not None:
            values["credential"] = self._credential.encoded()

        def on_data(data: bytes) -> None:
            try:
                write(data)
            except OSError as error:
                raise _WriteError from error

        try:
            return self._ask("send", values, SendAnswer, on_data)
        except _WriteError as error:
            cause = error.__cause__
            assert isinstance(cause, OSError)
            text = f"can't write to {self._directory.path}: {cause.strerror}"
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(text) from None
            raise DwfsError(text) from None

    def _ask(
        self,
        request: str,
        values: Mapping[str, object],
        kind: type[ResultT],
        on_data: OnData | None = None,
    ) -> ResultT:
        raw = ask_owner(
            self._desk.directories,
            self._pool,
            request,
            values,
            timeout_seconds=_SILENCE_SECONDS,
            on_progress=self._desk.line.show,
            on_data=on_data,
        )
        return msgspec.json.decode(raw, type=kind)


def _key(backup: Backup) -> tuple[str, int]:
    return backup.snapshot.name, backup.snapshot.time_ns


def _list(arguments: argparse.Namespace, directory: BackupDirectory) -> int:
    from dwfs.send.chains import chain_of, in_order

    found = directory.scan()
    listed = [
        ListedBackup(
            one.path.name,
            one.snapshot.name,
            one.snapshot.time_ns,
            None if one.base is None else one.base.name,
            one.size_bytes,
            one.inode_count,
            one.allocated_bytes,
            chain_of(found.backups, one) is not None,
        )
        for one in in_order(found.backups)
    ]
    for line in found.unreadable:
        warn(f"passed over {line}")
    if arguments.json:
        print_json(listed)
    elif not listed:
        print(f"there are no backups in {directory.path}")
    else:
        print(render_list(listed))
    return 0


def render_list(listed: list[ListedBackup]) -> str:
    """A table of what is there."""
    rows = [
        [
            one.snapshot,
            format_time(one.created_ns),
            "full" if one.base is None else f"since @{one.base}",
            format_bytes(one.size_bytes),
            format_bytes(one.logical_bytes),
            one.file if one.whole else f"{one.file} (useless: what it starts from is missing)",
        ]
        for one in listed
    ]
    return render_table(["snapshot", "taken", "kind", "size", "holds", "file"], rows, {3, 4})

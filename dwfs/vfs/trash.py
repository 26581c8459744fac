"""The trash: what happens to a deleted file where the volume's property `trash` keeps it for a while.

Removing a regular file's last name moves it to `/.trash/UID` instead, under a name that tells what
it was called, when it was deleted, and which inode it is; `mv` brings it back. Owner, mode and
content stay. Removing a name in there deletes for good, and so does the passing of time (`prune`).

UID is the file's owner, who alone may enter: files and names that only a private directory had
protected stay private. `/.trash` itself belongs to the root directory's owner. Directories of these
names that belong to anybody else are not used, for he could take from them what he likes.

A deletion must never fail for want of a trash: where there is none and none can be made, where
something else has its name, and where the pool has hardly any room left, files are deleted for good.

The time in a name never lies before the directory's last change. So a clock that was set back does
not date deletions back, and what was deleted meanwhile is not pruned early when it is right again.
"""

from __future__ import annotations

import errno
import logging
import re
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from dwfs.errors import PosixError
from dwfs.limits import MIB, NAME_LENGTH_MAX
from dwfs.ports import Clock
from dwfs.types import CLONE_NAME_PREFIX, ROOT_INODE, InodeNumber
from dwfs.vfs.capacity import Space
from dwfs.vfs.references import References
from dwfs.volume.commands import RENAME_NOREPLACE, Create, Rename, Unlink
from dwfs.volume.records import Inode
from dwfs.volume.volume import Volume

TRASH_NAME: Final = b".trash"
TRASH_MODE: Final = 0o1755
PLACE_MODE: Final = 0o700  # of one owner's part
PRUNE_BATCH: Final = 64  # names looked at in one step
# Below this much free space deletions are for good: there must be a way to get some back with rm.
RESERVE_MIN: Final = 16 * MIB
RESERVE_FRACTION: Final = 1 / 64
_SECOND_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _SECOND_NS
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(rb".*~(\d{8}T\d{6}Z)~(\d{1,19})", re.DOTALL)
_UNFINISHED: Final = CLONE_NAME_PREFIX.encode()  # nobody wants to have those back
_NAMES_TRIED: Final = 4  # somebody else's file may have the very name that is wanted

_log = logging.getLogger(__name__)


class KernelCaches(Protocol):
    """Whoever keeps names and attributes that change here without his asking."""

    def changed(self, number: InodeNumber) -> None:
        """The inode's attributes are not what they were."""

    def made(self, parent: InodeNumber, name: bytes) -> None:
        """The name is there now."""

    def removed(self, parent: InodeNumber, name: bytes, number: InodeNumber) -> None:
        """The name is gone."""


class Pruned(NamedTuple):
    """What a step of `Trash.prune` did."""

    files: int  # deleted for good
    following: int | None  # where to go on; None: the trash is through


def name_in_trash(name: bytes, moment_ns: int, number: InodeNumber) -> bytes:
    """`NAME~20261121T221500Z~INODE`; a long NAME is cut, at a character's border if it has any."""
    when = datetime.fromtimestamp(moment_ns // _SECOND_NS, UTC).strftime(_STAMP)
    ending = f"~{when}~{number}".encode()
    room = NAME_LENGTH_MAX - len(ending)
    if len(name) > room:
        cut = name[:room].decode(errors="ignore").encode()
        name = cut if name.startswith(cut) and len(cut) > room - 4 else name[:room]
    return name + ending


def deletion_time_ns(name: bytes, number: InodeNumber) -> int | None:
    """When the file of that inode was deleted, by its name; None if the trash didn't name it."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[2]) != number:
        return None
    try:
        when = datetime.strptime(match[1].decode(), _STAMP).replace(tzinfo=UTC)
    except ValueError:  # a thirteenth month: somebody's own name
        return None
    return int(when.timestamp()) * _SECOND_NS


class Trash:
    """The trash of one volume."""

    def __init__(
        self, volume: Volume, clock: Clock, references: References, space: Callable[[], Space]
    ) -> None:
        self._volume = volume
        self._clock = clock
        self._references = references
        self._space = space
        self._complained = False
        self.kernel: KernelCaches | None = None  # while a kernel has the volume mounted

    async def receive(self, parent: InodeNumber, name: bytes) -> bool:
        """Take in the file of that name; False if it is to be deleted for good."""
        number = self._candidate(parent, name)
        if number is None:
            return False
        place = await self._place_of(self._volume.inode(number))
        if place is None or self._candidate(parent, name) != number:
            return False
        # no await from the candidate's choice to the proposal
        moment_ns = max(self._clock.wall_ns(), place.ctime_ns)
        for _ in range(_NAMES_TRIED):
            new_name = name_in_trash(name, moment_ns, number)
            try:
                await self._volume.propose(
                    Rename(parent, name, place.number, new_name, RENAME_NOREPLACE, moment_ns)
                )
            except PosixError as error:
                if error.errno == errno.EEXIST:
                    moment_ns += _SECOND_NS
                    continue
                if error.errno == errno.ENOSPC:
                    return False
                raise
            if self.kernel is not None:
                self.kernel.changed(place.number)
            return True
        return False

    def places(self) -> list[InodeNumber]:
        """The owners' parts, to be pruned one by one; none while nothing is kept."""
        top = self._top()
        if top is None or not self._volume.properties.trash_days:
            return []
        found: list[InodeNumber] = []
        cookie = 0
        while entries := self._volume.read_directory(top.number, cookie, PRUNE_BATCH):
            found += [entry.inode for entry in entries if entry.type == stat.S_IFDIR >> 12]
            cookie = entries[-1].cookie
        return found

    async def prune(self, place: InodeNumber, after: int = 0) -> Pruned:
        """Delete for good what lies there for longer than it should; one step, from a cookie on."""
        days = self._volume.properties.trash_days
        if not days:
            return Pruned(0, None)
        deadline_ns = self._clock.wall_ns() - days * _DAY_NS
        entries, following = self._volume.directory_page(place, after, PRUNE_BATCH)
        files = 0
        for entry in entries:
            deleted_ns = deletion_time_ns(entry.name, entry.inode)
            if (
                deleted_ns is not None
                and deleted_ns < deadline_ns
                and entry.type == stat.S_IFREG >> 12
            ):
                files += await self._delete(place, entry.name)
        if files and self.kernel is not None:
            self.kernel.changed(place)
        return Pruned(files, following)

    def _candidate(self, parent: InodeNumber, name: bytes) -> InodeNumber | None:
        """The inode that belongs into the trash when the name is removed, or None."""
        if not self._volume.properties.trash_days or name.startswith(_UNFINISHED):
            return None
        number = self._volume.lookup(parent, name)
        if number is None:
            return None
        inode = self._volume.inode(number)
        if not stat.S_ISREG(inode.mode) or inode.nlink != 1 or self._is_inside(parent):
            return None
        space = self._space()
        reserve_bytes = max(RESERVE_MIN, int(space.size_bytes * RESERVE_FRACTION))
        return number if space.free_bytes >= reserve_bytes else None

    def _is_inside(self, directory: InodeNumber) -> bool:
        trash = self._volume.lookup(ROOT_INODE, TRASH_NAME)
        while trash and directory and directory != ROOT_INODE:
            if directory == trash:
                return True
            directory = self._volume.inode(directory).parent
        return False

    def _top(self) -> Inode | None:
        """`/.trash`, if it is there and may be used."""
        root = self._volume.inode(ROOT_INODE)
        return self._directory_of(root.uid, ROOT_INODE, TRASH_NAME)

    def _directory_of(self, uid: int, parent: InodeNumber, name: bytes) -> Inode | None:
        number = self._volume.lookup(parent, name)
        if number is None:
            return None
        inode = self._volume.inode(number)
        return inode if stat.S_ISDIR(inode.mode) and inode.uid == uid else None

    async def _place_of(self, file: Inode) -> Inode | None:
        """The part of the file's owner, made if need be; None if it can't be had."""
        uid, gid = file.uid, file.gid
        root = self._volume.inode(ROOT_INODE)
        top = self._top() or await self._make(
            ROOT_INODE, TRASH_NAME, TRASH_MODE, root.uid, root.gid
        )
        if top is None:
            return None
        number, name = top.number, b"%d" % uid
        return self._directory_of(uid, number, name) or await self._make(
            number, name, PLACE_MODE, uid, gid
        )

    async def _make(
        self, parent: InodeNumber, name: bytes, mode: int, uid: int, gid: int
    ) -> Inode | None:
        number, now = self._volume.allocate_inode(), self._clock.wall_ns()
        mode |= stat.S_IFDIR
        try:
            made = await self._volume.propose(
                Create(parent, name, number, mode, uid, gid, 0, b"", (), now)
            )
        except PosixError as error:
            if error.errno == errno.EEXIST:
                # Made by another deletion a moment ago, or by somebody else for his own ends.
                there = self._directory_of(uid, parent, name)
                if there is None:
                    self._complain()
                return there
            if error.errno in (errno.EDQUOT, errno.ENOSPC):
                return None
            raise
        if self.kernel is not None:
            self.kernel.made(parent, name)
            self.kernel.changed(parent)
        return made

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(
                "deleted files are not kept: something in the place of the trash belongs to "
                "somebody else; remove or rename /.trash, and it is made anew"
            )

    async def _delete(self, place: InodeNumber, name: bytes) -> bool:
        try:
            inode = await self._volume.propose(Unlink(place, name, self._clock.wall_ns()))
        except PosixError as error:
            if error.errno == errno.ENOENT:
                return False  # somebody was faster
            raise
        if self.kernel is not None:
            self.kernel.removed(place, name, inode.number)
        if not inode.nlink:
            self._references.orphaned(inode.number)
        return True

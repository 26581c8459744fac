"""Commands that make a volume, piece by piece, what a snapshot of another one was.

A receive begins on a volume that has nothing in it, or nothing but what an earlier stream brought, and
ends with a snapshot. In between the volume is neither the one nor the other: other commands that would
change files or snapshots are refused, and nobody may mount it. `ReceiveState` says so, and up to which
frame everything is in the state; it is part of the state, and so in every commit, log and copy of it.

Records come with link and entry counts, so they are applied as they are, without the rules that
hold between names and inodes; those hold again when the last record is in. What a stream says is
checked as far as it concerns one record: a wrong stream may make a wrong tree, but no impossible record.

The way back is a rollback to the newest snapshot: that from which the stream starts, or one of the
empty volume that is taken for this (`RECEIVING_NAME`). A receive that is being aborted can't go on.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from msgspec.structs import replace

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import INODE_NUMBER_BITS, ROOT_INODE, Epoch, InodeNumber
from dwfs.volume import filemap, xattrs
from dwfs.volume.commands import (
    AbortReceive,
    BeginReceive,
    DestroySnapshot,
    FinishReceive,
    MarkReceived,
    ReceiveRecords,
    TakeSnapshot,
)
from dwfs.volume.epochs import destroy_snapshot, take_snapshot
from dwfs.volume.extents import Balance
from dwfs.volume.namespace import TYPE_MASK, TYPES, check_name
from dwfs.volume.quota import check_create
from dwfs.volume.records import Inode
from dwfs.volume.snapshots import is_name
from dwfs.volume.state import VolumeState
from dwfs.volume.transfer import (
    RECEIVING_NAME,
    GoneRecord,
    HoleRecord,
    InodeRecord,
    NameRecord,
    Origin,
    Received,
    ReceiveState,
    Receiving,
    StateRecord,
    XattrRecord,
)

_TIME_MAX: Final = 2**63 - 1
_ID_MAX: Final = 2**32 - 1


def begin(state: VolumeState, command: BeginReceive) -> None:
    """EBUSY, EINVAL, EEXIST, ENOTEMPTY, ENOENT for the base, ENOSPC.

    That the volume is as it was at its base is the caller's to find out.
    """
    if state.receive.unfinished is not None:
        raise PosixError(errno.EBUSY, "another stream is being received")
    origin = command.origin
    if not is_name(origin.name) or origin.name == RECEIVING_NAME:
        raise PosixError(errno.EINVAL, "not a name for a snapshot")
    if origin.name in state.snapshots.by_name:
        raise PosixError(errno.EEXIST, f"snapshot {origin.name}")
    if command.base is None:
        if not is_empty(state):
            raise PosixError(errno.ENOTEMPTY, "the volume is in use")
        take_snapshot(state, TakeSnapshot(RECEIVING_NAME, command.time_ns, True))
    elif find_received(state, command.base) is None:
        raise PosixError(errno.ENOENT, f"snapshot {command.base.name}")
    state.set_receive(
        replace(
            state.receive,
            unfinished=Receiving(
                origin,
                command.base,
                # A full stream counts the root, which is there already, as one of its inodes.
                0 if command.base is None else state.meta.inode_count,
                state.meta.allocated_bytes,
                own_base=command.base is None,
            ),
        )
    )


def is_empty(state: VolumeState) -> bool:
    """Whether there is nothing in the volume but its root, and no snapshot of it."""
    root = state.inodes.get(ROOT_INODE)
    return (
        state.meta.inode_count == 1
        and not state.snapshots.epochs
        and root is not None
        and root.entry_count == 0
    )


def find_received(state: VolumeState, origin: Origin) -> Epoch | None:
    """Epoch of the snapshot here that is a copy of that one, if it is still there."""
    for one in state.receive.received:
        if one.origin == origin and state.snapshots.has(one.epoch):
            return one.epoch
    return None


def records(state: VolumeState, command: ReceiveRecords) -> None:
    """EINVAL, also if nothing is being received; ENOENT, ENAMETOOLONG, EDQUOT and xattrs' errors."""
    _unfinished(state)
    _Checker(state).check(command.records)
    for record in command.records:
        match record:
            case InodeRecord():
                _put_inode(state, record)
            case GoneRecord():
                _remove_inode(state, record.number)
            case XattrRecord():
                _change_xattr(state, record)
            case HoleRecord():
                _unmap(state, record)
            case NameRecord():
                _change_name(state, record)


def mark(state: VolumeState, command: MarkReceived) -> None:
    """EINVAL."""
    unfinished = _unfinished(state)
    state.set_receive(
        replace(
            state.receive,
            unfinished=replace(unfinished, next_frame=command.next_frame, digest=command.digest),
        )
    )


def finish(state: VolumeState, command: FinishReceive) -> None:
    """EINVAL; EIO if the volume has not become what it should; EEXIST, ENOSPC from the snapshot."""
    unfinished = _unfinished(state)
    meta, totals = state.meta, command.totals
    if (
        meta.inode_count != unfinished.inodes + totals.inodes
        or meta.allocated_bytes != unfinished.allocated_bytes + totals.allocated_bytes
    ):
        raise PosixError(errno.EIO, "what was received does not add up to what was sent")
    origin = unfinished.origin
    epoch = meta.epoch
    take_snapshot(state, TakeSnapshot(origin.name, origin.time_ns, False))
    live = [one for one in state.receive.received if state.snapshots.has(one.epoch)]
    state.set_receive(ReceiveState(None, (*live, Received(origin, epoch))))
    if unfinished.own_base:
        destroy_snapshot(state, DestroySnapshot(RECEIVING_NAME))


def abort(state: VolumeState, command: AbortReceive) -> None:
    """EINVAL. First without `done`; then the rollback; then with it."""
    unfinished = state.receive.unfinished
    if unfinished is None or (command.done and not unfinished.aborting):
        raise PosixError(errno.EINVAL, "nothing is being received")
    if not command.done:
        state.set_receive(replace(state.receive, unfinished=replace(unfinished, aborting=True)))
        return
    state.set_receive(replace(state.receive, unfinished=None))
    if unfinished.own_base:
        destroy_snapshot(state, DestroySnapshot(RECEIVING_NAME))


def _unfinished(state: VolumeState) -> Receiving:
    unfinished = state.receive.unfinished
    if unfinished is None or unfinished.aborting:
        raise PosixError(errno.EINVAL, "nothing is being received")
    return unfinished


class _Checker:
    """Goes through records before any is applied, knowing what those before it make and remove."""

    def __init__(self, state: VolumeState) -> None:
        self._state = state
        self._types: dict[InodeNumber, int] = {}  # 0: removed
        self._made = 0

    def check(self, batch: tuple[StateRecord, ...]) -> None:
        """Raises PosixError if one of them can't be applied."""
        for record in batch:
            match record:
                case InodeRecord():
                    self._check_inode(record)
                case GoneRecord():
                    if record.number == ROOT_INODE:
                        raise PosixError(errno.EINVAL, "the root stays")
                    self._types[record.number] = 0
                case XattrRecord():
                    self._type_of(record.number)
                    xattrs.check(record.name, record.value or b"")
                case HoleRecord():
                    self._check_hole(record)
                case NameRecord():
                    check_name(record.name)
                    if record.inode:
                        kind = self._type_of(record.inode)
                        if (
                            self._type_of(record.parent) != stat.S_IFDIR
                            or kind >> 12 != record.kind
                        ):
                            raise PosixError(errno.EINVAL, "not a name")

    def _type_of(self, number: InodeNumber) -> int:
        kind = self._find_type(number)
        if not kind:
            raise PosixError(errno.ENOENT, f"inode {number}")
        return kind

    def _find_type(self, number: InodeNumber) -> int:
        kind = self._types.get(number)
        if kind is None:
            inode = self._state.inodes.get(number)
            kind = 0 if inode is None else inode.mode & TYPE_MASK
        return kind

    def _check_inode(self, record: InodeRecord) -> None:
        kind = record.mode & TYPE_MASK
        times = (record.atime_ns, record.mtime_ns, record.ctime_ns, record.birth_ns)
        if (
            not ROOT_INODE <= record.number < 1 << INODE_NUMBER_BITS
            or kind not in TYPES
            or record.mode & ~(TYPE_MASK | 0o7777)
            or not 0 < record.nlink <= limits.LINKS_MAX
            or not (0 <= record.uid <= _ID_MAX and 0 <= record.gid <= _ID_MAX)
            or not 0 <= record.device <= _TIME_MAX
            or not 0 <= record.size <= limits.FILE_SIZE_MAX
            or not all(-_TIME_MAX <= time <= _TIME_MAX for time in times)
            or not 0 <= record.entry_count <= _TIME_MAX
            or not ROOT_INODE <= record.parent < 1 << INODE_NUMBER_BITS
            or (kind == stat.S_IFLNK) != bool(record.target)
            or len(record.target) > limits.SYMLINK_LENGTH_MAX
            or (record.number == ROOT_INODE and kind != stat.S_IFDIR)
        ):
            raise PosixError(errno.EINVAL, f"inode {record.number} makes no sense")
        known = self._find_type(record.number)
        if not known:
            self._made += 1
            check_create(self._state, self._made)
        elif known != kind:
            raise PosixError(errno.EINVAL, f"inode {record.number} is of another type")
        self._types[record.number] = kind

    def _check_hole(self, record: HoleRecord) -> None:
        # The file may have been removed by a later record, when this one is applied again.
        if self._find_type(record.number) not in (0, stat.S_IFREG):
            raise PosixError(errno.EINVAL, "not a file")
        end = record.offset + record.length
        if not (
            0 <= record.offset < end <= limits.FILE_SIZE_MAX
            and record.offset // filemap.SPAN == (end - 1) // filemap.SPAN
        ):
            raise PosixError(errno.EINVAL, "not a hole")


def _put_inode(state: VolumeState, record: InodeRecord) -> None:
    inode = state.inodes.get(record.number)
    if inode is None:
        fields = {name: getattr(record, name) for name in InodeRecord.__struct_fields__}
        inode = Inode(**fields)
        state.meta.inode_count += 1
        if record.number >= state.meta.next_inode:
            state.meta.next_inode = InodeNumber(record.number + 1)
    else:
        for field in InodeRecord.__struct_fields__:
            setattr(inode, field, getattr(record, field))
    state.inodes.put(record.number, inode)


def _remove_inode(state: VolumeState, number: InodeNumber) -> None:
    inode = state.inodes.get(number)
    if inode is None:
        return  # applied before
    if inode.inline or inode.extent_runs:
        # Holes came before, so there is nothing to visit that this has not been told of.
        _unmap_range(state, inode, 0, limits.FILE_SIZE_MAX)
    if inode.xattr_count:
        xattrs.remove_all(state, inode)
    state.inodes.delete(number)
    state.meta.inode_count -= 1


def _change_xattr(state: VolumeState, record: XattrRecord) -> None:
    inode = state.inodes.get(record.number)
    assert inode is not None, "checked"
    if record.value is not None:
        xattrs.put(state, inode, record.name, record.value)
    elif xattrs.get(state, inode, record.name) is not None:
        xattrs.remove(state, inode, record.name)
    state.inodes.put(inode.number, inode)


def _unmap(state: VolumeState, record: HoleRecord) -> None:
    inode = state.inodes.get(record.number)
    if inode is None:
        return  # applied before, and its removal too
    _unmap_range(state, inode, record.offset, record.offset + record.length)
    state.inodes.put(inode.number, inode)


def _change_name(state: VolumeState, record: NameRecord) -> None:
    directories = state.directories
    known = directories.find(record.parent, record.name)
    if not record.inode:
        if known is not None:
            directories.remove(record.parent, record.name)
    elif known is not None:
        directories.replace(record.parent, record.name, record.inode, record.kind)
    else:
        directories.insert(record.parent, record.name, record.inode, record.kind)


def _unmap_range(state: VolumeState, inode: Inode, start: int, end: int) -> None:
    balance: Balance = {}
    kept = state.new_kept()
    filemap.unmap(state, inode, start, end, balance, kept)
    filemap.settle(state, inode, balance, kept)

"""Commands on names: create, link, unlink, rmdir, rename.

Each function validates all it needs before its first change, so that a `PosixError` means that
nothing was changed. Permissions are the kernel's and the VFS layer's business; what stands here is
what the state's own consistency and POSIX's determinism need.

Link counts: a directory has 2 + its subdirectories; everything else has its names. Without a name
an inode is an orphan until `Purge`.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from dwfs import limits
from dwfs.errors import PosixError
from dwfs.types import ROOT_INODE, InodeNumber
from dwfs.volume.commands import (
    NO_INODE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Create,
    Link,
    RemoveDirectory,
    Rename,
    Unlink,
)
from dwfs.volume.quota import check_create
from dwfs.volume.records import Dentry, Inode
from dwfs.volume.state import VolumeState
from dwfs.volume.xattrs import add_initial, check_initial

TYPE_MASK: Final = 0o170000
PERMISSION_MASK: Final = 0o7777
TYPES: Final = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)
_TYPE_SHIFT: Final = 12  # mode >> 12 is d_type
_DIRECTORY_TYPE: Final = stat.S_IFDIR >> _TYPE_SHIFT


def _live(state: VolumeState, number: InodeNumber) -> Inode:
    inode = state.inodes.get(number)
    if inode is None:
        raise PosixError(errno.ENOENT, f"inode {number}")
    return inode


def _directory(state: VolumeState, number: InodeNumber) -> Inode:
    """The directory, for changing it: a removed one takes no names."""
    inode = state.inodes.get(number)
    if inode is None or inode.nlink == 0:
        raise PosixError(errno.ENOENT, f"directory {number}")
    if inode.mode & TYPE_MASK != stat.S_IFDIR:
        raise PosixError(errno.ENOTDIR, f"inode {number}")
    return inode


def check_name(name: bytes) -> None:
    """Raises PosixError ENAMETOOLONG, EINVAL."""
    if len(name) > limits.NAME_LENGTH_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    if not name or name == b"." or name == b".." or b"/" in name or b"\0" in name:
        raise PosixError(errno.EINVAL, "not a name")


def _entry(state: VolumeState, parent: InodeNumber, name: bytes) -> Dentry:
    dentry = state.directories.find(parent, name)
    if dentry is None:
        raise PosixError(errno.ENOENT)
    return dentry


def _stamp(state: VolumeState, directory: Inode, time_ns: int) -> None:
    directory.mtime_ns = directory.ctime_ns = time_ns
    state.inodes.put(directory.number, directory)


def create(state: VolumeState, command: Create) -> Inode:
    """EEXIST, ENOENT, ENOTDIR, EMLINK, ENAMETOOLONG, EINVAL, ENOSPC, EDQUOT, and xattrs' errors."""
    mode, number, time_ns = command.mode, command.inode, command.time_ns
    kind = mode & TYPE_MASK
    if kind not in TYPES:
        raise PosixError(errno.EINVAL, "not a file type")
    meta = state.meta
    if number < ROOT_INODE or (
        number < meta.next_inode and state.inodes.get(number) is not None
    ):  # numbers at or above next_inode were never in use: no look-up
        raise PosixError(errno.EEXIST, f"inode {number}")
    target = command.target
    if len(target) > limits.SYMLINK_LENGTH_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    if (kind == stat.S_IFLNK) != bool(target):
        raise PosixError(errno.EINVAL, "symbolic links, and only they, have a target")
    check_initial(command.xattrs)
    is_directory = kind == stat.S_IFDIR
    if command.parent == NO_INODE:
        if number != ROOT_INODE or meta.next_inode != ROOT_INODE or not is_directory:
            raise PosixError(errno.EINVAL, "the root is the first inode, and a directory")
    else:
        _enter(state, command, kind)
    inode = Inode(
        number=number,
        mode=mode,
        nlink=2 if is_directory else 1,
        uid=command.uid,
        gid=command.gid,
        device=command.device,
        size=len(target),
        atime_ns=time_ns,
        mtime_ns=time_ns,
        ctime_ns=time_ns,
        birth_ns=time_ns,
        parent=command.parent or ROOT_INODE,
        target=target,
    )
    if command.xattrs:
        add_initial(state, inode, command.xattrs)
    state.inodes.put(number, inode)
    meta.inode_count += 1
    if number >= meta.next_inode:
        meta.next_inode = InodeNumber(number + 1)
    return inode


def _enter(state: VolumeState, command: Create, kind: int) -> None:
    """The part of `create` that concerns the parent: validate, then insert the name."""
    name = command.name
    parent = _directory(state, command.parent)
    check_name(name)
    if state.directories.find(parent.number, name) is not None:
        raise PosixError(errno.EEXIST)
    is_directory = kind == stat.S_IFDIR
    if is_directory and parent.nlink >= limits.LINKS_MAX:
        raise PosixError(errno.EMLINK)
    if state.properties.quota_inodes is not None:
        check_create(state)
    state.directories.insert(parent.number, name, command.inode, kind >> _TYPE_SHIFT)
    parent.entry_count += 1
    parent.nlink += is_directory
    _stamp(state, parent, command.time_ns)


def link(state: VolumeState, command: Link) -> Inode:
    """EEXIST, ENOENT (also for an orphan), ENOTDIR, EPERM for directories, EMLINK."""
    inode = _live(state, command.inode)
    if inode.mode & TYPE_MASK == stat.S_IFDIR:
        raise PosixError(errno.EPERM)
    if inode.nlink == 0:
        raise PosixError(errno.ENOENT, "the file was removed")
    if inode.nlink >= limits.LINKS_MAX:
        raise PosixError(errno.EMLINK)
    parent = _directory(state, command.parent)
    check_name(command.name)
    if state.directories.find(parent.number, command.name) is not None:
        raise PosixError(errno.EEXIST)
    state.directories.insert(parent.number, command.name, inode.number, inode.mode >> _TYPE_SHIFT)
    parent.entry_count += 1
    _stamp(state, parent, command.time_ns)
    inode.nlink += 1
    inode.ctime_ns = command.time_ns
    state.inodes.put(inode.number, inode)
    return inode


def _release(state: VolumeState, inode: Inode, time_ns: int) -> None:
    """A name of `inode` is gone."""
    inode.ctime_ns = time_ns
    if inode.mode & TYPE_MASK == stat.S_IFDIR:
        inode.nlink = 0
        inode.parent = NO_INODE
    else:
        inode.nlink -= 1
    if inode.nlink == 0:
        state.add_orphan(inode.number)
    state.inodes.put(inode.number, inode)


def unlink(state: VolumeState, command: Unlink) -> Inode:
    """ENOENT, ENOTDIR, EISDIR."""
    parent = _directory(state, command.parent)
    dentry = _entry(state, parent.number, command.name)
    if dentry[3] == _DIRECTORY_TYPE:
        raise PosixError(errno.EISDIR)
    inode = _live(state, dentry[2])
    state.directories.remove(parent.number, command.name)
    parent.entry_count -= 1
    _stamp(state, parent, command.time_ns)
    _release(state, inode, command.time_ns)
    return inode


def remove_directory(state: VolumeState, command: RemoveDirectory) -> Inode:
    """ENOENT, ENOTDIR, ENOTEMPTY."""
    parent = _directory(state, command.parent)
    dentry = _entry(state, parent.number, command.name)
    if dentry[3] != _DIRECTORY_TYPE:
        raise PosixError(errno.ENOTDIR)
    inode = _live(state, dentry[2])
    if inode.entry_count:
        raise PosixError(errno.ENOTEMPTY)
    state.directories.remove(parent.number, command.name)
    parent.entry_count -= 1
    parent.nlink -= 1
    _stamp(state, parent, command.time_ns)
    _release(state, inode, command.time_ns)
    return inode


def _check_not_below(state: VolumeState, place: Inode, moving: Inode) -> None:
    """A directory can't move into its own subtree: EINVAL."""
    current = place
    while current.number != ROOT_INODE:
        if current.number == moving.number:
            raise PosixError(errno.EINVAL, "into its own subdirectory")
        current = _live(state, current.parent)


def rename(state: VolumeState, command: Rename) -> Inode | None:
    """As renameat2(2); returns the inode whose name was taken, if any.

    Renaming a name onto another name of the same inode does nothing, as POSIX demands.
    """
    flags = command.flags
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise PosixError(errno.EINVAL)
    source_parent = _directory(state, command.parent)
    target_parent = _directory(state, command.new_parent)
    source = _entry(state, source_parent.number, command.name)
    check_name(command.new_name)
    target = state.directories.find(target_parent.number, command.new_name)
    if flags == RENAME_NOREPLACE and target is not None:
        raise PosixError(errno.EEXIST)
    if target is None and flags == RENAME_EXCHANGE:
        raise PosixError(errno.ENOENT)
    if target is not None and target[2] == source[2]:
        return None
    moving = _live(state, source[2])
    other = None if target is None else _live(state, target[2])
    if source[3] == _DIRECTORY_TYPE and source_parent is not target_parent:
        _check_not_below(state, target_parent, moving)
    if flags == RENAME_EXCHANGE:
        assert other is not None
        _exchange(state, command, moving, other)
        return None
    return _move(state, command, moving, other)


def _move(
    state: VolumeState, command: Rename, moving: Inode, replaced: Inode | None
) -> Inode | None:
    source_parent = _directory(state, command.parent)
    target_parent = _directory(state, command.new_parent)
    time_ns = command.time_ns
    is_directory = moving.mode & TYPE_MASK == stat.S_IFDIR
    d_type = moving.mode >> _TYPE_SHIFT
    if replaced is not None:
        if is_directory != (replaced.mode & TYPE_MASK == stat.S_IFDIR):
            raise PosixError(errno.ENOTDIR if is_directory else errno.EISDIR)
        if replaced.entry_count:
            raise PosixError(errno.ENOTEMPTY)
        state.directories.replace(target_parent.number, command.new_name, moving.number, d_type)
    else:
        if is_directory and target_parent.nlink >= limits.LINKS_MAX:
            raise PosixError(errno.EMLINK)
        state.directories.insert(target_parent.number, command.new_name, moving.number, d_type)
        target_parent.entry_count += 1
        target_parent.nlink += is_directory
    state.directories.remove(source_parent.number, command.name)
    source_parent.entry_count -= 1
    source_parent.nlink -= is_directory
    _stamp(state, source_parent, time_ns)
    _stamp(state, target_parent, time_ns)
    moving.parent = target_parent.number
    moving.ctime_ns = time_ns
    state.inodes.put(moving.number, moving)
    if replaced is not None:
        _release(state, replaced, time_ns)
    return replaced


def _exchange(state: VolumeState, command: Rename, moving: Inode, other: Inode) -> None:
    source_parent = _directory(state, command.parent)
    target_parent = _directory(state, command.new_parent)
    if other.mode & TYPE_MASK == stat.S_IFDIR and source_parent is not target_parent:
        _check_not_below(state, source_parent, other)
    change = (moving.mode & TYPE_MASK == stat.S_IFDIR) - (other.mode & TYPE_MASK == stat.S_IFDIR)
    grown = target_parent if change > 0 else source_parent
    if change and source_parent is not target_parent and grown.nlink >= limits.LINKS_MAX:
        raise PosixError(errno.EMLINK)
    directories = state.directories
    directories.replace(source_parent.number, command.name, other.number, other.mode >> _TYPE_SHIFT)
    directories.replace(
        target_parent.number, command.new_name, moving.number, moving.mode >> _TYPE_SHIFT
    )
    source_parent.nlink -= change
    target_parent.nlink += change
    _stamp(state, source_parent, command.time_ns)
    _stamp(state, target_parent, command.time_ns)
    for inode, parent in ((moving, target_parent), (other, source_parent)):
        inode.parent = parent.number
        inode.ctime_ns = command.time_ns
        state.inodes.put(inode.number, inode)

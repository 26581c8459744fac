"""Disks in memory that do what real ones do at their worst: the medium of all simulations.

What the running system sees is kept apart from what is durable. Two kinds of trouble:

*Without damage*: a power cut (`crash`) keeps any combination of the un-synced writes, each whole, cut
short, in some of its sectors, or not at all, and a prefix of each directory's un-synced changes. The
engine must lose nothing by it, whichever and however many disks it meets.

*Damage*, which only parity can make good: bits that rot, pages that can't be read, writes that land
elsewhere, an fsync that fails and drops what it should have written (the next one says that all is
well, as Linux does), a disk that is gone, comes back, is full, read-only, or hangs. Each is done to one
`SimulatedDisk`; how many are damaged at a time is the scenario's to decide.

Everything is decided by the one `random.Random` that is given, so equal calls have equal outcomes.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from dwfs.disk.header import HEADER_NAME, PREVIOUS_NAME
from dwfs.disk.medium import Buffer, MediumSpace

PAGE_SIZE: Final = 4096
SECTOR_SIZE: Final = 512  # what tears
_ZEROS: Final = bytes(PAGE_SIZE)


class Change(msgspec.Struct, frozen=True):
    """Something done to a file that is not durable yet."""

    kind: str  # "write", "cut" (to `start` bytes), "punch" (from `start` to `end`)
    start: int
    end: int = 0
    data: bytes = b""


class Content:
    """A file's pages; those that are not there are holes."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.size = 0

    def copy(self) -> Content:
        """An independent copy."""
        twin = Content()
        twin.pages = dict(self.pages)
        twin.size = self.size
        return twin

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, clipped to the file's end."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        first, last = offset // PAGE_SIZE, (end - 1) // PAGE_SIZE
        pages = self.pages
        whole = b"".join([pages.get(number, _ZEROS) for number in range(first, last + 1)])
        start = offset - first * PAGE_SIZE
        return whole[start : start + end - offset]

    def apply(self, change: Change) -> None:
        """Do it."""
        if change.kind == "write":
            self._write(change.start, change.data)
        elif change.kind == "cut":
            self._zero(change.start, self.size)
            self.size = change.start
        else:
            self._zero(change.start, min(change.end, self.size))

    def _write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, PAGE_SIZE)
            piece = data[at : at + PAGE_SIZE - start]
            if len(piece) < PAGE_SIZE:
                old = self.pages.get(number, _ZEROS)
                piece = old[:start] + piece + old[start + len(piece) :]
                at += min(PAGE_SIZE - start, len(data) - at)
            else:
                at += PAGE_SIZE
            self.pages[number] = _ZEROS if piece == _ZEROS else piece
        self.size = max(self.size, offset + len(data))

    def _zero(self, start: int, end: int) -> None:
        """A hole; parts of pages at its ends are overwritten, as by any filesystem."""
        if end <= start:
            return
        first, last = -(-start // PAGE_SIZE), end // PAGE_SIZE
        if end == self.size:
            last = -(-end // PAGE_SIZE)
        for number in range(first, last):
            self.pages.pop(number, None)
        for number in {start // PAGE_SIZE, (end - 1) // PAGE_SIZE}:
            page = self.pages.get(number)
            if page is not None:
                low = max(0, start - number * PAGE_SIZE)
                high = min(PAGE_SIZE, end - number * PAGE_SIZE)
                self.pages[number] = page[:low] + bytes(high - low) + page[high:]


class Inode:
    """A file, whatever its name."""

    def __init__(self) -> None:
        self.seen = Content()
        self.durable = Content()
        self.pending: list[Change] = []
        self.unreadable: set[int] = set()  # pages; a write to one heals it

    def sync(self) -> None:
        """Make durable what is seen."""
        if len(self.pending) <= 4 and all(change.kind == "write" for change in self.pending):
            for change in self.pending:
                self.durable.apply(change)
        elif self.pending:
            self.durable = self.seen.copy()
        self.pending.clear()


Entry = Inode | None  # of a directory; None: removed
Names = tuple[tuple[Path, Entry], ...]  # entries that change together


class SimulatedDisk:
    """One disk, with what is wrong with it. Its files have paths below /NAME."""

    def __init__(self, name: str, capacity_bytes: int) -> None:
        self.name = name
        self.root = Path("/") / name
        self.capacity_bytes = capacity_bytes
        self.seen: dict[Path, Inode] = {}
        self.durable: dict[Path, Inode] = {}
        self.changes: dict[Path, list[Names]] = {}
        self.directories = {self.root}
        self.used_pages = 0
        self.present = True
        self.hung = False
        self.read_only = False
        self.failing: Counter[str] = Counter()  # how many of the next reads, writes, syncs fail
        self.misdirected = 0  # how many of the next writes land elsewhere

    def inodes(self) -> list[Inode]:
        """Every file that has a name or may have one after a crash."""
        found = {id(inode): inode for inode in (*self.durable.values(), *self.seen.values())}
        return list(found.values())

    def change(self, directory: Path, names: Names) -> None:
        """Change entries of a directory, not yet durably."""
        _rename(self.seen, names)
        self.changes.setdefault(directory, []).append(names)

    def recount(self) -> None:
        """Know the used space again after everything changed."""
        self.used_pages = sum(len(inode.seen.pages) for inode in self.seen.values())

    def image(self) -> SimulatedDisk:
        """A copy of what is durable: a backup, a clone, or the disk as it was a while ago."""
        twin = SimulatedDisk(self.name, self.capacity_bytes)
        for path, inode in self.durable.items():
            copy = twin.durable[path] = twin.seen[path] = Inode()
            copy.durable, copy.seen = inode.durable.copy(), inode.durable.copy()
            copy.unreadable = set(inode.unreadable)
        twin.directories = set(self.directories)
        twin.recount()
        return twin


def _rename(entries: dict[Path, Inode], names: Names) -> None:
    for path, inode in names:
        if inode is None:
            entries.pop(path, None)
        else:
            entries[path] = inode


def _may_suffer(path: Path) -> bool:
    """A disk whose header is damaged in both copies is lost, which is not what these faults are for."""
    return path.name != PREVIOUS_NAME


class SimulatedMedium:
    """Implements `dwfs.disk.Medium`. The first component of a path under / names the disk.

    `operations_left` counts down with every call that changes something; at zero the power fails in
    the middle of that call. `on_power_cut` is told, once. From then on everything raises OSError until
    `restart`. `on_hung` is called when a worker's call meets a disk that hangs; it returns when the
    disk answers again.
    """

    def __init__(self, randomness: random.Random, disks: Sequence[SimulatedDisk] = ()) -> None:
        self.random = randomness
        self.disks = {disk.name: disk for disk in disks}
        self.operations = 0  # that changed something, ever
        self.operations_left: int | None = None
        self.off = False
        self.on_power_cut: Callable[[], None] = lambda: None
        self.on_hung: Callable[[SimulatedDisk], None] = lambda _disk: None
        self._handles: dict[int, tuple[SimulatedDisk, Inode, Path]] = {}
        self._next_handle = 1000  # no descriptor of ours: one that strays fails

    # --- what happens to the machine and its disks -------------------------------------------

    def cut_power(self) -> None:
        """Every call fails from now on; what was not synced is decided by `restart`."""
        if not self.off:
            self.off = True
            self.operations_left = None
            self.on_power_cut()

    def restart(self, *, lose_unsynced: bool) -> None:
        """The next process may begin; after a power cut it sees what lasted."""
        self.off = False
        self.operations_left = None
        self._handles.clear()
        if lose_unsynced:
            for disk in self.disks.values():
                self.lose_unsynced(disk)

    def lose_unsynced(self, disk: SimulatedDisk) -> None:
        """The disk loses power."""
        for inode in disk.inodes():
            for change in inode.pending:
                for part in self._what_lasts(change):
                    inode.durable.apply(part)
            inode.pending.clear()
        for changes in disk.changes.values():
            for names in changes[: self.random.randint(0, len(changes))]:
                _rename(disk.durable, names)
        disk.changes.clear()
        disk.seen = dict(disk.durable)
        for inode in disk.seen.values():
            inode.seen = inode.durable.copy()
        disk.recount()

    def replace(self, disk: SimulatedDisk) -> None:
        """Another disk is now where the one of that name was."""
        self.disks[disk.name] = disk
        for handle in [h for h, (owner, _, _) in self._handles.items() if owner.name == disk.name]:
            del self._handles[handle]

    def rot(self, disk: SimulatedDisk, flips: int, below: str = "") -> int:
        """Flip bits in the disk's files (in directories of that name); returns how many."""
        return sum(self._damage(disk, below, self._flip) for _ in range(flips))

    def lose_pages(self, disk: SimulatedDisk, pages: int, below: str = "") -> int:
        """Make pages unreadable until they are written again; returns how many."""
        return sum(
            self._damage(disk, below, lambda inode, number: inode.unreadable.add(number))
            for _ in range(pages)
        )

    def zero_pages(self, disk: SimulatedDisk, pages: int, below: str = "") -> int:
        """Have pages read as zeros, as if they had never been written; returns how many."""
        return sum(self._damage(disk, below, self._blank) for _ in range(pages))

    def _damage(
        self, disk: SimulatedDisk, below: str, damage: Callable[[Inode, int], object]
    ) -> bool:
        inodes = [
            inode
            for path, inode in sorted(disk.durable.items())
            if inode.durable.pages and (not below or below in path.parts) and _may_suffer(path)
        ]
        if not inodes:
            return False
        inode = self.random.choice(inodes)
        damage(inode, self.random.choice(sorted(inode.durable.pages)))
        return True

    def _flip(self, inode: Inode, number: int) -> None:
        at, bit = self.random.randrange(PAGE_SIZE), 1 << self.random.randrange(8)
        for content in (inode.seen, inode.durable):
            page = content.pages.get(number)
            if page is not None:
                content.pages[number] = page[:at] + bytes([page[at] ^ bit]) + page[at + 1 :]

    @staticmethod
    def _blank(inode: Inode, number: int) -> None:
        for content in (inode.seen, inode.durable):
            if number in content.pages:
                content.pages[number] = _ZEROS

    def _what_lasts(self, change: Change) -> Iterator[Change]:
        fate = self.random.random()
        if change.kind != "write":
            if fate < 0.5:
                yield change
        elif fate < 0.35:
            yield change
        elif fate < 0.55:
            kept = self.random.randint(0, len(change.data))
            yield Change("write", change.start, 0, change.data[:kept])
        elif fate < 0.8:
            yield from self._some_sectors(change)

    def _some_sectors(self, change: Change) -> Iterator[Change]:
        """What became of a write over blocks that were there: each by itself, in any order."""
        step = SECTOR_SIZE if len(change.data) <= 64 * SECTOR_SIZE else 16 * PAGE_SIZE
        at, end = change.start, change.start + len(change.data)
        while at < end:
            following = min(at - at % step + step, end)
            if self.random.random() < 0.5:
                yield Change(
                    "write", at, 0, change.data[at - change.start : following - change.start]
                )
            at = following

    # --- gates -------------------------------------------------------------------------------

    def _reach(self, path: Path) -> SimulatedDisk:
        """The disk that a path leads to. Raises OSError if it doesn't answer."""
        disk = self.disks.get(path.parts[1]) if len(path.parts) > 1 else None
        if disk is not None and disk.hung:
            self.on_hung(disk)
        if self.off:
            raise OSError(errno.EIO, "the simulated power is off", str(path))
        if disk is None or not disk.present:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return disk

    def _grasp(self, handle: int) -> tuple[SimulatedDisk, Inode, Path]:
        held = self._handles.get(handle)
        if held is None:
            raise OSError(errno.EIO, "a handle of a process or disk that is gone")
        disk, _, path = held
        if disk.hung:
            self.on_hung(disk)
        if self.off or not disk.present:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return held

    def _fail(self, disk: SimulatedDisk, kind: str) -> None:
        """Raise if the disk is to fail its next call of that kind."""
        if disk.failing[kind] > 0:
            disk.failing[kind] -= 1
            raise OSError(errno.EIO, f"simulated {kind} error on {disk.name}")

    def _count(self, disk: SimulatedDisk) -> None:
        """A call that changes something has begun; the power may fail now."""
        self.operations += 1
        if disk.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), disk.name)
        if self.operations_left is not None:
            self.operations_left -= 1
            if self.operations_left < 0:
                self.cut_power()
                raise OSError(errno.EIO, "the simulated power failed", disk.name)

    # --- Medium: directories -----------------------------------------------------------------

    def names(self, directory: Path) -> list[str]:
        disk = self._reach(directory) if self._is_there(directory) else None
        if disk is None:
            return []
        self._fail(disk, "read")
        inner = [path.name for path in disk.directories if path.parent == directory]
        return sorted({*inner, *(path.name for path in disk.seen if path.parent == directory)})

    def _is_there(self, directory: Path) -> bool:
        disk = self.disks.get(directory.parts[1])
        return disk is not None and disk.present

    def is_directory(self, path: Path) -> bool:
        return not self.off and self._is_there(path) and path in self._reach(path).directories

    def make_directory(self, directory: Path) -> None:
        disk = self._reach(directory)
        if directory not in disk.directories:
            self._count(disk)
            disk.directories.add(directory)  # durable at once: nothing rests on less

    def remove_directory(self, directory: Path) -> None:
        disk = self._reach(directory)
        if not any(path.parent == directory for path in (*disk.seen, *disk.directories)):
            disk.directories.discard(directory)

    def sync_directory(self, directory: Path) -> None:
        disk = self._reach(directory)
        self._count(disk)
        self._fail(disk, "sync")
        for names in disk.changes.pop(directory, []):
            _rename(disk.durable, names)

    def rename(self, source: Path, target: Path) -> None:
        disk = self._reach(target)
        self._count(disk)
        if source not in disk.seen:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        if target in disk.seen:
            disk.used_pages -= len(disk.seen[target].seen.pages)
        disk.change(target.parent, ((source, None), (target, disk.seen[source])))

    def remove(self, path: Path) -> None:
        disk = self._reach(path)
        self._count(disk)
        if path in disk.seen:
            disk.used_pages -= len(disk.seen[path].seen.pages)
            disk.change(path.parent, ((path, None),))

    # --- Medium: files -----------------------------------------------------------------------

    def create(self, path: Path, *, replace: bool = False) -> int:
        disk = self._reach(path)
        self._count(disk)
        self._fail(disk, "write")
        if path.parent not in disk.directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if path in disk.seen and not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        if path in disk.seen:
            disk.used_pages -= len(disk.seen[path].seen.pages)
        inode = Inode()
        disk.change(path.parent, ((path, inode),))
        return self._hold(disk, inode, path)

    def open(self, path: Path, *, write: bool = False) -> int:
        disk = self._reach(path)
        if write and disk.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        if path not in disk.seen:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._hold(disk, disk.seen[path], path)

    def _hold(self, disk: SimulatedDisk, inode: Inode, path: Path) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = (disk, inode, path)
        return self._next_handle

    def close(self, handle: int) -> None:
        self._handles.pop(handle, None)

    def handles(self) -> int:
        """How many are held: none, when everything was closed."""
        return len(self._handles)

    def size(self, handle: int) -> int:
        return self._grasp(handle)[1].seen.size

    def allocated_bytes(self, path: Path) -> int:
        disk = self._reach(path)
        if path not in disk.seen:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return len(disk.seen[path].seen.pages) * PAGE_SIZE

    def read(self, handle: int, offset: int, length: int) -> bytes:
        disk, inode, path = self._grasp(handle)
        self._fail(disk, "read")
        if inode.unreadable and not inode.unreadable.isdisjoint(
            range(offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE))
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return inode.seen.read(offset, length)

    def read_cached(
        self, handle: int, offset: int, length: int, patience_seconds: float = 0.0
    ) -> bytes | None:
        held = self._handles.get(handle)
        if held is None or held[0].hung or self.random.random() < 0.5:
            return None
        try:
            content = self.read(handle, offset, length)
        except OSError:
            return None
        return content if len(content) == length else None

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        disk, inode, path = self._grasp(handle)
        data = b"".join(bytes(buffer) for buffer in buffers)
        change = Change("write", offset, 0, data)
        if self.operations_left == 0:
            inode.pending.append(change)  # the power fails in the middle: it may have got anywhere
        self._count(disk)
        self._fail(disk, "write")
        first, last = offset // PAGE_SIZE, (offset + len(data) - 1) // PAGE_SIZE
        new = sum(number not in inode.seen.pages for number in range(first, last + 1))
        if (disk.used_pages + new) * PAGE_SIZE > disk.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        header = path.name.startswith(HEADER_NAME)
        if disk.misdirected and len(data) >= SECTOR_SIZE and not header:
            disk.misdirected -= 1
            elsewhere = self.random.choice(
                [inode for path, inode in disk.seen.items() if _may_suffer(path)]
            )
            at = self.random.randrange(1 + elsewhere.seen.size // PAGE_SIZE) * PAGE_SIZE
            inode, change = elsewhere, Change("write", at, 0, data)
            disk.used_pages -= len(inode.seen.pages)
            inode.seen.apply(change)
            disk.used_pages += len(inode.seen.pages)
        else:
            inode.seen.apply(change)
            disk.used_pages += new
        inode.unreadable.difference_update(range(first, last + 1))
        inode.pending.append(change)

    def punch(self, handle: int, start: int, end: int) -> bool:
        if start < end:
            self._shrink(handle, Change("punch", start, end))
        return True

    def truncate(self, handle: int, size: int) -> None:
        self._shrink(handle, Change("cut", size))

    def _shrink(self, handle: int, change: Change) -> None:
        disk, inode, _ = self._grasp(handle)
        self._count(disk)
        before = len(inode.seen.pages)
        inode.seen.apply(change)
        disk.used_pages += len(inode.seen.pages) - before
        inode.pending.append(change)

    def next_data(self, handle: int, offset: int) -> int | None:
        _, inode, _ = self._grasp(handle)
        first = offset // PAGE_SIZE
        if first in inode.seen.pages and offset < inode.seen.size:
            return offset
        later = [number for number in inode.seen.pages if number > first]
        return min(later) * PAGE_SIZE if later else None

    def expect_random_reads(self, handle: int) -> None:
        self._grasp(handle)

    def forget_cached(self, handle: int, offset: int = 0, length: int = 0) -> None:
        """Nothing to do: what differs from the disk is pending, and that can't be forgotten."""

    def sync(self, handle: int) -> None:
        disk, inode, _ = self._grasp(handle)
        self._count(disk)
        try:
            self._fail(disk, "sync")
        except OSError:
            self._drop_dirty(inode)
            raise
        inode.sync()

    def _drop_dirty(self, inode: Inode) -> None:
        """The kernel gives up what it could not write, and calls the pages clean."""
        for change in inode.pending:
            for part in self._what_lasts(change):
                inode.durable.apply(part)
        inode.pending.clear()
        inode.seen = inode.durable.copy()

    def space(self, directory: Path) -> MediumSpace:
        disk = self._reach(directory)
        free = max(0, disk.capacity_bytes - disk.used_pages * PAGE_SIZE)
        number = list(self.disks).index(disk.name)
        return MediumSpace(number, disk.capacity_bytes, free, disk.read_only)

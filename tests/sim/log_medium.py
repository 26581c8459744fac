"""A medium in memory that loses what was not synced, tears writes, and has disks that die or hang.

Durable state is kept apart from what the running system sees. `crash` keeps any combination of
un-synced writes, each whole, torn at any byte, in
any sectors, or not at all, and a prefix of each directory's
un-synced entries.

A call to a disk that hangs does not return until `release`. The calls run in fibers then: threads of
which exactly one runs at any time, handed over by hand, so that a run stays deterministic.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from dwfs.disk.medium import Buffer


class PowerCutError(Exception):
    """The simulated machine lost power in the middle of an operation."""


class Fiber:
    """A blocking call that can be left in the middle, where its disk hangs, and be gone on with."""

    def __init__(self, medium: SimulatedMedium, call: Callable[[], None]) -> None:
        self._medium = medium
        self._call = call
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self.done = False
        self.cut = False  # the power went while it hung
        self._error: PowerCutError | None = None
        self._thread = threading.Thread(target=self._run, name="fiber", daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Let it run until it ends or hangs."""
        before, self._medium.fiber = self._medium.fiber, self
        self._go.release()
        self._back.acquire()
        self._medium.fiber = before
        if self.done:
            self._thread.join()
        if self._error is not None and not self.cut:
            raise self._error

    def pause(self) -> None:
        """In the fiber: hang here."""
        self._back.release()
        self._go.acquire()
        if self.cut:
            raise PowerCutError

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._call()
        except PowerCutError as error:
            self._error = error
        self.done = True
        self._back.release()


class _Inode:
    def __init__(self) -> None:
        self.durable = bytearray()
        self.seen = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # None: cut off there


SECTOR_SIZE = 64  # small, so that small records tear


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class SimulatedMedium:
    """Implements `dwfs.log.Medium`. The first component of a path under / names the disk."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.durable: dict[Path, _Inode] = {}
        self.seen: dict[Path, _Inode] = {}
        self.changes: dict[Path, list[tuple[Path, _Inode | None]]] = {}
        self.dead: set[str] = set()
        self.full: set[str] = set()
        self.hung: set[str] = set()
        self.fiber: Fiber | None = None  # that runs now
        self.fibers: list[Fiber] = []  # that hang
        self.operations_left: int | None = None
        self._handles: dict[int, tuple[Path, _Inode]] = {}
        self._next_handle = 1

    def kill(self) -> None:
        """End the process, and all disks' troubles; the next mount sees all that was ever written."""
        for fiber in self.fibers:
            fiber.cut = True
        self.release(*self.hung)
        assert not self.fibers
        self._handles.clear()
        self.operations_left = None
        self.dead.clear()
        self.full.clear()

    def crash(self) -> None:
        """Lose power; what lasts is what the next mount sees."""
        self.kill()
        for inode in {id(inode): inode for inode in self.seen.values()}.values():
            for offset, data in inode.pending:
                fate = self.random.random()
                if data is None:
                    if fate < 0.5:
                        del inode.durable[offset:]
                elif fate < 0.3:
                    _put(inode.durable, offset, data)
                elif fate < 0.5:
                    _put(inode.durable, offset, data[: self.random.randint(0, len(data))])
                elif fate < 0.8:
                    self._put_some_sectors(inode.durable, offset, data)
        for changes in self.changes.values():
            for path, entry in changes[: self.random.randint(0, len(changes))]:
                self._apply(self.durable, path, entry)
        for inode in self.durable.values():
            inode.pending.clear()
            inode.seen = bytearray(inode.durable)
        self.seen = dict(self.durable)
        self.changes.clear()

    def call(self, call: Callable[[], None]) -> Fiber | None:
        """Make a call; if it hangs, its fiber is returned and `release` will go on with it."""
        if not self.hung:
            call()
            return None
        fiber = Fiber(self, call)
        fiber.resume()
        if fiber.done:
            return None
        self.fibers.append(fiber)
        return fiber

    def release(self, *disks: str) -> None:
        """The disks answer again; what hung goes on, as far as it gets."""
        self.hung.difference_update(disks)
        for fiber in list(self.fibers):
            try:
                fiber.resume()
            finally:
                if fiber.done:
                    self.fibers.remove(fiber)

    def _put_some_sectors(self, content: bytearray, offset: int, data: bytes) -> None:
        """What became of a write over blocks that were there: each by itself, in any order."""
        at = offset
        while at < offset + len(data):
            end = min(at - at % SECTOR_SIZE + SECTOR_SIZE, offset + len(data))
            if self.random.random() < 0.5:
                _put(content, at, data[at - offset : end - offset])
            at = end

    @property
    def open_handles(self) -> int:
        """How many there are."""
        return len(self._handles)

    def rot(self, disk: str, flips: int) -> None:
        """Damage random bytes of a disk's files."""
        inodes = [
            inode for path, inode in self.seen.items() if self._disk(path) == disk and inode.seen
        ]
        for _ in range(flips if inodes else 0):
            inode = self.random.choice(inodes)
            at = self.random.randrange(len(inode.seen))
            for content in (inode.seen, inode.durable):
                if at < len(content):
                    content[at] ^= 1 << self.random.randrange(8)

    def wipe(self, disk: str) -> None:
        """Replace a disk by an empty one."""
        for entries in (self.seen, self.durable):
            for path in [path for path in entries if self._disk(path) == disk]:
                del entries[path]
        self.changes = {
            path: change for path, change in self.changes.items() if self._disk(path) != disk
        }

    @staticmethod
    def _disk(path: Path) -> str:
        return path.parts[1]

    @staticmethod
    def _apply(entries: dict[Path, _Inode], path: Path, inode: _Inode | None) -> None:
        if inode is None:
            entries.pop(path, None)
        else:
            entries[path] = inode

    def _touch(self, path: Path) -> None:
        while self._disk(path) in self.hung:
            assert self.fiber is not None, "the loop itself would hang"
            self.fiber.pause()
        if self._disk(path) in self.dead:
            raise OSError(errno.EIO, "simulated dead disk")

    def _mutate(self, path: Path) -> None:
        self._touch(path)
        if self.operations_left is not None:
            if self.operations_left <= 0:
                raise PowerCutError
            self.operations_left -= 1

    def _change(self, path: Path, inode: _Inode | None) -> None:
        self._apply(self.seen, path, inode)
        self.changes.setdefault(path.parent, []).append((path, inode))

    def _open(self, path: Path, inode: _Inode) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = (path, inode)
        return self._next_handle

    def names(self, directory: Path) -> list[str]:
        self._touch(directory)
        return [path.name for path in self.seen if path.parent == directory]

    def make_directory(self, directory: Path) -> None:
        self._mutate(directory)

    def create(self, path: Path, *, replace: bool = False) -> int:
        self._mutate(path)
        if path in self.seen and not replace:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        inode = _Inode()
        self._change(path, inode)
        return self._open(path, inode)

    def open(self, path: Path, *, write: bool = False) -> int:
        self._touch(path)
        if path not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "missing", str(path))
        return self._open(path, self.seen[path])

    def size(self, handle: int) -> int:
        path, inode = self._handles[handle]
        self._touch(path)
        return len(inode.seen)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        path, inode = self._handles[handle]
        self._touch(path)
        return bytes(inode.seen[offset : offset + length])

    def write(self, handle: int, offset: int, buffers: Sequence[Buffer]) -> None:
        path, inode = self._handles[handle]
        data = b"".join(bytes(buffer) for buffer in buffers)
        self._touch(path)
        if self._disk(path) in self.full:
            raise OSError(errno.ENOSPC, "simulated full disk")
        inode.pending.append((offset, data))  # a write cut short may have got anywhere
        self._mutate(path)
        _put(inode.seen, offset, data)

    def truncate(self, handle: int, size: int) -> None:
        path, inode = self._handles[handle]
        self._mutate(path)
        inode.pending.append((size, None))
        del inode.seen[size:]

    def sync(self, handle: int) -> None:
        path, inode = self._handles[handle]
        self._mutate(path)
        for offset, data in inode.pending:
            if data is None:
                del inode.durable[offset:]
            else:
                _put(inode.durable, offset, data)
        inode.pending.clear()

    def sync_directory(self, directory: Path) -> None:
        self._mutate(directory)
        for path, inode in self.changes.pop(directory, []):
            self._apply(self.durable, path, inode)

    def close(self, handle: int) -> None:
        found = self._handles.get(handle)
        if found is not None and self.fiber is not None and self._disk(found[0]) in self.hung:
            self.fiber.pause()
        self._handles.pop(handle, None)

    def rename(self, source: Path, target: Path) -> None:
        self._mutate(target)
        inode = self.seen[source]
        self._change(source, None)
        self._change(target, inode)

    def remove(self, path: Path) -> None:
        self._mutate(path)
        if path in self.seen:
            self._change(path, None)

"""Random histories of a volume with real bytes, and a walker that looks at a tree without trusting it."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import trio

from dwfs.errors import PosixError
from dwfs.limits import EXTENT_NODE_SPAN as SPAN
from dwfs.types import ROOT_INODE, Extent, InodeNumber
from dwfs.volume import Inode
from dwfs.volume.commands import (
    RENAME_EXCHANGE,
    CloneRange,
    Command,
    Create,
    Link,
    PunchHole,
    Relocate,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    WriteExtents,
)
from dwfs.volume.records import DirectoryEntry
from tests.unit.volume.fakes import Bench

KINDS = [stat.S_IFREG] * 6 + [stat.S_IFDIR] * 3 + [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR]
XATTRS = [b"user.a", b"user.b", b"system.posix_acl_access", b"system.posix_acl_default"]


class Tree(Protocol):
    """A volume, or a snapshot of one."""

    def inode(self, number: InodeNumber) -> Inode: ...

    def read_directory(
        self, parent: InodeNumber, after_cookie: int, limit: int
    ) -> list[DirectoryEntry]: ...

    def list_xattrs(self, number: InodeNumber) -> list[bytes]: ...

    def get_xattr(self, number: InodeNumber, name: bytes) -> bytes | None: ...

    def extents(self, number: InodeNumber, offset: int, length: int) -> list[Extent]: ...


class History:
    """A volume to which things happen."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.bench = Bench(directory)
        self.bench.data.dice = random.Random(seed + 1)
        self.time = 10**18 + seed

    def propose(self, command: Command) -> bool:
        async def run() -> None:
            await self.bench.volume.propose(command)

        try:
            trio.run(run)
        except PosixError:
            return False
        return True

    def tick(self) -> int:
        self.time += self.dice.randrange(1, 10**9)
        return self.time

    def steps(self, count: int) -> None:
        actions = [
            self.create,
            self.create,
            self.write,
            self.write,
            self.write,
            self.link,
            self.remove,
            self.rename,
            self.attributes,
            self.truncate,
            self.punch,
            self.xattr,
            self.relocate,
            self.clone,
            self.flush,
        ]
        for _ in range(count):
            self.dice.choice(actions)()

    def snapshot(self, name: str) -> None:
        trio.run(self.bench.volume.take_snapshot, name, self.tick())

    # --- choosing ---------------------------------------------------------------------------

    def inodes(self, *kinds: int) -> list[Inode]:
        numbers = sorted(walk(self.bench.volume))
        found = [self.bench.volume.inode(number) for number in numbers]
        return [one for one in found if not kinds or stat.S_IFMT(one.mode) in kinds]

    def some(self, *kinds: int) -> Inode | None:
        found = self.inodes(*kinds)
        return self.dice.choice(found) if found else None

    def directory(self) -> InodeNumber:
        found = self.some(stat.S_IFDIR)
        assert found is not None, "there is a root"
        return found.number

    def name(self) -> bytes:
        return self.dice.choice([b"a", b"b", b"c", b"d", b"e\xff", b"f" * 255])

    def offset(self) -> int:
        return max(0, self.dice.choice([0, 0, 0, 1, 2, 9]) * SPAN + self.dice.randrange(-900, 3000))

    # --- changing ---------------------------------------------------------------------------

    def create(self) -> None:
        kind = self.dice.choice(KINDS)
        target = b"to/somewhere" if kind == stat.S_IFLNK else b""
        xattrs = ((b"user.first", b"1"),) if self.dice.random() < 0.2 else ()
        device = 0x0501 if kind == stat.S_IFCHR else 0
        number = self.bench.volume.allocate_inode()
        mode = kind | self.dice.randrange(0o10000)
        uid, gid = self.dice.randrange(70_000), self.dice.randrange(70_000)
        self.propose(
            Create(
                self.directory(),
                self.name(),
                number,
                mode,
                uid,
                gid,
                device,
                target,
                xattrs,
                self.tick(),
            )
        )

    def write(self) -> None:
        inode = self.some(stat.S_IFREG)
        if inode is not None:
            offset = self.offset()
            content = self.dice.randbytes(self.dice.randrange(1, 5000))
            self.store(inode.number, offset, content)

    def store(self, number: InodeNumber, offset: int, content: bytes) -> None:
        extents = []
        position = offset
        for fragment in self.bench.data.append(number, offset, content):
            extents.append(Extent(position, fragment.length, fragment.stripe, fragment.offset))
            position += fragment.length
        self.propose(WriteExtents(number, tuple(extents), self.tick(), None))

    def clone(self) -> None:
        source, target = self.some(stat.S_IFREG), self.some(stat.S_IFREG)
        if source is not None and target is not None:
            length = self.dice.choice([100, 4000, 2 * SPAN])
            places = (self.offset(), length, target.number, self.offset())
            self.propose(CloneRange(source.number, *places, self.tick(), None))

    def link(self) -> None:
        inode = self.some(stat.S_IFREG)
        if inode is not None:
            self.propose(Link(inode.number, self.directory(), self.name(), self.tick()))

    def remove(self) -> None:
        place = (self.directory(), self.name(), self.tick())
        gone = self.dice.random() < 0.6
        self.propose(Unlink(*place) if gone else RemoveDirectory(*place))
        if self.dice.random() < 0.7:
            trio.run(self.bench.volume.purge, self.bench.volume.orphans())

    def rename(self) -> None:
        flags = self.dice.choice([0, 0, RENAME_EXCHANGE])
        places = (self.directory(), self.name(), self.directory(), self.name())
        self.propose(Rename(*places, flags, self.tick()))

    def attributes(self) -> None:
        inode = self.some()
        if inode is not None:
            mode, uid = self.dice.randrange(0o10000), self.dice.randrange(70_000)
            times = (self.tick(), self.tick(), self.tick())
            self.propose(SetAttributes(inode.number, mode, uid, None, None, *times))

    def truncate(self) -> None:
        inode = self.some(stat.S_IFREG)
        if inode is not None:
            size = self.dice.choice([0, self.offset(), self.offset()])
            self.propose(
                SetAttributes(inode.number, None, None, None, size, None, None, self.tick())
            )

    def punch(self) -> None:
        inode = self.some(stat.S_IFREG)
        if inode is not None:
            length = self.dice.choice([500, 5000, 2 * SPAN])
            self.propose(PunchHole(inode.number, self.offset(), length, self.tick()))

    def xattr(self) -> None:
        inode = self.some()
        if inode is None:
            return
        name = self.dice.choice(XATTRS)
        if self.dice.random() < 0.3:
            self.propose(RemoveXattr(inode.number, name, self.tick()))
        else:
            value = self.dice.randbytes(self.dice.randrange(40))
            self.propose(SetXattr(inode.number, name, value, 0, self.tick(), None))

    def relocate(self) -> None:
        """What the cleaner does: copy a piece elsewhere."""
        inode = self.some(stat.S_IFREG)
        if inode is None or not inode.allocated_bytes:
            return
        old = self.dice.choice(self.bench.volume.extents(inode.number, 0, 2**40))
        start = self.dice.randrange(old.length)
        length = self.dice.randrange(1, old.length - start + 1)
        place = old.stripe_offset + start
        content = self.bench.data.read_now(old.stripe, place, length)
        assert content is not None
        (new,) = self.bench.data.append(inode.number, old.offset + start, content)
        moved = Extent(old.offset + start, length, new.stripe, new.offset)
        self.propose(Relocate(inode.number, moved.offset, length, old.stripe, place, (moved,)))

    def flush(self) -> None:
        self.bench.state.flush()


def walk(tree: Tree) -> Iterator[InodeNumber]:
    """Numbers of all inodes that have a name, each once."""
    seen = {ROOT_INODE: None}
    waiting = [ROOT_INODE]
    while waiting:
        number = waiting.pop()
        if not stat.S_ISDIR(tree.inode(number).mode):
            continue
        for entry in tree.read_directory(number, 0, 10_000):
            if entry.inode not in seen:
                seen[entry.inode] = None
                waiting.append(entry.inode)
    return iter(seen)


def look(tree: Tree, bench: Bench) -> dict[InodeNumber, Any]:
    """All that can be seen of a tree: attributes, names, attributes' values, holes, bytes."""
    found: dict[InodeNumber, Any] = {}
    for number in walk(tree):
        inode = tree.inode(number)
        entries = {}
        if stat.S_ISDIR(inode.mode):
            entries = {
                one.name: (one.inode, one.type) for one in tree.read_directory(number, 0, 10_000)
            }
        content: list[tuple[int, bytes]] = []
        for extent in tree.extents(number, 0, 2**40):
            data = bench.data.read_now(extent.stripe, extent.stripe_offset, extent.length)
            assert data is not None
            if content and content[-1][0] + len(content[-1][1]) == extent.offset:
                content[-1] = (content[-1][0], content[-1][1] + data)
            else:
                content.append((extent.offset, data))
        found[number] = (
            (inode.mode, inode.nlink, inode.uid, inode.gid, inode.device, inode.size),
            (inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.birth_ns),
            (inode.entry_count, inode.xattr_count, inode.acl_flags, inode.allocated_bytes),
            inode.target,
            inode.parent if stat.S_ISDIR(inode.mode) else None,
            entries,
            {name: tree.get_xattr(number, name) for name in tree.list_xattrs(number)},
            content,
        )
    return found

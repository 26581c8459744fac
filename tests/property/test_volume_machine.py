"""The state machine against a dumb model: random commands, commits and re-openings.

The model keeps dictionaries and derives everything anew; errno by errno it must agree with the
machine, and `check` must find nothing at the end.
"""

from __future__ import annotations

import errno
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dwfs.errors import PosixError
from dwfs.limits import EXTENT_NODE_SPAN as SPAN
from dwfs.types import DiskId, Extent, InodeNumber, ShardMove, StripeId, StripeSeal
from dwfs.volume.commands import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Command,
    Create,
    DropStripes,
    Link,
    MoveShards,
    PunchHole,
    Purge,
    Relocate,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    WriteExtents,
)
from dwfs.volume.records import Inode
from tests.unit.volume.fakes import GEOMETRY, Bench

NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
DISKS = [DiskId(b""), *(DiskId(bytes([number]) * 16) for number in range(4))]
PLACEMENT = (DISKS[1], DISKS[2], DISKS[0])
STRIPES = [StripeId(bytes([number]) * 16) for number in range(5)]
OFFSETS = st.builds(
    lambda node, distance: max(0, node * SPAN + distance),
    st.sampled_from([0, 1, 2, 7]),
    st.integers(-12, 24),
)
KINDS = st.sampled_from([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK])


@dataclass
class Node:
    """A file or directory of the model."""

    kind: int
    size: int = 0
    entries: dict[bytes, int] = field(default_factory=dict)
    data: dict[int, tuple[StripeId, int]] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    removed: bool = False  # a directory after rmdir

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


class VolumeMachine(RuleBasedStateMachine):
    """Rules are commands; `pick` numbers choose among the inodes there are."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.directory.name), hashes=3)
        self.nodes: dict[int, Node] = {1: Node(stat.S_IFDIR)}
        self.placements: dict[StripeId, list[DiskId]] = {}
        self.time = 1

    def teardown(self) -> None:
        assert list(self.bench.volume.check()) == []
        self.bench.reopen()
        assert list(self.bench.volume.check()) == []
        self.bench.close()
        self.directory.cleanup()

    # --- the machine's answer -----------------------------------------------------------------

    def apply(self, command: Command) -> int:
        """The errno of a command, or 0."""

        async def propose() -> Inode | None:
            return await self.bench.replicator.propose(command)

        try:
            trio.run(propose)
        except PosixError as error:
            return error.errno
        return 0

    def tick(self) -> int:
        self.time += 1
        return self.time

    # --- the model ----------------------------------------------------------------------------

    def pick(self, choice: int, *, directories: bool) -> InodeNumber:
        """An existing inode, mostly of the wanted sort."""
        numbers = sorted(self.nodes)
        fitting = [n for n in numbers if self.nodes[n].is_directory == directories]
        pool = fitting if fitting and choice % 8 else numbers
        return InodeNumber(pool[choice % len(pool)])

    def parent_error(self, parent: int) -> int:
        node = self.nodes[parent]
        if node.is_directory and node.removed:
            return errno.ENOENT
        if not node.is_directory:
            return errno.ENOTDIR if self.links(parent) else errno.ENOENT
        return 0

    def links(self, number: int) -> int:
        return sum(list(n.entries.values()).count(number) for n in self.nodes.values())

    def contains(self, top: int, number: int) -> bool:
        return top == number or any(
            self.contains(child, number)
            for child in self.nodes[top].entries.values()
            if self.nodes[child].is_directory
        )

    # --- names --------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 100), name=NAMES, kind=KINDS)
    def create(self, choice: int, name: bytes, kind: int) -> None:
        parent = self.pick(choice, directories=True)
        number = self.bench.volume.allocate_inode()
        target = b"somewhere" if kind == stat.S_IFLNK else b""
        got = self.apply(
            Create(parent, name, number, kind | 0o644, 5, 6, 0, target, (), self.tick())
        )
        wanted = self.parent_error(parent)
        if not wanted and name in self.nodes[parent].entries:
            wanted = errno.EEXIST
        assert got == wanted
        if not wanted:
            self.nodes[parent].entries[name] = number
            self.nodes[number] = Node(kind, size=len(target))

    @rule(choice=st.integers(0, 100), parent_choice=st.integers(0, 100), name=NAMES)
    def link(self, choice: int, parent_choice: int, name: bytes) -> None:
        number = self.pick(choice, directories=False)
        parent = self.pick(parent_choice, directories=True)
        got = self.apply(Link(number, parent, name, self.tick()))
        if self.nodes[number].is_directory:
            wanted = errno.EPERM
        elif not self.links(number):
            wanted = errno.ENOENT
        else:
            wanted = self.parent_error(parent)
        if not wanted and name in self.nodes[parent].entries:
            wanted = errno.EEXIST
        assert got == wanted
        if not wanted:
            self.nodes[parent].entries[name] = number

    @rule(choice=st.integers(0, 100), name=NAMES, directory=st.booleans())
    def remove(self, choice: int, name: bytes, directory: bool) -> None:
        parent = self.pick(choice, directories=True)
        kind = RemoveDirectory if directory else Unlink
        got = self.apply(kind(parent, name, self.tick()))
        wanted = self.parent_error(parent)
        child = self.nodes[parent].entries.get(name)
        if not wanted and child is None:
            wanted = errno.ENOENT
        if not wanted and child is not None:
            node = self.nodes[child]
            if node.is_directory != directory:
                wanted = errno.EISDIR if node.is_directory else errno.ENOTDIR
            elif node.entries:
                wanted = errno.ENOTEMPTY
        assert got == wanted
        if not wanted and child is not None:
            del self.nodes[parent].entries[name]
            self.nodes[child].removed = directory

    @rule(
        source_choice=st.integers(0, 100),
        name=NAMES,
        target_choice=st.integers(0, 100),
        new_name=NAMES,
        flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE, 3]),
    )
    def rename(
        self, source_choice: int, name: bytes, target_choice: int, new_name: bytes, flags: int
    ) -> None:
        source = self.pick(source_choice, directories=True)
        target = self.pick(target_choice, directories=True)
        wanted = self.rename_error(source, name, target, new_name, flags)
        got = self.apply(Rename(source, name, target, new_name, flags, self.tick()))
        assert got == max(wanted, 0)
        if wanted:
            return
        source_entries, target_entries = self.nodes[source].entries, self.nodes[target].entries
        moving, other = source_entries[name], target_entries.get(new_name)
        del source_entries[name]
        target_entries[new_name] = moving
        if other is not None and flags == RENAME_EXCHANGE:
            source_entries[name] = other
        elif other is not None and self.nodes[other].is_directory:
            self.nodes[other].removed = True

    def rename_error(
        self, source: int, name: bytes, target: int, new_name: bytes, flags: int
    ) -> int:
        """An errno; 0 to go on; -1 for success that changes nothing."""
        if flags == 3:
            return errno.EINVAL
        if wrong := self.parent_error(source) or self.parent_error(target):
            return wrong
        moving = self.nodes[source].entries.get(name)
        other = self.nodes[target].entries.get(new_name)
        if moving is None:
            return errno.ENOENT
        if other is not None and flags == RENAME_NOREPLACE:
            return errno.EEXIST
        if other is None and flags == RENAME_EXCHANGE:
            return errno.ENOENT
        if other == moving:
            return -1
        if self.nodes[moving].is_directory and self.contains(moving, target):
            return errno.EINVAL
        if other is None:
            return 0
        if flags == RENAME_EXCHANGE:
            below = self.nodes[other].is_directory and self.contains(other, source)
            return errno.EINVAL if below else 0
        if self.nodes[moving].is_directory != self.nodes[other].is_directory:
            return errno.ENOTDIR if self.nodes[moving].is_directory else errno.EISDIR
        return errno.ENOTEMPTY if self.nodes[other].entries else 0

    @rule(choice=st.integers(0, 100))
    def purge(self, choice: int) -> None:
        number = self.pick(choice, directories=False)
        assert self.apply(Purge((number,))) == 0
        if number != 1 and not self.links(number):
            del self.nodes[number]

    # --- data ---------------------------------------------------------------------------------

    def file_error(self, number: int) -> int:
        node = self.nodes[number]
        if node.is_directory:
            return errno.EISDIR
        return 0 if node.kind == stat.S_IFREG else errno.EINVAL

    @rule(
        choice=st.integers(0, 100),
        offset=OFFSETS,
        length=st.sampled_from([1, 3, 10, 20, SPAN // 2**17]),
        stripe=st.sampled_from(STRIPES),
        place=st.sampled_from([0, 5, 10, 40]),
    )
    def write(self, choice: int, offset: int, length: int, stripe: StripeId, place: int) -> None:
        number = self.pick(choice, directories=False)
        extent = Extent(offset, length, stripe, place)
        got = self.apply(WriteExtents(number, (extent,), self.tick(), None))
        assert got == self.file_error(number)
        if not got:
            node = self.nodes[number]
            node.data.update({offset + i: (stripe, place + i) for i in range(length)})
            node.size = max(node.size, offset + length)

    @rule(choice=st.integers(0, 100), size=OFFSETS)
    def truncate(self, choice: int, size: int) -> None:
        number = self.pick(choice, directories=False)
        got = self.apply(SetAttributes(number, 0o600, None, None, size, None, None, self.tick()))
        assert got == self.file_error(number)
        if not got:
            node = self.nodes[number]
            node.size = size
            node.data = {k: v for k, v in node.data.items() if k < size}

    @rule(
        choice=st.integers(0, 100), offset=OFFSETS, length=st.sampled_from([1, 7, SPAN, 3 * SPAN])
    )
    def punch(self, choice: int, offset: int, length: int) -> None:
        number = self.pick(choice, directories=False)
        got = self.apply(PunchHole(number, offset, length, self.tick()))
        assert got == self.file_error(number)
        if not got:
            node = self.nodes[number]
            node.data = {k: v for k, v in node.data.items() if not offset <= k < offset + length}

    @rule(choice=st.integers(0, 100), offset=OFFSETS, stripe=st.sampled_from(STRIPES))
    def relocate(self, choice: int, offset: int, stripe: StripeId) -> None:
        number = self.pick(choice, directories=False)
        node = self.nodes[number]
        old, old_place = node.data.get(offset, (STRIPES[0], 0))
        length = 12
        new = (Extent(offset, 5, stripe, 1000), Extent(offset + 5, length - 5, stripe, 2000))
        assert self.apply(Relocate(number, offset, length, old, old_place, new)) == 0
        for i in range(length):
            if node.data.get(offset + i) == (old, old_place + i):
                node.data[offset + i] = (stripe, 1000 + i if i < 5 else 1995 + i)

    @rule(stripe=st.sampled_from(STRIPES))
    def learn_seal(self, stripe: StripeId) -> None:
        self.seal(stripe)

    def seal(self, stripe: StripeId) -> None:
        fact = StripeSeal(stripe, bytes(24), 1, GEOMETRY, 4096, 16384, PLACEMENT, ())
        self.bench.state.stripes.apply_seal(fact)
        self.placements.setdefault(stripe, list(PLACEMENT))

    @rule(
        choice=st.integers(0, 5),
        number=st.integers(0, 3),
        stale=st.none() | st.sampled_from(DISKS),
        new=st.sampled_from(DISKS),
    )
    def move_shard(self, choice: int, number: int, stale: DiskId | None, new: DiskId) -> None:
        """Mostly of a stripe that is sealed, mostly from where its shard really is."""
        known = sorted(self.placements)
        stripe = STRIPES[choice % 5] if choice == 5 or not known else known[choice % len(known)]
        placement = self.placements.get(stripe, [])
        present = number < len(placement)
        old = placement[number] if present and stale is None else stale or DISKS[0]
        assert self.apply(MoveShards((ShardMove(stripe, number, old, new),))) == 0
        if present and placement[number] == old:
            placement[number] = new
        if placement:
            self.seal(stripe)  # a replay brings facts that the state had before

    @rule()
    def drop_dead(self) -> None:
        catalog = self.bench.volume.catalog
        dead = set(catalog.dead_stripes(100))
        for stripe in dead:
            assert not any(stripe in dict(n.data.values()) for n in self.nodes.values())
        assert self.apply(DropStripes(tuple(STRIPES))) == 0
        assert all(catalog.seal_of(stripe) is None for stripe in dead)
        for stripe in dead:
            del self.placements[stripe]
        assert catalog.dead_stripes(100) == []

    # --- extended attributes ------------------------------------------------------------------

    @rule(
        choice=st.integers(0, 100),
        name=st.sampled_from([b"user.x", b"user.y", b"system.posix_acl_access"]),
        value=st.binary(max_size=3),
        flags=st.sampled_from([0, 0, 1, 2]),
    )
    def set_xattr(self, choice: int, name: bytes, value: bytes, flags: int) -> None:
        number = self.pick(choice, directories=False)
        xattrs = self.nodes[number].xattrs
        got = self.apply(SetXattr(number, name, value, flags, self.tick(), None))
        if name in xattrs:
            wanted = errno.EEXIST if flags == 1 else 0
        else:
            wanted = errno.ENODATA if flags == 2 else 0
        assert got == wanted
        if not wanted:
            xattrs[name] = value

    @rule(choice=st.integers(0, 100), name=st.sampled_from([b"user.x", b"user.y"]))
    def remove_xattr(self, choice: int, name: bytes) -> None:
        number = self.pick(choice, directories=False)
        got = self.apply(RemoveXattr(number, name, self.tick()))
        assert got == (
            0 if self.nodes[number].xattrs.pop(name, None) is not None else errno.ENODATA
        )

    # --- storage ------------------------------------------------------------------------------

    @rule()
    def flush(self) -> None:
        self.bench.state.flush()

    @rule()
    @precondition(lambda self: self.time % 4 == 0)
    def reopen(self) -> None:
        self.bench.reopen()

    @invariant()
    def agrees(self) -> None:
        volume = self.bench.volume
        for stripe in STRIPES:
            seal = volume.catalog.seal_of(stripe)
            assert (None if seal is None else list(seal.placement)) == self.placements.get(stripe)
        for number, node in self.nodes.items():
            inode = volume.inode(InodeNumber(number))
            assert stat.S_IFMT(inode.mode) == node.kind
            assert inode.size == node.size
            listed = {e.name: e.inode for e in volume.read_directory(inode.number, 0, 100)}
            assert listed == node.entries
            for name, child in node.entries.items():
                assert volume.lookup(inode.number, name) == child
            assert sorted(volume.list_xattrs(inode.number)) == sorted(node.xattrs)
            for name, value in node.xattrs.items():
                assert volume.get_xattr(inode.number, name) == value
            found = {
                extent.offset + i: (extent.stripe, extent.stripe_offset + i)
                for extent in volume.extents(inode.number, 0, 10 * SPAN)
                for i in range(extent.length)
            }
            assert found == node.data
            assert inode.allocated_bytes == len(node.data)
            assert volume.next_data(inode.number, 0) == min(node.data, default=None)


TestVolumeMachine = VolumeMachine.TestCase
TestVolumeMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

"""Snapshots against a dumb model: a deep copy of everything when one is taken, compared for ever.

Random commands, snapshots, destructions in any order, reaping in small steps, relocations, rollbacks,
flushes, commits, and replays of the log after a crash from an older state. After every run each
snapshot's tree and content map are what they were, `check` finds nothing, and giving everything up
leaves exactly the current state's bytes.
"""

from __future__ import annotations

import copy
import random
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dwfs.errors import PosixError
from dwfs.limits import EXTENT_NODE_SPAN as SPAN
from dwfs.types import Extent, InodeNumber, StripeId, StripeSeal
from dwfs.volume import Inode, SnapshotView, Volume, recover
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
    decode_batch,
)
from dwfs.volume.machine import apply
from tests.unit.volume.fakes import GEOMETRY, PLACEMENT, Bench

ROOT = InodeNumber(1)
NAMES = [b"a", b"b", b"c", b"d", b"e"]
STRIPES = [StripeId(bytes([number]) * 16) for number in range(1, 7)]

Place = tuple[StripeId, int]


class PowerCutError(Exception):
    """Stops a rollback between two steps."""


@dataclass
class Node:
    """A file or directory of the model. `data` tells of each byte where it is and who wrote it."""

    kind: int
    size: int = 0
    nlink: int = 1
    mtime: int = 0
    entries: dict[bytes, int] = field(default_factory=dict)
    data: dict[int, tuple[StripeId, int, int]] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


Tree = dict[int, Node]


class Model:
    """The tree now, and a copy for each snapshot."""

    def __init__(self) -> None:
        self.now: Tree = {1: Node(stat.S_IFDIR, nlink=2)}
        self.snapshots: dict[str, Tree] = {}
        self.serial = 0  # of writes: tells two writes to one byte apart, wherever they went

    def trees(self) -> list[Tree]:
        return [self.now, *self.snapshots.values()]


def mapped(trees: list[Tree]) -> Counter[StripeId]:
    """Bytes that the trees map, by stripe; what several map of one write counts once."""
    writes = {
        (number, offset, serial): stripe
        for tree in trees
        for number, node in tree.items()
        for offset, (stripe, _, serial) in node.data.items()
    }
    return Counter(writes.values())


class World:
    """A volume and its model. Steps are drawn by dice."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.directory = directory
        (directory / "other").mkdir()
        self.bench = Bench(directory, hashes=4)
        self.model = Model()
        self.time = 10
        self.committed: list[list[tuple[bytes, bytes]]] = []
        self.seals()

    @property
    def volume(self) -> Volume:
        return self.bench.volume

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:  # any of volume's methods
        return trio.run(function, *arguments)

    def apply(self, command: Command) -> bool:
        async def propose() -> Inode | None:
            return await self.bench.replicator.propose(command)

        try:
            trio.run(propose)
        except PosixError:
            return False
        return True

    def tick(self) -> int:
        self.time += 1
        return self.time

    def seals(self) -> None:
        for stripe in STRIPES:
            seal = StripeSeal(stripe, bytes(24), 1, GEOMETRY, 1 << 20, 16384, PLACEMENT, ())
            self.bench.state.stripes.apply_seal(seal)

    # --- choosing ---------------------------------------------------------------------------

    def some(self, kind: int) -> InodeNumber | None:
        found = [n for n, node in sorted(self.model.now.items()) if node.kind == kind]
        return InodeNumber(self.dice.choice(found)) if found else None

    def offset(self) -> int:
        return max(0, self.dice.choice([0, 0, 0, 1, 2, 5]) * SPAN + self.dice.randrange(-12, 24))

    # --- names ------------------------------------------------------------------------------

    def create(self) -> None:
        parent, name = self.some(stat.S_IFDIR), self.dice.choice(NAMES)
        kind = self.dice.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR])
        assert parent is not None
        number = self.volume.allocate_inode()
        now = self.tick()
        xattrs = ((b"user.first", b"1"),) if self.dice.random() < 0.2 else ()
        if self.apply(Create(parent, name, number, kind | 0o644, 1, 2, 0, b"", xattrs, now)):
            node = self.model.now[parent]
            node.entries[name] = number
            node.nlink += kind == stat.S_IFDIR
            node.mtime = now
            fresh = Node(kind, nlink=1 + (kind == stat.S_IFDIR), mtime=now, xattrs=dict(xattrs))
            self.model.now[number] = fresh

    def link(self) -> None:
        number, parent = self.some(stat.S_IFREG), self.some(stat.S_IFDIR)
        name, now = self.dice.choice(NAMES), self.tick()
        if number and parent and self.apply(Link(number, parent, name, now)):
            self.model.now[parent].entries[name] = number
            self.model.now[parent].mtime = now
            self.model.now[number].nlink += 1

    def unlink(self) -> None:
        parent, name, now = self.some(stat.S_IFDIR), self.dice.choice(NAMES), self.tick()
        assert parent is not None
        for kind in (Unlink, RemoveDirectory):
            if self.apply(kind(parent, name, now)):
                node = self.model.now[parent]
                child = self.model.now[node.entries.pop(name)]
                node.mtime = now
                if kind is RemoveDirectory:
                    node.nlink -= 1
                    child.nlink = 0
                else:
                    child.nlink -= 1
                return

    def rename(self) -> None:
        source, target = self.some(stat.S_IFDIR), self.some(stat.S_IFDIR)
        name, new, now = self.dice.choice(NAMES), self.dice.choice(NAMES), self.tick()
        flags = self.dice.choice([0, 0, RENAME_EXCHANGE])
        assert source is not None
        assert target is not None
        tree = self.model.now
        moving, other = tree[source].entries.get(name), tree[target].entries.get(new)
        if not self.apply(Rename(source, name, target, new, flags, now)) or moving == other:
            return
        assert moving is not None
        del tree[source].entries[name]
        tree[target].entries[new] = moving
        tree[source].mtime = tree[target].mtime = now
        moves = tree[moving].kind == stat.S_IFDIR
        tree[source].nlink -= moves
        tree[target].nlink += moves
        if other is not None:
            swaps = tree[other].kind == stat.S_IFDIR
            tree[target].nlink -= swaps
            if flags:
                tree[source].entries[name] = other
                tree[source].nlink += swaps
            else:
                tree[other].nlink = 0 if swaps else tree[other].nlink - 1

    def purge(self) -> None:
        orphans = self.volume.orphans()
        assert sorted(orphans) == [
            n for n, node in sorted(self.model.now.items()) if not node.nlink
        ]
        if orphans:
            number = self.dice.choice(orphans)
            self.run(self.volume.purge, [number])
            del self.model.now[number]

    # --- data and attributes ----------------------------------------------------------------

    def write(self) -> None:
        number = self.some(stat.S_IFREG)
        if number is None:
            return
        extents, now = [], self.tick()
        for _ in range(self.dice.choice([1, 1, 3])):
            length = self.dice.choice([1, 3, 10, 20, 40])
            stripe, place = self.dice.choice(STRIPES), self.dice.choice([0, 5, 10, 40])
            offset, data = self.offset(), self.model.now[number].data
            if data and self.dice.random() < 0.4:  # go on where another write has ended
                offset = self.dice.choice(sorted(data))
                stripe, place, _ = data[offset]
                offset, place = offset + 1, place + 1
            extents.append(Extent(offset, length, stripe, place))
        if self.apply(WriteExtents(number, tuple(extents), now, None)):
            node = self.model.now[number]
            for extent in extents:
                self.model.serial += 1
                for i in range(extent.length):
                    at = (extent.stripe, extent.stripe_offset + i, self.model.serial)
                    node.data[extent.offset + i] = at
                node.size = max(node.size, extent.end)
            node.mtime = now

    def clone(self) -> None:
        """Mostly of a range with data in it; each clone counts by itself."""
        source, target = self.some(stat.S_IFREG), self.some(stat.S_IFREG)
        if not source or not target or not self.model.now[source].size:
            return
        node, other, now = self.model.now[source], self.model.now[target], self.tick()
        offset = self.dice.choice([0, *sorted(node.data)])
        length = self.dice.choice([5, 40, SPAN, 3 * SPAN, node.size])
        length = min(length, node.size - offset)
        goal = self.dice.choice([offset, self.offset()])
        command = CloneRange(source, offset, length, target, goal, now, None)
        try:
            self.run(self.volume.clone_range, command)
        except PosixError:
            assert not length or (source == target and abs(goal - offset) < length)
            return
        self.model.serial += 1
        found = {
            place - offset + goal: (stripe, at, self.model.serial)
            for place, (stripe, at, _) in node.data.items()
            if offset <= place < offset + length
        }
        rest = {k: v for k, v in other.data.items() if not goal <= k < goal + length}
        other.data = rest | found
        other.size = max(other.size, goal + length)
        other.mtime = now

    def truncate(self) -> None:
        number, size, now = self.some(stat.S_IFREG), self.offset(), self.tick()
        if number and self.apply(SetAttributes(number, None, None, None, size, None, None, now)):
            node = self.model.now[number]
            node.size, node.mtime = size, now
            node.data = {k: v for k, v in node.data.items() if k < size}

    def punch(self) -> None:
        number, offset, now = self.some(stat.S_IFREG), self.offset(), self.tick()
        length = self.dice.choice([1, 7, 30, SPAN])
        if number and self.apply(PunchHole(number, offset, length, now)):
            node = self.model.now[number]
            node.data = {k: v for k, v in node.data.items() if not offset <= k < offset + length}
            node.mtime = now

    def set_xattr(self) -> None:
        number, name = self.some(self.dice.choice([stat.S_IFREG, stat.S_IFDIR])), b"user.x"
        if number is None:
            return
        value = self.dice.randbytes(3)
        if self.dice.random() < 0.6:
            if self.apply(SetXattr(number, name, value, 0, self.tick(), None)):
                self.model.now[number].xattrs[name] = value
        elif self.apply(RemoveXattr(number, name, self.tick())):
            del self.model.now[number].xattrs[name]

    def relocate(self) -> None:
        """As the cleaner does, of bytes of any tree; sometimes of files that are gone by now."""
        tree = self.dice.choice(self.model.trees())
        candidates = [n for n, node in sorted(tree.items()) if node.data]
        if not candidates:
            return
        number = InodeNumber(self.dice.choice(candidates))
        offset = self.dice.choice(sorted(tree[number].data))
        old, place, _ = tree[number].data[offset]
        back = self.dice.randrange(5)
        offset, place, length = offset - back, place - back, self.dice.choice([5, 12, 40])
        if offset < 0 or place < 0:
            return
        stripe, target = self.dice.choice(STRIPES), self.dice.choice([500, 1000])
        new = (
            Extent(offset, 4, stripe, target),
            Extent(offset + 4, length - 4, stripe, target + 100),
        )
        assert self.apply(Relocate(number, offset, length, old, place, new))
        if self.volume.settling:
            return  # it has changed nothing
        for one in self.model.trees():
            data = one[number].data if number in one else {}
            for i in range(length):
                found = data.get(offset + i)
                if found and found[:2] == (old, place + i):
                    goal = target + i if i < 4 else target + 96 + i
                    data[offset + i] = (stripe, goal, found[2])

    # --- snapshots --------------------------------------------------------------------------

    def take(self) -> None:
        if len(self.model.snapshots) < 6:
            name = f"s{self.tick()}"
            taken = self.run(self.volume.take_snapshot, name, self.time)
            assert taken == self.volume.snapshot(name)
            self.model.snapshots[name] = copy.deepcopy(self.model.now)

    def destroy(self) -> None:
        """Any of them. What it alone kept, and nothing else, is given back in the end."""
        if not self.model.snapshots:
            return
        name = self.dice.choice(sorted(self.model.snapshots))
        without = [tree for key, tree in self.model.snapshots.items() if key != name]
        everything = mapped(self.model.trees())
        alone = everything.total() - mapped([self.model.now, *without]).total()
        assert self.volume.unique_bytes(name) == alone
        del self.model.snapshots[name]
        if self.dice.random() < 0.3:
            view = self.volume.view(self.volume.snapshot(name))
            self.run(self.volume.destroy_snapshot, name)
            with pytest.raises(PosixError):
                view.inode(ROOT)
            return
        self.settle()
        before = self.live_bytes()
        self.run(self.volume.destroy_snapshot, name)
        self.settle()
        assert before - self.live_bytes() == alone

    def settle(self) -> None:
        while self.volume.settling:
            self.run(self.volume.reap, self.dice.choice([1, 2, 100]))

    def live_bytes(self) -> int:
        return sum(self.volume.catalog.live_bytes(stripe) for stripe in STRIPES)

    def reap(self) -> None:
        self.run(self.volume.reap, self.dice.choice([1, 2, 5]))

    def rollback(self) -> None:
        if not self.model.snapshots or self.dice.random() < 0.3:
            return
        if len(self.model.snapshots) > 1 and self.dice.random() < 0.5:
            newest = self.volume.snapshots()[-1].name
            self.run(self.volume.destroy_snapshot, newest)
            del self.model.snapshots[newest]
        if self.dice.random() < 0.7:
            self.settle()  # in small steps, so that much is left to be swept
        name = self.volume.snapshots()[-1].name

        async def progress(done: int, total: int | None) -> None:
            if self.dice.random() < 0.2:
                self.bench.state.relieve()
            if self.dice.random() < 0.1:
                await self.volume.commit()
                self.committed.append(list(self.bench.store.pairs()))
            if self.dice.random() < 0.03:
                raise PowerCutError

        batch = self.dice.choice([1, 5, 1000])
        step: Callable[..., Any] = partial(self.volume.rollback, name)  # or finish_rollback
        while True:
            try:
                self.run(step, progress, batch)
                break
            except PowerCutError:
                begun = self.volume.rolling_back
                self.crash()
                assert self.volume.rolling_back == begun
                if begun:
                    assert not self.apply(Unlink(ROOT, b"a", 1)), "nothing else applies"
                    step = self.volume.finish_rollback
                else:
                    step = partial(self.volume.rollback, name)
        self.model.now = copy.deepcopy(self.model.snapshots[name])

    # --- storage ----------------------------------------------------------------------------

    def flush(self) -> None:
        self.bench.state.flush()

    def relieve(self) -> None:
        """Some records are written back, as happens when many are dirty."""
        state = self.bench.state
        for table in (state.inodes, state.directories.table, state.nodes, state.xattrs):
            self.write_some(table)

    def write_some(self, table: Any) -> None:  # Any: tables of several kinds of records
        for key in list(table.dirty):
            if self.dice.random() < 0.5:
                table.write_back(key)

    def commit(self) -> None:
        self.run(self.volume.commit)
        self.committed.append(list(self.bench.store.pairs()))

    def reopen(self) -> None:
        self.bench.reopen()
        self.committed.append(list(self.bench.store.pairs()))

    def crash(self) -> None:
        """The state is lost; an older one and the log bring it back."""
        self.run(self.volume.barrier)
        pairs = self.dice.choice(self.committed) if self.committed else []
        self.bench.close()
        self.bench.path.unlink()
        self.bench.open_store()
        if pairs:
            self.bench.store.load(pairs)
        self.bench.open_volume()
        self.seals()
        recovery = recover(self.bench.state, self.bench.data, self.bench.log.records)
        assert recovery.lost == []
        self.bench.replicator.resume(recovery.inlined)

    def look_at_dead(self) -> None:
        dead = self.volume.catalog.dead_stripes(100)
        live = mapped(self.model.trees())
        assert not [stripe for stripe in dead if live[stripe]]

    # --- comparing --------------------------------------------------------------------------

    def compare(self) -> None:
        assert list(self.volume.check()) == []
        assert [one.name for one in self.volume.snapshots()] == list(self.model.snapshots)
        compare_tree(self.volume, self.model.now)
        for name, tree in self.model.snapshots.items():
            compare_tree(self.volume.view(self.volume.snapshot(name)), tree)
        if not self.volume.settling:
            live = mapped(self.model.trees())
            for stripe in STRIPES:
                assert self.volume.catalog.live_bytes(stripe) == live[stripe]
            kept = live.total() - mapped([self.model.now]).total()
            assert self.volume.kept_bytes == kept
        for number in self.model.now:
            assert self.volume.inode(InodeNumber(number)).nlink == self.model.now[number].nlink

    def replay_elsewhere(self) -> None:
        """What commands decide does not depend on when records were written back."""
        self.run(self.volume.barrier)
        other = Bench(self.directory / "other", hashes=4, make_root=False)
        for payload in self.bench.log.records:
            for command in decode_batch(payload).commands:
                apply(other.state, command)
                other.state.flush()
        here, there = self.bench.state, other.state
        assert list(here.kept.all()) == list(there.kept.all())
        for stripe in STRIPES:
            assert here.stripes.live_bytes(stripe) == there.stripes.live_bytes(stripe)
        for name in ("epoch", "inode_count", "allocated_bytes", "kept_bytes", "reaping"):
            assert getattr(here.meta, name) == getattr(there.meta, name)
        assert here.snapshots.by_name == there.snapshots.by_name
        other.close()

    def finish(self) -> None:
        """Give everything up: nothing of it may remain."""
        self.compare()
        self.replay_elsewhere()
        for name in self.dice.sample(sorted(self.model.snapshots), len(self.model.snapshots)):
            self.run(self.volume.destroy_snapshot, name)
            del self.model.snapshots[name]
            if self.dice.random() < 0.5:
                self.reap()
        while self.run(self.volume.reap, 3):
            pass
        self.compare()
        assert self.volume.kept_bytes == 0
        kinds = Counter(key[:1] for key, _ in self.bench.store.scan(b""))
        assert not kinds[b"V"]
        assert not kinds[b"B"]
        assert not kinds[b"U"]
        assert not kinds[b"N"]
        assert kinds[b"I"] == len(self.model.now), "no version is left behind"
        assert all(sealed for _, sealed in self.bench.store.scan(b"")), "nor a tombstone"
        self.bench.close()


def compare_tree(view: Volume | SnapshotView, tree: Tree) -> None:
    """Every inode, name, attribute and byte."""
    data = 0
    for number, node in tree.items():
        inode = view.inode(InodeNumber(number))
        assert (stat.S_IFMT(inode.mode), inode.size) == (node.kind, node.size)
        assert (inode.nlink, inode.mtime_ns) == (node.nlink, node.mtime) or number == ROOT
        listed = {e.name: e.inode for e in view.read_directory(inode.number, 0, 100)}
        assert listed == node.entries
        for name in NAMES:
            assert view.lookup(inode.number, name) == node.entries.get(name)
        assert sorted(view.list_xattrs(inode.number)) == sorted(node.xattrs)
        for name, value in node.xattrs.items():
            assert view.get_xattr(inode.number, name) == value
        found = {
            extent.offset + i: (extent.stripe, extent.stripe_offset + i)
            for extent in view.extents(inode.number, 0, inode.size)
            for i in range(extent.length)
        }
        assert found == {offset: place[:2] for offset, place in node.data.items()}
        assert view.next_data(inode.number, 0) == min(node.data, default=None)
        data += len(found)
    assert view.usage() == (len(tree), data)


STEPS: list[tuple[str, int]] = [
    ("create", 12), ("link", 3), ("unlink", 7), ("rename", 6), ("purge", 5), ("write", 22), ("clone", 6),
    ("truncate", 4), ("punch", 4), ("set_xattr", 5), ("relocate", 9), ("take", 6), ("destroy", 4),
    ("reap", 8), ("rollback", 1), ("flush", 2), ("relieve", 6), ("commit", 2), ("reopen", 1),
    ("crash", 1), ("look_at_dead", 2),
]  # fmt: skip


@pytest.mark.parametrize("case", range(30))
def test_snapshots_stay_as_they_were(tmp_path: Path, seed: int, case: int) -> None:
    world = World(tmp_path, seed + case)
    names = [name for name, _ in STEPS]
    weights = [weight for _, weight in STEPS]
    for number in range(220):
        getattr(world, world.dice.choices(names, weights)[0])()
        if number % 20 == 19:
            world.compare()
    world.finish()

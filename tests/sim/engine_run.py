"""Runs one plan and checks, all the way, that the engine keeps its promises.

What is promised while no more disks are damaged than there is parity:

- every read gives what was written; no call fails or waits for ever;
- after each crash the files are one of the states since the last finished fsync (`History`);
- nothing that runs by itself meets what it did not foresee;
- at the end, when everything works again, the pool heals: redundancy is full, the disks hold exactly
  the shards that the seals name, each is what it should be, and `dwfs check` finds nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import trio

from dwfs.errors import DwfsError, PosixError
from dwfs.node.assembly import Pool
from dwfs.types import INODE_NUMBER_BITS, ROOT_INODE, InodeNumber
from dwfs.vfs import SYSTEM
from dwfs.volume.commands import CloneRange
from tests.sim.engine_audit import audit
from tests.sim.engine_history import Files, History, HistoryError, State, compare
from tests.sim.engine_plan import Plan, Step
from tests.sim.engine_world import CrashError, World
from tests.sim.medium import SimulatedDisk

_PATIENCE_SECONDS: Final = 600.0  # of simulated time, for one call of a user
_HEALING_SECONDS: Final = 7200.0


class EngineRun:
    """One simulation."""

    def __init__(self, plan: Plan, home: Path) -> None:
        self.plan = plan
        self.world = World(plan, home)
        self.history = History()
        self.trace: list[str] = []
        self._position = 0
        self._how = "machine"
        self._background: trio.Nursery | None = None
        self._rollback: Step | None = None  # to be done after the next mount
        self._images: dict[str, SimulatedDisk] = {}  # the victims as they were at the last mount

    async def run(self) -> None:
        """Raises HistoryError, or whatever the engine raises and should not."""
        self.world.create()
        async with self.world.mounted(first=True):
            pass
        async with trio.open_nursery() as self._background:
            while self._position < len(self.plan.steps):
                await self._session()
            self.world.medium.operations_left = None
            for disk in self.world.medium.disks.values():
                self.world.heal(disk)
            self.world.make_room()
            self._background.cancel_scope.cancel()
        async with self.world.mounted() as pool:
            await self._look_after_mount(pool)
            with _patience("healing", _HEALING_SECONDS):
                await audit(pool, self.world, self._note)
            compare(await self._read_all(pool), self.history.state)
        async with self.world.mounted() as pool:
            compare(await self._read_all(pool), self.history.state)
        self._look_for_violations()

    def _note(self, text: str) -> None:
        self.trace.append(f"{trio.current_time():10.3f} {self.world.medium.operations:6} {text}")

    def _look_for_violations(self) -> None:
        if self.world.machine.violations:
            raise HistoryError("; ".join(self.world.machine.violations))

    # --- sessions ----------------------------------------------------------------------------

    async def _session(self) -> None:
        """One life of the process."""
        disks = self.world.medium.disks
        self._images = {name: disks[name].image() for name in self.plan.victims}
        try:
            async with self.world.mounted() as pool:
                await self._look_after_mount(pool)
                if self._rollback is not None:
                    await self._roll_back(pool)
                    return
                async with trio.open_nursery() as nursery:
                    while self._position < len(self.plan.steps):
                        step = self.plan.steps[self._position]
                        self._position += 1
                        self._note(str(step))
                        if step.what == "remount" or self._wants_rollback(step):
                            break
                        await self._do(pool, step, nursery)
                        self._look_for_violations()
                    nursery.cancel_scope.cancel()
                if pool.supervisor.unforeseen_errors and not self.world.medium.off:
                    raise HistoryError("an unforeseen error in what runs by itself; see the log")
        except CrashError:
            self._note(f"crash of the {self._how}")
            self.world.restart(self._how)
            following = self.plan.steps[self._position : self._position + 1]
            if following and following[0].what == "crash":
                self._position += 1
                self._note(f"{following[0]}, while it recovers")
                self._arm(following[0])

    async def _look_after_mount(self, pool: Pool) -> None:
        found = await self._read_all(pool)
        lost = self.history.recovered(found)
        self._note(
            f"mounted; {len(found.files)} files, {len(found.snapshots)} snapshots, "
            f"{lost} changes not durable"
        )

    async def _read_all(self, pool: Pool) -> State:
        files = await self._read_directory(pool, ROOT_INODE)
        return State(
            files,
            {
                snapshot.name: await self._read_directory(
                    pool, InodeNumber(snapshot.slot << INODE_NUMBER_BITS | ROOT_INODE)
                )
                for snapshot in pool.volume.snapshots()
            },
        )

    async def _read_directory(self, pool: Pool, number: InodeNumber) -> Files:
        handle = pool.filesystem.opendir(number)
        entries = [entry for entry, _ in pool.filesystem.directory_entries(handle, 0)]
        pool.filesystem.releasedir(handle)
        found: Files = {}
        for entry in entries:
            if entry.name not in (b".", b".."):
                found[entry.name] = await self._read(pool, InodeNumber(entry.inode))
        return found

    async def _read(self, pool: Pool, number: InodeNumber) -> bytes:
        with _patience("a read"):
            try:
                return await pool.filesystem.read_inode(number, 0, 1 << 30)
            except PosixError as error:
                if self.world.medium.off:
                    raise
                raise HistoryError(f"a read fails: {error}") from error

    # --- steps -------------------------------------------------------------------------------

    async def _do(self, pool: Pool, step: Step, nursery: trio.Nursery) -> None:
        if step.what in ("write", "create", "truncate", "unlink", "rename", "clone"):
            await self._change(pool, step)
        elif step.what in ("keep", "forget"):
            await self._keep_or_forget(pool, step)
        elif step.what == "compression":
            await self._compress(pool, step)
        elif step.what == "rollback":
            self._note("there is no such snapshot")
        elif step.what == "read":
            await self._compare_one(pool, step.name.encode())
        elif step.what == "fsync":
            nursery.start_soon(self._fsync, pool)
            await trio.lowlevel.checkpoint()
        elif step.what == "wait":
            await trio.sleep(step.seconds)
        elif step.what == "crash":
            self._arm(step)
        elif step.what in ("scrub", "balance", "snapshot", "remove", "add", "offline", "online"):
            await self._administer(pool, step)
        else:
            self._damage(step)

    def _arm(self, step: Step) -> None:
        self._how = step.other
        self.world.medium.operations_left = step.offset

    async def _fsync(self, pool: Pool) -> None:
        moment = self.history.moment
        with _patience("fsync"):
            try:
                await pool.volume.barrier()
            except PosixError as error:
                if self.world.medium.off:
                    return
                if error.errno == errno.ENOSPC:
                    self._note("fsync: the pool is full")
                    return
                raise HistoryError(f"fsync fails: {error}") from error
        if not self.world.medium.off:
            self.history.durable(moment)

    async def _compare_one(self, pool: Pool, name: bytes) -> None:
        inode = pool.filesystem.lookup(ROOT_INODE, name)
        found: Files = {}
        if inode is not None:
            found[name] = await self._read(pool, inode.number)
            pool.filesystem.forget([(inode.number, 1)])
        wanted = {key: value for key, value in self.history.files.items() if key == name}
        compare(State(found), State(wanted))

    async def _change(self, pool: Pool, step: Step) -> None:
        files = dict(self.history.files)
        filesystem, name = pool.filesystem, step.name.encode()
        if step.what in ("write", "create"):
            if name not in files:
                await self._apply(step, files | {name: b""}, lambda: _create(pool, name))
                files = dict(self.history.files)
            data = _content(f"{self.plan.seed} {step}", step.size)
            old = files[name].ljust(step.offset, b"\0")
            files[name] = old[: step.offset] + data + old[step.offset + len(data) :]
            await self._apply(step, files, lambda: _write(pool, name, step.offset, data))
        elif name not in files or name == step.other.encode():
            return
        elif step.what == "truncate":
            files[name] = files[name][: step.size].ljust(step.size, b"\0")
            await self._apply(step, files, lambda: _truncate(pool, name, step.size))
        elif step.what == "clone":
            await self._clone(pool, step, files)
        elif step.what == "unlink":
            del files[name]
            await self._apply(step, files, lambda: filesystem.unlink(ROOT_INODE, name))
        else:
            new = step.other.encode()
            files[new] = files.pop(name)
            await self._apply(
                step, files, lambda: filesystem.rename(ROOT_INODE, name, ROOT_INODE, new, 0)
            )

    async def _apply(
        self, step: Step, files: Files, change: Callable[[], Awaitable[object]]
    ) -> None:
        await self._apply_state(step, self.history.state.with_files(files), change)

    async def _apply_state(
        self, step: Step, state: State, change: Callable[[], Awaitable[object]]
    ) -> None:
        self.history.begin(state)
        with _patience(str(step)):
            try:
                await change()
            except PosixError as error:
                if self.world.medium.off:
                    await trio.sleep_forever()  # until the crash reaches us
                self.history.take_back()
                if error.errno != errno.ENOSPC or step.what not in ("write", "create", "clone"):
                    raise HistoryError(f"{step} fails: {error}") from error
                self._note("refused: the pool is full")
                return
        if not self.world.medium.off:
            self.history.end()
        await self.world.machine.delay()  # others get their turn, now and then for a while

    async def _clone(self, pool: Pool, step: Step, files: Files) -> None:
        """Let a new file share another's bytes."""
        name, new = step.name.encode(), step.other.encode()
        source = pool.volume.lookup(ROOT_INODE, name)
        if new in files or source is None:
            return
        if pool.volume.next_hole(source, 0) < len(files[name]):
            return  # it would take several commands, and a crash may leave the first of them
        await self._apply(step, files | {new: b""}, lambda: _create(pool, new))
        if new in self.history.files:
            files = dict(self.history.files)
            files[new] = files[name]
            await self._apply(step, files, lambda: _clone(pool, name, new))

    async def _compress(self, pool: Pool, step: Step) -> None:
        """As `dwfs volume set` does; that it is durable is not looked at here."""
        properties = msgspec.structs.replace(pool.volume.properties, compression=step.other)
        try:
            await pool.volume.set_properties(properties)
        except PosixError as error:
            if not self.world.medium.off:
                raise HistoryError(f"{step} fails: {error}") from error
        pool.stripes.set_compression(step.other)

    # --- snapshots of the volume ---------------------------------------------------------------

    async def _keep_or_forget(self, pool: Pool, step: Step) -> None:
        """Take a snapshot, or destroy one."""
        state, name = self.history.state, step.name
        snapshots = dict(state.snapshots)
        if (step.what == "keep") == (name in snapshots):
            return
        if step.what == "keep":
            snapshots[name] = state.files
            await self._apply_state(
                step, State(state.files, snapshots), lambda: pool.volume.take_snapshot(name, 1)
            )
        else:
            del snapshots[name]
            await self._apply_state(
                step, State(state.files, snapshots), lambda: pool.volume.destroy_snapshot(name)
            )

    def _wants_rollback(self, step: Step) -> bool:
        """Whether it is one, and possible: it is done while nobody uses the volume."""
        if step.what == "rollback" and step.name in self.history.state.snapshots:
            self._rollback = step
            return True
        return False

    async def _roll_back(self, pool: Pool) -> None:
        """Go back to a snapshot that still exists, without those that are newer."""
        step, self._rollback = self._rollback, None
        assert step is not None
        if step.name not in self.history.state.snapshots:
            return  # a crash has taken it back
        names = [snapshot.name for snapshot in pool.volume.snapshots()]
        while names[-1] != step.name:
            await self._keep_or_forget(pool, Step("forget", names.pop()))
        snapshots = self.history.state.snapshots
        await self._apply_state(
            step,
            State(snapshots[step.name], snapshots),
            lambda: pool.volume.rollback(step.name, _unheard),
        )

    async def _administer(self, pool: Pool, step: Step) -> None:
        services = pool.services
        if services is None:
            raise HistoryError("the pool is read-only, and no more disks are gone than may be")
        try:
            if step.what == "scrub":
                services.scrub.start()
            elif step.what == "balance":
                services.balance.start()
            elif step.what == "snapshot" and pool.snapshotter is not None:
                await pool.snapshotter.take()
            elif step.what == "remove" and step.name in self.world.ids:
                await pool.life_cycle.remove(self.world.ids[step.name])
            elif step.what == "offline":
                await pool.life_cycle.offline(self.world.ids[step.name])
            elif step.what == "online":
                await pool.life_cycle.online(self.world.ids[step.name])
            elif step.what == "add":
                await self.world.add_disk(pool)
        except (DwfsError, OSError) as error:
            self._note(f"refused: {error}")

    def _damage(self, step: Step) -> None:
        medium = self.world.medium
        if step.what == "full":
            self.world.fill(step.size)
            assert self._background is not None
            self._background.start_soon(self._make_room, step.seconds)
            return
        disk = medium.disks[step.name]
        if step.what == "rot":
            medium.rot(disk, step.offset, step.other)
        elif step.what == "lose-pages":
            medium.lose_pages(disk, step.offset, step.other)
        elif step.what == "zero":
            medium.zero_pages(disk, step.offset, step.other)
        elif step.what == "fail":
            disk.failing[step.other] += step.offset
        elif step.what == "misdirect":
            disk.misdirected += step.offset
        else:
            assert step.what in ("hang", "away", "read-only"), step.what
            disk.hung = disk.hung or step.what == "hang"
            disk.present = disk.present and step.what != "away"
            disk.read_only = disk.read_only or step.what == "read-only"
            assert self._background is not None
            self._background.start_soon(self._end_trouble, step)

    async def _make_room(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._note("there is room again")
        self.world.make_room()

    async def _end_trouble(self, step: Step) -> None:
        await trio.sleep(step.seconds)
        disk = self.world.medium.disks[step.name]
        if step.what == "away" and step.other == "power-cut" and not disk.present:
            self.world.medium.lose_unsynced(disk)
        if step.what == "away" and step.other == "stale" and not disk.present:
            self.world.heal(disk)
            disk = self._images[step.name].image()
            self.world.medium.replace(disk)
        self._note(f"{step.name} is well again")
        self.world.heal(disk)


async def _unheard(_done: int, _total: int | None) -> None:
    return None


async def _create(pool: Pool, name: bytes) -> None:
    handle, inode = await pool.filesystem.create(ROOT_INODE, name, 0o644, os.O_RDWR, SYSTEM)
    pool.filesystem.release(handle.number)
    pool.filesystem.forget([(inode.number, 1)])


async def _write(pool: Pool, name: bytes, offset: int, data: bytes) -> None:
    files = pool.filesystem
    inode = files.lookup(ROOT_INODE, name)
    if inode is None:
        raise HistoryError(f"file {name.decode()} is gone")
    number = inode.number
    handle = await files.open(number, os.O_RDWR, SYSTEM)
    try:
        await files.write(handle.number, offset, data)
    finally:
        files.release(handle.number)
        files.forget([(number, 1)])


async def _clone(pool: Pool, name: bytes, new: bytes) -> None:
    source = pool.volume.lookup(ROOT_INODE, name)
    target = pool.volume.lookup(ROOT_INODE, new)
    if source is None or target is None:
        raise HistoryError("a file is gone")
    size = pool.volume.inode(source).size
    if size:
        await pool.volume.clone_range(CloneRange(source, 0, size, target, 0, 1, None))


def _content(seed: str, size: int) -> bytes:
    """Bytes of which the first half is noise, and the rest shrinks well."""
    chance = random.Random(seed)
    noise = chance.randbytes((size + 1) // 2)
    return noise + chance.randbytes(16) * (size // 32) + bytes(size - len(noise) - size // 32 * 16)


async def _truncate(pool: Pool, name: bytes, size: int) -> None:
    inode = pool.filesystem.lookup(ROOT_INODE, name)
    if inode is None:
        raise HistoryError(f"file {name.decode()} is gone")
    number = inode.number
    await pool.filesystem.setattr(number, size=size)
    pool.filesystem.forget([(number, 1)])


@contextlib.contextmanager
def _patience(what: str, seconds: float = _PATIENCE_SECONDS) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise HistoryError(f"{what} takes more than {seconds:.0f} simulated seconds") from None


class Complaints(logging.Handler):
    """Keeps what dwfs logs: errors with a stack, while the power is on, are defects."""

    def __init__(self, run: EngineRun) -> None:
        super().__init__(logging.DEBUG)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        """Note the record."""
        off = self._run.world.medium.off
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info and record.exc_info[0] is not None:
            text += f" ({record.exc_info[0].__name__}: {record.exc_info[1]})"
            if not off:
                self._run.world.machine.violations.append(text)
        if not off:
            self._run.trace.append(f"{'':17} {text}")

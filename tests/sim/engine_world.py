"""A pool on simulated disks that lives through mounts, crashes and repairs: the real composition.

`open_pool` is the one that people's mounts use: survey, keys, recovery, log, stripes, volume, filesystem
and every service that runs by itself. Simulated are the disks, the time, the chance and the threads.
The state directory is a real one, in memory: a process that dies leaves it as of that instant, a machine
that dies makes it unbelievable (another boot), and the boot disk's death takes it away.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from dwfs.config import ConfiguredDisk, Directories, PoolConfig, Tunables, load_config, save_config
from dwfs.crypto import RootKeys, SecretBytes, add_slot
from dwfs.disk import DiskMember, PoolHeader, write_header
from dwfs.disk.space import reserve_bytes
from dwfs.errors import DwfsError, MediumError, PosixError
from dwfs.node.assembly import OpenOptions, Pool
from dwfs.node.credential import Credential
from dwfs.node.keyslots import encode_slots
from dwfs.node.pool import open_pool
from dwfs.types import DiskId, PoolId, VolumeId
from tests.sim.engine_plan import Plan
from tests.sim.machine import Machine
from tests.sim.medium import PAGE_SIZE, SimulatedDisk, SimulatedMedium

_NAME = "simulated"
_REBUILD_SECONDS = 60.0  # a missing disk is waited for, briefly: a plan's minutes are few
_EXPECTED = (DwfsError, PosixError, MediumError, OSError, trio.Cancelled)


class CrashError(Exception):
    """The simulated power failed; the session is over."""


class World:
    """The machine, its disks, and the pool on them."""

    def __init__(self, plan: Plan, home: Path) -> None:
        self.plan = plan
        self.home = home
        names = [f"d{number}" for number in range(plan.disks)]
        disks = [SimulatedDisk(name, plan.capacity_bytes) for name in names]
        self.medium = SimulatedMedium(random.Random(f"medium {plan.seed}"), disks)
        self.machine = Machine(plan.seed, self.medium)
        self.medium.on_power_cut = self._note_power_cut
        self.directories = Directories.from_environment({"DWFS_ROOT": str(home / "root")})
        self.ids: dict[str, DiskId] = {}
        self._credential = self.machine.randomness.bytes(64)
        self._session: trio.CancelScope | None = None

    # --- the pool ----------------------------------------------------------------------------

    def create(self) -> None:
        """Lay out the disks, as `dwfs init` does."""
        random_bytes = self.machine.randomness.bytes
        pool = PoolId(random_bytes(16))
        for name in self.medium.disks:
            self.ids[name] = DiskId(random_bytes(16))
        members = tuple(DiskMember(disk, f"/{name}") for name, disk in self.ids.items())
        root = SecretBytes.copy_of(
            random_bytes(32)
        )  # names are hashed with it: it orders directories
        with RootKeys(root, pool) as keys:
            protector = Credential("keyfile", self._credential).protector()
            slot = add_slot(keys.root, protector, pool=pool, slots=(), label="sim", created_ns=1)
            header = PoolHeader(
                pool=pool,
                name=_NAME,
                generation=1,
                geometry=self.plan.geometry,
                disk=members[0].id,
                members=members,
                keyslots=encode_slots([slot]),
                root_volume=VolumeId(random_bytes(16)),
                created_ns=1,
            )
            with keys.header_key().view() as key:
                for name, disk in self.ids.items():
                    for _ in range(2):  # so that there is a previous copy
                        mine = msgspec.structs.replace(header, disk=disk)
                        write_header(Path(f"/{name}"), mine, key, self.medium)
        disks = tuple(ConfiguredDisk(disk, Path(f"/{name}")) for name, disk in self.ids.items())
        tunables = Tunables(rebuild_after_seconds=_REBUILD_SECONDS)
        save_config(self.directories, PoolConfig(_NAME, pool, disks, tunables=tunables))

    @asynccontextmanager
    async def mounted(self, *, first: bool = False) -> AsyncIterator[Pool]:
        """Open the pool. Raises CrashError when the power fails in the block, or already did."""
        config = load_config(self.directories, _NAME)
        options = OpenOptions(platform=self.machine, first_opening=first)
        credential = Credential("keyfile", self._credential)
        try:
            with trio.CancelScope() as self._session:
                async with open_pool(self.directories, config, credential, options) as pool:
                    yield pool
        # What a power cut made of it is no concern; all else is raised on.
        except Exception as error:
            if not (self.medium.off and _is_expected(error)):
                raise
        finally:
            self._session = None
        if self.medium.off:
            raise CrashError

    # --- what happens to it ------------------------------------------------------------------

    def _note_power_cut(self) -> None:
        """The process stops here: what it does from now on, closing, reaches nothing."""
        state = self.directories.state_directory(_NAME)
        kept = self.home / "state-at-crash"
        shutil.rmtree(kept, ignore_errors=True)
        if state.is_dir():
            shutil.copytree(state, kept)
        session = self._session
        if session is not None:
            self.machine.call_on_loop(session.cancel)

    def restart(self, how: str) -> None:
        """After a crash: "process", "machine", or "boot-disk" died."""
        for disk in self.medium.disks.values():
            if disk.hung:
                self.machine.release(disk)
        state, kept = self.directories.state_directory(_NAME), self.home / "state-at-crash"
        shutil.rmtree(state, ignore_errors=True)
        if kept.is_dir() and how != "boot-disk":
            kept.rename(state)
        marker = state / "marker"
        if how == "machine" and marker.is_file():
            content = msgspec.json.decode(marker.read_bytes(), type=dict[str, object])
            marker.write_bytes(msgspec.json.encode(content | {"boot_id": "an earlier one"}))
        self.medium.restart(lose_unsynced=how != "process")

    async def add_disk(self, pool: Pool) -> None:
        """An empty disk joins the pool."""
        name = f"d{len(self.medium.disks)}"
        self.medium.disks[name] = SimulatedDisk(name, self.plan.capacity_bytes)
        added = await pool.life_cycle.add(Path(f"/{name}"))
        self.ids[name] = added.id

    def fill(self, left_bytes: int) -> None:
        """Leave that much room on each disk beside the reserve, as if the pool were nearly full."""
        for disk in self.medium.disks.values():
            used_bytes = disk.used_pages * PAGE_SIZE
            reserve = reserve_bytes(used_bytes + left_bytes)
            disk.capacity_bytes = used_bytes + left_bytes + reserve

    def make_room(self) -> None:
        """Give the disks their size again."""
        for disk in self.medium.disks.values():
            disk.capacity_bytes = self.plan.capacity_bytes

    def heal(self, disk: SimulatedDisk) -> None:
        """End whatever goes on with the disk; damage that was done stays."""
        disk.failing.clear()
        disk.misdirected = 0
        disk.read_only = False
        disk.present = True
        if disk.hung:
            self.machine.release(disk)


def _is_expected(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_expected(inner) for inner in error.exceptions)
    return isinstance(error, _EXPECTED)

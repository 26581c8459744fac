"""Scrub of one disk: every shard on it is read, what is wrong is told apart and set right.

First the *disk pass*: the store reads itself in disk order, which is as fast as a disk can be read,
and gives its findings. Then the *logical pass*: whatever the seals place on this disk and its index
does not have is missing, which no reading of the disk could have found.

What becomes of a finding depends on what the seals say of the place, never on the disk's word:

- a bad record of a shard that a seal places here: reported to repair, which rebuilds it from others,
  writes it again, reads it back, and tells the outcome;
- a bad record of a shard that belongs elsewhere or to no stripe: deleted;
- a whole record that the index lacks (STRAY): entered into the index if a seal places it here and
  it is of that very sealing, for then it is the missing shard itself; else erased;
- an older record of a live shard (DUPLICATE): erased.

Stripes that are in memory or moving are in no seal yet, or in a doubtful one: their bad records are
looked at again at the end of the pass. As nothing is awaited between asking for the seal and deciding,
a shard that is just arriving is never taken for garbage.

The scrub can be stopped at any point: `state` says how far it is, its owner keeps it, and another
`DiskScrub` goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import trio

from dwfs.errors import MediumError
from dwfs.limits import MIB
from dwfs.ports import Clock, DiskListing, ScrubFinding, ShardFault, ShardStore, StripeCatalog
from dwfs.stripe.layout import layout_of
from dwfs.stripe.moving import Outcome
from dwfs.stripe.opened import Damage
from dwfs.stripe.pacing import Pacer, RateMeter
from dwfs.stripe.repair import Repairer
from dwfs.stripe.shard_header import header_fits
from dwfs.types import DiskId, DiskPosition, ShardKey, StripeId, StripeSeal

SCRUB_PIECE_BYTES: Final = 8 * MIB  # read between two rests: some 50 ms of a disk's time
SEALS_PIECE: Final = 256
PENDING_MAX: Final = 1_024  # shards in repair that a scrub waits for; then it reads no further
UNREPAIRABLE_NAMED_MAX: Final = 4_096
RETRY_SECONDS: Final = 0.2  # between looks at stripes that are still in memory
RETRIES_MAX: Final = 50

PHASE_DISK: Final = "disk"
PHASE_LOGICAL: Final = "logical"
PHASE_DONE: Final = "done"


class ScrubState(msgspec.Struct):
    """How far a scrub is, and what it has found; the caller keeps it."""

    phase: str = PHASE_DISK
    position: DiskPosition = DiskPosition(0, 0)
    logical_after: bytes = b""  # the stripe that the logical pass looked at last
    records: int = 0
    size_bytes: int = 0  # read
    faults: dict[str, int] = msgspec.field(default_factory=dict)  # by ShardFault
    repaired: int = 0  # shards made good again, strays and duplicates that were cleared up
    failed: int = 0  # not repaired yet: no disk had room, or one failed; repair goes on trying
    unrepairable: list[bytes] = msgspec.field(default_factory=list)  # stripes beyond redundancy
    error: str = ""  # why the scrub could not go on

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to look at."""
        return self.phase == PHASE_DONE

    @property
    def found(self) -> int:
        """Faults of all kinds."""
        return sum(self.faults.values())


class DiskScrub:
    """Scrubs one disk. `run` needs `repairer.run` beside it."""

    def __init__(
        self,
        *,
        disk: DiskId,
        disks: DiskListing,
        catalog: StripeCatalog,
        in_memory: Callable[[StripeId], bool],
        repairer: Repairer,
        pacer: Pacer,
        clock: Clock,
        state: ScrubState | None = None,
    ) -> None:
        self._disk = disk
        self._disks = disks
        self._catalog = catalog
        self._in_memory = in_memory
        self._repairer = repairer
        self._pacer = pacer
        self._clock = clock
        self._pending: set[ShardKey] = set()
        self._doubtful: dict[ShardKey, ShardFault] = {}
        self._answered = trio.Event()
        self.state = state or ScrubState()
        self.meter = RateMeter(clock)

    async def run(self) -> ScrubState:
        """Go on from `state` to the end, or until the disk fails (`state.error`)."""
        state = self.state
        state.error = ""
        try:
            if state.phase == PHASE_DISK:
                await self._read_disk()
                state.phase = PHASE_LOGICAL
            if state.phase == PHASE_LOGICAL:
                await self._compare()
        except MediumError as error:
            self._disks.failed(error, self._disk)
            state.error = str(error)
        await self._wait_for_repairs(0)
        if not state.error:
            state.phase = PHASE_DONE
        return state

    # --- the disk pass -----------------------------------------------------------------------

    async def _read_disk(self) -> None:
        position: DiskPosition | None = self.state.position
        while position is not None:
            started = self._clock.now()
            piece = await self._store().scrub(position, self._pacer.piece_bytes(SCRUB_PIECE_BYTES))
            for finding in piece.findings:
                await self._resolve(finding)
            worked = self._clock.now() - started
            position = piece.following
            # Findings first: a scrub that is stopped here meets them again, not never.
            if position is not None:
                self.state.position = position
            self.state.records += piece.records
            self.state.size_bytes += piece.size_bytes
            self.meter.add(piece.size_bytes)
            await self._wait_for_repairs(PENDING_MAX)
            await self._pacer.rest(worked, piece.size_bytes)
        await self._look_again()

    def _store(self) -> ShardStore:
        store = self._disks.get(self._disk)
        if store is None:
            raise MediumError(self._disk, "scrub", "the disk can't be read now")
        return store

    async def _resolve(self, finding: ScrubFinding) -> None:
        store = self._store()
        # no await between asking and deciding
        if self._in_memory(finding.key.stripe):
            if store.has(finding.key) and finding.fault not in _SPARE_RECORDS:
                self._doubtful[finding.key] = finding.fault
            return
        seal = self._seal_here(finding.key)
        self._count(finding.fault)
        if finding.fault is ShardFault.STRAY and seal is not None and not store.has(finding.key):
            await self._adopt(store, finding, seal)
        elif finding.fault in _SPARE_RECORDS:
            await store.erase(finding)
            self.state.repaired += 1
        elif seal is not None:
            self._report(finding.key, finding.fault)
        elif store.has(finding.key):
            await store.delete([finding.key])
            self.state.repaired += 1
        else:
            # Gone by now, or the store's own affair, which it mends itself.
            self.state.repaired += 1

    async def _adopt(self, store: ShardStore, finding: ScrubFinding, seal: StripeSeal) -> None:
        await store.adopt(finding)
        if self._seal_here(finding.key) is None and not self._in_memory(finding.key.stripe):
            await store.delete([finding.key])  # it died or moved while we looked
            self.state.repaired += 1
            return
        await store.sync()
        try:
            header, payload = await store.read_verified(finding.key)
        except MediumError:
            sound = False
        else:
            sound = header_fits(header, seal, finding.key.number) and (
                len(payload) == layout_of(seal).payload_length(finding.key.number)
            )
        if sound:
            self.state.repaired += 1
        else:
            self._report(finding.key, ShardFault.STRAY)  # of another sealing: a put replaces it

    async def _look_again(self) -> None:
        """Bad records of stripes that were in memory when they were met."""
        for _ in range(RETRIES_MAX):
            for key, fault in list(self._doubtful.items()):
                if self._in_memory(key.stripe):
                    continue
                del self._doubtful[key]
                if self._seal_here(key) is None:
                    continue  # the sweep's business
                try:
                    await self._store().read_back(key)
                except MediumError:
                    self._count(fault)
                    self._report(key, fault)
            if not self._doubtful:
                return
            await trio.sleep(RETRY_SECONDS)

    # --- the logical pass --------------------------------------------------------------------

    async def _compare(self) -> None:
        state = self.state
        while seals := self._catalog.seals(StripeId(state.logical_after) or None, SEALS_PIECE):
            store = self._store()
            for seal in seals:
                if self._disk not in seal.placement or self._in_memory(seal.stripe):
                    continue
                number = seal.placement.index(self._disk)
                key = ShardKey(seal.stripe, number)
                if layout_of(seal).payload_length(number) and not store.has(key):
                    self._count(ShardFault.MISSING)
                    self._report(key, ShardFault.MISSING)
            state.logical_after = seals[-1].stripe
            await self._wait_for_repairs(PENDING_MAX)
            await trio.lowlevel.checkpoint()

    # --- results -----------------------------------------------------------------------------

    def _seal_here(self, key: ShardKey) -> StripeSeal | None:
        """The stripe's seal, if it places the shard on this disk."""
        seal = self._catalog.seal_of(key.stripe)
        if seal is None or not key.number < len(seal.placement):
            return None
        return seal if seal.placement[key.number] == self._disk else None

    def _count(self, fault: ShardFault) -> None:
        self.state.faults[fault.value] = self.state.faults.get(fault.value, 0) + 1

    def _report(self, key: ShardKey, fault: ShardFault) -> None:
        self._pending.add(key)

        def conclude(stripe: StripeId, outcome: Outcome) -> None:
            self._pending.discard(key)
            if outcome in (Outcome.WHOLE, Outcome.GONE):
                self.state.repaired += 1
            elif outcome is Outcome.UNREADABLE:
                named = self.state.unrepairable
                if stripe not in named and len(named) < UNREPAIRABLE_NAMED_MAX:
                    named.append(stripe)
            else:
                self.state.failed += 1
            answered, self._answered = self._answered, trio.Event()
            answered.set()

        self._repairer.report(Damage(key.stripe, key.number, self._disk, fault), conclude)

    async def _wait_for_repairs(self, at_most: int) -> None:
        while len(self._pending) > at_most:
            await self._answered.wait()


_SPARE_RECORDS = frozenset({ShardFault.STRAY, ShardFault.DUPLICATE})

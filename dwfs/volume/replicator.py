"""`EmbeddedReplicator`: makes a volume's commands durable in the log of the own node.

A command is applied at once and encoded into the buffer; it becomes durable at the next barrier. A
barrier is a *round*: take the buffer and the facts about stripes, write them as log records. Rounds
never overlap, and a caller waits for a round that started after its call, so that many callers
share one `fdatasync` (group commit).

The promise to the log's reader: *no record is written before all stripes that its commands refer to
are either sealed in this or an earlier record, or inlined in them from offset 0 on.* While little
data is unlogged it is inlined: then nothing is awaited between looking at the data store and taking
the buffer. Otherwise the open stripe is rotated and the buffer taken in the same breath, and the
record is written after those stripes have settled.

A failed round puts back what it took: commands at the front of the buffer, in order, with the same
sequence numbers, because the record may have reached some mirror. Facts have no order and go with
the next round. Sequence numbers are given when a batch is made; a batch of mere facts takes none.

Sections marked "no await" rely on the loop running nobody else in between.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec
import trio

from dwfs import limits
from dwfs.errors import DwfsError, MediumError, NoSpaceError, PosixError
from dwfs.ports import DataStore
from dwfs.types import LogSequence, StripeData, StripeId, StripeSeal, VolumeId
from dwfs.volume.commands import (
    Command,
    EncodedBatch,
    Relocate,
    WriteExtents,
    encode_batch,
    encode_command,
)
from dwfs.volume.machine import apply
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState
from dwfs.volume.store import StateDamagedError

BUFFER_SIZE_MAX: Final = 8 * limits.MIB  # encoded commands that wait, at most about
BATCH_COMMANDS_SIZE: Final = 4 * limits.MIB  # encoded commands in one record, at most about
BATCH_SEALS_SIZE: Final = 4 * limits.MIB  # seals in one record, at most about
RELIEVE_EVERY: Final = 16  # commands between looks at the dirty quotas

assert BATCH_COMMANDS_SIZE + BATCH_SEALS_SIZE + 2 * limits.LOG_INLINE_MAX < (
    limits.LOG_RECORD_SIZE_MAX
)


class Log(Protocol):
    """Where batches go: one stream of the node's mirrored log."""

    def append(
        self, stream: VolumeId, payload: bytes, first: LogSequence, last: LogSequence
    ) -> Awaitable[None]:
        """Write one record and make it durable.

        A record of mere facts has `last` = `first` - 1; it is to be kept as long as the command
        that comes next. Raises MediumError, DwfsError or OSError; the record may then exist or not.
        """


class _Round:
    """One barrier that has not finished: what its callers wait for."""

    __slots__ = ("done", "errno")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.errno = 0


class EmbeddedReplicator:
    """The replicator of a pool that one process owns. All methods run on the loop."""

    def __init__(
        self, state: VolumeState, log: Log, data_store: DataStore, stream: VolumeId
    ) -> None:
        self._state = state
        self._log = log
        self._data_store = data_store
        self._stream = stream
        self._logged: LogSequence = state.meta.applied
        self._buffer: list[bytes] = []
        self._buffer_bytes = 0
        self._seals: list[StripeSeal] = []  # taken from the data store, not yet in the log
        self._data: list[StripeData] = []  # likewise
        # Unsealed stripes with bytes in the log: number of the first record that has some.
        self._inlined: dict[StripeId, LogSequence] = {}
        self._current: _Round | None = None
        self._next: _Round | None = None
        self._must_settle = False
        self._gate: trio.Event | None = None
        self._commit_lock = trio.Lock()
        self._until_relief = RELIEVE_EVERY
        self._frozen = ""

    def resume(self, inlined: dict[StripeId, LogSequence]) -> None:
        """After recovery: go on from the state's last command (see `dwfs.volume.recovery`)."""
        assert not self._buffer, "resume comes first"
        self._logged = self._state.meta.applied
        self._inlined = dict(inlined)

    # --- commands ---------------------------------------------------------------------------

    async def propose(self, command: Command) -> Inode | None:
        """Apply the command and buffer it for the log.

        Returns at once unless a commit closes the gate or the buffer is full. Raises PosixError:
        the command's own errno, or EIO if the log or the state no longer takes changes.

        Between `DataStore.append` and the proposal of the command that refers to the fragments
        there must be no await: from here on the stripe is kept from looking dead.
        """
        if self._gate is not None or self._is_full():
            await self._wait_turn(command)
        # no await from here on: apply and buffer are one step
        try:
            encoded = encode_command(command)
        except OverflowError as error:
            raise PosixError(errno.EINVAL, "a number beyond 64 bits") from error
        if self._frozen:
            raise PosixError(errno.EIO, self._frozen)
        try:
            result = apply(self._state, command)
            self._buffer.append(encoded)
            self._buffer_bytes += len(encoded)
            self._until_relief -= 1
            if self._until_relief <= 0:
                self._until_relief = RELIEVE_EVERY
                self._state.relieve()
        except (StateDamagedError, DwfsError) as error:
            self._frozen = f"volume takes no changes: {error}"
            raise PosixError(errno.EIO, self._frozen) from error
        return result

    def _is_full(self) -> bool:
        return (
            len(self._buffer) >= limits.LOG_BUFFER_COMMANDS_MAX
            or self._buffer_bytes >= BUFFER_SIZE_MAX
        )

    async def _wait_turn(self, command: Command) -> None:
        """Wait for the gate and for room. A stripe that the command refers to outlives the wait."""
        stripes: list[StripeId] = []
        if isinstance(command, WriteExtents | Relocate):
            stripes = [extent.stripe for extent in command.extents]
        for stripe in stripes:
            self._state.stripes.pin(stripe)
        try:
            while True:
                if self._gate is not None:
                    await self._gate.wait()
                elif self._is_full():
                    await self.barrier()
                else:
                    return
        finally:
            for stripe in stripes:
                self._state.stripes.unpin(stripe)

    # --- barriers ---------------------------------------------------------------------------

    async def barrier(self) -> None:
        """Return when everything proposed before the call is durable. Raises PosixError.

        After an error the commands are still applied and buffered; the next barrier tries again.
        """
        self._seals += self._data_store.settled()
        idle = not (self._buffer or self._seals or self._data or self._must_settle)
        if idle and not self._data_store.unlogged_bytes():
            if self._current is None:
                return
            ours = self._current
            await ours.done.wait()
        elif self._next is not None:
            ours = self._next
            await ours.done.wait()
        else:
            ours = self._next = _Round()
            with trio.CancelScope(shield=True):  # others wait for the round that this task runs
                await self._lead(ours)
        if ours.errno:
            raise PosixError(ours.errno, "the log could not be written")

    async def destage(self) -> None:
        """A barrier after which every stripe is sealed: nothing lives in the log alone."""
        self._must_settle = True
        await self.barrier()

    async def _lead(self, ours: _Round) -> None:
        while self._current is not None:
            await self._current.done.wait()
        # no await from here until the round has taken the buffer
        self._next = None
        self._current = ours
        ours.errno = errno.EIO  # unless the round gets to its end
        try:
            await self._run_round()
            ours.errno = 0
        except PosixError as error:
            ours.errno = error.errno
        except NoSpaceError:
            ours.errno = errno.ENOSPC
        except OSError as error:
            ours.errno = errno.ENOSPC if error.errno == errno.ENOSPC else errno.EIO
        except (DwfsError, MediumError):
            pass
        finally:
            self._current = None
            ours.done.set()

    async def _run_round(self) -> None:
        store = self._data_store
        held_bytes = sum(len(piece.data) for piece in self._data)
        # no await until the buffer is taken
        if not self._must_settle and store.unlogged_bytes() + held_bytes <= limits.LOG_INLINE_MAX:
            self._data += store.take_unlogged()
            self._seals += store.settled()
            commands = self._take_buffer()
        else:
            store.rotate()
            commands = self._take_buffer()
            try:
                self._seals += await store.settle()
            except BaseException:  # whatever it was, the commands are not logged
                self._give_back(commands)
                raise
            self._must_settle = False
        try:
            await self._write_facts()
            while commands or self._seals or self._data:
                count = _fitting(commands)
                await self._write_batch(commands[:count])
                del commands[:count]
        except BaseException:  # as above
            self._give_back(commands)
            raise

    def _take_buffer(self) -> list[bytes]:
        commands = self._buffer
        self._buffer = []
        self._buffer_bytes = 0
        return commands

    def _give_back(self, commands: list[bytes]) -> None:
        self._buffer[:0] = commands
        self._buffer_bytes += sum(map(len, commands))

    async def _write_facts(self) -> None:
        """Write seals in records of their own while there are too many for one record."""
        sealed = {seal.stripe for seal in self._seals}
        self._data = [piece for piece in self._data if piece.stripe not in sealed]
        while True:
            count, size = 0, 0
            for seal in self._seals:
                size += 128 + 24 * len(seal.placement) + 36 * len(seal.summary)
                size += 0 if seal.frames is None else 32 + len(seal.frames.lengths)
                if size > BATCH_SEALS_SIZE and count:
                    break
                count += 1
            if count == len(self._seals):
                return
            await self._write_batch([], self._seals[:count])

    async def _write_batch(
        self, commands: list[bytes], seals: list[StripeSeal] | None = None
    ) -> None:
        """Write one record: `commands`, and `seals` or else all facts at hand."""
        data: list[StripeData] = []
        if seals is None:
            seals, data = self._seals.copy(), self._data.copy()
        first = LogSequence(self._logged + 1)
        last = LogSequence(self._logged + len(commands))
        raw = [msgspec.Raw(command) for command in commands]
        payload = encode_batch(EncodedBatch(first, raw, seals, data))
        await self._log.append(self._stream, payload, first, last)
        # no await from here on: log and state agree about these facts
        self._logged = last
        del self._seals[: len(seals)]
        del self._data[: len(data)]
        for piece in data:
            self._inlined.setdefault(piece.stripe, first)
        self._apply_seals(seals)

    def _apply_seals(self, seals: Sequence[StripeSeal]) -> None:
        if not seals:
            return
        try:
            for seal in seals:
                self._state.stripes.apply_seal(seal)
                self._inlined.pop(seal.stripe, None)
        except (StateDamagedError, DwfsError) as error:
            self._frozen = f"volume takes no changes: {error}"
            raise
        self._data_store.committed(seals)

    # --- commit -----------------------------------------------------------------------------

    async def commit_state(self, companion: Callable[[], None] | None = None) -> None:
        """Commit the state when it equals the log: a barrier, then a short one behind the gate.

        `companion` is called right before, with the gate closed: other databases that are to be
        committed at the same moment. Raises PosixError if the log, DwfsError if the state fails.
        """
        async with self._commit_lock:
            await self.barrier()
            self._gate = trio.Event()
            try:
                while self._buffer or self._current is not None:
                    await self.barrier()
                # no await from here on: every command applied is logged
                if self._frozen:
                    raise PosixError(errno.EIO, self._frozen)
                meta = self._state.meta
                meta.applied = self._logged
                meta.replay_from = min(
                    self._inlined.values(), default=LogSequence(self._logged + 1)
                )
                if companion is not None:
                    companion()
                try:
                    self._state.commit()
                except DwfsError as error:
                    self._frozen = f"volume takes no changes: {error}"
                    raise
            finally:
                self._gate.set()
                self._gate = None

    @property
    def logged(self) -> LogSequence:
        """The last command that is durable."""
        return self._logged

    @property
    def buffered(self) -> int:
        """Commands that are not durable yet, those in a running barrier not counted."""
        return len(self._buffer)

    @property
    def frozen(self) -> str:
        """Why the volume takes no more changes; empty while it does."""
        return self._frozen


def _fitting(commands: list[bytes]) -> int:
    """How many commands go into the next record; at least one if there is any."""
    size = 0
    for count, command in enumerate(commands):
        size += len(command)
        if size > BATCH_COMMANDS_SIZE and count:
            return count
    return len(commands)

"""Bringing a pool's databases up to what the disks say, when it is opened.

Two cases, told apart by the marker in the state directory:

*Believable* (closed in order, or only the process died): the databases are whole as of their last
commit. The indexes catch up with the tails of the segments, the volume's state with the log.

*Not believable* (machine crashed, directory new, lost, or left behind when the pool was used
elsewhere): everything is made anew. The state comes
from the newest snapshot on the disks, or from nothing if there never was one, and the log; the
indexes from the segments. While that is under way there is no marker at all, so an interruption
leads here again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from dwfs.errors import DamageError, NotEnoughDisksError, StateError
from dwfs.log import LogInventory, MirroredLog, find_snapshot
from dwfs.node import marker
from dwfs.node.foundation import Foundation
from dwfs.node.index_environment import IndexEnvironment
from dwfs.ports import DataStore
from dwfs.types import LogSequence
from dwfs.volume import Recovery, StateStore, VolumeState, recover

_log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]  # what, done, in all

_STATE_ID_SIZE: Final = 16


class StateRecovery(msgspec.Struct):
    """What became of the state so far."""

    state: VolumeState
    inventory: LogInventory
    is_new: bool  # a pool that was made a moment ago: there is nothing yet
    snapshot_size_bytes: int  # of the snapshot that was loaded; 0: none


async def recover_databases(
    foundation: Foundation, *, first_opening: bool, report: Report
) -> StateRecovery:
    """Open databases and shard stores; load the state as of its commit or of a snapshot.

    Raises DamageError, FormatError, NotEnoughDisksError.
    """
    header = foundation.header
    platform = foundation.platform
    directory = foundation.state_directory
    believable = marker.is_believable(directory, header.pool, header.state_id)
    was_clean = marker.is_clean(directory, header.pool, header.state_id)
    if believable and not foundation.beyond_redundancy:
        await platform.run_blocking(marker.mark_opening, directory, header.pool, header.state_id)
    elif not believable:
        was_current = marker.is_current(directory, header.pool, header.state_id)
        await platform.run_blocking(discard_state, directory)
        if not was_current and not first_opening:
            await _disown_other_states(foundation)
    try:
        index, store = _open_databases(foundation, blank_is_right=not believable)
    except StateError as error:
        if not believable or foundation.beyond_redundancy:
            raise
        _log.warning("%s; it is made anew from the disks", error)
        believable = False
        await platform.run_blocking(discard_state, directory)
        index, store = foundation.open_databases()
    loaded = 0
    if not believable and not first_opening:
        loaded = await _load_snapshot(foundation, store, report)
    await foundation.open_stores(trusted=believable, progress=report)
    if foundation.beyond_redundancy and not was_clean:
        raise NotEnoughDisksError(
            f"{len(foundation.lost_disks)} disks can't be used and only {header.geometry.parity} "
            "may be: "
            + "; ".join(f"{one.directory}: {one.reason}" for one in foundation.lost_disks)
        )
    inventory = await platform.run_blocking(
        MirroredLog.recover,
        foundation.directories(),
        header.pool,
        foundation.pool_keys.log,
        platform.medium,
    )
    for note in inventory.notes:
        _log.warning("%s", note)
    state = VolumeState(store)
    empty = not believable and loaded == 0 and not inventory.files
    if empty and not first_opening:
        raise DamageError(
            "the disks that are there hold neither a log nor a state snapshot: attach the others"
        )
    if not believable:
        index.commit()
    return StateRecovery(state, inventory, first_opening, loaded)


def replay_log(
    foundation: Foundation, recovery: StateRecovery, data_store: DataStore, report: Report
) -> Recovery:
    """Apply what the log has beyond the state; blocks the loop, which has nothing else to do yet.

    With more disks gone than the code can replace, a log that does not fit the cleanly closed state
    is what is expected; the state then stands for itself.
    """
    volume = foundation.header.root_volume
    replay_from = recovery.state.meta.replay_from
    started = foundation.platform.clock.now()

    def payloads() -> Iterator[bytes]:
        records = recovery.inventory.replay(
            {volume: foundation.volume_keys.log}, {volume: replay_from}
        )
        for count, record in enumerate(records):
            report("replaying the log", count, 0)
            yield record.payload

    try:
        result = recover(recovery.state, data_store, payloads())
    except DamageError as error:
        if not foundation.beyond_redundancy:
            raise
        _log.warning("going on with the state as it was closed: %s", error)
        return recover(recovery.state, data_store, [])
    if result.replayed:
        seconds = foundation.platform.clock.now() - started
        _log.info("replayed %d commands in %.2f s", result.replayed, seconds)
    for stripe in result.lost:
        _log.error("stripe %s was never made durable and is lost", stripe.hex())
    return result


def mark_recovered(foundation: Foundation) -> None:
    """The databases are whole now, and were committed: the marker may say so. Blocking."""
    header = foundation.header
    marker.mark(foundation.state_directory, header.pool, header.state_id, clean=False)


def discard_state(directory: Path) -> None:
    """Remove the marker, then the databases. Blocking."""
    (directory / "marker").unlink(missing_ok=True)
    for path in directory.glob("*.mdb*"):
        path.unlink(missing_ok=True)


def _open_databases(
    foundation: Foundation, *, blank_is_right: bool
) -> tuple[IndexEnvironment, StateStore]:
    """Raises StateError, also for a state that was emptied although there should be something."""
    index, store = foundation.open_databases()
    if store.is_blank and not blank_is_right:
        store.close()
        index.close()
        raise StateError(f"the state in {foundation.state_directory} is empty; mount again")
    return index, store


async def _disown_other_states(foundation: Foundation) -> None:
    """Make every state directory of this pool stale, wherever one may have been left.

    Comes before anything else is written, or a state that was left behind could be believed although
    the disks have moved on. A crash after it leads here again, because there is no marker.
    """
    fresh = foundation.platform.randomness.bytes(_STATE_ID_SIZE)
    await foundation.membership.change_header(partial(msgspec.structs.replace, state_id=fresh))


async def _load_snapshot(foundation: Foundation, store: StateStore, report: Report) -> int:
    """Fill the empty state from the newest snapshot; returns its size, 0 if there never was one."""
    header = foundation.header
    snapshot = await foundation.platform.run_blocking(
        find_snapshot,
        foundation.directories(),
        header.pool,
        header.root_volume,
        foundation.volume_keys.snapshots,
        foundation.platform.medium,
    )
    if snapshot is None:
        return 0
    for note in snapshot.notes:
        _log.warning("%s", note)
    total = snapshot.footer.pairs

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        for count, pair in enumerate(snapshot.pairs()):
            if count % 1024 == 0:
                report("loading the state snapshot", count, total)
            yield pair

    store.load(pairs())
    _log.info("loaded the state snapshot at command %d", snapshot.header.sequence)
    return snapshot.size_bytes


def next_command(result: Recovery) -> LogSequence:
    """The number of the first command after recovery."""
    return LogSequence(result.applied + 1)

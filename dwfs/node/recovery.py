"""Bringing a pool's databases up to what the disks say, when it is opened.

Two cases, told apart by the marker in the state directory:

*Believable* (closed in order, or only the process died): the databases are whole as of their last
commit. The indexes catch up with the tails of the segments, the volume's state with the log.

*Not believable* (machine crashed, directory new or lost): everything is made anew. The state comes
from the newest snapshot on the disks, or from nothing if there never was one, and the log; the
indexes from the segments. While that is under way there is no marker at all, so an interruption
leads here again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import trio

from dwfs.errors import DamageError, NotEnoughDisksError
from dwfs.log import LogInventory, MirroredLog, PosixMedium, find_snapshot
from dwfs.node import marker
from dwfs.node.foundation import Foundation
from dwfs.ports import DataStore
from dwfs.types import LogSequence
from dwfs.volume import Recovery, StateStore, VolumeState, recover

_log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]  # what, done, in all


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
    directory = foundation.state_directory
    believable = marker.is_believable(directory, header.pool)
    was_clean = marker.is_clean(directory, header.pool)
    if believable and not foundation.beyond_redundancy:
        await trio.to_thread.run_sync(_mark_in_use, directory, foundation)
    elif not believable:
        await trio.to_thread.run_sync(discard_state, directory)
    index, store = foundation.open_databases()
    medium = PosixMedium()
    loaded = 0
    if not believable and not first_opening:
        loaded = await _load_snapshot(foundation, store, medium, report)
    await foundation.open_stores(trusted=believable, progress=report)
    if foundation.beyond_redundancy and not was_clean:
        raise NotEnoughDisksError(
            f"{len(foundation.lost_disks)} disks can't be used and only {header.geometry.parity} "
            "may be: "
            + "; ".join(f"{one.directory}: {one.reason}" for one in foundation.lost_disks)
        )
    inventory = await trio.to_thread.run_sync(
        MirroredLog.recover,
        foundation.directories(),
        header.pool,
        foundation.pool_keys.log,
        medium,
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
    started = time.monotonic()

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
        seconds = time.monotonic() - started
        _log.info("replayed %d commands in %.2f s", result.replayed, seconds)
    for stripe in result.lost:
        _log.error("stripe %s was never made durable and is lost", stripe.hex())
    return result


def mark_recovered(foundation: Foundation) -> None:
    """The databases are whole now, and were committed: the marker may say so. Blocking."""
    _mark_in_use(foundation.state_directory, foundation)


def discard_state(directory: Path) -> None:
    """Remove the marker, then the databases. Blocking."""
    (directory / "marker").unlink(missing_ok=True)
    for path in directory.glob("*.mdb*"):
        path.unlink(missing_ok=True)


def _mark_in_use(directory: Path, foundation: Foundation) -> None:
    marker.mark(directory, foundation.header.pool, clean=False)


async def _load_snapshot(
    foundation: Foundation, store: StateStore, medium: PosixMedium, report: Report
) -> int:
    """Fill the empty state from the newest snapshot; returns its size, 0 if there never was one."""
    header = foundation.header
    snapshot = await trio.to_thread.run_sync(
        find_snapshot,
        foundation.directories(),
        header.pool,
        header.root_volume,
        foundation.volume_keys.snapshots,
        medium,
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

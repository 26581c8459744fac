"""Recovery: bring a volume's state up to the end of its log.

Commands that the state already has are skipped, the others applied in order. Facts about stripes
are taken from all records, also from those whose commands are old: `replay_from` says how far back
a stripe's inlined bytes may lie. What is left without a seal goes back to the data store, which
stores it as a stripe in the background.

Why the result is right: the log holds a prefix of the command sequence that contains everything
acknowledged; `apply` is deterministic; and no record precedes the stripes that it refers to (see
`dwfs.volume.replicator`), so every extent of the prefix has its seal or its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from dwfs.errors import DamageError, PosixError
from dwfs.ports import DataStore
from dwfs.types import LogSequence, StripeData, StripeId
from dwfs.volume.commands import decode_batch
from dwfs.volume.machine import apply
from dwfs.volume.state import VolumeState


class Recovery(NamedTuple):
    """What `recover` did."""

    applied: LogSequence  # the last command of the state
    replayed: int  # commands applied
    restored: list[StripeId]  # unsealed stripes handed to the data store
    lost: list[StripeId]  # unsealed stripes that files refer to and whose bytes are nowhere
    inlined: dict[StripeId, LogSequence]  # for `EmbeddedReplicator.resume`


def recover(
    state: VolumeState, data_store: DataStore, records: Iterable[bytes | memoryview]
) -> Recovery:
    """Replay log records in the order in which they were written.

    Raises DamageError if the log does not continue the state. Does not commit.
    """
    applied = state.meta.applied
    replayed = 0
    pieces: dict[StripeId, bytearray] = {}
    inlined: dict[StripeId, LogSequence] = {}
    torn: set[StripeId] = set()
    for payload in records:
        try:
            batch = decode_batch(payload)
        except msgspec.MsgspecError as error:
            raise DamageError(f"log record after command {applied} is unreadable") from error
        first = batch.first_sequence
        if batch.commands and first > applied + 1:
            raise DamageError(
                f"log continues at command {first}, but the state ends at {applied}; "
                "attach the missing disks and try again"
            )
        for piece in batch.data:
            content = pieces.setdefault(piece.stripe, bytearray())
            inlined.setdefault(piece.stripe, first)
            if piece.offset > len(content):
                torn.add(piece.stripe)  # its beginning was trimmed: the seal comes, or it is lost
            content[piece.offset : piece.offset + len(piece.data)] = piece.data
        for command in batch.commands[max(0, applied + 1 - first) :]:
            try:
                apply(state, command)
            except PosixError as error:
                raise DamageError(f"log and state disagree at command {applied + 1}") from error
            applied = LogSequence(applied + 1)
            replayed += 1
            if replayed % 16 == 0:
                state.relieve()
        for seal in batch.seals:
            state.stripes.apply_seal(seal)
            pieces.pop(seal.stripe, None)
            inlined.pop(seal.stripe, None)
    state.meta.applied = applied
    needed = state.stripes.forget_unsealed()
    restored = [stripe for stripe in needed if stripe in pieces and stripe not in torn]
    lost = [stripe for stripe in needed if stripe not in pieces or stripe in torn]
    data_store.restore([StripeData(stripe, 0, bytes(pieces[stripe])) for stripe in restored])
    return Recovery(
        applied, replayed, restored, lost, {stripe: inlined[stripe] for stripe in restored}
    )

"""Unlocking a pool, and changing the ways in which it can be unlocked.

Keyslots live in the pool header, and the header is on every disk. A change makes a header of the
next generation and writes it disk by disk. Crash safety: whatever subset of the disks got the new
header, each disk has a whole one, the newest generation wins at the next opening, and that opening
rewrites the others. A disk that is away keeps its old copy until it is back; so removing a keyslot
does not reach into a drawer, which docs/security.md says too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from dwfs.config import PoolConfig
from dwfs.crypto import (
    Keyslot,
    RootKeys,
    add_slot,
    new_recovery_key,
    open_root_key,
    remove_slot,
)
from dwfs.disk import PoolHeader, verify_header, write_header
from dwfs.errors import FormatError, NotEnoughDisksError, UsageError
from dwfs.limits import KEYSLOTS_MAX
from dwfs.node.credential import Credential
from dwfs.node.survey import FoundDisk, PoolSurvey, survey_disks

_log = logging.getLogger(__name__)


class SlotInformation(msgspec.Struct, frozen=True):
    """What may be shown of a keyslot."""

    id: int
    kind: str
    label: str
    created_ns: int


class KeyChange(msgspec.Struct, frozen=True):
    """What a change of the keyslots did."""

    slot: int  # the slot that was added or removed
    disks_not_reached: list[str]  # paths; they get the change when they are back
    recovery_key: str | None = None


def decode_slots(header: PoolHeader) -> list[Keyslot]:
    """The header's keyslots. Raises FormatError."""
    try:
        return [msgspec.msgpack.decode(raw, type=Keyslot) for raw in header.keyslots[:KEYSLOTS_MAX]]
    except msgspec.DecodeError as error:
        raise FormatError(f"a keyslot of pool {header.name!r} is damaged: {error}") from None


def encode_slots(slots: Sequence[Keyslot]) -> tuple[bytes, ...]:
    """The form in which a header carries keyslots."""
    return tuple(msgspec.msgpack.encode(slot) for slot in slots)


def describe_slots(header: PoolHeader) -> list[SlotInformation]:
    """The keyslots for `dwfs key list`."""
    return [
        SlotInformation(slot.id, slot.kind, slot.label, slot.created_ns)
        for slot in decode_slots(header)
    ]


def unlock(survey: PoolSurvey, credential: Credential) -> RootKeys:
    """Open the root key and verify every disk's header with it; blocking, up to seconds.

    Raises WrongKeyError, or FormatError if a header was altered by someone without the key.
    """
    root = open_root_key(decode_slots(survey.header), credential.protector(), survey.header.pool)
    keys = RootKeys(root, survey.header.pool)
    try:
        with keys.header_key().view() as key:
            for disk in survey.present:
                assert disk.stored is not None
                verify_header(disk.stored, key)
    except BaseException:
        keys.wipe()
        raise
    return keys


def refresh_stale_headers(survey: PoolSurvey, keys: RootKeys) -> None:
    """Bring copies that missed a change up to date; blocking. A failure is logged: it can wait."""
    with keys.header_key().view() as key:
        for stored in survey.stale:
            fresh = msgspec.structs.replace(survey.header, disk=stored.header.disk)
            try:
                write_header(stored.directory, fresh, key)
            except OSError as error:
                _log.warning("can't refresh the header in %s: %s", stored.directory, error)


def add_key(config: PoolConfig, current: Credential, fresh: Credential, label: str) -> KeyChange:
    """Add a keyslot for `fresh`; blocking. The caller owns the pool."""

    def change(slots: list[Keyslot], keys: RootKeys, pool_header: PoolHeader) -> _Change:
        slot = add_slot(
            keys.root,
            fresh.protector(),
            pool=pool_header.pool,
            slots=slots,
            label=label,
            created_ns=time.time_ns(),
        )
        return _Change([*slots, slot], slot.id)

    return _change_slots(config, current, change)


def remove_key(config: PoolConfig, current: Credential, slot_id: int) -> KeyChange:
    """Remove a keyslot; blocking. Refuses the last one. The caller owns the pool."""

    def change(slots: list[Keyslot], keys: RootKeys, pool_header: PoolHeader) -> _Change:
        return _Change(list(remove_slot(slots, slot_id)), slot_id)

    return _change_slots(config, current, change)


def new_recovery_slot(config: PoolConfig, current: Credential) -> KeyChange:
    """Make a new recovery key and drop the old ones; blocking. The caller owns the pool."""
    text = new_recovery_key()

    def change(slots: list[Keyslot], keys: RootKeys, pool_header: PoolHeader) -> _Change:
        slot = add_slot(
            keys.root,
            Credential("recovery", text.encode()).protector(),
            pool=pool_header.pool,
            slots=slots,
            label="recovery",
            created_ns=time.time_ns(),
        )
        kept = [old for old in slots if old.kind != "recovery"]
        return _Change([*kept, slot], slot.id)

    done = _change_slots(config, current, change)
    return msgspec.structs.replace(done, recovery_key=text)


class _Change(msgspec.Struct):
    slots: list[Keyslot]
    slot_id: int


def _change_slots(
    config: PoolConfig,
    current: Credential,
    change: Callable[[list[Keyslot], RootKeys, PoolHeader], _Change],
) -> KeyChange:
    # Read afresh even when the pool is open: the disks are the truth about keyslots, and whoever
    # changes them must show a key, not merely reach the socket.
    survey = survey_disks(config)
    with unlock(survey, current) as keys:
        changed = change(decode_slots(survey.header), keys, survey.header)
        header = msgspec.structs.replace(
            survey.header,
            generation=survey.header.generation + 1,
            keyslots=encode_slots(changed.slots),
        )
        missed = _write_everywhere(survey.present, header, keys)
    missed += [str(disk.directory) for disk in survey.missing]
    return KeyChange(changed.slot_id, missed)


def _write_everywhere(disks: list[FoundDisk], header: PoolHeader, keys: RootKeys) -> list[str]:
    """Write the header to the disks, one after another; returns the paths that failed.

    Raises NotEnoughDisksError if it could be written to none.
    """
    missed = []
    with keys.header_key().view() as key:
        for disk in disks:
            try:
                write_header(disk.directory, msgspec.structs.replace(header, disk=disk.id), key)
            except OSError as error:
                _log.warning("can't write the header in %s: %s", disk.directory, error)
                missed.append(str(disk.directory))
    if len(missed) == len(disks):
        raise NotEnoughDisksError("the change could be written to no disk; nothing was changed")
    return missed


def parse_slot_id(text: object) -> int:
    """A keyslot's number. Raises UsageError."""
    if isinstance(text, str) and text.isdecimal():
        return int(text)
    raise UsageError(f"{text!r} is not a keyslot's number (see 'dwfs key list')")

"""Unlocking a pool, and changing the ways in which it can be unlocked.

Keyslots live in the pool header, and the header is on every disk. A change makes a header of the
next generation and writes it disk by disk. Crash safety: whatever subset of the disks got the new
header, each disk has a whole one, the newest generation wins at the next opening, and that opening
rewrites the others. A disk that is away keeps its old copy until it is back; so removing a keyslot
does not reach into a drawer, which docs/security.md says too.

The changes themselves (`with_key`, `without_key`, `with_new_recovery_key`) make a header from a header.
While the pool is open, `Membership` writes it, which owns all changes of the header; while nobody has
the pool open, `add_key` and its like do, under the pool's lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

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
from dwfs.disk import POSIX_MEDIUM, Medium, PoolHeader, verify_header, write_header
from dwfs.errors import FormatError, NotEnoughDisksError, UsageError
from dwfs.limits import KEYSLOTS_MAX
from dwfs.node.credential import Credential
from dwfs.node.disks.survey import FoundDisk, PoolSurvey, survey_disks

_log = logging.getLogger(__name__)


# Made once, here: msgspec (0.22) builds what it needs of a type at the type's first use, and two
# threads that do so at the same time crash the process.
_SLOT_DECODER: Final = msgspec.msgpack.Decoder(Keyslot)


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
        return [_SLOT_DECODER.decode(raw) for raw in header.keyslots[:KEYSLOTS_MAX]]
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
    except BaseException:  # whatever it was: nobody else wipes the keys
        keys.wipe()
        raise
    return keys


def refresh_stale_headers(
    survey: PoolSurvey, keys: RootKeys, medium: Medium = POSIX_MEDIUM
) -> None:
    """Bring copies that missed a change up to date; blocking. A failure is logged: it can wait."""
    with keys.header_key().view() as key:
        for stored in survey.stale:
            fresh = msgspec.structs.replace(survey.header, disk=stored.header.disk)
            try:
                write_header(stored.directory, fresh, key, medium)
            except OSError as error:
                _log.warning("can't refresh the header in %s: %s", stored.directory, error)


class SlotChange(msgspec.Struct, frozen=True):
    """A header with other keyslots, still of the old generation."""

    header: PoolHeader
    slot: int  # the slot that was added or removed
    recovery_key: str | None = None


def with_key(header: PoolHeader, current: Credential, fresh: Credential, label: str) -> SlotChange:
    """The header with a keyslot for `fresh`; blocking, seconds. Raises WrongKeyError, UsageError."""
    slots = decode_slots(header)
    with _root_keys(header, current) as keys:
        slot = _new_slot(keys, header, slots, fresh, label)
    return SlotChange(_with_slots(header, [*slots, slot]), slot.id)


def without_key(header: PoolHeader, current: Credential, slot_id: int) -> SlotChange:
    """The header without a keyslot; blocking. Refuses the last one. As `with_key` otherwise."""
    with _root_keys(header, current):
        slots = remove_slot(decode_slots(header), slot_id)
    return SlotChange(_with_slots(header, slots), slot_id)


def with_new_recovery_key(header: PoolHeader, current: Credential) -> SlotChange:
    """The header with a new recovery key in the place of all old ones; blocking."""
    text = new_recovery_key()
    slots = decode_slots(header)
    with _root_keys(header, current) as keys:
        slot = _new_slot(keys, header, slots, Credential("recovery", text.encode()), "recovery")
    kept = [old for old in slots if old.kind != "recovery"]
    return SlotChange(_with_slots(header, [*kept, slot]), slot.id, text)


def _root_keys(header: PoolHeader, credential: Credential) -> RootKeys:
    # Also when the pool is open: whoever changes keyslots must show a key, not merely reach the
    # socket.
    root = open_root_key(decode_slots(header), credential.protector(), header.pool)
    return RootKeys(root, header.pool)


def _new_slot(
    keys: RootKeys, header: PoolHeader, slots: Sequence[Keyslot], fresh: Credential, label: str
) -> Keyslot:
    return add_slot(
        keys.root,
        fresh.protector(),
        pool=header.pool,
        slots=slots,
        label=label,
        created_ns=time.time_ns(),
    )


def _with_slots(header: PoolHeader, slots: Sequence[Keyslot]) -> PoolHeader:
    return msgspec.structs.replace(header, keyslots=encode_slots(slots))


def add_key(config: PoolConfig, current: Credential, fresh: Credential, label: str) -> KeyChange:
    """Add a keyslot for `fresh` to a pool that nobody has open; blocking, under the pool's lock."""
    return _change_slots(config, current, partial(with_key, fresh=fresh, label=label))


def remove_key(config: PoolConfig, current: Credential, slot_id: int) -> KeyChange:
    """Remove a keyslot, likewise. Refuses the last one."""
    return _change_slots(config, current, partial(without_key, slot_id=slot_id))


def new_recovery_slot(config: PoolConfig, current: Credential) -> KeyChange:
    """Make a new recovery key and drop the old ones, likewise."""
    return _change_slots(config, current, with_new_recovery_key)


def _change_slots(
    config: PoolConfig,
    current: Credential,
    change: Callable[[PoolHeader, Credential], SlotChange],
) -> KeyChange:
    survey = survey_disks(config)
    with unlock(survey, current) as keys:
        changed = change(survey.header, current)
        header = msgspec.structs.replace(changed.header, generation=survey.header.generation + 1)
        missed = _write_everywhere(survey.present, header, keys)
    missed += [str(disk.directory) for disk in survey.missing]
    return KeyChange(changed.slot, missed, changed.recovery_key)


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

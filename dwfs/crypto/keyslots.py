"""The keyslots of a pool: many ways to one root key.

A slot holds the root key wrapped by a `KeyProtector`, bound to pool, slot id, kind and parameters,
so that it can neither be moved to another pool nor shown as something that it is not. Slots live in
the pool header, whose MAC can be checked only after one of them has opened: what is read here
is hostile until then, and every size and cost is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dwfs.crypto.derivation import KEY_SIZE
from dwfs.crypto.secret_memory import SecretBytes
from dwfs.errors import FormatError, UsageError, WrongKeyError
from dwfs.limits import KEYSLOT_LABEL_LENGTH_MAX, KEYSLOT_WRAPPED_SIZE_MAX, KEYSLOTS_MAX
from dwfs.ports import KeyProtector
from dwfs.types import PoolId

# Kinds that open the pool on any machine. The others are lost with their chip or token.
PORTABLE_KINDS = frozenset({"passphrase", "keyfile", "recovery"})

_KIND_LENGTH_MAX = 16
_PARAMETERS_MAX = 16


class Keyslot(msgspec.Struct, frozen=True):
    """One wrapped copy of the root key, as it stands in the pool header.

    Invariants: id 1 .. 2^32-1, unique in the pool; short printable kind and label; a wrapped key
    of 1 byte to 4 KiB; at most 16 parameters.
    """

    id: int
    kind: str  # "passphrase", "keyfile", "recovery"; "tpm2" and "pkcs11" come from dwfs's hw side
    label: str  # the operator's words
    created_ns: int  # since the Unix epoch
    parameters: dict[str, int | str]  # public facts for `dwfs key list`; bound, never relied on
    wrapped: bytes  # opaque to all but the kind's protector

    def validate(self) -> None:
        """Raises FormatError if an invariant is broken."""
        if not (
            0 < self.id < 2**32
            and 0 < len(self.kind) <= _KIND_LENGTH_MAX
            and self.kind.isascii()
            and self.kind.isalnum()
            and len(self.label) <= KEYSLOT_LABEL_LENGTH_MAX
            and (self.label == "" or self.label.isprintable())
            and 0 < len(self.wrapped) <= KEYSLOT_WRAPPED_SIZE_MAX
            and len(self.parameters) <= _PARAMETERS_MAX
        ):
            raise FormatError("a keyslot is malformed; the pool header is damaged")


def slot_context(pool: PoolId, slot_id: int, kind: str, parameters: dict[str, int | str]) -> bytes:
    """The canonical encoding of what a wrapped key is bound to: length-prefixed fields."""
    fields = [b"dwfs keyslot 1", pool, slot_id.to_bytes(4, "big"), kind.encode()]
    for name, value in sorted(parameters.items()):
        fields.append(name.encode())
        tag = b"i" if isinstance(value, int) else b"s"
        fields.append(tag + str(value).encode())
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def add_slot(
    root: SecretBytes,
    protector: KeyProtector,
    *,
    pool: PoolId,
    slots: Sequence[Keyslot],
    label: str,
    created_ns: int,
) -> Keyslot:
    """A new slot that wraps `root`, with an id above those of `slots`. Changes nothing itself.

    Takes ~0.2 s of CPU for a passphrase. Raises UsageError.
    """
    if len(slots) >= KEYSLOTS_MAX:
        raise UsageError(f"a pool has at most {KEYSLOTS_MAX} keyslots; remove one first")
    if len(label) > KEYSLOT_LABEL_LENGTH_MAX or not (label == "" or label.isprintable()):
        raise UsageError(
            f"a keyslot's label is printable and has at most {KEYSLOT_LABEL_LENGTH_MAX} characters"
        )
    slot_id = max((slot.id for slot in slots), default=0) + 1
    parameters = dict(protector.parameters)
    context = slot_context(pool, slot_id, protector.kind, parameters)
    with root.view() as view:
        wrapped = protector.wrap(view, context)
    slot = Keyslot(slot_id, protector.kind, label, created_ns, parameters, wrapped)
    slot.validate()
    return slot


def remove_slot(slots: Sequence[Keyslot], slot_id: int) -> tuple[Keyslot, ...]:
    """The slots that are left without `slot_id`. Pure.

    Raises UsageError if there is no such slot, or if no slot would be left that opens the pool
    without a particular chip or token.
    """
    remaining = tuple(slot for slot in slots if slot.id != slot_id)
    if len(remaining) == len(slots):
        known = ", ".join(str(slot.id) for slot in slots)
        raise UsageError(f"there is no keyslot {slot_id}; the pool has: {known or 'none'}")
    if not remaining:
        raise UsageError(
            f"keyslot {slot_id} is the last one and the pool could never be opened again; "
            "add another key first"
        )
    if not any(slot.kind in PORTABLE_KINDS for slot in remaining):
        raise UsageError(
            f"without keyslot {slot_id} the pool would be lost with this machine's hardware; "
            "add a recovery key first"
        )
    return remaining


def open_root_key(slots: Sequence[Keyslot], protector: KeyProtector, pool: PoolId) -> SecretBytes:
    """The root key, from the first slot of the protector's kind that it opens.

    Takes ~0.2 s of CPU for each passphrase slot tried; call it in a worker thread. Raises
    WrongKeyError, or FormatError when damage to a slot may be why none opened.
    """
    candidates = [slot for slot in slots[:KEYSLOTS_MAX] if slot.kind == protector.kind]
    if not candidates:
        kinds = ", ".join(sorted({slot.kind for slot in slots})) or "nothing"
        raise WrongKeyError(
            f"the pool has no keyslot of kind {protector.kind}; it can be opened with: {kinds}"
        )
    damage: FormatError | None = None
    root = SecretBytes(KEY_SIZE)
    for slot in candidates:
        try:
            slot.validate()
            context = slot_context(pool, slot.id, slot.kind, slot.parameters)
            with root.view() as view:
                protector.unwrap(slot.wrapped, context, view)
        except WrongKeyError:
            continue
        except FormatError as error:
            damage = error
            continue
        except BaseException:  # whatever it was, half a key must not stay in memory
            root.wipe()
            raise
        return root
    root.wipe()
    if damage is not None:
        raise damage
    others = sorted({slot.kind for slot in slots} - {protector.kind})
    advice = f" or open the pool with: {', '.join(others)}" if others else ""
    raise WrongKeyError(
        f"this {protector.kind} opens none of the pool's {len(candidates)} "
        f"{protector.kind} keyslot(s); check it and try again{advice}"
    )

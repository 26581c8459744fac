"""Keyslots, protectors and the printable recovery key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dwfs.crypto import (
    Argon2Cost,
    KeyfileProtector,
    Keyslot,
    PassphraseProtector,
    RecoveryProtector,
    SecretBytes,
    add_slot,
    new_recovery_key,
    open_root_key,
    parse_recovery_key,
    remove_slot,
)
from dwfs.errors import FormatError, UsageError, WrongKeyError
from dwfs.ports import KeyProtector
from dwfs.types import PoolId

POOL = PoolId(b"P" * 16)
CHEAP = Argon2Cost(memory_kib=8 * 1024, passes=1, lanes=1)
ROOT = bytes(range(32))
KEYFILE = bytes(range(64))


def slot_of(protector: KeyProtector, *slots: Keyslot, label: str = "") -> Keyslot:
    with SecretBytes.copy_of(ROOT) as root:
        return add_slot(root, protector, pool=POOL, slots=slots, label=label, created_ns=1)


def opened(slots: list[Keyslot], protector: KeyProtector, pool: PoolId = POOL) -> bytes:
    with open_root_key(slots, protector, pool) as root, root.view() as view:
        return bytes(view)


def test_every_kind_opens_what_it_wrapped() -> None:
    recovery_key = new_recovery_key()
    protectors: list[KeyProtector] = [
        RecoveryProtector(recovery_key),
        PassphraseProtector(b"correct horse battery staple", CHEAP),
        KeyfileProtector(KEYFILE),
    ]
    slots: list[Keyslot] = []
    for protector in protectors:
        slots.append(slot_of(protector, *slots, label="für alle"))
    assert [slot.id for slot in slots] == [1, 2, 3]
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(slots), type=list[Keyslot])
    for protector in protectors:
        assert opened(decoded, protector) == ROOT
    typed = recovery_key.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    assert opened(decoded, RecoveryProtector(typed)) == ROOT


def test_the_default_cost_is_rfc_9106s_and_is_shown() -> None:
    protector = PassphraseProtector(b"correct horse")
    assert protector.parameters == {
        "kdf": "argon2id",
        "memory_kib": 65536,
        "passes": 3,
        "lanes": 4,
    }
    assert opened([slot_of(protector)], PassphraseProtector(b"correct horse", CHEAP)) == ROOT


def test_the_second_slot_of_a_kind_is_tried_too() -> None:
    first = slot_of(PassphraseProtector(b"first", CHEAP))
    second = slot_of(PassphraseProtector(b"second", CHEAP), first)
    assert opened([first, second], PassphraseProtector(b"second", CHEAP)) == ROOT


def test_a_wrong_key_is_refused_in_one_helpful_line() -> None:
    slots = [slot_of(PassphraseProtector(b"right", CHEAP))]
    slots.append(slot_of(KeyfileProtector(KEYFILE), *slots))
    with pytest.raises(WrongKeyError) as caught:
        open_root_key(slots, PassphraseProtector(b"hunter2", CHEAP), POOL)
    text = str(caught.value)
    assert "hunter2" not in repr(caught.value)
    assert "keyfile" in text
    assert "\n" not in text
    with pytest.raises(WrongKeyError, match=r"no keyslot of kind recovery.*keyfile, passphrase"):
        open_root_key(slots, RecoveryProtector(new_recovery_key()), POOL)


def test_a_slot_opens_only_in_its_pool_and_as_it_was_made() -> None:
    protector = KeyfileProtector(KEYFILE)
    slot = slot_of(protector)
    with pytest.raises(FormatError, match="another pool"):
        open_root_key([slot], protector, PoolId(b"Q" * 16))
    for change in ({"id": 2}, {"parameters": {"kdf": "none"}}):
        with pytest.raises(FormatError, match="altered"):
            open_root_key([msgspec.structs.replace(slot, **change)], protector, POOL)


def test_a_damaged_slot_does_not_hide_a_good_one() -> None:
    protector = KeyfileProtector(KEYFILE)
    good = slot_of(protector)
    for wrapped in (b"\xc1", good.wrapped[:-1], b"\x96\x02" + good.wrapped[2:], b"", b"x" * 5000):
        bad = msgspec.structs.replace(good, wrapped=wrapped)
        assert opened([bad, good], protector) == ROOT
        with pytest.raises(FormatError):
            open_root_key([bad], protector, POOL)


@pytest.mark.parametrize(
    "cost",
    [
        Argon2Cost(memory_kib=2**30),
        Argon2Cost(memory_kib=8),
        Argon2Cost(passes=0),
        Argon2Cost(passes=2**31),
        Argon2Cost(lanes=0),
        Argon2Cost(lanes=255),
    ],
)
def test_a_hostile_header_cannot_demand_all_memory(cost: Argon2Cost) -> None:
    protector = PassphraseProtector(b"right", CHEAP)
    slot = slot_of(protector)
    fields = msgspec.msgpack.decode(slot.wrapped)
    fields[2] = [cost.memory_kib, cost.passes, cost.lanes]
    hostile = msgspec.structs.replace(slot, wrapped=msgspec.msgpack.encode(fields))
    with pytest.raises(FormatError, match="outside the limits"):
        open_root_key([hostile], protector, POOL)
    with pytest.raises(FormatError):
        PassphraseProtector(b"right", cost)


def test_a_slot_without_a_cost_is_no_passphrase_slot() -> None:
    keyfile = slot_of(KeyfileProtector(KEYFILE))
    disguised = msgspec.structs.replace(keyfile, kind="passphrase")
    with pytest.raises(FormatError, match="do not fit its kind"):
        open_root_key([disguised], PassphraseProtector(b"right", CHEAP), POOL)


def test_key_files_are_checked_and_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEYFILE)
    slot = slot_of(KeyfileProtector(KEYFILE))
    assert opened([slot], KeyfileProtector.from_file(path)) == ROOT
    path.write_bytes(KEYFILE[:31])
    with pytest.raises(UsageError, match="31 bytes but needs at least 32"):
        KeyfileProtector.from_file(path)
    path.write_bytes(bytes(4096))
    with pytest.raises(UsageError, match="not random"):
        KeyfileProtector.from_file(path)
    path.write_bytes(KEYFILE * 20_000)
    with pytest.raises(UsageError, match="larger than"):
        KeyfileProtector.from_file(path)
    with pytest.raises(UsageError, match="No such file"):
        KeyfileProtector.from_file(tmp_path / "absent")


def test_an_empty_passphrase_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        PassphraseProtector(b"")


def test_a_wiped_protector_opens_nothing() -> None:
    protector = KeyfileProtector(KEYFILE)
    slot = slot_of(protector)
    protector.wipe()
    with pytest.raises(ValueError, match="wiped"):
        open_root_key([slot], protector, POOL)


def test_labels_and_the_number_of_slots_are_bounded() -> None:
    protector = KeyfileProtector(KEYFILE)
    slot = slot_of(protector)
    with pytest.raises(UsageError, match="at most 32"):
        slot_of(protector, *[slot] * 32)
    for label in ("x" * 65, "line\nbreak"):
        with pytest.raises(UsageError, match="label"):
            slot_of(protector, label=label)


def bare_slot(slot_id: int, kind: str) -> Keyslot:
    return Keyslot(slot_id, kind, "", 0, {}, b"w")


def test_slots_are_removed_unless_the_pool_would_be_lost() -> None:
    recovery, passphrase, chip = (
        bare_slot(1, "recovery"),
        bare_slot(2, "passphrase"),
        bare_slot(3, "tpm2"),
    )
    assert remove_slot([recovery, passphrase, chip], 2) == (recovery, chip)
    with pytest.raises(UsageError, match="the last one"):
        remove_slot([recovery], 1)
    with pytest.raises(UsageError, match="add a recovery key first"):
        remove_slot([recovery, chip], 1)
    with pytest.raises(UsageError, match="no keyslot 9; the pool has: 1, 3"):
        remove_slot([recovery, chip], 9)


def test_recovery_keys_print_in_eight_groups() -> None:
    key = new_recovery_key()
    groups = key.split("-")
    assert [len(group) for group in groups] == [8] * 8
    assert not set("".join(groups)) & set("ILOU")
    with parse_recovery_key(key) as one, parse_recovery_key(key.replace("-", "")) as other:
        assert one.equals(other)


def test_typing_errors_are_named_by_group() -> None:
    groups = new_recovery_key().split("-")
    with pytest.raises(WrongKeyError, match="7 groups were given"):
        parse_recovery_key("-".join(groups[:7]))
    for text, reason in (
        (groups[2][:7], "group 3 of 8 of the recovery key has 7 characters"),
        ("U" + groups[2][1:], "group 3 of 8 .* position 1"),
        (groups[3], "group 3 of 8 .* typing error"),
    ):
        with pytest.raises(WrongKeyError, match=reason) as caught:
            parse_recovery_key("-".join([*groups[:2], text, *groups[3:]]))
        assert groups[0] not in str(caught.value)

"""Whatever is sealed opens to itself, and any change of it, or of its place, does not open."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dwfs.crypto import (
    RecordCipher,
    RootKeys,
    SecretBytes,
    ValueCipher,
    new_recovery_key,
    parse_recovery_key,
)
from dwfs.crypto.recovery_key import format_recovery_key
from dwfs.errors import AuthenticationError, WrongKeyError
from dwfs.limits import STRIPE_SECTORS_MAX
from dwfs.types import PoolId, StripeId, VolumeId

# Lives as long as the test run: made once, as hypothesis calls a test a hundred times.
ROOT = RootKeys(SecretBytes.random(32), PoolId(bytes(16)))
KEYS = ROOT.volume(VolumeId(bytes(16)), 1)
SEALERS: dict[str, ValueCipher | RecordCipher] = {
    "values": KEYS.values,
    "log": KEYS.log,
    "snapshots": KEYS.snapshots,
}
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


@given(
    name=st.sampled_from(sorted(SEALERS)),
    plaintext=st.binary(max_size=300),
    aad=st.binary(max_size=40),
    other=st.binary(max_size=40),
    bit=st.integers(min_value=0, max_value=2**20),
)
def test_values_and_records(
    name: str, plaintext: bytes, aad: bytes, other: bytes, bit: int
) -> None:
    sealer = SEALERS[name]
    sealed = sealer.seal(plaintext, aad)
    assert sealer.open(sealed, aad) == plaintext
    with pytest.raises(AuthenticationError):
        sealer.open(flip(sealed, bit), aad)
    with pytest.raises(AuthenticationError):
        sealer.open(sealed + b"\0", aad)
    if other != aad:
        with pytest.raises(AuthenticationError):
            sealer.open(sealed, other)


@given(
    plaintext=st.binary(min_size=1, max_size=300),
    salt=st.binary(min_size=24, max_size=24),
    number=st.integers(min_value=0, max_value=STRIPE_SECTORS_MAX - 1),
    other=st.integers(min_value=0, max_value=STRIPE_SECTORS_MAX - 1),
    bit=st.integers(min_value=0, max_value=2**20),
)
def test_sectors(plaintext: bytes, salt: bytes, number: int, other: int, bit: int) -> None:
    cipher = KEYS.stripe_cipher(StripeId(bytes(16)), salt)
    out = bytearray(len(plaintext) + 16)
    cipher.seal_sector(number, plaintext, memoryview(out))
    sealed = bytes(out)
    assert cipher.open_sector(number, sealed) == plaintext
    with pytest.raises(AuthenticationError):
        cipher.open_sector(number, flip(sealed, bit))
    with pytest.raises(AuthenticationError):
        cipher.open_sector(number, sealed[:-1])
    if other != number:
        with pytest.raises(AuthenticationError):
            cipher.open_sector(other, sealed)


@given(data=st.binary(min_size=32, max_size=32))
def test_recovery_keys_print_and_parse(data: bytes) -> None:
    with SecretBytes.copy_of(data) as key:
        text = format_recovery_key(key)
        with parse_recovery_key(text) as parsed:
            assert parsed.equals(key)


@given(position=st.integers(min_value=0, max_value=63), character=st.sampled_from(ALPHABET))
def test_any_wrong_character_is_found_in_its_group(position: int, character: str) -> None:
    groups = [list(group) for group in new_recovery_key().split("-")]
    group, place = divmod(position, 8)
    assume(groups[group][place] != character)
    groups[group][place] = character
    with pytest.raises(WrongKeyError, match=f"group {group + 1} of 8"):
        parse_recovery_key("-".join(map("".join, groups)))


@given(group=st.integers(min_value=0, max_value=7), place=st.integers(min_value=0, max_value=6))
def test_any_swap_of_neighbours_is_found_in_its_group(group: int, place: int) -> None:
    groups = [list(group) for group in new_recovery_key().split("-")]
    typed = groups[group]
    assume(typed[place] != typed[place + 1])
    typed[place], typed[place + 1] = typed[place + 1], typed[place]
    with pytest.raises(WrongKeyError, match=f"group {group + 1} of 8"):
        parse_recovery_key("-".join(map("".join, groups)))

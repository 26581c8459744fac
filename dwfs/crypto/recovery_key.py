"""The printable recovery key: 256 random bits as eight groups that each check themselves.

A recovery key is typed from paper, once, by somebody under stress. So the alphabet is Crockford's
base 32 (no I, L, O, U; case and O/0, I/L/1 mix-ups are forgiven) and a typing error is found in the
group where it was made, not after an unlock that fails without a reason.

Group g (8 characters, 40 bits) = 32 bits of the key | CRC-8 (polynomial 0x07) of the byte g and
those 4 bytes. The CRC finds every wrong character and every swap of two neighbours: the polynomial
is x+1 times an irreducible factor of degree 7, while both kinds of error are products of factors of
degree 4 and less. As g is checked too, groups in the wrong order are found. Other errors slip
through one time in 256 a group; then the keyslot does not open.
"""

from __future__ import annotations

import re

from dwfs.crypto.derivation import KEY_SIZE
from dwfs.crypto.secret_memory import SecretBytes
from dwfs.errors import WrongKeyError

RECOVERY_GROUPS = 8
RECOVERY_GROUP_LENGTH = 8

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUP_BYTES = KEY_SIZE // RECOVERY_GROUPS
_BITS_A_CHARACTER = 5
_CRC_POLYNOMIAL = 0x107
_VALUES = {character: value for value, character in enumerate(_ALPHABET)} | {
    "O": 0,
    "I": 1,
    "L": 1,
}
_SEPARATORS = re.compile(r"[-\s]+")


def new_recovery_key() -> str:
    """A fresh recovery key, `XXXXXXXX-…-XXXXXXXX`, to be printed and never stored."""
    with SecretBytes.random(KEY_SIZE) as key:
        return format_recovery_key(key)


def format_recovery_key(key: SecretBytes) -> str:
    """The printable form of a 32-byte recovery key."""
    assert len(key) == KEY_SIZE
    with key.view() as view:
        return "-".join(
            _format_group(number, view[number * _GROUP_BYTES : (number + 1) * _GROUP_BYTES])
            for number in range(RECOVERY_GROUPS)
        )


def parse_recovery_key(text: str) -> SecretBytes:
    """The 32 bytes of a typed recovery key. Raises WrongKeyError that names the faulty group."""
    groups = [group for group in _SEPARATORS.split(text.strip().upper()) if group]
    if len(groups) == 1 and len(groups[0]) == RECOVERY_GROUPS * RECOVERY_GROUP_LENGTH:
        groups = re.findall("." * RECOVERY_GROUP_LENGTH, groups[0])
    if len(groups) != RECOVERY_GROUPS:
        raise WrongKeyError(
            f"a recovery key has {RECOVERY_GROUPS} groups of {RECOVERY_GROUP_LENGTH} characters, "
            f"but {len(groups)} groups were given; type all of them, separated by '-' or spaces"
        )
    key = SecretBytes(KEY_SIZE)
    try:
        with key.view() as view:
            for number, group in enumerate(groups):
                at = number * _GROUP_BYTES
                view[at : at + _GROUP_BYTES] = _parse_group(number, group)
    except WrongKeyError:
        key.wipe()
        raise
    return key


def _format_group(number: int, data: memoryview) -> str:
    bits = int.from_bytes(data, "big") << 8 | _crc8(number, data)
    shifts = range((RECOVERY_GROUP_LENGTH - 1) * _BITS_A_CHARACTER, -1, -_BITS_A_CHARACTER)
    return "".join(_ALPHABET[bits >> shift & 31] for shift in shifts)


def _parse_group(number: int, group: str) -> bytes:
    where = f"group {number + 1} of {RECOVERY_GROUPS} of the recovery key"
    if len(group) != RECOVERY_GROUP_LENGTH:
        raise WrongKeyError(
            f"{where} has {len(group)} characters instead of {RECOVERY_GROUP_LENGTH}; "
            "compare it with the printed copy"
        )
    bits = 0
    for position, character in enumerate(group):
        value = _VALUES.get(character)
        if value is None:
            raise WrongKeyError(
                f"{where} has a character at position {position + 1} that no recovery key has; "
                "compare it with the printed copy"
            )
        bits = bits << _BITS_A_CHARACTER | value
    data = (bits >> 8).to_bytes(_GROUP_BYTES, "big")
    if bits & 0xFF != _crc8(number, data):
        raise WrongKeyError(f"{where} has a typing error; compare it with the printed copy")
    return data


def _crc8(number: int, data: bytes | memoryview) -> int:
    remainder = 0
    for byte in (number, *data):
        remainder ^= byte
        for _ in range(8):
            remainder <<= 1
            if remainder & 0x100:
                remainder ^= _CRC_POLYNOMIAL
    return remainder

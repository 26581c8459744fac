"""Seals the sectors of one stripe: AES-256-GCM under a key that no other stripe has.

Nonce = sector number. That is safe because the key is derived from a fresh 192-bit random salt for
each sealing of each stripe, and because each sector is sealed at most once under it; the second
half is checked here, as repeating a GCM nonce would give away the authentication key.

What a sector belongs to is bound twice: pool, volume, stripe and key version through the key
derivation; sector number and plaintext length through nonce and AAD. A sector that was moved, cut
short or taken from another stripe does not open.

Sealed sector = ciphertext (as long as the plaintext) | tag (16 bytes).
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dwfs.crypto.secret_memory import BytesLike
from dwfs.errors import AuthenticationError
from dwfs.limits import AEAD_TAG_SIZE, SEALED_SECTOR_SIZE, SECTOR_SIZE, STRIPE_SECTORS_MAX

_PACK_AAD = struct.Struct("<II").pack  # sector number, plaintext length

# Made once: 256 of each, instead of two allocations and a pack for each sector.
_NONCES = tuple(number.to_bytes(12, "little") for number in range(STRIPE_SECTORS_MAX))
_FULL_SECTOR_AADS = tuple(_PACK_AAD(number, SECTOR_SIZE) for number in range(STRIPE_SECTORS_MAX))


class StripeCipher:
    """Seals and opens the sectors of one stripe. Made by `VolumeKeys.stripe_cipher`.

    Small enough to be cached by the thousand; the key schedule is cleared by OpenSSL when the
    object goes. Opening may be done from several threads at once.
    """

    __slots__ = ("_decrypt", "_decrypt_into", "_encrypt_into", "_sealed")

    def __init__(self, cipher: AESGCM) -> None:
        self._encrypt_into = cipher.encrypt_into
        self._decrypt = cipher.decrypt
        self._decrypt_into = cipher.decrypt_into
        self._sealed = bytearray(STRIPE_SECTORS_MAX)

    def seal_sector(self, number: int, plaintext: BytesLike, out: memoryview) -> int:
        """Seal 1..SECTOR_SIZE bytes into the front of `out`; returns the sealed length.

        `out` has room for the plaintext and 16 bytes more, and does not overlap it.
        """
        length = len(plaintext)
        assert 0 <= number < STRIPE_SECTORS_MAX
        assert 0 < length <= SECTOR_SIZE
        if self._sealed[number]:
            # Not an `assert`: this one must hold under `python -O` too.
            raise AssertionError(f"sector {number} would be sealed twice under one key")
        self._sealed[number] = 1
        if length == SECTOR_SIZE:
            aad = _FULL_SECTOR_AADS[number]
        else:
            aad = _PACK_AAD(number, length)
        sealed_length = length + AEAD_TAG_SIZE
        if len(out) != sealed_length:
            out = out[:sealed_length]
        return self._encrypt_into(_NONCES[number], plaintext, aad, out)

    def open_sector(self, number: int, sealed: BytesLike) -> bytes:
        """The plaintext of a sealed sector. Raises AuthenticationError."""
        aad = self._opening_aad(number, len(sealed))
        try:
            return self._decrypt(_NONCES[number], sealed, aad)
        except InvalidTag:
            raise AuthenticationError(f"sector {number} is damaged or not of this stripe") from None

    def open_sector_into(self, number: int, sealed: BytesLike, out: memoryview) -> int:
        """As `open_sector`, into the front of `out`; returns the plaintext length.

        On AuthenticationError the contents of `out` are undefined and must not be used.
        """
        aad = self._opening_aad(number, len(sealed))
        length = len(sealed) - AEAD_TAG_SIZE
        if len(out) != length:
            out = out[:length]
        try:
            return self._decrypt_into(_NONCES[number], sealed, aad, out)
        except InvalidTag:
            raise AuthenticationError(f"sector {number} is damaged or not of this stripe") from None

    def _opening_aad(self, number: int, sealed_length: int) -> bytes:
        assert 0 <= number < STRIPE_SECTORS_MAX
        if sealed_length == SEALED_SECTOR_SIZE:
            return _FULL_SECTOR_AADS[number]
        if not AEAD_TAG_SIZE < sealed_length < SEALED_SECTOR_SIZE:
            raise AuthenticationError(f"sector {number} has an impossible length: {sealed_length}")
        return _PACK_AAD(number, sealed_length - AEAD_TAG_SIZE)

"""HKDF-SHA256 (RFC 5869) from secret memory into secret memory, and the pool header's MAC.

Every key below the root key is made here. `info` begins with a purpose of its own and goes on with
fixed-width fields only, so that no two purposes can share an input.
"""

from __future__ import annotations

import hmac
import threading

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dwfs.crypto.secret_memory import BytesLike, SecretBytes

KEY_SIZE = 32
MAC_SIZE = 32

_SHA256 = hashes.SHA256()
_ZERO_KEY = bytes(KEY_SIZE)


def derive_into(key: memoryview, salt: bytes, info: bytes, out: memoryview) -> None:
    """Fill `out` (up to 8160 bytes) with HKDF-SHA256 output. An empty salt is RFC 5869's default."""
    HKDF(_SHA256, len(out), salt, info).derive_into(key, out)


def derive(key: SecretBytes | memoryview, salt: bytes, info: bytes) -> SecretBytes:
    """A 32-byte key derived from `key`, in secret memory of its own."""
    derived = SecretBytes(KEY_SIZE)
    with derived.view() as out:
        if isinstance(key, SecretBytes):
            with key.view() as view:
                derive_into(view, salt, info, out)
        else:
            derive_into(key, salt, info, out)
    return derived


def compute_mac(key: SecretBytes, data: BytesLike) -> bytes:
    """HMAC-SHA256 of `data`: 32 bytes."""
    with key.view() as view:
        return hmac.digest(view, data, "sha256")


def verify_mac(key: SecretBytes, data: BytesLike, mac: bytes) -> bool:
    """Whether `mac` is `compute_mac(key, data)`, in constant time."""
    return hmac.compare_digest(compute_mac(key, data), mac)


class OneUseKeys:
    """Makes AES-256-GCM ciphers whose key exists for one stripe or one record only.

    The key is derived into `scratch`, expanded by OpenSSL into the cipher's own key schedule, and
    zeroed at once: `AESGCM` keeps no reference to the buffer it is given (a test holds it to
    that). So no memory has to be set aside for each stripe that is open.

    May be used from several threads. Both views are borrowed: the owner releases them on wiping,
    after which any use raises ValueError.
    """

    __slots__ = ("_key", "_lock", "_scratch")

    def __init__(self, key: memoryview, scratch: memoryview) -> None:
        assert len(key) == KEY_SIZE
        assert len(scratch) == KEY_SIZE
        self._key = key
        self._scratch = scratch
        self._lock = threading.Lock()

    def cipher(self, salt: bytes, info: bytes) -> AESGCM:
        """A cipher under HKDF-SHA256(key, salt, info). About 9 µs."""
        scratch = self._scratch
        with self._lock:
            try:
                HKDF(_SHA256, KEY_SIZE, salt, info).derive_into(self._key, scratch)
                return AESGCM(scratch)
            finally:
                scratch[:] = _ZERO_KEY

"""Keys, ciphers and keyslots: all of dwfs that knows a cryptographic primitive.

`docs/security.md` holds the argument: threat model, key hierarchy, why no nonce can repeat. In
short: a keyslot wraps the 32-byte root key; HKDF-SHA256 derives every other key from it; stripes
and records get a one-use AES-256-GCM key from a fresh 192-bit salt; small values are sealed with
AES-256-GCM-SIV; names appear on disk only as keyed BLAKE2b.

The user's duties:

1. Call `harden_process()` before the first key exists, and fork before that too: locked memory is
   not inherited locked.
2. Give a stripe a fresh salt each time it is sealed, also when it is sealed again after a crash.
3. `wipe()` what `open_root_key` and `RootKeys` handed out when the pool is closed.
"""

from dwfs.crypto.derivation import compute_mac, derive, derive_into, verify_mac
from dwfs.crypto.keys import RootKeys, VolumeKeys, new_root_key
from dwfs.crypto.keyslots import Keyslot, add_slot, open_root_key, remove_slot
from dwfs.crypto.names import NameHasher
from dwfs.crypto.protectors import (
    Argon2Cost,
    KeyfileProtector,
    PassphraseProtector,
    RecoveryProtector,
)
from dwfs.crypto.record_cipher import RecordCipher
from dwfs.crypto.recovery_key import new_recovery_key, parse_recovery_key
from dwfs.crypto.secret_memory import SecretBytes, harden_process
from dwfs.crypto.stream_key import StreamKey
from dwfs.crypto.stripe_cipher import StripeCipher
from dwfs.crypto.value_cipher import ValueCipher

__all__ = [
    "Argon2Cost",
    "KeyfileProtector",
    "Keyslot",
    "NameHasher",
    "PassphraseProtector",
    "RecordCipher",
    "RecoveryProtector",
    "RootKeys",
    "SecretBytes",
    "StreamKey",
    "StripeCipher",
    "ValueCipher",
    "VolumeKeys",
    "add_slot",
    "compute_mac",
    "derive",
    "derive_into",
    "harden_process",
    "new_recovery_key",
    "new_root_key",
    "open_root_key",
    "parse_recovery_key",
    "remove_slot",
    "verify_mac",
]

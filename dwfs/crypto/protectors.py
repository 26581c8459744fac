"""Keyslots that need no hardware: passphrase, key file, recovery key.

Each turns what its owner has into a 32-byte wrapping secret and shares the envelope below. Hardware
(TPM 2.0, PKCS#11) implements the same port elsewhere.

Two keys derive from the wrapping secret. One wraps the root key (AES-256-GCM-SIV; random nonce).
The other is stored as a commitment: GCM-SIV alone does not commit to its key, and a forged slot
that opens under many passphrases would let its maker test many guesses by watching one attempt to
unlock. It also tells a wrong passphrase from a slot that was altered or moved.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dwfs.crypto.derivation import KEY_SIZE, derive
from dwfs.crypto.recovery_key import parse_recovery_key
from dwfs.crypto.secret_memory import BytesLike, SecretBytes
from dwfs.errors import FormatError, UsageError, WrongKeyError
from dwfs.limits import (
    ARGON2_LANES_MAX,
    ARGON2_MEMORY_KIB_MAX,
    ARGON2_MEMORY_KIB_MIN,
    ARGON2_PASSES_MAX,
    KEYFILE_SIZE_MAX,
    KEYFILE_SIZE_MIN,
)

_FORMAT: Final = 1
_SALT_SIZE: Final = 32
_NONCE_SIZE: Final = 12
_SEALED_SIZE: Final = KEY_SIZE + 16
_KEYFILE_DISTINCT_MIN: Final = 8  # 32 random bytes have fewer with probability < 2^-100


class Argon2Cost(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one guess at a passphrase costs. The default is RFC 9106's second recommended option.

    Invariants: memory within [8 MiB, 512 MiB], and 1..16 passes and lanes.
    """

    memory_kib: int = 64 * 1024
    passes: int = 3
    lanes: int = 4

    def validate(self) -> None:
        """Raises FormatError if a bound is broken: checked before any memory is taken."""
        if not (
            ARGON2_MEMORY_KIB_MIN <= self.memory_kib <= ARGON2_MEMORY_KIB_MAX
            and 1 <= self.passes <= ARGON2_PASSES_MAX
            and 1 <= self.lanes <= ARGON2_LANES_MAX
        ):
            raise FormatError(
                f"a keyslot demands {self.memory_kib} KiB, {self.passes} passes and {self.lanes} "
                "lanes of Argon2id, outside the limits of this version; the header is damaged"
            )


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A wrapped root key as msgpack; every field is authenticated by `sealed`'s tag or the KDF."""

    format: int  # 1
    salt: bytes  # 32 random bytes for the key derivation
    cost: Argon2Cost | None  # of a passphrase slot; None where the secret has full entropy
    commitment: bytes  # 32 bytes, derived from the wrapping secret
    nonce: bytes  # 12 random bytes
    sealed: bytes  # 32 bytes ciphertext of the root key | 16 bytes tag


class _Protector:
    """The envelope around `_stretch`, which turns salt and cost into the wrapping secret."""

    kind: str
    parameters: dict[str, int | str]

    def __init__(
        self,
        secret: SecretBytes,
        cost: Argon2Cost | None,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._secret = secret
        self._cost = cost
        self._random_bytes = random_bytes

    def _stretch(self, salt: bytes, cost: Argon2Cost | None) -> SecretBytes:
        raise AssertionError("each kind of protector has its own")

    @property
    def cost(self) -> Argon2Cost | None:
        """What a guess costs; None where the secret has full entropy."""
        return self._cost

    def stretch(self, salt: bytes, cost: Argon2Cost | None) -> SecretBytes:
        """32 secret bytes out of what the owner gave. `cost` is bounded already; ~0.2 s with one."""
        assert (cost is None) == (self._cost is None), "a passphrase has a cost, and only it"
        return self._stretch(salt, cost)

    def wipe(self) -> None:
        """Forget what the owner gave; any later use is a ValueError."""
        self._secret.wipe()

    def wrap(self, root_key: memoryview, context: bytes) -> bytes:
        """The wrapped root key, bound to `context`; opaque to everybody else."""
        salt = self._random_bytes(_SALT_SIZE)
        nonce = self._random_bytes(_NONCE_SIZE)
        with self._stretch(salt, self._cost) as secret:
            commitment = _commitment(secret)
            with derive(secret, b"", b"dwfs keyslot wrap") as key, key.view() as view:
                aad = _bind(context, salt, self._cost, commitment)
                sealed = AESGCMSIV(view).encrypt(nonce, root_key, aad)
        return msgspec.msgpack.encode(
            _Envelope(_FORMAT, salt, self._cost, commitment, nonce, sealed)
        )

    def unwrap(self, wrapped: bytes, context: bytes, into: memoryview) -> None:
        """Write the root key to `into`.

        Raises WrongKeyError, or FormatError if the slot is malformed, altered or from elsewhere.
        """
        envelope = _decode(wrapped)
        if (envelope.cost is None) != (self._cost is None):
            raise FormatError("a keyslot's parameters do not fit its kind; the header is damaged")
        with self._stretch(envelope.salt, envelope.cost) as secret:
            if not hmac.compare_digest(_commitment(secret), envelope.commitment):
                raise WrongKeyError("the key does not fit this keyslot")
            with derive(secret, b"", b"dwfs keyslot wrap") as key, key.view() as view:
                aad = _bind(context, envelope.salt, envelope.cost, envelope.commitment)
                try:
                    AESGCMSIV(view).decrypt_into(envelope.nonce, envelope.sealed, aad, into)
                except InvalidTag:
                    into[:] = bytes(len(into))
                    raise FormatError(
                        "the key fits, but the keyslot was altered or belongs to another pool"
                    ) from None


class PassphraseProtector(_Protector):
    """Unlocks with a passphrase, stretched by Argon2id (RFC 9106).

    The bytes are taken as they are: the caller strips the newline of a file or terminal.
    """

    kind = "passphrase"

    def __init__(
        self,
        passphrase: BytesLike,
        cost: Argon2Cost | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if len(passphrase) == 0:
            raise UsageError("the passphrase is empty; give one of several words")
        cost = cost or Argon2Cost()
        cost.validate()
        super().__init__(SecretBytes.copy_of(passphrase), cost, random_bytes)
        self.parameters = {
            "kdf": "argon2id",
            "memory_kib": cost.memory_kib,
            "passes": cost.passes,
            "lanes": cost.lanes,
        }

    def _stretch(self, salt: bytes, cost: Argon2Cost | None) -> SecretBytes:
        assert cost is not None, "unwrap checks that the slot has a cost"
        stretch = Argon2id(
            salt=salt,
            length=KEY_SIZE,
            iterations=cost.passes,
            lanes=cost.lanes,
            memory_cost=cost.memory_kib,
        )
        secret = SecretBytes(KEY_SIZE)
        with self._secret.view() as passphrase, secret.view() as out:
            # The stub asks for bytes; the implementation reads any buffer (tested).
            stretch.derive_into(passphrase, out)  # type: ignore[arg-type]
        return secret


class KeyfileProtector(_Protector):
    """Unlocks with the content of a file of random bytes: HKDF-SHA512, as no stretching is due."""

    kind = "keyfile"

    def __init__(
        self, content: BytesLike, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        if len(content) < KEYFILE_SIZE_MIN:
            raise UsageError(
                f"the key file has {len(content)} bytes but needs at least {KEYFILE_SIZE_MIN}; "
                "make one with: head -c 64 /dev/urandom > FILE"
            )
        if len(content) > KEYFILE_SIZE_MAX:
            raise UsageError(
                f"the key file is larger than {KEYFILE_SIZE_MAX} bytes; is it the right file?"
            )
        if len(set(content)) < _KEYFILE_DISTINCT_MIN:
            raise UsageError(
                "the key file is not random (it repeats a few byte values); "
                "make one with: head -c 64 /dev/urandom > FILE"
            )
        super().__init__(SecretBytes.copy_of(content), None, random_bytes)
        self.parameters = {"kdf": "hkdf-sha512"}

    @classmethod
    def from_file(cls, path: Path) -> KeyfileProtector:
        """Read a key file straight into secret memory. Raises UsageError."""
        try:
            with SecretBytes(KEYFILE_SIZE_MAX + 1) as buffer, buffer.view() as view:
                with path.open("rb", buffering=0) as file:
                    length = 0
                    while count := file.readinto(view[length:]):
                        length += count
                return cls(view[:length])
        except OSError as error:
            raise UsageError(f"cannot read the key file {path}: {error.strerror}") from None

    def _stretch(self, salt: bytes, cost: Argon2Cost | None) -> SecretBytes:
        secret = SecretBytes(KEY_SIZE)
        with self._secret.view() as content, secret.view() as out:
            HKDF(hashes.SHA512(), KEY_SIZE, salt, b"dwfs keyslot keyfile").derive_into(content, out)
        return secret


class RecoveryProtector(_Protector):
    """Unlocks with the printed recovery key. Raises WrongKeyError for a typing error."""

    kind = "recovery"

    def __init__(
        self, recovery_key: str, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        super().__init__(parse_recovery_key(recovery_key), None, random_bytes)
        self.parameters = {"kdf": "hkdf-sha256"}

    def _stretch(self, salt: bytes, cost: Argon2Cost | None) -> SecretBytes:
        return derive(self._secret, salt, b"dwfs keyslot recovery")


def _commitment(secret: SecretBytes) -> bytes:
    with derive(secret, b"", b"dwfs keyslot commitment") as commitment, commitment.view() as view:
        return bytes(view)


def _bind(context: bytes, salt: bytes, cost: Argon2Cost | None, commitment: bytes) -> bytes:
    """The AAD: the envelope's own fields, each of fixed width, then the slot's context."""
    numbers = (0, 0, 0) if cost is None else (cost.memory_kib, cost.passes, cost.lanes)
    fields = b"".join(number.to_bytes(4, "big") for number in (_FORMAT, *numbers))
    return fields + salt + commitment + context


# Made once, here: msgspec (0.22) builds what it needs of a type at the type's first use, and two
# threads that do so at the same time crash the process.
_ENVELOPE_DECODER: Final = msgspec.msgpack.Decoder(_Envelope)


def _decode(wrapped: bytes) -> _Envelope:
    try:
        envelope = _ENVELOPE_DECODER.decode(wrapped)
    except msgspec.DecodeError:
        raise FormatError("a keyslot is malformed; the pool header is damaged") from None
    if envelope.format != _FORMAT:
        raise FormatError(
            f"a keyslot has format {envelope.format}, this version knows {_FORMAT}; upgrade dwfs"
        )
    sizes = tuple(map(len, (envelope.salt, envelope.commitment, envelope.nonce, envelope.sealed)))
    if sizes != (_SALT_SIZE, KEY_SIZE, _NONCE_SIZE, _SEALED_SIZE):
        raise FormatError("a keyslot is malformed; the pool header is damaged")
    if envelope.cost is not None:
        envelope.cost.validate()
    return envelope

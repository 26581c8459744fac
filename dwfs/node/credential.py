"""What somebody gives to unlock a pool, before it becomes a key protector.

A credential crosses a fork (asked for on the terminal, used in the background), a socket (for a new
keyslot) and configuration (paths); protectors hold native memory that must not. Its secret never
appears in a repr, a log or an exception.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from dwfs.crypto import KeyfileProtector, PassphraseProtector, RecoveryProtector
from dwfs.errors import UsageError, WrongKeyError
from dwfs.limits import SECRET_SIZE_MAX
from dwfs.ports import KeyProtector

CredentialKind = Literal["passphrase", "keyfile", "recovery"]


class Credential:
    """A secret and the kind of keyslot that it opens."""

    __slots__ = ("_secret", "kind")

    def __init__(self, kind: CredentialKind, secret: bytes) -> None:
        self.kind: CredentialKind = kind
        self._secret = bytearray(secret)

    def __repr__(self) -> str:
        return f"Credential({self.kind!r}, …)"

    def protector(self) -> KeyProtector:
        """The key protector that this credential makes. Raises WrongKeyError, UsageError."""
        secret = bytes(self._secret)
        if not secret:
            raise UsageError(f"the {self.kind} is empty, or was already used up")
        if self.kind == "passphrase":
            return PassphraseProtector(secret)
        if self.kind == "keyfile":
            return KeyfileProtector(secret)
        try:
            text = secret.decode("ascii")
        except UnicodeDecodeError:
            raise WrongKeyError("that is not a recovery key") from None
        return RecoveryProtector(text)

    def wipe(self) -> None:
        """Overwrite the secret."""
        self._secret[:] = bytes(len(self._secret))
        self._secret.clear()

    def encoded(self) -> dict[str, str]:
        """For the control socket."""
        return {"kind": self.kind, "secret": self._secret.hex()}


def decode_credential(value: object) -> Credential:
    """The inverse of `Credential.encoded`. Raises UsageError."""
    if isinstance(value, dict):
        kind, secret = value.get("kind"), value.get("secret")
        if kind in ("passphrase", "keyfile", "recovery") and isinstance(secret, str):
            try:
                return Credential(kind, bytes.fromhex(secret))
            except ValueError:
                pass
    raise UsageError("the request's credential is not understood")


def read_credential(kind: CredentialKind, path: Path) -> Credential:
    """A credential from a file. A passphrase or recovery key ends before the last newline.

    Raises UsageError if the file can't be read, is empty, or is too large to be a key.
    """
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_SIZE_MAX + 1)
    except OSError as error:
        raise UsageError(f"can't read the {kind} file {path}: {error.strerror}") from None
    if kind != "keyfile":
        secret = secret.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise UsageError(f"the {kind} file {path} is empty")
    if len(secret) > SECRET_SIZE_MAX:
        raise UsageError(f"the {kind} file {path} is larger than {SECRET_SIZE_MAX} bytes")
    return Credential(kind, secret)


def is_exposed(path: Path) -> bool:
    """Whether other users may read a secret file."""
    try:
        return bool(os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False

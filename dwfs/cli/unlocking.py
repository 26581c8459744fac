"""Where a command gets the secret that unlocks a pool.

In this order: what the command line names, what the configuration names, a question on the
terminal. A secret itself is never taken from the command line or the environment, where every
process of the machine could read it.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path

from dwfs.cli.output import warn
from dwfs.config import PoolConfig
from dwfs.errors import UsageError, WrongKeyError
from dwfs.node.credential import Credential, CredentialKind, is_exposed, read_credential

_OPTIONS: tuple[tuple[str, CredentialKind, str], ...] = (
    (
        "passphrase-file",
        "passphrase",
        "file whose content (without the last newline) is the passphrase",
    ),
    ("keyfile", "keyfile", "file whose content is the key"),
    ("recovery-key-file", "recovery", "file that holds the recovery key"),
)


def add_unlock_options(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Options that name a credential file; at most one of them may be given."""
    group = parser.add_mutually_exclusive_group()
    for name, _, text in _OPTIONS:
        group.add_argument(f"--{prefix}{name}", metavar="FILE", type=Path, help=text)


def given_credential(arguments: argparse.Namespace, prefix: str = "") -> Credential | None:
    """The credential that the command line names, if any."""
    for name, kind, _ in _OPTIONS:
        attribute = f"{prefix}{name}".replace("-", "_")
        path: Path | None = getattr(arguments, attribute, None)
        if path is not None:
            return read_credential(kind, path)
    return None


def warn_of_exposed_files(arguments: argparse.Namespace, prefix: str = "") -> None:
    """After success: warn of credential files on the command line that other users may read."""
    for name, _, _ in _OPTIONS:
        path: Path | None = getattr(arguments, f"{prefix}{name}".replace("-", "_"), None)
        if path is not None and is_exposed(path):
            warn(f"other users may read {path}; make it private with: chmod 600 {path}")


def find_credential(arguments: argparse.Namespace, config: PoolConfig) -> Credential:
    """The credential to unlock an existing pool with. Raises UsageError if there is none."""
    given = given_credential(arguments)
    if given is not None:
        return given
    unlock = config.unlock
    if unlock.keyfile is not None:
        return read_credential("keyfile", unlock.keyfile)
    if unlock.passphrase_file is not None:
        return read_credential("passphrase", unlock.passphrase_file)
    if unlock.recovery_key_file is not None:
        return read_credential("recovery", unlock.recovery_key_file)
    if not is_interactive():
        raise UsageError(
            f"nothing to unlock pool {config.name!r} with: give --passphrase-file, --keyfile or "
            "--recovery-key-file, name one under [unlock] in its configuration, or use a terminal"
        )
    text = getpass.getpass(f"Passphrase (or recovery key) of pool {config.name}: ")
    return credential_of_text(text)


def credential_of_text(text: str) -> Credential:
    """What somebody typed: a recovery key if it looks like one, else a passphrase."""
    # Imported here because commands that ask for nothing must start without native libraries.
    from dwfs.crypto import parse_recovery_key

    try:
        parse_recovery_key(text).wipe()
    except WrongKeyError:
        return Credential("passphrase", _encode(text))
    return Credential("recovery", text.encode("ascii"))


def new_passphrase(what: str) -> Credential:
    """Ask twice on the terminal for a passphrase. Raises UsageError if they differ or it is empty."""
    if not is_interactive():
        raise UsageError(
            f"nothing given as {what}, and no terminal to ask on: give a passphrase file or key file"
        )
    first = getpass.getpass(f"{what.capitalize()}: ")
    if not first:
        raise UsageError(f"an empty {what} protects nothing")
    if getpass.getpass("Again: ") != first:
        raise UsageError(f"the two inputs of the {what} differ; nothing was changed")
    return Credential("passphrase", _encode(first))


def is_interactive() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def _encode(text: str) -> bytes:
    return os.fsencode(text)

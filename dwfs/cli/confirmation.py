"""Asking before something that can't be taken back."""

from __future__ import annotations

import sys

from dwfs.cli.unlocking import is_interactive
from dwfs.errors import DwfsError, UsageError


class NotConfirmedError(DwfsError):
    """Somebody was asked and did not say yes."""


def confirm(what: str) -> None:
    """Ask on the terminal whether `what` is to be done; return only if it is.

    Raises NotConfirmedError, or UsageError if there is nobody to ask.
    """
    if not is_interactive():
        raise UsageError(f"{what}: give --yes to have that done, as there is no terminal to ask on")
    print(f"{what}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotConfirmedError("nothing was changed")

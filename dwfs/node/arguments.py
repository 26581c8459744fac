"""Reading the arguments of a control request: they come from outside, and are of any kind."""

from __future__ import annotations

from dwfs.errors import UsageError
from dwfs.node.control import Arguments

_TEXT_MAX = 8192  # a path has at most 4095 bytes, a label 64
_TEXTS_MAX = 4096  # snapshots of a pool


def flag(arguments: Arguments, name: str, *, otherwise: bool = False) -> bool:
    """A yes or no. Raises UsageError for anything else."""
    value = arguments.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, bool):
        raise UsageError(f"the argument {name!r} is true or false")
    return value


def text(arguments: Arguments, name: str, otherwise: str | None = None) -> str:
    """Some text; required if there is no `otherwise`. Raises UsageError."""
    value = arguments.get(name)
    if value is None and otherwise is not None:
        return otherwise
    if not isinstance(value, str) or len(value) > _TEXT_MAX or "\0" in value:
        raise UsageError(f"the argument {name!r} is missing, or is no proper text")
    return value


def texts(arguments: Arguments, name: str) -> list[str]:
    """One or more texts. Raises UsageError."""
    values = arguments.get(name)
    if not isinstance(values, list) or not 0 < len(values) <= _TEXTS_MAX:
        raise UsageError(f"the argument {name!r} is missing, or is no proper list")
    return [text({name: value}, name) for value in values]


def positive_number(arguments: Arguments, name: str) -> int | None:
    """A whole number above 0, or None if it isn't given. Raises UsageError."""
    value = arguments.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**63:
        raise UsageError(f"the argument {name!r} is a whole number above 0")
    return value

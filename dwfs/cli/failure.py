"""From an exception to one line on stderr and an exit code.

The line says what failed, why and what to do; a traceback is shown only with `DWFS_DEBUG=1`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Final

from dwfs.errors import DwfsError, PosixError

EXIT_UNFORESEEN: Final = 70  # EX_SOFTWARE: a defect of ours
EXIT_INTERRUPTED: Final = 130  # as a shell reports SIGINT
EXIT_BROKEN_PIPE: Final = 141  # as a shell reports SIGPIPE


def guarded(program: str, action: Callable[[], int]) -> int:
    """Call `action`; an exception becomes one line on stderr and its exit code."""
    try:
        return action()
    except BrokenPipeError:
        # The reader of our output is gone. Python would complain again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    # The outermost gateway: whatever went wrong, people get one line, never a traceback.
    except Exception as error:
        return report(program, error)


def report(program: str, error: BaseException) -> int:
    """Print an error as one line on stderr and return the exit code that goes with it."""
    if os.environ.get("DWFS_DEBUG") == "1":
        traceback.print_exception(error)
    text, code = describe(error)
    print(f"{program}: {text}", file=sys.stderr)
    return code


def describe(error: BaseException) -> tuple[str, int]:
    """One line and an exit code for any exception; groups are reduced to what matters most."""
    cause = _most_telling(error)
    match cause:
        case DwfsError():
            text, code = str(cause), cause.exit_code
        case PosixError():
            text, code = str(cause), 1
        case OSError() if cause.strerror:
            where = f"{os.fsdecode(cause.filename)}: " if cause.filename is not None else ""
            text, code = f"{where}{cause.strerror}", 1
        case _:
            text = (
                f"unforeseen error, a defect in dwfs: {type(cause).__name__}: {cause} "
                "(DWFS_DEBUG=1 shows where)"
            )
            code = EXIT_UNFORESEEN
    return " ".join(text.split()), code


def _most_telling(error: BaseException) -> BaseException:
    """The leaf of an exception group that an operator can act on, or else the first leaf."""
    leaves = _leaves(error)
    for leaf in leaves:
        if isinstance(leaf, DwfsError):
            return leaf
    return leaves[0]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]

"""What lies at the bottom of an exception group.

A nursery wraps what its tasks raise. Where there is one cause, callers want that: it carries the
sentence for the operator, the exit code, or the fact that a client has gone.
"""

from __future__ import annotations


def sole_cause(error: Exception) -> Exception:
    """The exception inside groups of one; other groups stay what they are."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

"""Finding and asking the process that owns a pool."""

from __future__ import annotations

from collections.abc import Mapping

from dwfs.config import Directories
from dwfs.errors import ControlError
from dwfs.node.client import NotListeningError, OnData, OnProgress, ask
from dwfs.node.lock import owner_of


def is_open(directories: Directories, pool: str) -> bool:
    """Whether some process owns the pool now."""
    return owner_of(directories, pool) is not None


def ask_owner(
    directories: Directories,
    pool: str,
    request: str,
    arguments: Mapping[str, object] | None = None,
    *,
    timeout_seconds: float = 30.0,
    on_progress: OnProgress | None = None,
    on_data: OnData | None = None,
) -> bytes:
    """The owner's answer, as JSON. Raises ControlError, which says whom it tried to ask."""
    try:
        return ask(
            directories.control_socket(pool),
            request,
            arguments,
            timeout_seconds=timeout_seconds,
            on_progress=on_progress,
            on_data=on_data,
        )
    except ControlError as error:
        owner = owner_of(directories, pool)
        who = f"process {owner}" if owner else "its owner, which has just ended"
        kind = NotListeningError if isinstance(error, NotListeningError) else ControlError
        raise kind(f"pool {pool!r} is open in {who}: {error}") from None

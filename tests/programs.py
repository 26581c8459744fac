"""Programs that tests use and people may not have."""

from __future__ import annotations

import shutil
from pathlib import Path


def installed(program: str) -> Path | None:
    """Where the program is, or None.

    Debian keeps PostgreSQL's out of PATH, all of one version in one directory; that comes first.
    """
    servers = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    found = servers[-1] if servers else shutil.which(program)
    return None if found is None else Path(found)

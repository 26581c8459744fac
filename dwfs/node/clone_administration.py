"""The request behind `dwfs clone`: a file that was made for it gets the bytes of another one.

It checks no permissions of files. Whoever reaches the control socket, root or the user who opened the
pool, may do anything with it anyway; and the command opens the source and makes the target through the
mount first, where the kernel checks them as for everybody.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from dwfs.errors import NoSpaceError, PosixError, UsageError
from dwfs.node.arguments import positive_number, text
from dwfs.node.assembly import Pool
from dwfs.node.control import Arguments, Handler, Progress
from dwfs.node.disk_administration import services_of
from dwfs.node.status import CloneAnswer
from dwfs.types import CLONE_NAME_PREFIX, InodeNumber


class CloneAdministration:
    """The requests of one open pool that concern single files."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def handlers(self) -> Mapping[str, Handler]:
        """Requests by name."""
        return {"file.clone": self.clone}

    async def clone(self, arguments: Arguments, progress: Progress) -> object:
        """Let the file `name` in inode `directory`, all hole, share the bytes of inode `source`."""
        services_of(self._pool)  # a pool that is read-only takes no changes
        source = positive_number(arguments, "source")
        directory = positive_number(arguments, "directory")
        name = text(arguments, "name")
        if source is None or directory is None or not name.startswith(CLONE_NAME_PREFIX):
            raise UsageError("a clone needs 'source', 'directory' and the 'name' of a new file")

        async def report(done: int, total: int) -> None:
            await progress({"what": "cloning", "done": done, "total": total, "unit": "bytes"})

        try:
            made = await self._pool.filesystem.clone(
                InodeNumber(source), InodeNumber(directory), name.encode(), report
            )
        except PosixError as error:
            raise self._explained(error) from None
        return CloneAnswer(self._pool.name, made.size, made.allocated_bytes)

    def _explained(self, error: PosixError) -> Exception:
        """What the operator should read in the place of an errno."""
        pool = self._pool.name
        match error.errno:
            case errno.EXDEV:
                return UsageError("a file of a snapshot can't be cloned: copy it with cp")
            case errno.EDQUOT:
                return NoSpaceError(
                    f"the clone does not fit in the quota of pool {pool}, where it counts in full: "
                    f"see 'dwfs volume get {pool}'"
                )
            case errno.ENOENT | errno.EINVAL | errno.EISDIR | errno.EEXIST:
                return UsageError(
                    f"the files are not in pool {pool} as they were a moment ago: try again"
                )
            case _:
                return error

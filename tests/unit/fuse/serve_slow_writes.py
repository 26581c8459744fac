"""A process that serves a `small_pool` whose changes take long: `serve_slow_writes.py DIR MOUNTPOINT`.

For each SIGUSR1 it brings in what the kernel holds, and prints whether it knows that all has come,
and how many bytes are there then.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio
from pyfuse3 import EntryAttributes, RequestContext, SetattrFields

from dwfs.fuse import DwfsOperations, FuseSession, parse_mount_options
from dwfs.fuse.write_back import WriteBack
from tests.unit.vfs.small_pool import small_pool

_WRITE_SECONDS = 0.05
_SETATTR_SECONDS = 0.01


async def main(directory: Path, mountpoint: str) -> None:
    async with small_pool(directory) as pool:
        operations = DwfsOperations(pool.fs)
        write, change = operations.write, operations.setattr

        async def slow_write(fh: int, offset: int, buffer: bytes) -> int:
            await trio.sleep(_WRITE_SECONDS)
            return await write(fh, offset, buffer)

        async def slow_setattr(
            inode: int,
            attr: EntryAttributes,
            fields: SetattrFields,
            fh: int | None,
            ctx: RequestContext,
        ) -> EntryAttributes:
            await trio.sleep(_SETATTR_SECONDS)
            return await change(inode, attr, fields, fh, ctx)

        setattr(operations, "write", slow_write)  # noqa: B010  # mypy forbids assigning to a method
        setattr(operations, "setattr", slow_setattr)  # noqa: B010  # as above
        write_back = WriteBack(mountpoint)
        write_back.watch(operations)
        session = FuseSession(operations, mountpoint, parse_mount_options(""), "small pool")

        async def obey() -> None:
            with trio.open_signal_receiver(signal.SIGUSR1) as signals:
                print("ready", flush=True)
                async for _ in signals:
                    complete = await write_back.run()
                    print(complete, pool.volume.usage().allocated_bytes, flush=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.fs.run_purger)
            await session.serve(lambda: nursery.start_soon(obey))
            nursery.cancel_scope.cancel()
        await pool.fs.close()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])

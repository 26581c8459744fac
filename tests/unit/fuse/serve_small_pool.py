"""A process that serves a `small_pool` at a mount point: `serve_small_pool.py DIR MOUNTPOINT OPTIONS`.

A process of its own, because a test that opened files of a mount that its own process serves could
block the loop that has to answer. Prints "ready", and at the end what tests want to know. With
"commands" as last argument it does what its stdin says (`take NAME`, `destroy NAME`: snapshots; `show
no|yes`: list them; `slot N`: that all of them get), and answers each line by "done".
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import msgspec
import trio

from dwfs.fuse import DwfsOperations, FuseSession, parse_mount_options, supplementary_groups
from dwfs.types import InodeNumber
from dwfs.vfs import FilesystemOptions
from tests.unit.vfs.small_pool import SmallPool, small_pool


async def main(directory: Path, mountpoint: str, text: str) -> None:
    options = parse_mount_options(text)
    settings = FilesystemOptions(options.access_time, supplementary_groups)
    async with small_pool(directory, settings) as pool:
        readlink = pool.fs.readlink

        def fragile_readlink(number: InodeNumber) -> bytes:
            target = readlink(number)
            if target == b"raise":
                raise ZeroDivisionError("a bug, made for the test")
            return target

        pool.fs.readlink = fragile_readlink  # type: ignore[method-assign]  # the injected bug
        operations = DwfsOperations(pool.fs)
        session = FuseSession(operations, mountpoint, options, "small pool")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.fs.run_purger)
            nursery.start_soon(stop_on_signal, session)
            if sys.argv[4:] == ["commands"]:
                nursery.start_soon(follow_commands, pool)
            await session.serve(lambda: print("ready", flush=True))
            nursery.cancel_scope.cancel()
        print(f"unforeseen={operations.unforeseen_errors}", f"handles={pool.fs.open_handles}")
        print(f"bytes={pool.volume.usage().allocated_bytes}")
        await pool.fs.close()
        print(f"orphans={len(pool.volume.orphans())}", flush=True)


async def stop_on_signal(session: FuseSession) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            await session.stop()


async def follow_commands(pool: SmallPool) -> None:
    volume = pool.volume
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        async for chunk in stream:
            word, name = chunk.decode().split()
            if word == "take":
                await volume.take_snapshot(name, pool.clock.wall_ns())
            elif word == "destroy":
                await volume.destroy_snapshot(name)
                while await volume.reap():
                    pass
            elif word == "slot":
                slot = int(name)
                pool.state.snapshots.slot_for = lambda epoch, slot=slot: slot  # type: ignore[method-assign,misc]  # for the test
            else:
                properties = msgspec.structs.replace(
                    volume.properties, snapshots_visible=name == "yes"
                )
                await volume.set_properties(properties)
            print("done", flush=True)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr)
    trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3])

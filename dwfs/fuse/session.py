"""One mount from beginning to end.

Before: the mount point and the system are checked, so that failures are one clear line. During:
pyfuse3's loop runs in the caller's task. After: whatever the reason, the session is closed and our
mount is gone from the mount table.

A graceful end comes from outside: umount(8), or `FuseSession.stop`, which unmounts while the loop
still answers, since the kernel writes its dirty pages back then. Cancelling `serve` is the
emergency exit: what the kernel had not yet sent is lost, as in a crash.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Set
from typing import Final

import pyfuse3
import trio

from dwfs.errors import DwfsError
from dwfs.fuse import mounting
from dwfs.fuse.handshake import Handshake
from dwfs.fuse.mountinfo import mount_at
from dwfs.fuse.operations import DwfsOperations
from dwfs.fuse.options import MountOptions
from dwfs.fuse.receive import Reception, quick_receive

WORKERS_MAX: Final = 64  # requests in progress: more than the kernel's background queue sends
WORKERS_IDLE: Final = 8  # kept for the next burst: a parked task costs nothing, starting one does


class FuseSession:
    """A mount that is about to be made, serving, or over. Only one in a process at a time."""

    def __init__(
        self,
        operations: DwfsOperations,
        mountpoint: str,
        options: MountOptions,
        source: str,
    ) -> None:
        """`source` is the pool's name: the mount table shows it, unless `options` say otherwise.

        Raises UsageError, PoolBusyError or UnsupportedSystemError, with nothing changed.
        """
        mounting.check_system()
        self.mountpoint = mounting.check_mount_point(mountpoint)
        self._operations = operations
        self._options = options
        self._source = options.fsname or source
        self._serving = False
        self._handshake: Handshake | None = None

    async def serve(self, on_ready: Callable[[], None] | None = None) -> None:
        """Mount, call `on_ready` once files can be used, and return when the mount is gone."""
        with quick_receive(waiting=self._operations.is_waiting) as reception:
            device = self._open(reception)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._announce, on_ready)
                    self._serving = True
                    with self._operations.telling_kernel():
                        await pyfuse3.main(min_tasks=WORKERS_IDLE, max_tasks=WORKERS_MAX)
                    nursery.cancel_scope.cancel()
            finally:
                self._serving = False
                self._close(device)

    async def stop(self) -> None:
        """Unmount; `serve` then returns. Open files do not prevent it, but they stop working."""
        unmount = mounting.unmount
        try:
            await trio.to_thread.run_sync(unmount, self.mountpoint)
            return
        except DwfsError:  # mostly because it is in use; whatever it was, nothing may be lost
            with contextlib.suppress(OSError):  # of that the writers hear
                await trio.to_thread.run_sync(mounting.write_back, self.mountpoint)
        await trio.to_thread.run_sync(lambda: unmount(self.mountpoint, lazy=True))
        if self._serving:
            pyfuse3.terminate()

    def _open(self, reception: Reception | None) -> str | None:
        """Mount. Returns the new filesystem's device number, if known."""
        if os.geteuid() == 0:
            self._open_as_root(reception)
        else:
            options = mounting.libfuse_options(self._source, self._options)
            try:
                pyfuse3.init(self._operations, self.mountpoint, options)
            except RuntimeError as error:  # libfuse has said why on stderr
                raise DwfsError(
                    f"can't mount at {self.mountpoint}: fusermount3 refused; "
                    "the directory must be yours, and allow_other needs user_allow_other "
                    "in /etc/fuse.conf"
                ) from error
        present = mount_at(self.mountpoint)
        return None if present is None else present.device

    def _open_as_root(self, reception: Reception | None) -> None:
        device = mounting.mount(self.mountpoint, self._source, self._options)
        try:
            if reception is not None:
                self._handshake = Handshake(device)
                reception.before_second_wait(self._handshake.finish)
            descriptor = self._handshake.descriptor if self._handshake else device
            pyfuse3.init(self._operations, f"/dev/fd/{descriptor}", {f"fsname={self._source}"})
        except BaseException:  # whatever it was, a mount that nobody serves must not stay
            with contextlib.suppress(DwfsError):
                mounting.unmount(self.mountpoint, lazy=True)
            if self._handshake is not None:
                self._handshake.close()
            else:
                os.close(device)
            raise

    def _close(self, device: str | None) -> None:
        pyfuse3.close(unmount=True)
        if self._handshake is not None:
            self._handshake.close()
        present = mount_at(self.mountpoint)
        # The device number tells our mount from one that somebody made here since.
        if present is not None and present.device == device:
            with contextlib.suppress(DwfsError):
                mounting.unmount(self.mountpoint, lazy=True)

    async def _announce(self, on_ready: Callable[[], None] | None) -> None:
        # The answer to the kernel's first request resets the read-ahead, so it must be out before.
        # The worker that handles it waits for the next one, and thereby passes the answer on,
        # before it lets any other task run.
        await self._operations.initialised.wait()
        mounting.raise_read_ahead(self.mountpoint)
        if on_ready is not None:
            on_ready()


def supplementary_groups(process: int) -> Set[int]:
    """A `dwfs.vfs.GroupsOf`: what /proc says of the process. Raises OSError if it has ended."""
    try:
        return pyfuse3.get_sup_groups(process)
    except (RuntimeError, ValueError) as error:  # a status file without such a line
        raise ProcessLookupError(process) from error

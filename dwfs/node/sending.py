"""`dwfs send` in the process that owns the pool: a snapshot, or what changed since one, as a stream.

The snapshots are held for as long as it takes: they can't be destroyed meanwhile, neither by hand nor by
the schedule. The stream goes to whoever asked, at his pace.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final

from dwfs.errors import PosixError, UsageError
from dwfs.node.arguments import flag, text
from dwfs.node.assembly import Pool
from dwfs.node.control import Arguments, Progress, SendData, StreamHandler
from dwfs.node.credential import decode_credential
from dwfs.node.stream_answers import SendAnswer
from dwfs.send import Sender, StreamSecret
from dwfs.send.format import SALT_SIZE, STREAM_ID_SIZE, FrameSealer, Header, encode_header
from dwfs.volume.records import Snapshot
from dwfs.volume.transfer import RECEIVING_NAME, Origin

_TOLD_SECONDS: Final = 0.25  # between two tellings of how far it is


class Sending:
    """The requests of one open pool that give streams."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def streams(self) -> Mapping[str, StreamHandler]:
        """Requests by name."""
        return {"send": self.send}

    async def send(
        self, arguments: Arguments, progress: Progress, send_data: SendData
    ) -> SendAnswer:
        """Send the snapshot `name`, since the snapshot `base` if there is one; or only `measure` it.

        `credential`: of the stream, else it is sealed with the pool's root key.
        """
        target = self._find(text(arguments, "name"))
        base_name = text(arguments, "base", "")
        base = self._find(base_name) if base_name else None
        if base is not None and base.epoch >= target.epoch:
            raise UsageError(
                f"@{base.name} is not older than @{target.name}: an increment goes from an older "
                "snapshot to a newer one"
            )
        pool = self._pool
        measured_only = flag(arguments, "measure")
        with self._held(target, base):
            sender = Sender(pool.volume, pool.stripes, base, target)
            if measured_only:
                await sender.estimate()
            else:
                await self._stream(arguments, progress, send_data, sender, base, target)
        records, data_bytes, stream_bytes = sender.measure
        return SendAnswer(
            pool.name,
            target.name,
            None if base is None else base.name,
            records,
            data_bytes,
            stream_bytes,
            measured_only,
        )

    async def _stream(
        self,
        arguments: Arguments,
        progress: Progress,
        send_data: SendData,
        sender: Sender,
        base: Snapshot | None,
        target: Snapshot,
    ) -> None:
        foundation = self._pool.foundation
        platform = foundation.platform
        given = arguments.get("credential")
        protector = None if given is None else decode_credential(given).protector()
        secret = StreamSecret(foundation.keys.root, protector)
        stream = platform.randomness.bytes(STREAM_ID_SIZE)
        salt = platform.randomness.bytes(SALT_SIZE)
        try:
            key = await platform.run_blocking(
                partial(secret.key, stream, salt, secret.cost)  # a passphrase takes its time
            )
            header = Header(
                stream,
                self._origin(target),
                None if base is None else self._origin(base),
                target.inode_count,
                target.allocated_bytes,
                secret.kind,
                salt,
                secret.cost,
                key.commitment,
            )
        finally:
            secret.wipe()
        encoded = encode_header(header)
        total = target.allocated_bytes if base is None else None
        told = platform.clock.now()

        async def sink(frame: bytes) -> None:
            nonlocal told
            await send_data(frame)
            now = platform.clock.now()
            if now - told >= _TOLD_SECONDS:
                told = now
                done = sender.measure.data_bytes
                await progress({"done": done, "total": total, "unit": "bytes"})

        await send_data(encoded)
        await sender.run(FrameSealer(header, encoded, key), sink)

    def _origin(self, snapshot: Snapshot) -> Origin:
        header = self._pool.foundation.header
        return Origin(
            header.pool, header.root_volume, snapshot.epoch, snapshot.time_ns, snapshot.name
        )

    def _find(self, name: str) -> Snapshot:
        pool = self._pool.name
        try:
            if name == RECEIVING_NAME:
                raise UsageError(f"pool {pool} is receiving a stream: @{name} is not to be sent")
            return self._pool.volume.snapshot(name)
        except PosixError:
            raise UsageError(
                f"pool {pool} has no snapshot {name!r}: 'dwfs snapshot list {pool}' shows them"
            ) from None

    def _held(self, target: Snapshot, base: Snapshot | None) -> AbstractContextManager[None]:
        services = self._pool.services
        if services is None:
            return nullcontext()  # read-only: nobody can destroy anything
        return services.snapshots.held([target.name] if base is None else [base.name, target.name])

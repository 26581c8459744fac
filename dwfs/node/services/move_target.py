"""How the volume learns that shards lie elsewhere now."""

from __future__ import annotations

from collections.abc import Sequence

from dwfs.types import ShardMove
from dwfs.volume import Volume
from dwfs.volume.commands import MoveShards


class VolumeMoveTarget:
    """Implements `dwfs.stripe.MoveTarget` over one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    async def place(self, moves: Sequence[ShardMove]) -> None:
        """Note the moves durably; only then may a shard be deleted at its source.

        Raises PosixError if they may not be durable: the shards must stay in both places then. The
        barrier comes also without moves, for a caller whose earlier one failed.
        """
        if moves:
            await self._volume.propose(MoveShards(tuple(moves)))
        await self._volume.barrier()

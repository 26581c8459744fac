"""Properties of a volume: what its administrator decides, apart from what users store in it.

They are part of the state, set by a command like everything else, so they survive crashes, replay
and import. They are not versioned: a snapshot holds files, and going back to one leaves the quota
where it was set last.

Invariants, checked by `validate`: `compression` is what `dwfs.codec.compression_level` knows; a quota is
absent or at least 1; `trash_days` is from 0 (no trash) to `TRASH_DAYS_MAX`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dwfs.codec import compression_level

TRASH_DAYS_MAX: Final = 36_500  # a hundred years: more is surely a mistake
QUOTA_MAX: Final = 2**63 - 1


class Properties(msgspec.Struct, frozen=True, array_like=True):
    """What is set of one volume. Fields are only ever added at the end, with a default."""

    compression: str = "off"  # of stripes sealed from now on
    quota_bytes: int | None = None  # logical bytes mapped to stripes; None: no limit
    quota_inodes: int | None = None  # orphans included; None: no limit
    trash_days: int = 0  # that deleted files are kept; 0: they are not
    snapshots_visible: bool = False  # whether `.snapshots` is listed

    def validate(self) -> None:
        """Raises ValueError, which tells what may be set instead."""
        compression_level(self.compression)
        for name, quota in (("quota", self.quota_bytes), ("inodes", self.quota_inodes)):
            if quota is not None and not 1 <= quota <= QUOTA_MAX:
                raise ValueError(f"{name} is a number from 1 to 2**63 - 1; none is for no limit")
        if not 0 <= self.trash_days <= TRASH_DAYS_MAX:
            raise ValueError(
                f"trash is a number of days up to {TRASH_DAYS_MAX}; none is for no trash"
            )


_decoder = msgspec.msgpack.Decoder(Properties)

encode_properties = msgspec.msgpack.Encoder().encode


def decode_properties(value: bytes | None) -> Properties:
    """What is stored under the properties' key; the defaults where nothing ever was."""
    return Properties() if value is None else _decoder.decode(value)

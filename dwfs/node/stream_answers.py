"""What is said of a stream that was sent or received; part of the control socket's language."""

from __future__ import annotations

import msgspec


class SendAnswer(msgspec.Struct, frozen=True):
    """A stream that was made, or measured."""

    pool: str
    snapshot: str
    base: str | None  # None: a full stream
    records: int
    data_bytes: int  # of files
    stream_bytes: int  # nearly, where it was only measured
    measured_only: bool = False


class ReceiveAnswer(msgspec.Struct, frozen=True):
    """A stream that was received to its end."""

    pool: str
    snapshot: str
    base: str | None
    stream_bytes: int
    skipped_bytes: int  # of these, what had come in before
    inodes: int  # in the snapshot now
    logical_bytes: int  # likewise

"""Snapshots as streams of bytes: made by `Sender`, taken in by `Receiver`.

A stream says what is in a snapshot, or what changed in it since an earlier one, in terms of files,
names and bytes; it is sealed under a key of its own and can be kept in a file or piped through anything.
`dwfs.send.format` has its format, `dwfs.volume.changes` finds what to say, `dwfs.volume.receiving`
applies it.

The user's duties:

1. Keep both snapshots from being destroyed while a `Sender` runs.
2. Keep everybody else from changing the volume while a `Receiver` runs; nobody may mount it before the
   last frame is in, or the receive was aborted.
"""

from dwfs.send.keys import StreamSecret
from dwfs.send.receiver import Receiver, abort_receive, unfinished_receive
from dwfs.send.sender import Measure, Sender

__all__ = ["Measure", "Receiver", "Sender", "StreamSecret", "abort_receive", "unfinished_receive"]

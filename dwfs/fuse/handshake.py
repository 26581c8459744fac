"""The first exchange between kernel and libfuse, improved on its way.

With FUSE_INIT the kernel offers features and the server's answer chooses. pyfuse3 lets us choose
three of them; two more are worth having, and a third is free:

* `FUSE_HANDLE_KILLPRIV_V2`: without it the kernel asks for `security.capability` before *every*
  write(2), which doubles the cost of a small one. With it, clearing set-user-id bits on write and
  truncate is our duty (`dwfs.vfs` does it).
* `FUSE_DONT_MASK`: modes come without the umask applied, as default ACLs need them.
* `FUSE_CACHE_SYMLINKS`: link targets never change.

So the session starts not on `/dev/fuse` but on a socket. We read the kernel's request, put it in
there, let libfuse answer into the socket, add flags that the kernel has offered, pass the answer
on, and put `/dev/fuse` in the socket's place with dup2(2). From then on nobody is in between.

Safety: pyfuse3 handles FUSE_INIT without suspending, and waits for the next request afterwards. So
the first wait finds the request in the socket, and at the second wait the answer is there. Both
waits are ours (`dwfs.fuse.receive`); without them there is no handshake either. The flags need no
support by libfuse: none of them changes the form of a message.

Layouts: include/uapi/linux/fuse.h, all fields in the machine's byte order.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Final

from dwfs.errors import UnsupportedSystemError

FUSE_INIT: Final = 26
DONT_MASK: Final = 1 << 6
CACHE_SYMLINKS: Final = 1 << 23
HANDLE_KILLPRIV_V2: Final = 1 << 28
WANTED: Final = DONT_MASK | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2

_REQUEST_HEADER: Final = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, …
_REPLY_HEADER: Final = struct.Struct("=IiQ")  # length, error, unique
_FLAGS: Final = struct.Struct("=I")
_FLAGS_AT: Final = 12  # in both fuse_init_in and fuse_init_out, after three u32
_REQUEST_SIZE_MAX: Final = 128 * 1024  # the kernel refuses to write into less than 8 KiB
_INIT_SECONDS: Final = 10.0  # the kernel sends the request before mount(2) returns


def offered_flags(request: bytes) -> int:
    """The features in a FUSE_INIT request. Raises UnsupportedSystemError on anything else."""
    if len(request) < _REQUEST_HEADER.size + _FLAGS_AT + _FLAGS.size or (
        _REQUEST_HEADER.unpack_from(request)[1] != FUSE_INIT
    ):
        raise UnsupportedSystemError("the kernel did not begin with FUSE_INIT; update it")
    flags: int = _FLAGS.unpack_from(request, _REQUEST_HEADER.size + _FLAGS_AT)[0]
    return flags


def with_flags(reply: bytes, flags: int) -> bytes:
    """The answer with more features chosen; unchanged if it is a refusal."""
    if _REPLY_HEADER.unpack_from(reply)[1] != 0:
        return reply
    at = _REPLY_HEADER.size + _FLAGS_AT
    changed = bytearray(reply)
    _FLAGS.pack_into(changed, at, _FLAGS.unpack_from(reply, at)[0] | flags)
    return bytes(changed)


class Handshake:
    """One session's. `descriptor` is what libfuse gets; it becomes `/dev/fuse` by `finish`."""

    def __init__(self, device: int) -> None:
        """Takes `device`, an open `/dev/fuse` that was just mounted. Waits for the first request."""
        self._device = device
        poll = select.poll()
        poll.register(device, select.POLLIN)
        if not poll.poll(_INIT_SECONDS * 1000):
            raise UnsupportedSystemError("the kernel does not speak on /dev/fuse; update it")
        request = os.read(device, _REQUEST_SIZE_MAX)
        self._flags = offered_flags(request) & WANTED
        near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._far.send(request)
        self.descriptor = near.detach()

    def finish(self) -> None:
        """libfuse has answered: pass the answer on, and step out of the way."""
        reply = self._far.recv(_REQUEST_SIZE_MAX, socket.MSG_DONTWAIT)
        os.write(self._device, with_flags(reply, self._flags))
        os.dup2(self._device, self.descriptor, inheritable=False)
        self.close()

    def close(self) -> None:
        """Give back what is ours; `descriptor` is libfuse's to close. May be called again."""
        self._far.close()
        if self._device >= 0:
            os.close(self._device)
            self._device = -1

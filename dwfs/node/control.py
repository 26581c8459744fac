"""The control socket: how administrators' commands reach the process that owns a pool.

A Unix stream socket in the pool's runtime directory, mode 0600, one JSON object a line:

    → {"request": "status", "arguments": {…}}
    ← {"progress": {…}}            any number of these
    ← {"data": 1048576}            and so many bytes right after the line: any number of these, too
    ← {"result": …}                or
    ← {"error": "one line", "exit_code": 5}

A connection carries any number of requests, one after another. The server bounds everything that a
client could use against it: length of a line, time to send one, number of connections; it checks
the peer's user id besides the socket's mode. Whatever a client does costs only its connection.
Requests may carry secrets (a passphrase for a new keyslot): they are never logged, and never
repeated in an error.

Sockets are addressed through /proc/self/fd, because a socket's path may have only 107 bytes and
`DWFS_ROOT` may lie deep.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import trio

from dwfs.errors import DwfsError, MediumError, PosixError
from dwfs.limits import (
    CONTROL_CONNECTIONS_MAX,
    CONTROL_REQUEST_SECONDS,
    CONTROL_REQUEST_SIZE_MAX,
    CONTROL_RESPONSE_SIZE_MAX,
)
from dwfs.node.causes import sole_cause

_log = logging.getLogger(__name__)

Arguments = dict[str, object]
Progress = Callable[[Mapping[str, object]], Awaitable[None]]
Handler = Callable[[Arguments, Progress], Awaitable[object]]
SendData = Callable[[bytes], Awaitable[None]]
StreamHandler = Callable[[Arguments, Progress, SendData], Awaitable[object]]


class Request(msgspec.Struct, frozen=True):
    """One line from a client."""

    request: str
    arguments: Arguments = msgspec.field(default_factory=dict)


_request_decoder = msgspec.json.Decoder(Request)


class Failure(msgspec.Struct, frozen=True):
    """The answer to a request that failed."""

    error: str
    exit_code: int


class ControlServer:
    """Serves requests until cancelled. One per owned pool; the caller holds the pool's lock."""

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        on_unforeseen: Callable[[], None],
        streams: Mapping[str, StreamHandler] | None = None,
    ) -> None:
        """`on_unforeseen` is called for each exception that no handler should have raised.

        `streams` handles requests whose answer is preceded by data.
        """
        self._path = path
        self._handlers = dict(handlers)
        self._streams = dict(streams or {})
        self._on_unforeseen = on_unforeseen
        self._connections = 0
        self._listener = _listen(path)

    async def serve(self) -> None:
        """Accept and serve connections; returns only by cancellation, and then removes the socket."""
        listener = trio.socket.from_stdlib_socket(self._listener)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    connection, _ = await listener.accept()
                    if self._connections >= CONTROL_CONNECTIONS_MAX or not _trusted(connection):
                        connection.close()
                        continue
                    self._connections += 1
                    nursery.start_soon(self._serve_connection, connection)
        finally:
            listener.close()
            self._path.unlink(missing_ok=True)

    async def _serve_connection(self, connection: trio.socket.SocketType) -> None:
        stream = trio.SocketStream(connection)
        try:
            async with stream:
                buffer = bytearray()
                while (line := await _receive_line(stream, buffer)) is not None:
                    await self._answer(stream, line)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client went away, or sends nothing: its own loss
        finally:
            self._connections -= 1

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> None:
        async def progress(event: Mapping[str, object]) -> None:
            await _send(stream, {"progress": event})

        try:
            request = _request_decoder.decode(line)
        except msgspec.DecodeError:
            await _send(stream, Failure("the request is not understood", 2))
            return
        streamer = self._streams.get(request.request)
        handler = (
            self._handlers.get(request.request)
            if streamer is None
            else partial(_with_data, streamer, stream)
        )
        if handler is None:
            await _send(stream, Failure(f"unknown request {request.request[:64]!r}", 2))
            return
        answer: object
        try:
            answer = {"result": await handler(request.arguments, progress)}
        # A defect in one request must not take the mounted filesystem down: it is answered below.
        except Exception as error:
            answer = self._failure(request.request, sole_cause(error))
        await _send(stream, answer)

    def _failure(self, request: str, error: Exception) -> Failure:
        """The answer to a request that failed. Raises again if it is the client who has gone."""
        match error:
            case DwfsError():
                return Failure(str(error), error.exit_code)
            case PosixError() | MediumError():
                return Failure(str(error), 1)
            case trio.BrokenResourceError() | trio.ClosedResourceError() | trio.TooSlowError():
                raise error
            case OSError():
                where = f"{error.filename}: " if error.filename else ""
                return Failure(f"{where}{error.strerror or error}", 1)
            case msgspec.ValidationError():
                return Failure(f"the request's arguments are not understood: {error}", 2)
            case _:
                self._on_unforeseen()
                _log.error("unforeseen error in control request %r", request, exc_info=error)
                return Failure("unforeseen error in the owning process; see its log", 1)


class RefusedError(DwfsError):
    """The owner refused a request; carries its exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code  # type: ignore[misc]  # a ClassVar elsewhere: here it is the peer's


async def _with_data(
    handler: StreamHandler, stream: trio.SocketStream, arguments: Arguments, progress: Progress
) -> object:
    async def send_data(data: bytes) -> None:
        # However long it takes: the client passes it on to somebody who may be slow.
        await stream.send_all(msgspec.json.encode({"data": len(data)}) + b"\n" + data)

    return await handler(arguments, progress, send_data)


def _listen(path: Path) -> socket.socket:
    """Bind and listen. The caller holds the pool's lock, so a socket found there is a leftover."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mask = os.umask(0o177)  # before threads start, so no other file can be affected
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        listener.listen(CONTROL_CONNECTIONS_MAX)
    except BaseException:  # whatever it was: nobody else closes it
        listener.close()
        raise
    finally:
        os.umask(mask)
        os.close(directory)
    return listener


def _trusted(connection: trio.socket.SocketType) -> bool:
    """Whether the peer is root or the user that we run as."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("3i", credentials)
    return user in (0, os.geteuid())


async def _receive_line(stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
    """The next line without its end, or None at the end of the connection or of our patience."""
    with trio.fail_after(CONTROL_REQUEST_SECONDS):
        while (end := buffer.find(b"\n")) < 0:
            if len(buffer) > CONTROL_REQUEST_SIZE_MAX:
                await _send(stream, Failure("the request is too long", 2))
                return None
            chunk = await stream.receive_some(65536)
            if not chunk:
                return None
            buffer += chunk
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line


async def _send(stream: trio.SocketStream, message: object) -> None:
    encoded = msgspec.json.encode(message)
    if len(encoded) > CONTROL_RESPONSE_SIZE_MAX:
        encoded = msgspec.json.encode(Failure("the answer is too long", 1))
    with trio.fail_after(CONTROL_REQUEST_SECONDS):
        await stream.send_all(encoded + b"\n")

"""The other end of the control socket: used by short-lived commands, hence without an event loop."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from dwfs.errors import ControlError
from dwfs.limits import CONTROL_RESPONSE_SIZE_MAX
from dwfs.node.control import RefusedError

OnProgress = Callable[[Mapping[str, object]], None]
OnData = Callable[[bytes], None]  # must not raise OSError, which is taken for the connection's


class NotListeningError(ControlError):
    """There is no socket to talk to: the owner is still opening the pool, or has just ended."""


class _Reply(msgspec.Struct, frozen=True):
    progress: dict[str, object] | None = None
    result: msgspec.Raw = msgspec.Raw()  # empty: not there
    data: int | None = None  # so many bytes follow the line
    error: str | None = None
    exit_code: int = 1


_reply_decoder = msgspec.json.Decoder(_Reply)


def ask(
    path: Path,
    request: str,
    arguments: Mapping[str, object] | None = None,
    *,
    timeout_seconds: float = 30.0,
    on_progress: OnProgress | None = None,
    on_data: OnData | None = None,
) -> bytes:
    """Send one request to a pool's owner and return the result as JSON bytes.

    `timeout_seconds` is the longest silence that is borne. Raises RefusedError with the owner's
    own words and exit code, or ControlError if there is no talking to it.
    """
    with _connect(path, timeout_seconds) as connection:
        line = msgspec.json.encode({"request": request, "arguments": dict(arguments or {})})
        try:
            connection.sendall(line + b"\n")
            with connection.makefile("rb") as file:
                while True:
                    reply = _parse(file.readline(CONTROL_RESPONSE_SIZE_MAX + 1), path)
                    if reply.error is not None:
                        raise RefusedError(reply.error, reply.exit_code)
                    if reply.result:
                        return bytes(reply.result)
                    if reply.data is not None and on_data is not None:
                        on_data(_read_data(file, reply.data, path))
                    if reply.progress is not None and on_progress is not None:
                        on_progress(reply.progress)
        except TimeoutError:
            raise ControlError(
                f"the owning process does not answer on {path} within {timeout_seconds:.0f} s"
            ) from None
        except OSError as error:
            raise ControlError(f"lost the owning process on {path}: {error.strerror}") from None


def _connect(path: Path, timeout_seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout_seconds)
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Through /proc: a socket's path may have only 107 bytes.
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except OSError as error:
        connection.close()
        raise NotListeningError(
            f"can't reach the owning process on {path}: {error.strerror}"
        ) from None
    return connection


def _read_data(file: BinaryIO, length: int, path: Path) -> bytes:
    data = file.read(length) if 0 < length <= CONTROL_RESPONSE_SIZE_MAX else b""
    if len(data) != length:
        raise ControlError(f"the owning process closed the connection on {path}; see its log")
    return data


def _parse(line: bytes, path: Path) -> _Reply:
    if not line.endswith(b"\n"):
        raise ControlError(f"the owning process closed the connection on {path}; see its log")
    try:
        return _reply_decoder.decode(line)
    except msgspec.DecodeError:
        raise ControlError(f"the answer on {path} is not understood; versions may differ") from None

"""The control socket serves its clients, and outlives hostile ones."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from dwfs.errors import ControlError, WrongKeyError
from dwfs.limits import CONTROL_CONNECTIONS_MAX, CONTROL_REQUEST_SIZE_MAX
from dwfs.node.client import ask
from dwfs.node.control import Arguments, ControlServer, Progress, RefusedError, SendData


async def _echo(arguments: Arguments, progress: Progress) -> object:
    return arguments


async def _refuse(arguments: Arguments, progress: Progress) -> object:
    raise WrongKeyError("that key opens nothing")


async def _break(arguments: Arguments, progress: Progress) -> object:
    raise RuntimeError("a defect")


async def _count(arguments: Arguments, progress: Progress) -> object:
    for number in range(3):
        await progress({"done": number})
    return {"total": 3}


async def _pour(arguments: Arguments, progress: Progress, send_data: SendData) -> object:
    for number in range(3):
        await send_data(bytes([number]) * 300_000 + b"\n{}\n")
        await progress({"done": number})
    if arguments:
        raise WrongKeyError("no more")
    return {"total": 3}


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[Path, list[None]]]:
    """A server with a few handlers, on a socket in `directory`."""
    path = directory / "control.sock"
    handlers = {"echo": _echo, "refuse": _refuse, "break": _break, "count": _count}
    unforeseen: list[None] = []
    streams = {"pour": _pour}
    server = ControlServer(path, handlers, lambda: unforeseen.append(None), streams)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        yield path, unforeseen
        nursery.cancel_scope.cancel()


async def _ask(path: Path, request: str, arguments: Mapping[str, object] | None = None) -> object:
    return msgspec.json.decode(await trio.to_thread.run_sync(ask, path, request, arguments))


async def test_a_request_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        assert await _ask(path, "echo", {"text": "grüß"}) == {"text": "grüß"}


async def test_the_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not path.exists()


async def test_a_leftover_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(tmp_path / "control.sock"))
    async with serving(tmp_path) as (path, _):
        assert await _ask(path, "echo") == {}


async def test_a_deep_directory_does_not_matter(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with serving(deep) as (path, _):
        assert await _ask(path, "echo") == {}


async def test_an_error_keeps_its_words_and_exit_code(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, unforeseen):
        with pytest.raises(RefusedError, match="opens nothing") as caught:
            await _ask(path, "refuse")
        assert caught.value.exit_code == WrongKeyError.exit_code
        assert not unforeseen


@pytest.mark.expect_log("unforeseen error in control request")
async def test_a_defect_is_counted_and_the_server_lives_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as (path, unforeseen):
        with pytest.raises(RefusedError, match="unforeseen"):
            await _ask(path, "break")
        assert len(unforeseen) == 1
        assert await _ask(path, "echo") == {}
    assert "a defect" in caplog.text


async def test_progress_arrives_in_order(tmp_path: Path) -> None:
    seen: list[Mapping[str, object]] = []
    async with serving(tmp_path) as (path, _):
        raw = await trio.to_thread.run_sync(lambda: ask(path, "count", on_progress=seen.append))
    assert seen == [{"done": 0}, {"done": 1}, {"done": 2}]
    assert msgspec.json.decode(raw) == {"total": 3}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[1, 2]\n",
        b"\xff\xfe\n",
        b'{"request": 5}\n',
        b'{"request": "echo", "arguments": []}\n',
        b'{"request": "no such thing"}\n',
        b"[" * 50_000 + b"\n",
    ],
)
async def test_nonsense_is_refused_and_costs_nothing_else(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path) as (path, unforeseen):
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(line)
        assert msgspec.json.decode(await stream.receive_some())["exit_code"] == 2
        await stream.send_all(b'{"request": "echo"}\n')
        assert msgspec.json.decode(await stream.receive_some()) == {"result": {}}
        assert not unforeseen
        await stream.aclose()


async def test_an_endless_line_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        stream = await trio.open_unix_socket(str(path))
        sent = 0
        try:
            while sent <= 4 * CONTROL_REQUEST_SIZE_MAX:
                await stream.send_all(b"x" * 65536)
                sent += 65536
        except trio.BrokenResourceError:
            pass
        assert sent <= 4 * CONTROL_REQUEST_SIZE_MAX
        await stream.aclose()
        assert await _ask(path, "echo") == {}


async def test_a_silent_client_is_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path) as (path, _):
        stream = await trio.open_unix_socket(str(path))
        assert await stream.receive_some() == b""
        await stream.aclose()


async def test_too_many_clients_do_not_lock_others_out_for_ever(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        crowd = [await trio.open_unix_socket(str(path)) for _ in range(CONTROL_CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ControlError):
            await _ask(path, "echo")
        for stream in crowd:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await _ask(path, "echo") == {}


def test_no_server_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="can't reach"):
        ask(tmp_path / "control.sock", "status")


async def test_data_comes_before_the_answer_and_may_be_anything(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        data: list[bytes] = []
        told: list[object] = []
        work = partial(ask, path, "pour", on_data=data.append, on_progress=told.append)
        assert msgspec.json.decode(await trio.to_thread.run_sync(work)) == {"total": 3}
        assert data == [bytes([number]) * 300_000 + b"\n{}\n" for number in range(3)]
        assert told == [{"done": number} for number in range(3)]
        work = partial(ask, path, "pour", {"fail": True}, on_data=data.append)
        with pytest.raises(RefusedError, match="no more"):
            await trio.to_thread.run_sync(work)
        assert len(data) == 6


async def test_who_takes_data_and_goes_away_harms_nobody(tmp_path: Path) -> None:
    def give_up(data: bytes) -> None:
        raise RuntimeError("the disk is full here")

    async with serving(tmp_path) as (path, unforeseen):
        with pytest.raises(RuntimeError):
            await trio.to_thread.run_sync(partial(ask, path, "pour", on_data=give_up))
        assert await _ask(path, "echo") == {}
        assert not unforeseen

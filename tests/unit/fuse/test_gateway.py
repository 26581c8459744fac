"""No exception leaves a handler but FUSEError and cancellation."""

from __future__ import annotations

import errno
import logging

import pytest
import trio
from pyfuse3 import FUSEError

from dwfs.errors import PosixError
from dwfs.fuse.gateway import LOG_PERIOD_SECONDS, LOGGED_MAX, Gateway


class BrokenError(Exception):
    """What nobody foresaw."""


async def answer(value: object) -> object:
    """A handler: raises what it is given, returns anything else."""
    if isinstance(value, BaseException):
        raise value
    return value


async def test_answers_pass() -> None:
    assert await Gateway().guard(answer, "answer")(7) == 7


@pytest.mark.parametrize("error", [PosixError(errno.ENOSPC), FUSEError(errno.ENOSPC)])
async def test_errnos_pass(error: Exception) -> None:
    gateway = Gateway()
    with pytest.raises(FUSEError) as caught:
        await gateway.guard(answer, "answer")(error)
    assert caught.value.errno == errno.ENOSPC
    assert gateway.unforeseen_errors == 0


@pytest.mark.expect_log("unforeseen error in request answer")
@pytest.mark.parametrize("error", [BrokenError(), OSError(errno.ENOENT, "x"), MemoryError()])
async def test_the_unforeseen_is_eio(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway()
    with pytest.raises(FUSEError) as caught:
        await gateway.guard(answer, "answer")(error)
    assert caught.value.errno == errno.EIO
    assert gateway.unforeseen_errors == 1
    assert type(error).__name__ in caplog.text  # the stack, not only the message


async def test_cancellation_passes() -> None:
    gateway = Gateway()

    async def wait() -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0.01) as scope:
        await gateway.guard(wait, "wait")()
    assert scope.cancelled_caught
    assert gateway.unforeseen_errors == 0


@pytest.mark.expect_log("unforeseen error in request forget")
async def test_requests_without_an_answer_end_quietly() -> None:
    gateway = Gateway()
    await gateway.guard_silent(answer, "forget")(BrokenError())
    assert gateway.unforeseen_errors == 1


@pytest.mark.expect_log("unforeseen")
def test_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    gateway = Gateway(lambda: now)
    with caplog.at_level(logging.ERROR):
        for _ in range(500):
            gateway.report("read", BrokenError())
        assert len(caplog.records) == LOGGED_MAX
        now += LOG_PERIOD_SECONDS
        gateway.report("read", BrokenError())
    assert len(caplog.records) == LOGGED_MAX + 2
    assert "490 more" in caplog.records[LOGGED_MAX].getMessage()
    assert gateway.unforeseen_errors == 501

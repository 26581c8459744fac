"""Every failure is one line and an exit code."""

from __future__ import annotations

import errno

import pytest

from dwfs.cli.failure import EXIT_UNFORESEEN, describe, guarded
from dwfs.errors import NoSpaceError, PosixError, UsageError, WrongKeyError


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (UsageError("give\nmore"), "give more", 2),
        (NoSpaceError("full"), "full", 8),
        (PosixError(errno.EIO), "EIO: Input/output error", 1),
        (OSError(errno.ENOENT, "No such file", "/x"), "/x: No such file", 1),
        (ExceptionGroup("g", [ValueError("x"), WrongKeyError("wrong")]), "wrong", 5),
        (ExceptionGroup("g", [ExceptionGroup("h", [UsageError("deep")])]), "deep", 2),
    ],
)
def test_describe(error: BaseException, text: str, code: int) -> None:
    assert describe(error) == (text, code)


def test_a_defect_is_called_one() -> None:
    text, code = describe(ValueError("what"))
    assert "ValueError: what" in text
    assert code == EXIT_UNFORESEEN


def test_a_traceback_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise UsageError("no")

    monkeypatch.delenv("DWFS_DEBUG", raising=False)
    assert guarded("dwfs", fail) == 2
    assert capsys.readouterr().err == "dwfs: no\n"
    monkeypatch.setenv("DWFS_DEBUG", "1")
    assert guarded("dwfs", fail) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert guarded("dwfs", interrupt) == 130
    assert capsys.readouterr().err == "dwfs: interrupted\n"

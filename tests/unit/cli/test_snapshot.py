"""`dwfs snapshot`: what is understood, what is asked, what is printed."""

from __future__ import annotations

import io

import pytest

from dwfs.cli.confirmation import NotConfirmedError, confirm
from dwfs.cli.snapshot import render_snapshots, split_target
from dwfs.errors import UsageError
from dwfs.node.status import SnapshotList, SnapshotStatus

NOON = 1_795_262_400 * 10**9  # 2026-11-21 12:00 UTC


class Terminal(io.StringIO):
    """Standard input with somebody at it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("target", "found"),
    [("tank", ("tank", None)), ("tank@a", ("tank", "a")), ("tank@a@b", ("tank", "a@b"))],
)
def test_targets(target: str, found: tuple[str, str | None]) -> None:
    assert split_target(target) == found


@pytest.mark.parametrize("target", ["", "@", "@a", "tank@", "tank@\udcff"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(UsageError):
        split_target(target)


@pytest.mark.parametrize("answer", ["y\n", "Yes\n", " y \n"])
def test_yes_is_yes(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    confirm("this destroys tank@a, for good")
    said = capsys.readouterr()
    assert said.err == "this destroys tank@a, for good. Go on? [y/N] "
    assert said.out == ""


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "yess\n"])
def test_everything_else_is_no(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    with pytest.raises(NotConfirmedError, match="nothing was changed"):
        confirm("this destroys tank@a, for good")


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match="--yes"):
        confirm("this destroys tank@a, for good")


def test_the_list_for_people() -> None:
    found = SnapshotList(
        "tank",
        [
            SnapshotStatus("before", NOON, 3 << 30, 5 << 30, 1200, automatic=False),
            SnapshotStatus("auto-2026-11-21T1300Z-hourly", NOON, 0, 6 << 30, 1300, automatic=True),
        ],
        kept_bytes=4 << 30,
        reaping=1,
    )
    assert render_snapshots(found).splitlines() == [
        "snapshot                           taken                     unique    holds  by",
        "tank@before                        2026-11-21 12:00:00 UTC  3.0 GiB  5.0 GiB  hand",
        "tank@auto-2026-11-21T1300Z-hourly  2026-11-21 12:00:00 UTC      0 B  6.0 GiB  schedule",
        "4.0 GiB is kept for snapshots alone",
        "the space of 1 destroyed snapshot is coming back",
    ]
    assert render_snapshots(SnapshotList("tank", [], 0, 0)) == "tank has no snapshots"

"""`dwfs volume`: what it takes, what it says, and what it refuses before anything is changed."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec
import pytest

from dwfs.cli import volume
from dwfs.cli.main import build_parser
from dwfs.errors import UsageError
from dwfs.node.volume_status import VolumeAnswer, VolumeList, VolumeStatus

STATUS = VolumeStatus(
    name="tank",
    compression="zstd",
    quota_bytes=50 << 30,
    quota_inodes=None,
    trash_days=30,
    snapshots_visible=False,
    used_bytes=3 << 30,
    used_inodes=7,
    available_bytes=47 << 30,
    snapshots=2,
    data_bytes=4 << 20,
    packed_bytes=1 << 20,
)


class Desk:
    """Stands for the pool: notes what is asked of it."""

    asked: list[tuple[str, dict[str, object]]]

    def __init__(self, arguments: argparse.Namespace, label: str) -> None:
        assert arguments.pool == "tank"
        assert "tank" in label

    def carry_out(
        self, request: str, values: dict[str, object], kind: type, *, outlives: bool
    ) -> object:
        assert not outlives
        Desk.asked.append((request, dict(values)))
        if kind is VolumeList:
            return VolumeList([STATUS])
        if kind is VolumeAnswer:
            return VolumeAnswer(STATUS, msgspec.structs.replace(STATUS, **values), ["beware"])
        return STATUS


@pytest.fixture(autouse=True)
def desk(monkeypatch: pytest.MonkeyPatch) -> type[Desk]:
    Desk.asked = []
    monkeypatch.setattr(volume, "Desk", Desk)
    return Desk


def run(*words: str) -> int:
    arguments = build_parser("volume").parse_args(["volume", *words])
    code: int = arguments.run(arguments)
    return code


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("quota=50G", "quota_bytes", 50 << 30),
        ("quota=500GB", "quota_bytes", 500 * 10**9),
        ("quota=1", "quota_bytes", 1),
        ("quota=9007199254740993", "quota_bytes", 9007199254740993),  # no float has it
        ("quota=9223372036854775807", "quota_bytes", 2**63 - 1),
        ("quota=none", "quota_bytes", None),
        ("quota=NONE", "quota_bytes", None),
        ("inodes=1000000", "quota_inodes", 1_000_000),
        ("inodes=none", "quota_inodes", None),
        ("trash=30", "trash_days", 30),
        ("trash=7d", "trash_days", 7),
        ("trash=0", "trash_days", 0),
        ("trash=none", "trash_days", 0),
        ("compression=zstd-7", "compression", "zstd-7"),
        ("snapshots-visible=yes", "snapshots_visible", True),
        ("snapshots-visible=Off", "snapshots_visible", False),
    ],
)
def test_settings_are_understood(setting: str, field: str, value: object, desk: type[Desk]) -> None:
    assert run("set", "tank", setting) == 0
    assert desk.asked == [("volume.set", {field: value})]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["quota"], "no setting"),
        (["quota="], "no setting"),
        (["=5G"], "no property"),
        (["quota=0"], "out of range"),
        (["quota=0.3"], "out of range"),
        (["quota=9223372036854775808"], "out of range"),
        (["quota=8E"], "out of range"),
        (["quota=" + "9" * 5000], "out of range"),
        (["quota=" + "9" * 5000 + "G"], "out of range"),
        (["quota=-5"], "no size"),
        (["quota=1e9"], "no size"),
        (["quota=lots"], "no size"),
        (["inodes=0"], "whole number"),
        (["inodes=1.5"], "whole number"),
        (["inodes=1K"], "whole number"),
        (["inodes=٣"], "whole number"),
        (["inodes=" + "9" * 30], "whole number"),
        (["trash=-1"], "number of days"),
        (["trash=soon"], "number of days"),
        (["trash=" + "9" * 30], "number of days"),
        (["snapshots-visible=maybe"], "yes or no"),
        (["colour=blue"], "no property"),
        (["quota=5G", "quota=6G"], "twice"),
        (["compression=\udcff"], "UTF-8"),
    ],
)
def test_nonsense_is_refused_in_one_line(settings: list[str], said: str, desk: type[Desk]) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        run("set", "tank", *settings)
    assert len(str(caught.value)) < 200
    assert desk.asked == []


def test_what_set_says(capsys: pytest.CaptureFixture[str]) -> None:
    run("set", "tank", "quota=1536M", "trash=none", "compression=zstd")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "quota is 1536M now (it was 50G)",
        "trash is none now (it was 30)",
        "compression is zstd, as before",
    ]
    assert shown.err == "dwfs: warning: beware\n"


def test_what_get_says(capsys: pytest.CaptureFixture[str]) -> None:
    run("get", "tank")
    assert capsys.readouterr().out.splitlines() == [
        "property           value",
        "compression        zstd   4.0 MiB stored in 1.0 MiB, ratio 4.00",
        "quota              50G    3.0 GiB used, 47.0 GiB left",
        "inodes             none   7 used",
        "trash              30     deleted files are kept for so many days",
        "snapshots-visible  no",
    ]
    run("get", "tank", "quota")
    assert capsys.readouterr().out == "50G\n"
    run("get", "tank", "--json")
    shown: dict[str, Any] = msgspec.json.decode(capsys.readouterr().out)  # Any: JSON
    assert shown["quota_bytes"] == 50 << 30
    with pytest.raises(UsageError, match="no property"):
        run("get", "tank", "colour")
    run("list", "tank")
    assert capsys.readouterr().out.splitlines() == [
        "volume     used     quota      left  inodes    of  compression  snapshots",
        "tank    3.0 GiB  50.0 GiB  47.0 GiB       7  none  zstd                 2",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1"),
        (1023, "1023"),
        (1024, "1K"),
        (1536 << 20, "1536M"),
        (1 << 60, "1E"),
        (None, "none"),
    ],
)
def test_sizes_are_shown_without_loss(count: int | None, text: str) -> None:
    assert volume.exact_bytes(count) == text

"""Refusals: the exit code, one line on stderr, and nothing changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dwfs.cli.main import build_parser, main


class Desk:
    """A place with a few directories, where commands are run in this process."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys
        self.disks = [home / f"disk{number}" for number in range(3)]
        for disk in self.disks:
            disk.mkdir()
        self.keyfile = self.file("key", os.urandom(64))

    def file(self, name: str, content: bytes) -> Path:
        """A private file."""
        path = self.home / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def everything(self) -> dict[str, bytes]:
        """All files and directories."""
        return {
            str(path): path.read_bytes() if path.is_file() else b"" for path in self.home.rglob("*")
        }

    def init(self, *disks: Path, name: str = "tank", more: tuple[str, ...] = ()) -> list[str]:
        """The words of an `init` with 2+1."""
        words = [
            "init",
            name,
            "--data",
            "2",
            "--parity",
            "1",
            "--keyfile",
            str(self.keyfile),
            *more,
        ]
        for disk in disks or self.disks:
            words += ["--disk", str(disk)]
        return words

    def refuse(self, code: int, *words: str) -> str:
        """Run a command that must fail; gives its line."""
        before = self.everything()
        assert main(words) == code
        captured = self._capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("dwfs: ")
        assert captured.err.count("\n") == 1
        assert self.everything() == before
        return captured.err


@pytest.fixture
def desk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Desk:
    monkeypatch.setenv("DWFS_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("DWFS_DEBUG", raising=False)
    monkeypatch.setattr("sys.stdin", None)
    return Desk(tmp_path, capsys)


def test_too_few_disks(desk: Desk) -> None:
    assert "3 disks" in desk.refuse(7, *desk.init(*desk.disks[:2]))


def test_one_disk_twice(desk: Desk) -> None:
    first, second, _ = desk.disks
    assert "twice" in desk.refuse(2, *desk.init(first, second, first))
    alias = desk.home / "alias"
    alias.symlink_to(first)
    assert "same directory" in desk.refuse(2, *desk.init(first, second, alias))


def test_a_disk_within_another(desk: Desk) -> None:
    first, second, _ = desk.disks
    assert "within" in desk.refuse(2, *desk.init(first, second, first / "inner"))


def test_a_disk_that_is_not_empty(desk: Desk) -> None:
    (desk.disks[1] / "photo.jpg").write_bytes(b"x")
    assert "photo.jpg" in desk.refuse(2, *desk.init())


def test_a_disk_that_is_a_file(desk: Desk) -> None:
    assert "not a directory" in desk.refuse(2, *desk.init(*desk.disks[:2], desk.keyfile))


def test_a_disk_whose_parent_is_not_there(desk: Desk) -> None:
    desk.refuse(2, *desk.init(*desk.disks[:2], desk.home / "no" / "where"))


def test_too_little_space(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dwfs.node.creation.DISK_SIZE_MIN", 1 << 60)
    assert "free space" in desk.refuse(8, *desk.init())


@pytest.mark.parametrize("name", ["../x", "", "a b", "-"])
def test_a_bad_name(desk: Desk, name: str) -> None:
    desk.refuse(2, *desk.init(name=name))


@pytest.mark.parametrize(
    "option", ["--data=0", "--parity=0", "--data=17", "--parity=9", "--data=x"]
)
def test_a_bad_geometry(desk: Desk, option: str) -> None:
    desk.refuse(2, *desk.init(more=(option,)))


def test_a_recovery_file_that_exists(desk: Desk) -> None:
    desk.refuse(2, *desk.init(more=("--recovery-file", str(desk.keyfile))))
    inside = str(desk.disks[0] / "recovery")
    assert "unlock" in desk.refuse(2, *desk.init(more=("--recovery-file", inside)))


def test_a_poor_key_file(desk: Desk) -> None:
    desk.keyfile.write_bytes(b"short")
    desk.refuse(2, *desk.init())
    desk.keyfile.write_bytes(b"")
    desk.refuse(2, *desk.init())
    desk.keyfile.unlink()
    desk.refuse(2, *desk.init())


def test_nobody_to_ask_for_a_passphrase(desk: Desk) -> None:
    words = [word for word in desk.init() if word not in ("--keyfile", str(desk.keyfile))]
    assert "terminal" in desk.refuse(2, *words)


def test_a_failure_half_way_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("dwfs.node.creation.save_config", fail)
    fresh = desk.home / "fresh"
    assert "No space" in desk.refuse(1, *desk.init(*desk.disks[:2], fresh))
    assert not (desk.home / "root").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["frobnicate"], 2),
        (["status", "nowhere"], 3),
        (["check", "nowhere"], 3),
        (["mount", "nowhere", "/mnt"], 3),
        (["key", "list", "nowhere"], 3),
        (["key"], 2),
        (["key", "add"], 2),
        (["umount", "/no/such/mount"], 2),
        (["umount", "/"], 2),
        (["init", "x"], 2),
        (["mount", "x"], 2),
        (["disk"], 2),
        (["disk", "add", "x"], 2),
        (["disk", "list", "nowhere"], 3),
        (["disk", "add", "nowhere", "/x"], 3),
        (["disk", "remove", "nowhere", "/x", "--wait"], 3),
        (["disk", "remove", "nowhere", "/x", "--wait", "--cancel"], 2),
        (["disk", "balance", "nowhere", "--wait", "--stop"], 2),
        (["scrub", "nowhere"], 3),
        (["scrub", "nowhere", "--stop", "--status"], 2),
        (["import"], 2),
        (["import", "--disk"], 2),
        (["import", "--disk", "/no/such/disk"], 2),
        (["import", "--disk", "/proc"], 7),
        (["status", "--if-added", "many"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_to_act_on(desk: Desk, words: list[str], code: int) -> None:
    desk.refuse(code, *words)


def test_a_pool_is_made_and_its_name_is_taken(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    recovery = desk.home / "recovery"
    assert main(desk.init(more=("--recovery-file", str(recovery), "--json"))) == 0
    assert recovery.stat().st_mode & 0o777 == 0o600
    assert recovery.read_text().strip().count("-") == 7
    assert recovery.read_text().strip() not in capsys.readouterr().out
    fresh = [desk.home / f"fresh{number}" for number in range(3)]
    assert "configured already" in desk.refuse(2, *desk.init(*fresh))
    assert "already holds" in desk.refuse(6, *desk.init(name="other"))
    wrong = desk.file("wrong", os.urandom(64))
    desk.refuse(5, "check", "tank", "--keyfile", str(wrong))
    desk.refuse(5, "check", "tank", "--passphrase-file", str(wrong))
    assert main(["check", "tank", "--recovery-key-file", str(recovery)]) == 0


def test_an_import_in_other_hands(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(desk.init()) == 0
    capsys.readouterr()
    disks = [str(disk) for disk in desk.disks]
    wrong = desk.file("wrong", os.urandom(64))
    assert "'tank'" in desk.refuse(2, "import", "--disk", *disks, "--name", "attic")
    monkeypatch.setenv("DWFS_ROOT", str(desk.home / "elsewhere"))
    assert "terminal" in desk.refuse(2, "import", "--disk", *disks)
    assert "keyslot" in desk.refuse(5, "import", "--disk", *disks, "--keyfile", str(wrong))
    assert "1 more" in desk.refuse(7, "import", "--disk", disks[0])
    assert "bad pool name" in desk.refuse(2, "import", "--disk", *disks, "--name", "a/b")
    assert main(["import", "--disk", *disks, "--keyfile", str(desk.keyfile)]) == 0
    assert main(["check", "tank"]) == 0, "the key file was noted in the configuration"


def test_help_names_every_command() -> None:
    text = build_parser().format_help()
    commands = (
        "init",
        "mount",
        "umount",
        "status",
        "disk",
        "scrub",
        "check",
        "import",
        "key",
        "bench",
    )
    for command in commands:
        assert command in text

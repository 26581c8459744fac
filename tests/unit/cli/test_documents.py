"""Every command that the documents tell people to give is one that the command line understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dwfs.cli.main import build_parser

DOCUMENTS = Path(__file__).resolve().parents[3] / "docs"
COMMANDS = sorted(
    {
        line.strip()
        for document in ("operations.md", "security.md")
        for line in re.sub(r"\\\n", " ", (DOCUMENTS / document).read_text()).splitlines()
        if re.match(r"\s{4,}dwfs ", line)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    if words == ["--version"]:
        return
    build_parser(words[0]).parse_args(words)


def test_there_are_some() -> None:
    assert len(COMMANDS) > 12
    assert any(command.startswith("dwfs import") for command in COMMANDS)

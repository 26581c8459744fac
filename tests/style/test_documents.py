"""Documentation that points somewhere points to something that is there."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from tests.style.source import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MENTION = re.compile(r"`((?:dwfs|docs|tests|systemd)/[\w./-]+\.(?:py|md|toml|txt))`")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document) -> None:  # type: ignore[no-untyped-def]  # a parametrised Path
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    broken = []
    for target in LINK.findall(text):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        if not (document.parent / target.split("#")[0]).exists():
            broken.append(target)
    broken += [name for name in MENTION.findall(text) if not (ROOT / name).exists()]
    assert not broken, f"{document.name} points to what isn't there: {broken}"


def test_versions_are_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!~ ]", requirement)[0].lower() for requirement in wanted}
    assert names <= pinned, f"not pinned in constraints.txt: {sorted(names - pinned)}"


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_run_script_is_sound_shell() -> None:
    for script in ("run", ".ci/run"):
        shell = "bash" if script == "run" else "sh"
        done = subprocess.run([shell, "-n", ROOT / script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

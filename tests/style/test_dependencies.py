"""What may use what: sans-I/O cores stay pure, and no module lies unused.

The layers themselves are a contract in pyproject.toml, checked by import-linter.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

import pytest

from tests.style.source import ROOT, Source, sources

# Decision logic takes events and `now`, and returns effects: it has no clock, no chance, no I/O.
PURE_MODULES = {
    "dwfs.disk": ("latency", "ledger", "patience", "record", "superseded"),
    "dwfs.erasure": ("field",),
    "dwfs.log": ("chain", "format", "lineage", "selection", "snapshot_format"),
    "dwfs.node": ("status",),
    "dwfs.node.disks": ("slowness", "states"),
    "dwfs.send": ("format",),
    "dwfs.stripe": ("builder", "compressing", "frames", "layout", "placement", "sealing", "shard_header"),
    "dwfs.vfs": ("acl", "attributes", "caller"),
    "dwfs.volume": (
        "attributes", "check", "check_versions", "commands", "directories", "epochs", "extents",
        "filemap", "frozen", "kept", "machine", "namespace", "reaping", "relocation", "rollback",
        "snapshots", "versions", "view",
        "properties", "quota", "records", "runs", "state", "stripes", "transfer", "xattrs",
    ),
    "dwfs": ("limits", "ports", "types"),
}  # fmt: skip
IMPURE = {
    "asyncio", "lmdb", "mmap", "os", "pathlib", "pyfuse3", "random", "secrets", "select", "socket",
    "subprocess", "threading", "time", "trio",
}  # fmt: skip
# Modules that nothing imports because something outside of Python calls them.
ENTRANCES = {"dwfs", "dwfs.__main__", "dwfs.cli.main", "dwfs.cli.mount_helper"}


@pytest.mark.parametrize("package", sorted(PURE_MODULES))
def test_cores_do_no_io(package: str) -> None:
    by_name = {one.module: one for one in sources("dwfs")}
    for module in (f"{package}.{name}" for name in PURE_MODULES[package]):
        assert module in by_name, f"{module} is listed here but gone: keep the list true"
        bad = {name.split(".")[0] for name in by_name[module].imports()} & IMPURE
        assert not bad, f"{module} is a sans-I/O core but imports {sorted(bad)}"


def test_every_module_is_used() -> None:
    imported: set[str] = set()
    for source in sources("dwfs"):
        imported |= source.imports() - {source.module}
    spawned = "\n".join(source.text for source in sources("dwfs"))
    dead = [
        source.module
        for source in sources("dwfs")
        if source.module not in imported | ENTRANCES
        and source.path.name != "__init__.py"
        and f'"{source.module}"' not in spawned  # started as `python -m module`
    ]
    assert not dead, f"never imported by the product: {dead}"


def test_no_module_keeps_mutable_state() -> None:
    found = []
    for source in sources("dwfs"):
        found += [f"{source.name}:{line}" for line in _mutable_globals(source)]
    assert not found, f"mutable state at module level (make it Final, or pass it in): {found}"


def _mutable_globals(source: Source) -> list[int]:
    """Lines of `global` statements: the one way to rebind a module's name at run time."""
    return [node.lineno for node in ast.walk(source.tree) if isinstance(node, ast.Global)]


def test_layers_contract_names_every_package() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = document["tool"]["importlinter"]["contracts"][0]
    named = {word for line in contract["layers"] for word in line.replace("|", ":").split(":")}
    named = {word.strip() for word in named} | set(contract["exhaustive_ignores"])
    present = {one.module.split(".")[1] for one in sources("dwfs") if "." in one.module}
    assert present <= named, f"without a layer: {sorted(present - named)}"


def test_layers_hold() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

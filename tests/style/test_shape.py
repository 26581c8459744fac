"""The shape of the code: sizes, names, comments. A failure names the file and the line."""

from __future__ import annotations

import ast
import re
import warnings

import pytest

from tests.style.source import sources

MODULE_LINES_MAX = 600
MODULE_LINES_WARN = 400
FUNCTION_LINES_MAX = 70
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
NAMES_FIXED_BY_OTHERS = {"mount_helper"}  # mount(8) calls such programs mount helpers
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\bnot implemented\b", re.IGNORECASE)
# The hash is written apart, so that this line isn't taken for a suppression itself.
SUPPRESSION = re.compile(
    r"#\s*(?:noqa(?::\s*[A-Z0-9, ]+)?|type:\s*ignore(?:\[[^\]]*\])?)(?P<rest>.*)"
)

EVERYTHING = [*sources("dwfs"), *sources("tests")]
PRODUCT = list(sources("dwfs"))


def test_module_size() -> None:
    large = [one.name for one in EVERYTHING if one.text.count("\n") > MODULE_LINES_MAX]
    assert not large, f"modules above {MODULE_LINES_MAX} lines, split them: {large}"


@pytest.mark.filterwarnings("default")
def test_large_modules_are_told() -> None:
    large = [source.name for source in PRODUCT if source.text.count("\n") > MODULE_LINES_WARN]
    if large:
        warnings.warn(f"modules above {MODULE_LINES_WARN} lines: {', '.join(large)}", stacklevel=1)


def test_functions_fit_a_screen() -> None:
    long = [
        f"{source.name}:{node.lineno} {node.name}"
        for source in EVERYTHING
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long, f"functions above {FUNCTION_LINES_MAX} lines: {long}"


def test_module_names_say_something() -> None:
    vague = [
        source.name
        for source in EVERYTHING
        if source.path.stem not in NAMES_FIXED_BY_OTHERS
        and FORBIDDEN_NAMES & {*source.path.stem.split("_"), *source.module.split(".")}
    ]
    assert not vague, f"name them after what they do: {vague}"


def test_modules_have_docstrings() -> None:
    bare = [
        source.name for source in EVERYTHING if not ast.get_docstring(source.tree) and source.text
    ]
    assert not bare, f"modules that open with no purpose: {bare}"


def test_public_definitions_have_docstrings() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bare = [
        f"{source.name}:{node.lineno} {node.name}"
        for source in PRODUCT
        for node in source.tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not bare, f"public without docstring: {bare}"


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{source.name}:{number}"
        for source in PRODUCT
        for number, line in enumerate(source.text.splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not found, f"unfinished: {found}"


def test_suppressions_give_a_reason() -> None:
    bare = []
    for source in EVERYTHING:
        previous = ""
        for number, line in enumerate(source.text.splitlines(), 1):
            match = SUPPRESSION.search(line)
            reason = match and re.search(r"[a-z]{3}", match["rest"])
            # The line above may give the reason where it doesn't fit beside.
            if match and not reason and not previous.lstrip().startswith("#"):
                bare.append(f"{source.name}:{number}")
            previous = line
    assert not bare, f"noqa or type: ignore without a reason: {bare}"

"""Types that worker threads decode have a decoder of their own, made when their module is imported.

msgspec (0.22) builds what it needs of a Struct at the type's first use, with the GIL released in
between; two threads that meet a type for the first time at once crash the process. It has happened:
several disks' headers are read in parallel.
"""

from __future__ import annotations

import ast

from tests.style.source import sources

# Whatever is below the node runs in the disks' threads; of the node, what opens a pool.
THREADED = ("dwfs.disk", "dwfs.log", "dwfs.stripe", "dwfs.crypto", "dwfs.codec")
THREADED_MODULES = {"dwfs.node.marker", "dwfs.node.keyslots"}


def test_no_type_is_first_met_by_a_thread() -> None:
    found = [
        f"{source.name}:{node.lineno}"
        for source in sources("dwfs")
        if source.module.startswith(THREADED) or source.module in THREADED_MODULES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("decode", "convert")
        and any(keyword.arg == "type" for keyword in node.keywords)
    ]
    assert not found, f"make a Decoder at import instead: {found}"

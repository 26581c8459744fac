"""What a crashed volume may look like: models of the history that a workload recorded.

The history is a list of operations, each recorded before it starts and again when it returned. Two
kinds of promises are checked against it:

- *ordered* operations reach the filesystem one by one and unbuffered (names, attributes, O_DIRECT
  writes). After a crash the tree must be exactly what some prefix of them makes, and the prefix is
  no shorter than the last completed fsync, of whatever file: the volume's log has one order.
- *buffered* writes pass through the kernel's page cache, which sends pages when and in which order
  it likes. For them each page holds some version that was written to it, no older than the one
  that was there at the last completed fdatasync of its file.

Every page says which write made it, and proves it: `page(token, version)` is reproducible.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096
_HEAD = struct.Struct("<8sQ")
Operation = list[Any]  # JSON: [kind, argument, …]


def page(token: str, version: int) -> bytes:
    """The page that write number `version` puts into place `token` (a file's identity and block)."""
    head = _HEAD.pack(hashlib.blake2b(token.encode(), digest_size=8).digest(), version)
    body = hashlib.blake2b(head).digest() * (PAGE // 64)
    return head + body[_HEAD.size :]


def version_of(token: str, content: bytes) -> int:
    """Which version a page holds; 0 for a hole. Raises ValueError for anything that was never written."""
    if not content.strip(b"\0"):
        return 0
    version: int = _HEAD.unpack_from(content)[1]
    if content != page(token, version):
        raise ValueError(f"{token}: a page that nobody wrote (it claims version {version})")
    return version


@dataclass
class Node:
    """A file's state in the model."""

    token: str
    blocks: dict[int, int] = field(default_factory=dict)  # block → version
    size_blocks: int = 0
    links: int = 1
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass
class OrderedModel:
    """The tree that a sequence of ordered operations makes."""

    files: dict[str, Node] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    symlinks: dict[str, str] = field(default_factory=dict)

    def apply(self, number: int, operation: Operation) -> None:
        """Apply operation `number`; its number is the version of the page that it writes."""
        getattr(self, f"_{operation[0]}", self._nothing)(number, *operation[1:])

    def _nothing(self, number: int, *arguments: Any) -> None:  # Any: arguments of any operation
        """Operations without an effect on the ordered tree: fsync and all buffered ones."""

    def _create(self, number: int, path: str) -> None:
        self.files[path] = Node(f"create-{number}")

    def _write(self, number: int, path: str, block: int) -> None:
        node = self.files[path]
        node.blocks[block] = number
        node.size_blocks = max(node.size_blocks, block + 1)

    def _truncate(self, number: int, path: str, blocks: int) -> None:
        node = self.files[path]
        node.size_blocks = blocks
        node.blocks = {block: made for block, made in node.blocks.items() if block < blocks}

    def _link(self, number: int, old: str, new: str) -> None:
        self.files[new] = self.files[old]
        self.files[new].links += 1

    def _rename(self, number: int, old: str, new: str) -> None:
        if new in self.files:
            if self.files[new] is self.files[old]:
                return  # POSIX: two names of one file; nothing happens
            self.files[new].links -= 1
        self.files[new] = self.files.pop(old)

    def _unlink(self, number: int, path: str) -> None:
        self.files.pop(path).links -= 1

    def _mkdir(self, number: int, path: str) -> None:
        self.folders.add(path)

    def _rmdir(self, number: int, path: str) -> None:
        self.folders.remove(path)

    def _symlink(self, number: int, path: str, target: str) -> None:
        self.symlinks[path] = target

    def _setxattr(self, number: int, path: str, name: str, value: str) -> None:
        self.files[path].attributes[name] = value

    def flat(self) -> dict[str, tuple[Any, ...]]:  # Any: see `observe`
        """The tree as `observe` gives it."""
        found: dict[str, tuple[Any, ...]] = dict.fromkeys(self.folders, ("folder",))
        found |= {path: ("symlink", target) for path, target in self.symlinks.items()}
        for path, node in self.files.items():
            blocks = tuple(node.blocks.get(block, 0) for block in range(node.size_blocks))
            attributes = tuple(sorted(node.attributes.items()))
            found[path] = ("file", node.links, blocks, attributes)
        return found

    def tokens(self) -> dict[str, str]:
        """Path → token, for reading pages."""
        return {path: node.token for path, node in self.files.items()}


def observe(root: Path, tokens: dict[str, str]) -> dict[str, tuple[Any, ...]]:  # Any: kinds differ
    """The tree as it is: path → kind and what matters of it. Raises ValueError for torn pages."""
    found: dict[str, tuple[Any, ...]] = {}
    for parent, folders, names in os.walk(root):
        for name in folders + names:
            path = Path(parent) / name
            relative = str(path.relative_to(root))
            if path.is_symlink():
                found[relative] = ("symlink", os.readlink(path))
            elif path.is_dir():
                found[relative] = ("folder",)
            else:
                found[relative] = _observe_file(path, tokens)
    return found


def _observe_file(path: Path, tokens: dict[str, str]) -> tuple[Any, ...]:  # Any: kinds differ
    content = path.read_bytes()
    blocks = tuple(
        _identify(content[start : start + PAGE], tokens) for start in range(0, len(content), PAGE)
    )
    attributes = tuple(
        (name.removeprefix("user."), os.getxattr(path, name).decode())
        for name in sorted(os.listxattr(path))
        if name.startswith("user.")
    )
    return ("file", path.stat().st_nlink, blocks, attributes)


def _identify(content: bytes, tokens: dict[str, str]) -> int:
    """The version of a page of any file: versions are unique, so the token must fit."""
    if not content.strip(b"\0"):
        return 0
    digest = content[:8]
    token = tokens.get(digest.hex())
    if token is None:
        raise ValueError(f"a page of no known file: {content[:16].hex()}")
    return version_of(token, content)


def token_table(operations: list[Operation]) -> dict[str, str]:
    """Digest (as in a page's head) → token, for all files that a history creates."""
    tokens = [f"create-{number}" for number, one in enumerate(operations, 1) if one[0] == "create"]
    return {hashlib.blake2b(one.encode(), digest_size=8).hexdigest(): one for one in tokens}


def check_prefix(root: Path, operations: list[Operation], least: int) -> int:
    """Check the ordered tree; returns the length of the prefix that it shows.

    `least` operations, at least, must be there. Raises AssertionError.
    """
    observed = observe(root, token_table(operations))
    model = OrderedModel()
    differences: dict[str, object] = {}
    for number, operation in enumerate(operations, 1):
        if number - 1 >= least and model.flat() == observed:
            return number - 1
        model.apply(number, operation)
        if number == least:
            differences = dict(set(_frozen(model.flat())) ^ set(_frozen(observed)))
    if model.flat() == observed:
        return len(operations)
    raise AssertionError(
        f"the tree is no prefix of {len(operations)} operations with at least {least}; "
        f"against the least prefix it differs in {dict(list(differences.items())[:8])}"
    )


def _frozen(flat: dict[str, tuple[Any, ...]]) -> list[tuple[str, object]]:  # Any: kinds differ
    return list(flat.items())


def check_buffered(root: Path, operations: list[Operation], completed: set[int]) -> None:
    """Check the buffered files against what was written and synced. Raises AssertionError."""
    synced: dict[tuple[str, int], int] = {}
    written: dict[tuple[str, int], list[int]] = {}
    for number, (kind, *arguments) in enumerate(operations, 1):
        if kind == "bwrite":
            written.setdefault((arguments[0], arguments[1]), []).append(number)
        elif kind == "bsync" and number in completed:
            synced |= {key: made[-1] for key, made in written.items() if key[0] == arguments[0]}
    for (name, block), versions in written.items():
        path = root / name
        with path.open("rb") as file:
            file.seek(block * PAGE)
            content = file.read(PAGE)
        assert len(content) in (0, PAGE), f"{name}: a torn last page"
        found = version_of(f"{name}/{block}", content) if content else 0
        least = synced.get((name, block), 0)
        allowed = [version for version in versions if version >= least] + ([] if least else [0])
        assert found in allowed, f"{name} block {block}: version {found}, allowed {allowed[:5]}"


def check_journal(path: Path, operations: list[Operation], completed: set[int]) -> None:
    """Check an appended file: a prefix of all that was appended, with all that was synced."""
    whole, least = bytearray(), 0
    for number, (kind, *arguments) in enumerate(operations, 1):
        if kind == "append":
            whole += arguments[0].encode()
        elif kind == "jsync" and number in completed:
            least = len(whole)
    content = path.read_bytes()
    assert len(content) >= least, f"journal: {len(content)} bytes, but {least} were synced"
    assert whole.startswith(content), "journal: not a prefix of what was appended"

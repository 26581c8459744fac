"""`mount.dwfs`, `mount.fuse.dwfs`: what mount(8) and systemd call for `-t dwfs` and `-t fuse.dwfs`.

They call `mount.TYPE SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`; the source is the
pool's name. This translates to `dwfs mount`, and options that only concern mount(8) are dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dwfs.cli import main as command_line
from dwfs.cli.failure import guarded
from dwfs.errors import UsageError

_IGNORED_FLAGS = frozenset("snvrw")
_WITH_VALUE = frozenset("otN")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; mount(8) shows what we print on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded("mount.dwfs", lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    words, options, pretend = translate(arguments)
    if pretend:  # mount --fake
        return 0
    command = ["mount", *words]
    for option in options:
        command += ["-o", option]
    return command_line.run_command(command)


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """(source and directory, values of -o, whether -f was given). Raises UsageError."""
    words: list[str] = []
    options: list[str] = []
    pretend = False
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _WITH_VALUE:
                if not letters and not pending:
                    raise UsageError(f"-{letter} needs a value")
                value = letters or pending.pop(0)
                letters = ""
                if letter == "o":
                    options.append(value)
            elif letter == "f":
                pretend = True
            elif letter == "r":
                options.append("ro")
            elif letter not in _IGNORED_FLAGS:
                raise UsageError(f"unknown flag -{letter}: usage: mount.dwfs POOL DIR [-o OPTIONS]")
    if len(words) != 2:
        raise UsageError("usage: mount.dwfs POOL DIR [-o OPTIONS]")
    return words, options, pretend


if __name__ == "__main__":
    sys.exit(main())

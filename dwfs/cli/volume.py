"""`dwfs volume …`: what is set of a pool's volume, and what is used of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Final

from dwfs.cli.output import format_bytes, parse_bytes, print_json, render_table, warn
from dwfs.cli.request import Desk
from dwfs.cli.unlocking import add_unlock_options, warn_of_exposed_files
from dwfs.errors import UsageError
from dwfs.node.volume_status import VolumeAnswer, VolumeList, VolumeStatus

_NUMBER_MAX: Final = 2**63 - 1
_SHOWN_MAX: Final = 40  # characters of a value that an error repeats
_NONE: Final = "none"
_YES: Final = ("yes", "on", "true")
_NO: Final = ("no", "off", "false")

_SET_HELP = """\
properties:
  compression=off|zstd|zstd-LEVEL  of what is written from now on; LEVEL is 1 to 19, zstd is zstd-3
  quota=SIZE|none                  bytes that files may take: 50G, 500GB, 1048576 …
  inodes=NUMBER|none               files and directories there may be
  trash=DAYS|none                  how long deleted files are kept in .trash
  snapshots-visible=yes|no         whether .snapshots is listed in the root directory
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its parts."""
    parser = subparsers.add_parser(
        "volume",
        help="show and set compression, quotas and trash",
        description=(
            "What is set of a pool's file system: compression, quotas, trash. Takes effect at once, "
            "also while the pool is mounted. A pool that is not mounted is opened by the command, "
            "which needs the key."
        ),
    )
    parts = parser.add_subparsers(title="parts", dest="part", metavar="list|get|set")
    parts.required = True
    listing = _part(parts, "list", "show the volumes", "Show what is used, and what may be.")
    listing.set_defaults(run=run_list)
    get = _part(parts, "get", "show properties", "Show all properties, or only some.")
    get.add_argument("properties", metavar="PROPERTY", nargs="*", default=[])
    get.set_defaults(run=run_get)
    put = _part(
        parts,
        "set",
        "change properties",
        "Change properties: all that are given, or, if one of them is wrong, none.",
    )
    put.epilog = _SET_HELP
    put.formatter_class = argparse.RawDescriptionHelpFormatter
    put.add_argument("settings", metavar="PROPERTY=VALUE", nargs="+")
    put.set_defaults(run=run_set)


def _part(
    parts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, short: str, long: str
) -> argparse.ArgumentParser:
    parser = parts.add_parser(name, help=short, description=long)
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_unlock_options(parser)
    return parser


def run_list(arguments: argparse.Namespace) -> int:
    """Print the volumes."""
    desk = Desk(arguments, f"listing the volumes of {arguments.pool}")
    found = desk.carry_out("volume.list", {}, VolumeList, outlives=False)
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(found)
    else:
        print(render_volumes(found))
    return 0


def render_volumes(found: VolumeList) -> str:
    """A table of the volumes."""
    header = ["volume", "used", "quota", "left", "inodes", "of", "compression", "snapshots"]
    rows = [
        [
            one.name,
            format_bytes(one.used_bytes),
            _NONE if one.quota_bytes is None else format_bytes(one.quota_bytes),
            format_bytes(one.available_bytes),
            str(one.used_inodes),
            _NONE if one.quota_inodes is None else str(one.quota_inodes),
            one.compression,
            str(one.snapshots),
        ]
        for one in found.volumes
    ]
    return render_table(header, rows, {1, 2, 3, 4, 5, 7})


def run_get(arguments: argparse.Namespace) -> int:
    """Print properties."""
    for name in arguments.properties:
        _known(name)
    desk = Desk(arguments, f"asking for the properties of {arguments.pool}")
    status = desk.carry_out("volume.get", {}, VolumeStatus, outlives=False)
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(status)
        return 0
    if len(arguments.properties) == 1:
        print(_VALUES[arguments.properties[0]](status))  # alone, so that a script can use it
        return 0
    print(render_properties(status, arguments.properties or list(_VALUES)))
    return 0


def render_properties(status: VolumeStatus, names: list[str]) -> str:
    """A table of properties, as `set` takes them, with what belongs to each."""
    notes = {
        "compression": _compression_note(status),
        "quota": (
            f"{format_bytes(status.used_bytes)} used, {format_bytes(status.available_bytes)} left"
        ),
        "inodes": f"{status.used_inodes} used",
        "trash": "deleted files are kept for so many days" if status.trash_days else "",
    }
    rows = [[name, _VALUES[name](status), notes.get(name, "")] for name in names]
    return render_table(["property", "value", ""], rows, set())


def _compression_note(status: VolumeStatus) -> str:
    if not status.packed_bytes:
        return ""
    ratio = status.data_bytes / status.packed_bytes
    return (
        f"{format_bytes(status.data_bytes)} stored in {format_bytes(status.packed_bytes)}, "
        f"ratio {ratio:.2f}"
    )


def run_set(arguments: argparse.Namespace) -> int:
    """Change properties."""
    given: dict[str, str] = {}
    for setting in arguments.settings:
        name, separator, value = setting.partition("=")
        if not separator or not value:
            raise UsageError(f"{setting!r} is no setting: write PROPERTY=VALUE, as in quota=50G")
        _known(name)
        _check_encodable(value)
        if name in given:
            raise UsageError(f"{name} is given twice")
        given[name] = value
    values: dict[str, object] = {}
    for name, value in given.items():
        field, parse = _PARSERS[name]
        values[field] = parse(value)
    desk = Desk(arguments, f"setting properties of {arguments.pool}")
    answer = desk.carry_out("volume.set", values, VolumeAnswer, outlives=False)
    warn_of_exposed_files(arguments)
    if arguments.json:
        print_json(answer)
    else:
        print(render_change(answer, list(given)))
    for warning in answer.warnings:
        warn(warning)
    return 0


def render_change(answer: VolumeAnswer, names: list[str]) -> str:
    """A line for each property that was given."""
    lines = []
    for name in names:
        before, after = _VALUES[name](answer.before), _VALUES[name](answer.volume)
        if before == after:
            lines.append(f"{name} is {after}, as before")
        else:
            lines.append(f"{name} is {after} now (it was {before})")
    return "\n".join(lines)


def _check_encodable(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the value {value!r} is not valid UTF-8") from None


def _known(name: str) -> None:
    if name not in _VALUES:
        raise UsageError(f"{_short(name)!r} is no property; there are {', '.join(_VALUES)}")


# --- values, as they are written and read -------------------------------------------------------


def exact_bytes(count: int | None) -> str:
    """A size as `parse_bytes` takes it, without any loss."""
    if count is None:
        return _NONE
    letters = ""
    for letter in "KMGTPE":
        if count % 1024:
            break
        count, letters = count // 1024, letter
    return f"{count}{letters}"


def _short(text: str) -> str:
    """For an error, which is one line."""
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


def _parse_quota(text: str) -> int | None:
    if text.lower() == _NONE:
        return None
    try:
        # Digits alone are taken as they are: the general way goes through a float.
        count = int(text) if text.isascii() and text.isdigit() else parse_bytes(text)
    except (OverflowError, ValueError):  # hundreds, or thousands, of digits
        count = _NUMBER_MAX + 1
    if not 0 < count <= _NUMBER_MAX:
        raise UsageError(
            f"quota={_short(text)} is out of range: from 1 byte to 8 EiB, or none for no limit"
        )
    return count


def _parse_inodes(text: str) -> int | None:
    if text.lower() == _NONE:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) == 0:
        raise UsageError(
            f"inodes={_short(text)}: write a whole number above 0, or none for no limit"
        )
    return int(text)


def _parse_trash(text: str) -> int:
    if text.lower() == _NONE:
        return 0
    number = text.removesuffix("d")
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise UsageError(
            f"trash={_short(text)}: write a number of days, as in 30, or none for no trash"
        )
    return int(number)


def _parse_flag(text: str) -> bool:
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise UsageError(f"snapshots-visible={_short(text)}: write yes or no")


_VALUES: Final[Mapping[str, Callable[[VolumeStatus], str]]] = {
    "compression": lambda status: status.compression,
    "quota": lambda status: exact_bytes(status.quota_bytes),
    "inodes": lambda status: _NONE if status.quota_inodes is None else str(status.quota_inodes),
    "trash": lambda status: str(status.trash_days) if status.trash_days else _NONE,
    "snapshots-visible": lambda status: "yes" if status.snapshots_visible else "no",
}
_PARSERS: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = {
    "compression": ("compression", str),
    "quota": ("quota_bytes", _parse_quota),
    "inodes": ("quota_inodes", _parse_inodes),
    "trash": ("trash_days", _parse_trash),
    "snapshots-visible": ("snapshots_visible", _parse_flag),
}

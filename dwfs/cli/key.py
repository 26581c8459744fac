"""`dwfs key list|add|remove|recovery POOL`: the ways to unlock a pool."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dwfs.cli.output import print_json, render_table
from dwfs.cli.owner import ask_owner, is_open
from dwfs.cli.unlocking import (
    add_unlock_options,
    find_credential,
    given_credential,
    new_passphrase,
    warn_of_exposed_files,
)
from dwfs.config import Directories, PoolConfig, load_config
from dwfs.node.credential import Credential
from dwfs.node.disks.survey import read_newest_header
from dwfs.node.keyslots import (
    KeyChange,
    SlotInformation,
    add_key,
    describe_slots,
    new_recovery_slot,
    parse_slot_id,
    remove_key,
)
from dwfs.node.lock import PoolLock


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its actions."""
    parser = subparsers.add_parser(
        "key",
        help="list, add and remove the ways to unlock a pool",
        description=(
            "A pool's root key is wrapped in keyslots; any one of them opens the pool. Changes are "
            "written to every disk. Adding and removing needs a key that opens the pool now."
        ),
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show the keyslots; needs no key")
    _common(listing)
    listing.set_defaults(run=run_list)

    adding = actions.add_parser("add", help="add a passphrase or a key file")
    _common(adding)
    add_unlock_options(adding)
    group = adding.add_mutually_exclusive_group()
    group.add_argument(
        "--new-passphrase-file", metavar="FILE", type=Path, help="the new passphrase"
    )
    group.add_argument("--new-keyfile", metavar="FILE", type=Path, help="the new key file")
    adding.add_argument("--label", default="", help="a note to tell this slot from others")
    adding.set_defaults(run=run_add)

    removing = actions.add_parser("remove", help="remove a keyslot")
    _common(removing)
    removing.add_argument("slot", metavar="SLOT", help="its number (see key list)")
    add_unlock_options(removing)
    removing.set_defaults(run=run_remove)

    recovery = actions.add_parser("recovery", help="replace the recovery key and show the new one")
    _common(recovery)
    add_unlock_options(recovery)
    recovery.set_defaults(run=run_recovery)


def run_list(arguments: argparse.Namespace) -> int:
    """Show the keyslots, from the headers alone."""
    directories = Directories.from_environment(os.environ)
    header = read_newest_header(load_config(directories, arguments.pool))
    slots = describe_slots(header)
    if arguments.json:
        print_json(slots)
        return 0
    rows = [[str(slot.id), slot.kind, _format_time(slot), slot.label] for slot in slots]
    print(render_table(["slot", "kind", "made", "label"], rows, set()))
    return 0


def run_add(arguments: argparse.Namespace) -> int:
    """Add a passphrase or key file."""
    directories, config, current = _prepare(arguments)
    fresh = given_credential(arguments, "new-") or new_passphrase("new passphrase")
    request = {
        "current": current.encoded(),
        "fresh": fresh.encoded(),
        "label": arguments.label,
    }
    change = _change(
        directories,
        config,
        "key.add",
        request,
        lambda: add_key(config, current, fresh, arguments.label),
    )
    warn_of_exposed_files(arguments, "new-")
    return _show(arguments, change, f"Added keyslot {change.slot}.")


def run_remove(arguments: argparse.Namespace) -> int:
    """Remove a keyslot."""
    directories, config, current = _prepare(arguments)
    request = {"current": current.encoded(), "slot": arguments.slot}
    change = _change(
        directories,
        config,
        "key.remove",
        request,
        lambda: remove_key(config, current, parse_slot_id(arguments.slot)),
    )
    return _show(arguments, change, f"Removed keyslot {change.slot}.")


def run_recovery(arguments: argparse.Namespace) -> int:
    """Replace the recovery key."""
    directories, config, current = _prepare(arguments)
    request = {"current": current.encoded()}
    change = _change(
        directories,
        config,
        "key.recovery",
        request,
        lambda: new_recovery_slot(config, current),
    )
    text = (
        "New recovery key, shown this once; the old one no longer works. Keep it on paper, away "
        f"from this machine:\n\n    {change.recovery_key}\n"
    )
    return _show(arguments, change, text)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _prepare(arguments: argparse.Namespace) -> tuple[Directories, PoolConfig, Credential]:
    directories = Directories.from_environment(os.environ)
    config = load_config(directories, arguments.pool)
    return directories, config, find_credential(arguments, config)


def _change(
    directories: Directories,
    config: PoolConfig,
    request: str,
    arguments: Mapping[str, object],
    change_here: Callable[[], KeyChange],
) -> KeyChange:
    """Let the owner make the change, or make it here, under the pool's lock."""
    if is_open(directories, config.name):
        raw = ask_owner(directories, config.name, request, arguments, timeout_seconds=120.0)
        return msgspec.json.decode(raw, type=KeyChange)
    with PoolLock.acquire(directories, config.name):
        return change_here()


def _show(arguments: argparse.Namespace, change: KeyChange, text: str) -> int:
    if arguments.json:
        print_json(change)
        return 0
    print(text)
    if change.disks_not_reached:
        print(
            f"Not written to {', '.join(change.disks_not_reached)}: done when they are back and the "
            "pool is opened."
        )
    return 0


def _format_time(slot: SlotInformation) -> str:
    return datetime.fromtimestamp(slot.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

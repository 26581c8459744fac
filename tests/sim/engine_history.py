"""What the simulated filesystem must look like: a dumb model of it, with all that it ever was.

One task changes the files, so the engine's commands have one order, and the model keeps the state
after each. A crash may take back what no finished fsync covered, but only from the end: what is found
after it must be one of the states since the last finished fsync, as a whole. So nothing that was
durable is lost, nothing that was deleted before comes back, and no state is a mixture.
"""

from __future__ import annotations

import hashlib

import msgspec

Files = dict[bytes, bytes]  # content by name, in the one directory that there is


class HistoryError(AssertionError):
    """The engine broke its promise."""


class State(msgspec.Struct, frozen=True):
    """All that can be seen at one moment."""

    files: Files
    snapshots: dict[str, Files] = {}  # msgspec copies an empty default

    def with_files(self, files: Files) -> State:
        """The same snapshots, other files."""
        return State(files, self.snapshots)


class History:
    """States, oldest first; the last is what the running system must show."""

    def __init__(self) -> None:
        self._states: list[State] = [State({})]
        self._durable = 0  # every state before this one is gone for ever
        self._completed = 0  # the newest state that the engine has said to be there

    @property
    def state(self) -> State:
        """What is there now."""
        return self._states[-1]

    @property
    def files(self) -> Files:
        """The files that are there now."""
        return self.state.files

    @property
    def moment(self) -> int:
        """To be given to `durable` when an fsync that begins now has returned."""
        return self._completed

    def begin(self, state: State) -> None:
        """Something is about to be changed: after a crash it may be so, or not."""
        self._states.append(state)

    def end(self) -> None:
        """The change that was begun last is there."""
        self._completed = len(self._states) - 1

    def take_back(self) -> None:
        """What was added last was refused."""
        self._states.pop()

    def durable(self, moment: int) -> None:
        """An fsync that began at that moment has returned."""
        self._durable = max(self._durable, moment)

    def recovered(self, found: State) -> int:
        """A crash left this; goes on from there. Returns how many changes were taken back.

        Raises HistoryError if no allowed state looks like that.
        """
        for number in range(len(self._states) - 1, self._durable - 1, -1):
            if self._states[number] == found:
                lost = len(self._states) - 1 - number
                self._states = [found]
                self._durable = self._completed = 0
                return lost
        raise HistoryError(self._explain(found))

    def _explain(self, found: State) -> str:
        for number in range(self._durable - 1, -1, -1):
            if self._states[number] == found:
                return (
                    f"durable changes are lost: state {number} is back, {self._durable} was durable"
                )
        wanted = self._states[self._durable]
        lines = [f"no state between {self._durable} and {len(self._states) - 1} looks like this:"]
        have, should = _flat(found), _flat(wanted)
        lines += [
            f"  {name}: {_brief(have.get(name))}, durable was {_brief(should.get(name))}"
            for name in sorted({*have, *should})
        ]
        return "\n".join(lines)


def compare(found: State, wanted: State) -> None:
    """Raise HistoryError unless they are equal."""
    have, should = _flat(found), _flat(wanted)
    for name in sorted({*have, *should}):
        if have.get(name) != should.get(name):
            place = _first_difference(have.get(name), should.get(name))
            raise HistoryError(
                f"{name} is {_brief(have.get(name))} and should be "
                f"{_brief(should.get(name))}{place}"
            )


def _flat(state: State) -> dict[str, bytes]:
    """Content by path; a snapshot itself is an empty entry."""
    flat = {name.decode(): content for name, content in state.files.items()}
    for snapshot, files in state.snapshots.items():
        flat[f".snapshots/{snapshot}"] = b""
        for name, content in files.items():
            flat[f".snapshots/{snapshot}/{name.decode()}"] = content
    return flat


def _first_difference(found: bytes | None, wanted: bytes | None) -> str:
    if found is None or wanted is None:
        return ""
    for at in range(min(len(found), len(wanted))):
        if found[at] != wanted[at]:
            return f"; they differ from byte {at} on"
    return ""


def _brief(content: bytes | None) -> str:
    if content is None:
        return "absent"
    return f"{len(content)} bytes ({hashlib.sha256(content).hexdigest()[:8]})"

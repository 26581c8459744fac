"""What a simulation does: a list of steps, drawn from a seed.

A plan is data. A failing one is shortened by leaving out steps and running it again, which works because
no step depends on chance that another one used.

Damage is done only to the plan's `victims`, at most as many disks as there is parity, so that all that
was durable must be there at every moment. Crashes hit all disks alike.
"""

from __future__ import annotations

import random
from typing import Final

import msgspec

from dwfs.limits import KIB, MIB
from dwfs.types import Geometry

_NAMES: Final = [b"a", b"b", b"c", b"d", b"e", b"f"]
_SNAPSHOTS: Final = ["hourly", "daily", "weekly", "before", "after"]
_GEOMETRIES: Final = [
    Geometry(1, 1),
    Geometry(2, 1),
    Geometry(2, 2),
    Geometry(3, 1),
    Geometry(4, 2),
]


class Step(msgspec.Struct, frozen=True):
    """One thing that is done; which fields mean something depends on `what`."""

    what: str
    name: str = ""  # of a file, or a disk
    other: str = ""  # a new name; where damage is done; how a crash goes
    offset: int = 0  # or a count
    size: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        words = [self.what, self.name, self.other]
        words += [str(number) for number in (self.offset, self.size) if number]
        words += [f"{self.seconds:.3f} s"] if self.seconds else []
        return " ".join(word for word in words if word)


class Plan(msgspec.Struct, frozen=True):
    """A whole simulation."""

    seed: int
    geometry: Geometry
    disks: int
    capacity_bytes: int
    victims: tuple[str, ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        title = (
            f"seed {self.seed}: {self.geometry.data}+{self.geometry.parity} on {self.disks} disks, "
            f"damage to {' '.join(self.victims) or 'none'}"
        )
        return "\n".join(
            [title, *(f"  {number:3} {step}" for number, step in enumerate(self.steps))]
        )


def draw_plan(seed: int) -> Plan:
    """The plan of that seed."""
    chance = random.Random(f"plan {seed}")
    geometry = chance.choice(_GEOMETRIES)
    disks = geometry.total + chance.choice([0, 1, 1, 2])
    names = [f"d{number}" for number in range(disks)]
    victims = chance.sample(names, chance.randint(0, geometry.parity))
    weights = _weights(chance, victims)
    count = chance.randint(10, 60)
    kinds = chance.choices(list(weights), list(weights.values()), k=count)
    steps = [_draw(chance, kind, victims, names) for kind in kinds]
    return Plan(seed, geometry, disks, 192 * MIB, tuple(sorted(victims)), tuple(steps))


def _weights(chance: random.Random, victims: list[str]) -> dict[str, float]:
    """What this plan likes: swarm testing finds what an even mixture of everything never reaches."""
    weights: dict[str, float] = {"write": 12, "create": 5, "truncate": 2, "unlink": 3, "rename": 2}
    weights |= {"fsync": 4, "read": 2, "wait": 3, "crash": 3, "remount": 0.4}
    if chance.random() < 0.6:
        weights |= {
            "keep": 3,
            "forget": chance.choice([1, 2.5]),
            "rollback": chance.choice([0, 0.7]),
        }
    weights["compression"] = chance.choice([0, 0, 1])
    weights["clone"] = chance.choice([0, 0, 1.5])
    for job in ("scrub", "balance", "snapshot"):
        weights[job] = chance.choice([0, 0.6])
    weights["full"] = chance.choice([0, 0, 1])
    weights["remove"] = weights["add"] = chance.choice([0, 0, 0.6])
    if victims:
        for fault in (
            "rot",
            "lose-pages",
            "zero",
            "fail",
            "misdirect",
            "hang",
            "away",
            "read-only",
        ):
            weights[fault] = chance.choice([0, 0, 0, 1.5])
        weights["offline"] = weights["online"] = chance.choice([0, 0, 0, 1])
    return weights


def _draw(chance: random.Random, kind: str, victims: list[str], names: list[str]) -> Step:
    name, other = (chance.choice(_NAMES).decode() for _ in range(2))
    victim = chance.choice(victims) if victims else ""
    size = int(chance.choice([100, 3000, 16 * KIB, 70_000, 400_000]) * chance.uniform(0.3, 1.5))
    if kind in ("write", "create"):
        return Step(kind, name, offset=chance.choice([0, 0, 1, 5000, 200_000]), size=size)
    if kind in ("keep", "forget", "rollback"):
        return Step(kind, chance.choice(_SNAPSHOTS))
    if kind == "compression":
        return Step(kind, other=chance.choice(["off", "zstd-1", "zstd-1"]))
    if kind in ("truncate", "rename", "unlink", "read", "clone"):
        return Step(kind, name, other if kind in ("rename", "clone") else "", size=size)
    if kind == "wait":
        return Step(kind, seconds=chance.choice([0.01, 0.5, 6, 40]))
    if kind == "crash":
        return Step(
            kind,
            other=chance.choice(["machine", "machine", "process", "boot-disk"]),
            offset=chance.choice([0, 1, 3, 10, 30, 100]) + chance.randint(0, 20),
        )
    if kind in ("rot", "lose-pages", "zero"):
        below = chance.choice(["", "segments", "segments", "log"])
        return Step(kind, victim, below, offset=chance.choice([1, 3, 20]))
    if kind == "fail":
        return Step(
            kind, victim, chance.choice(["read", "write", "sync"]), chance.choice([1, 2, 6])
        )
    if kind in ("offline", "online"):
        return Step(kind, victim)
    if kind == "misdirect":
        return Step(kind, victim, offset=chance.choice([1, 2]))
    if kind in ("hang", "away", "read-only"):
        how = chance.choice(["whole", "power-cut", "stale"])
        return Step(kind, victim, how, seconds=chance.choice([0.2, 5, 20, 50, 120]))
    if kind == "full":
        return Step(kind, size=chance.choice([0, MIB, 4 * MIB]), seconds=chance.choice([5, 30, 90]))
    if kind in ("remove", "add"):
        return Step(kind, chance.choice(names))
    return Step(kind)

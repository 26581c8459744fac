"""Tables of the comparison: medians, ratios against the goals, memory; as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

# The goals as ratios in one run, by figure as the workloads name it: our own, and the external one.
GOALS_OF_GOCRYPTFS = {
    **dict.fromkeys(("sequential_write", "seqwrite_MBs"), 1.0),
    **dict.fromkeys(("sequential_rewrite", "seqrewrite_MBs"), 1.0),
    **dict.fromkeys(("sequential_read_cold", "seqread_cold_MBs"), 1.0),
    **dict.fromkeys(("random_write_4k", "randwrite4k_iops"), 1.0),
    **dict.fromkeys(("small_write_8k", "smallwrite8k_ops"), 1.0),
    **dict.fromkeys(("tree_copy", "copytree_files"), 1.0),
    **dict.fromkeys(("create", "create_ops"), 0.6),
    **dict.fromkeys(("unlink", "unlink_ops"), 0.6),
    **dict.fromkeys(("stat_cold", "stat_cold_ops"), 0.6),
    **dict.fromkeys(("write_fdatasync_4k", "fsync4k_ops"), 0.6),
    **dict.fromkeys(("small_read_8k_cold", "smallread8k_cold_ops"), 0.6),
    **dict.fromkeys(("random_read_4k_cold", "randread4k_cold_iops"), 0.6),
}
GOAL_OF_GLUSTER = 4.0
GOALS_OF_GLUSTER = dict.fromkeys(("write_fdatasync_4k", "fsync4k_ops"), 2.0)
WITHOUT_GOAL = ("warm", "list", "lsl", "rmtree")  # figures that the goals don't name
SECONDS = "rmtree_s"  # all other figures are rates
MEMORY_GOAL_LOAD_MIB = 300
MEMORY_GOAL_IDLE_MIB = 100


@dataclass
class Measurements:
    """What was measured of one system."""

    name: str
    title: str
    version: str
    rounds: list[dict[str, float]] = field(default_factory=list)
    idle_before_bytes: int = 0
    load_bytes: int = 0
    idle_after_bytes: int = 0

    def figure(self, name: str, average: Callable[[Iterable[float]], float]) -> float | None:
        """The figure over all rounds, or None if no round had it."""
        values = [one[name] for one in self.rounds if name in one]
        return average(values) if values else None


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _ratio(ours: float | None, theirs: float | None, goal: float | None, seconds: bool) -> str:
    if not ours or not theirs:
        return "–"
    ratio = theirs / ours if seconds else ours / theirs
    if goal is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} {'✓' if ratio >= goal else '✗'} (≥ {goal:g})"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def render(
    results: list[Measurements],
    facts: list[str],
    command_line: str,
    average: Callable[[Iterable[float]], float],
) -> str:
    """The whole section: facts, table of figures with ratios, table of memory."""
    by_name = {result.name: result for result in results}
    ours = by_name.get("dwfs")
    others = [name for name in ("gocryptfs", "gluster") if ours and name in by_name]
    names = list(dict.fromkeys(name for result in results for one in result.rounds for name in one))
    heading = ["", *(result.title for result in results), *(f"dwfs ÷ {name}" for name in others)]
    lines = [f"Made by `{command_line}`; medians of {len(results[0].rounds)} rounds.", ""]
    lines += [f"- {fact}" for fact in facts]
    lines += [f"- {result.title}: {result.version}" for result in results]
    lines += ["", _row(heading), _row(["---", *["---:"] * (len(heading) - 1)])]
    for name in names:
        seconds = name == SECONDS
        cells = [f"`{name}`", *(_number(result.figure(name, average)) for result in results)]
        for other in others:
            goal = GOALS_OF_GOCRYPTFS.get(name)
            if other == "gluster":
                goal = GOALS_OF_GLUSTER.get(name, GOAL_OF_GLUSTER)
            if any(word in name for word in WITHOUT_GOAL):
                goal = None
            assert ours is not None
            theirs = by_name[other].figure(name, average)
            cells.append(_ratio(ours.figure(name, average), theirs, goal, seconds))
        lines.append(_row(cells))
    lines += ["", "Anonymous memory of the filesystem's processes, MiB:", ""]
    lines += [_row(["", "idle, just mounted", "highest under load", "idle, after the load"])]
    lines += [_row(["---", "---:", "---:", "---:"])]
    for result in results:
        if result.load_bytes:
            figures = (result.idle_before_bytes, result.load_bytes, result.idle_after_bytes)
            lines.append(_row([result.title, *(f"{value / 2**20:.0f}" for value in figures)]))
    lines += [
        "",
        f"Goals for dwfs: {MEMORY_GOAL_LOAD_MIB} under load, {MEMORY_GOAL_IDLE_MIB} idle.",
    ]
    return "\n".join(lines) + "\n"


def replace_between_markers(document: Path, marker: str, text: str) -> None:
    """Put `text` between `<!-- marker:begin -->` and `<!-- marker:end -->` of a document."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    old = document.read_text()
    before, found, rest = old.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{document} has no {begin} … {end}")
    document.write_text(f"{before}{begin}\n{text}{end}{after}")

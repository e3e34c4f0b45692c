"""What is drawn of measured runs, as numbers and words: lines over an axis, and phases as bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from astra_mpi.measure.published import CONDITIONS, PUBLISHED, RANKS, TOKENS, scheme_of
from astra_mpi.measure.runs import Condition, Measured, Run, grouped
from astra_mpi.wire.laps import PHASES

MOST_CHARTS = 3  # per axis; the tables have all runs
AXES = {
    "bandwidth": "bandwidth of a port, Mbit/s",
    "ranks": "ranks (machines)",
    "tokens": "content tokens of a sequence",
}
ORDER = (*(phase for phase in PHASES if phase != "exchange"), "exchange")  # waiting comes last


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[tuple[float, float], ...]  # x increasing, speed-up
    published: bool = False
    like: str = ""  # published: the measured line that it belongs to, if any


@dataclass(frozen=True)
class Chart:
    axis: str  # a key of AXES
    title: str
    facts: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Bars:
    title: str
    facts: str
    names: tuple[str, ...]
    phases: tuple[str, ...]
    seconds: tuple[tuple[float, ...], ...]  # per name, per phase
    limit_s: float  # where the axis ends: bars beyond it are cut


def line_charts(measured: Measured) -> list[Chart]:
    """Speed-ups over bandwidth, ranks and tokens, wherever runs differ in that alone; the fullest of each first."""
    runs = [run for run in measured.runs if run.speedup is not None and run.strategy != "single"]
    return [chart for axis in AXES for chart in _charts(axis, runs, measured.hosts)[:MOST_CHARTS]]


def _charts(axis: str, runs: Sequence[Run], hosts: Sequence[str]) -> list[Chart]:
    drawn = [run for run in runs if _x(axis, run) is not None]
    together = grouped(drawn, lambda run: _fixed(axis, run)).values()
    wide = [group for group in together if len({_x(axis, run) for run in group}) > 1]
    wide.sort(key=lambda group: (-len(group), (group[0].at.ranks, group[0].at.tokens) != (RANKS, TOKENS)))
    return [_chart(axis, group, hosts) for group in wide]


def _x(axis: str, run: Run) -> float | None:
    return run.mbps if axis == "bandwidth" else float(getattr(run.at, axis))


def _fixed(axis: str, run: Run) -> Condition:
    """All of the condition but the axis."""
    if axis == "bandwidth":
        return run.at._replace(network=run.link)
    return run.at._replace(ranks=0) if axis == "ranks" else run.at._replace(tokens=0)


def _chart(axis: str, runs: list[Run], hosts: Sequence[str]) -> Chart:
    lines = []
    for name, mine in grouped(runs, lambda run: run.name).items():
        values = {_x(axis, run) or 0.0: run.speedup or 0.0 for run in mine}  # the last of several
        lines.append(Line(name, tuple(sorted(values.items()))))
    published = _published(axis, runs)
    note = f" Dashed: {CONDITIONS}."
    return Chart(axis, f"Speed-up over {axis}: {_where(runs, axis)}", facts(runs, hosts) + note, (*lines, *published))


def _published(axis: str, runs: list[Run]) -> list[Line]:
    """The curves of the schemes that were measured; ASTRA G=1 in any case."""
    curves = PUBLISHED[axis]
    likes: dict[str, str] = {}
    for run in runs:
        scheme = scheme_of(run.strategy, run.codec)
        if scheme is not None and scheme in curves["speedup"]:
            likes.setdefault(scheme, run.name)
    if not any(scheme.startswith("ASTRA") for scheme in likes):
        likes["ASTRA G=1"] = ""
    return [
        Line(f"published: {scheme}", tuple(zip(curves["at"], curves["speedup"][scheme], strict=True)), True, like)
        for scheme, like in likes.items()
    ]


def phase_bars(measured: Measured) -> list[Bars]:
    """Where the time goes: the fullest condition at its lowest and at its highest bandwidth."""
    return [_bars(runs, measured.hosts) for runs in shown_conditions(measured.runs)]


def shown_conditions(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of one condition or two: of those that differ in bandwidth alone the most, at both ends of it."""
    if not runs:
        return []
    together = max(grouped(runs, lambda run: _fixed("bandwidth", run)).values(), key=len)
    by_network = sorted(grouped(together, lambda run: run.at).values(), key=lambda group: group[0].mbps or 0.0)
    ends = [by_network[0]] if len(by_network) == 1 else [by_network[0], by_network[-1]]
    return [list({run.name: run for run in group}.values()) for group in ends]


def _bars(runs: list[Run], hosts: Sequence[str]) -> Bars:
    names = {name for run in runs for name in run.phases_s}
    phases = tuple(sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)))
    seconds = tuple(tuple(run.phases_s.get(phase, 0.0) for phase in phases) for run in runs)
    totals = [run.total_s for run in runs]
    single = [run.total_s for run in runs if run.strategy == "single"] or [min(totals)]
    title = f"Where the time goes: {_where(runs, '')}"
    return Bars(
        title, facts(runs, hosts), tuple(r.name for r in runs), phases, seconds, min(max(totals), 2 * single[0])
    )


def _where(runs: Sequence[Run], axis: str) -> str:
    at = runs[0].at
    network = f"{runs[0].link or 'no latency'}" if axis == "bandwidth" else at.network
    words = {"tokens": f"{at.tokens} tokens", "ranks": f"{at.ranks} rank{'s' * (at.ranks > 1)}", "bandwidth": network}
    told = [at.model, *(word for name, word in words.items() if name != axis or name == "bandwidth")]
    return ", ".join(told)


def facts(runs: Sequence[Run], hosts: Sequence[str]) -> str:
    """Under which conditions these runs were measured, in a sentence or two."""
    counted = {run.counted_keys for run in runs if run.counted_keys is not None}
    switch = {True: "on", False: "off"}
    parts = {
        "network": list(dict.fromkeys(run.at.network for run in runs)),
        "clock": sorted({run.at.clock for run in runs}),
        "accounting": sorted({run.at.accounting for run in runs if run.at.accounting}) or ["none"],
        "batch": sorted({str(run.at.batch) for run in runs}),
        "counted keys": sorted(switch[flag] for flag in counted) or ["none"],
        "distinct keys": list(distinct_keys(runs)) or ["none"],
    }
    words = "; ".join(f"{name}: {' | '.join(values)}" for name, values in parts.items())
    return f"{words[0].upper()}{words[1:]}. Host and versions: {' | '.join(hosts) or 'not given'}."


def distinct_keys(runs: Sequence[Run]) -> Iterable[str]:
    """Per strategy with codes, the fewest and the most."""
    known = [run for run in runs if run.distinct_keys is not None]
    for name, mine in grouped(known, lambda run: run.name).items():
        keys = [run.distinct_keys or 0.0 for run in mine]
        span = f"{min(keys):.0f}" if round(min(keys)) == round(max(keys)) else f"{min(keys):.0f} to {max(keys):.0f}"
        yield f"{name} {span}"

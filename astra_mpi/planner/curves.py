"""Predicted latency over bandwidth, drawn with matplotlib."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.costs.setting import Setting, compute_seconds, wait_seconds
from astra_mpi.errors import InputError
from astra_mpi.files.figure import missing_matplotlib, save_figure
from astra_mpi.planner.decode import crossover_bps, steps
from astra_mpi.planner.plan import best_cut, plan

LOWEST_BPS, HIGHEST_BPS, POINTS = 1e6, 1e9, 31
CONTEXTS = 128, 131072  # shortest and longest prompt
_MODE_COLORS = {"local": "#D55E00", "merged": "#0072B2"}


def sweep(setting: Setting) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Bandwidths (n,) in bit/s, and per strategy its predicted seconds (n,) under port accounting."""
    bandwidths = np.geomspace(LOWEST_BPS, HIGHEST_BPS, POINTS)
    curves: dict[str, list[float]] = {}
    for bps in bandwidths:
        at = replace(setting, network=setting.network._replace(bandwidth_bps=float(bps)))
        for row in plan(at)["strategies"]:
            if "skipped" not in row:
                curves.setdefault(row["strategy"], []).append(row["latency_s"]["port"])
    return bandwidths, {name: np.array(seconds) for name, seconds in curves.items()}


def require_matplotlib() -> None:
    """InputError where it is not installed."""
    missing = missing_matplotlib()
    require(not missing, f"--plot: {missing}")


def draw(path: str, setting: Setting, title: str) -> None:
    """Write the curves of `sweep` to `path`, in the format of its ending. InputError if it cannot be written."""
    from matplotlib.figure import Figure

    bandwidths, curves = sweep(setting)
    axes: Any = Figure(figsize=(7, 5), layout="constrained").add_subplot()
    for name, seconds in curves.items():
        axes.loglog(bandwidths / 1e6, 1e3 * seconds, label=name, linestyle="--" if name == "single" else "-")
    axes.axvline(setting.network.bandwidth_bps / 1e6, color="grey", linewidth=0.8)
    axes.set(xlabel="bandwidth of a port, Mbps", ylabel="predicted latency, ms", title=title)
    axes.legend(fontsize="small")
    _save(path, axes.figure)


def _save(path: str, figure: Any) -> None:
    try:
        save_figure(path, figure, dpi=150)
    except ValueError as exc:
        raise InputError(f"--plot {path} cannot be written ({exc}); give a .png, .svg or .pdf") from exc


def draw_decode(path: str, setting: Setting, n_new: int, title: str) -> None:
    """Write to `path`: milliseconds per token over bandwidth, and from which bandwidth on merged beats local, over the
    length of the prompt. InputError if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    bandwidths, strategies = np.geomspace(LOWEST_BPS, HIGHEST_BPS, POINTS), ("single", "sp", "astra")
    for name in strategies:
        for mode, step in steps(setting, name, n_new, best_cut(setting, name)).items():
            waits = [wait_seconds(step, setting.network._replace(bandwidth_bps=float(bps))) for bps in bandwidths]
            style = {"single": ":", "sp": "--"}.get(name, "-")
            label = name if name == "single" else f"{name}, {mode}"
            seconds = compute_seconds(setting, step) + np.array(waits)
            left.loglog(bandwidths / 1e6, 1e3 * seconds, style, color=_MODE_COLORS[mode], label=label)
    left.axvline(setting.network.bandwidth_bps / 1e6, color="grey", linewidth=0.8)
    left.set(xlabel="bandwidth of a port, Mbps", ylabel="predicted milliseconds per token", title=title)
    lengths = [int(n) for n in np.geomspace(*CONTEXTS, POINTS)]
    for name in strategies[1:]:
        every = [replace(setting, tokens=n) for n in lengths]
        found = [crossover_bps(at, steps(at, name, n_new, at.even)) for at in every]
        mbps = [np.nan if bps is None else bps / 1e6 for bps in found]
        right.loglog(lengths, mbps, {"sp": "--"}.get(name, "-"), color="#0072B2", label=f"after {name}")
    right.set(
        xlabel="tokens of the prompt",
        ylabel="Mbps above which merged beats local",
        title=f"crossover, round trip {1e3 * setting.network.rtt_s:g} ms",
        xlim=CONTEXTS,
    )
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    _save(path, figure)

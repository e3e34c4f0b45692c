"""Predicted latency over bandwidth, drawn with matplotlib."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.planner import Setting, plan
from astra_mpi.plots import missing_matplotlib

LOWEST_BPS, HIGHEST_BPS, POINTS = 1e6, 1e9, 31


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
    try:
        axes.figure.savefig(path, dpi=150)
    except (OSError, ValueError) as exc:
        raise InputError(f"--plot {path} cannot be written ({exc}); give a .png, .svg or .pdf") from exc

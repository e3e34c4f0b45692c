"""`decode = "auto"`: alone or merged, by the cost model (docs/explanation/planner.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from astra_mpi.costs import latency
from astra_mpi.costs.decode import MODES, decode_cost
from astra_mpi.costs.latency import ASSUMED_GFLOPS
from astra_mpi.costs.setting import Setting, step_seconds
from astra_mpi.costs.strategies import Coding

if TYPE_CHECKING:
    from astra_mpi.decode.prefill import Engine
    from astra_mpi.partition import Layout


def predicted_mode(model: Engine, layout: Layout, n_new: int) -> str:
    """The way of decoding that is predicted to take less per token on the emulated network.

    "local", which sends nothing, on a network that nobody has described. Nothing is timed: all ranks choose the same.
    """
    network, spec = model.exchange.network, str(model.strategy.spec)
    if layout.size == 1 or network.rate is None or spec == "single":
        return "local"
    link = latency.Network(network.rate.mean_bps, network.rtt_s)
    coding = Coding() if model.codec is None else Coding(model.codec.config, remote=_remote(model))
    longest = int(layout.lengths.argmax())
    slices = layout.counts[longest][layout.order[longest]]
    speeds = (latency.assumed_speeds(ASSUMED_GFLOPS),) * layout.size
    setting = Setting(model.config, int(layout.lengths[longest]), speeds, link, len(layout.lengths), coding)
    job = setting.job([int(n) for n in slices])
    local, merged = (step_seconds(setting, decode_cost(job, coding, spec, mode, n_new)) for mode in MODES)
    return "merged" if merged < local else "local"


def _remote(model: Engine) -> str:
    """How far keys come from codes: "table" or "gemm"."""
    return str(model.strategy.describe()["choices"].get("remote", "table"))

"""`decode = "auto"`: alone or merged, by the cost model (docs/explanation/planner.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from astra_mpi.costs import latency
from astra_mpi.costs.decode import MODES, decode_cost
from astra_mpi.costs.latency import ASSUMED_GFLOPS
from astra_mpi.costs.setting import Setting, step_seconds
from astra_mpi.costs.types import assumed, kept_bytes, storage_of, stored
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import shape_of
from astra_mpi.strategies.token_parallel import TokenParallel

#: of a network that nobody has described
_RATE_BPS, _RTT_S = 1e9, 1e-4
#: seconds for which a conversation's prompt is cut over the ranks
WORTH_S = 0.5

if TYPE_CHECKING:
    from astra_mpi.decode.prefill import Engine
    from astra_mpi.layout import Layout


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
    speeds = (_speeds(model),) * layout.size
    kept = kept_bytes(model.backend.compute, model.config.d_head)
    setting = Setting(model.config, int(layout.lengths[longest]), speeds, link, len(layout.lengths), coding)
    setting = replace(setting, kept_bytes=kept)
    job = setting.job([int(n) for n in slices])
    local, merged = (step_seconds(setting, decode_cost(job, coding, spec, mode, n_new)) for mode in MODES)
    return "merged" if merged < local else "local"


def pays_to_cut(model: Engine, n_new: int, owed_bytes: int) -> bool:
    """Whether a conversation's next n_new tokens come sooner when all ranks compute them, who then have to be told
    `owed_bytes` of what was said before, than from one rank that knows it all. Nothing is timed.

    By WORTH_S at least: what one rank reads is read exactly, whatever ranks would send of it.
    """
    size, network = model.exchange.size, model.exchange.network
    bits_per_s, rtt_s = (network.rate.mean_bps, network.rtt_s) if network.rate is not None else (_RATE_BPS, _RTT_S)
    strategy = model.strategy
    if size == 1 or not isinstance(strategy, TokenParallel) or strategy.site is None or n_new < size:
        return False
    shape = shape_of(model.config)
    madds = shape.project_q * 2 + shape.project_kv + shape.mlp
    saved_s = n_new * madds * model.config.n_layers * (1 - 1 / size) / _speeds(model).gemm
    each = [strategy.seen_bytes(i, -(-n_new // size)) for i in range(model.config.n_layers)]
    exchanged = sum(each) * (size - 1)
    told_s = 8 * (owed_bytes + exchanged) / bits_per_s + (model.config.n_layers + 1) * rtt_s
    return saved_s - told_s > WORTH_S


def _speeds(model: Engine) -> latency.Speeds:
    """Assumed of every rank, with the model's type of products and its storage of weights."""
    compute, plain = model.backend.compute, latency.assumed_speeds(ASSUMED_GFLOPS)
    return stored(assumed(plain, compute), compute, storage_of(model.family.w))


def _remote(model: Engine) -> str:
    """How far keys come from codes: "table" or "gemm"."""
    return str(model.strategy.describe()["choices"].get("remote", "table"))

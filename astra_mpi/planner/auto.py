"""`strategy = "auto"`: the exact strategy that is predicted to be fastest on these ranks (docs/explanation/planner.md).

Never imported by the forward pass: `load` and the commands come here once, before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.costs.decode import MODES, decode_cost, head_work
from astra_mpi.costs.latency import Network, assumed_speeds, latency
from astra_mpi.costs.setting import Setting, step_seconds
from astra_mpi.costs.strategies import STRATEGIES
from astra_mpi.costs.types import assumed, kept_bytes, storage_of, stored
from astra_mpi.costs.wires import coding_of
from astra_mpi.costs.work import Work
from astra_mpi.errors import InputError, collective
from astra_mpi.planner.advice import WORTH
from astra_mpi.planner.halves import quickest
from astra_mpi.planner.plan import best_cut, cheaper_remote
from astra_mpi.planner.probes import block_speeds, gemm_speeds, measure_link
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.replicas.replicas import Replicas
from astra_mpi.stages.pipeline import Pipeline

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.engine import Model

#: what auto may choose: an answer is not rounded unasked
EXACT = ("single", "sp", "sp:kv", "tp")
#: what it names where that is much faster
ROUNDED = ("sp:float16", "sp:int8", "sp:kv:float16", "sp:kv:int8")
CODED = ("astra", "astra:inputs", "astra:late")
#: predicted to be so many times as fast: worth a line on the terminal
MUCH = 2.0
_MOST_TOKENS = 1024


@dataclass(frozen=True)
class Workload:
    """What a forward pass is made for."""

    tokens: int  # content tokens of the longest sequence
    batch: int = 1
    new_tokens: int = 0  # generated after them
    decode: str = "auto"
    scored: bool = False  # every token's logits are computed


def usual(config: Any, tokens: int | None = None, new_tokens: int = 0, batch: int = 1) -> Workload:
    """A workload of which little is known: the model's own maximum of tokens, up to 1024. InputError below 1."""
    if tokens is None:
        own = int(config.grid[0] * config.grid[1]) if config.family == "vit" else config.max_positions
        tokens = min(own, _MOST_TOKENS)
    require(tokens >= 1, f"tokens {tokens}: at least 1")
    require(new_tokens >= 0, f"new_tokens {new_tokens}: at least 0")
    return Workload(tokens, batch, new_tokens)


def decide(
    model: Model | Replicas | Pipeline,
    workload: Workload,
    coded: str = "astra",
    *,
    advises: bool = True,
    **options: Any,
) -> None:
    """Collective: use a strategy on `model`, the same on all ranks, and keep in `model.chosen` why
    (docs/explanation/planner.md).

    With codebooks `coded`: what is answered then does not depend on a measurement. Else the fastest exact strategy by
    the emulated network, or by a probe of the real one. One rank measures nothing. advises: with codebooks too, so that
    `hint` can name what would be much faster. options: of `Model.use`.
    """
    if isinstance(model, Replicas):
        with collective(model.comm):  # what fails on the first replica
            if model.groups.place[0] == 0:
                decide(model.model, workload, coded, advises=advises, **options)
        text = json.dumps(model.chosen) if model.comm.Get_rank() == 0 else ""
        adopt(model, json.loads(broadcast_text(model.comm, text)), **options)
        return
    if isinstance(model, Pipeline):  # for the ranks that share tokens, by the first stage
        with collective(model.comm):
            if model.stage == 0:
                decide(model.model, workload, coded, advises=advises, **options)
        text = json.dumps(model.chosen) if model.comm.Get_rank() == 0 else ""
        adopt(model, json.loads(broadcast_text(model.comm, text)), **options)
        return
    if model.comm.Get_size() == 1:
        chosen = {"strategy": "single" if model.codec is None else coded, "by": "one rank"}
    elif model.codec is not None and not advises:
        chosen = {"strategy": coded, "by": "codebooks"}
    else:
        setting, measured = measured_setting(model, workload, model.exchange.comm)
        text = ""
        with collective(model.comm):
            if model.comm.Get_rank() == 0:
                text = json.dumps(measured | _choice(model, setting, workload, coded))
        chosen = json.loads(broadcast_text(model.comm, text))
    adopt(model, chosen, **options)


def adopt(model: Model | Replicas | Pipeline, chosen: dict[str, Any], **options: Any) -> None:
    """Collective: use what was chosen, now or by an earlier part of a job."""
    model.use(chosen["strategy"], **options)
    model.chosen = chosen


def measured_setting(model: Any, workload: Workload, comm: MPI.Comm) -> tuple[Setting, dict[str, Any]]:
    """Collective: what is planned for, and how it is known. A network that is emulated is not measured.

    comm: of the ranks of `model.comm`; nobody else sends on it.
    """
    start_s = perf_counter()
    emulated = model.exchange.network
    gemm = gemm_speeds(model, workload.tokens)
    compute = model.backend.compute
    if compute == "float32":
        products = gemm
    elif model.blocks:
        products = block_speeds(model, workload.tokens)
    else:
        products = np.array([assumed(assumed_speeds(2e-9 * plain), compute).gemm for plain in gemm])
    if emulated.rate is None:
        link = measure_link(comm) if comm.Get_size() > 1 else Network(1e9, 1e-3)
    else:  # a shared medium carries one message at a time
        bps = emulated.rate.mean_bps
        link = Network(bps / model.comm.Get_size() if emulated.shared else bps, emulated.rtt_s)
    storage = storage_of(model.weights)
    speeds = tuple(
        stored(replace(assumed(assumed_speeds(2e-9 * plain), compute), gemm=float(speed)), compute, storage)
        for plain, speed in zip(gemm, products, strict=True)
    )
    setting = Setting(model.config, workload.tokens, speeds, link, workload.batch)
    setting = replace(setting, kept_bytes=kept_bytes(compute, model.config.d_head))
    if model.codec is not None:
        setting = replace(setting, coding=cheaper_remote(setting, coding_of(model.codec)))
    told = {
        "network": {"from": emulated.text if emulated.rate is not None else "probe", **link._asdict()},
        "gflops": [round(2e-9 * float(speed), 3) for speed in products],
        "probe_s": round(perf_counter() - start_s, 4),
        "tokens": workload.tokens,
        "batch": workload.batch,
        "new_tokens": workload.new_tokens,
    }
    return setting, told


def _choice(model: Model, setting: Setting, workload: Workload, coded: str) -> dict[str, Any]:
    """What is used, why, and what would be much faster."""
    if workload.decode == "auto" and model.exchange.network.rate is None:  # as `decode/choice.py` has it
        workload = replace(workload, decode="local")
    accounting = model.exchange.network.accounting if model.exchange.link is not None else "port"
    names = (*EXACT, *ROUNDED, *(CODED if model.codec is not None else ()))
    usable = [name for name in names if model.obstacle(name) is None]
    times = predictions(setting, workload, usable, model.cut_weights is None, accounting)
    if model.codec is not None:
        strategy, by = coded, "codebooks"
    else:
        strategy, by = fastest_exact(times), "prediction"
    told: dict[str, Any] = {"strategy": strategy, "by": by, "predicted_s": times}
    faster = min(times, key=lambda name: times[name])
    if times[strategy] >= MUCH * times[faster]:
        told["faster"] = {"strategy": faster, "times": times[strategy] / times[faster]}
    return told


def fastest_exact(times: dict[str, float]) -> str:
    """One rank unless another exact strategy is predicted to gain by it."""
    best = min((name for name in times if name in EXACT), key=lambda name: times[name])
    return best if times["single"] >= WORTH * times[best] else "single"


def predictions(
    setting: Setting, workload: Workload, strategies: Sequence[str], even: bool, accounting: str = "port"
) -> dict[str, float]:
    """Strategy -> predicted seconds of a whole workload, of those that can be used. even: tokens are cut evenly."""
    times = {}
    for strategy in strategies:
        try:
            times[strategy] = _seconds(setting, workload, strategy, even, accounting)
        except InputError:  # it cannot be used for this
            continue
    return times


def _seconds(setting: Setting, workload: Workload, strategy: str, even: bool, accounting: str) -> float:
    counts = setting.even if even else best_cut(setting, strategy)
    job = setting.job(counts)
    if workload.new_tokens or strategy == "single":  # what decoding keeps is of a whole batch
        cost = STRATEGIES[strategy](job, setting.coding)
        pass_s = latency(cost, setting.speeds, setting.network, accounting).total
    else:
        pass_s = quickest(setting, strategy, counts, accounting)[0].total
    if workload.new_tokens:
        return pass_s + _decoding_s(setting, workload, strategy, counts)
    if workload.scored:  # where the rows are
        rows = [job.tokens, *[0] * (job.size - 1)] if strategy in ("single", "tp") else counts
        heads = [head_work(setting.shape, 1).weights * n * setting.batch for n in rows]
        pass_s += max(speeds.seconds(Work(gemm=n)) for speeds, n in zip(setting.speeds, heads, strict=True))
    return pass_s


def _decoding_s(setting: Setting, workload: Workload, strategy: str, counts: Sequence[int]) -> float:
    """From the prompt's last block to the last new token, in the way of decoding that will be taken."""
    job, n_new = setting.job(counts), workload.new_tokens
    modes = MODES if workload.decode == "auto" else (workload.decode,)
    seconds = []
    for mode in modes if strategy != "single" else ("local",):
        step = decode_cost(job, setting.coding, strategy, mode, n_new)
        sampled = setting.batch if strategy == "single" or mode == "merged" else -(-setting.batch // setting.size)
        head_s = max(speeds.seconds(head_work(setting.shape, sampled)) for speeds in setting.speeds)
        seconds.append(head_s + (n_new - 1) * step_seconds(setting, step))
    return min(seconds)


def hint(chosen: dict[str, Any] | None, option: str) -> str:
    """A line where another strategy would be much faster, with the option that asks for it; else nothing."""
    faster = (chosen or {}).get("faster")
    if not faster or chosen is None:
        return ""
    name, used = faster["strategy"], chosen["strategy"]
    return (
        f"astra-mpi: {name} is predicted to be {faster['times']:.2g} times as fast as {used} here; {_caveat(name)}:"
        f" {option}{name}"
    )


def _caveat(strategy: str) -> str:
    if strategy in EXACT:
        return "it is exact"
    if strategy in CODED:
        return "it sends codes, which is approximate"
    return f"it rounds what is sent to {8 if strategy.endswith('int8') else 16} bits"


def reason(chosen: dict[str, Any] | None) -> str:
    """How a strategy was chosen, in one line; nothing where nobody chose or nothing was measured."""
    if not chosen or "probe_s" not in chosen:
        return ""
    network = chosen["network"]
    best = sorted(chosen["predicted_s"].items(), key=lambda row: row[1])
    times = ", ".join(f"{name} {_time(s)}" for name, s in best if name in EXACT or name == chosen["strategy"])
    mbps = network["bandwidth_bps"] / 1e6
    return (
        f"chose {chosen['strategy']} (by {chosen['by']}): {times} predicted at {mbps:.3g} Mbps,"
        f" round trip {1e3 * network['rtt_s']:.3g} ms ({network['from']}), {min(chosen['gflops']):.3g} GFLOP/s;"
        f" {1e3 * chosen['probe_s']:.0f} ms to find out"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"

"""Which strategy, codec and cut are fastest on given ranks and links, predicted (docs/explanation/planner.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from astra_mpi import partition
from astra_mpi.costs.latency import ACCOUNTINGS, Latency, break_even_bps, latency
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.strategies import STRATEGIES, single
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Cost
from astra_mpi.errors import InputError
from astra_mpi.planner.advice import calibrate_options
from astra_mpi.planner.halves import quickest
from astra_mpi.planner.measured import best_codec, measured, same_codes

#: strategies that cut tokens, and those that can be cut unevenly
BY_TOKENS = ("sp", "segment_means", "astra")
UNEVEN = (*BY_TOKENS, "tp")
_ROUNDS = 30


def fastest_rank(setting: Setting) -> int:
    """The rank on which `single` takes least, the lowest on a tie."""
    job = setting.job(setting.even)
    alone = single(job).work()[0]
    seconds = [speeds.seconds(alone) for speeds in setting.speeds]
    return seconds.index(min(seconds))


def cheaper_remote(setting: Setting, coding: Coding) -> Coding:
    """`coding` with tables or GEMM for far keys, whichever is predicted to be faster, as `load` decides by timing."""
    job = setting.job(setting.even)
    ways = [replace(coding, remote=how) for how in ("table", "gemm")]
    return min(ways, key=lambda way: latency(STRATEGIES["astra"](job, way), setting.speeds, setting.network).total)


@lru_cache(maxsize=64)
def best_cut(setting: Setting, strategy: str) -> list[int]:
    """Tokens per rank that make `strategy` fastest: the even cut, or shares moved until ranks take equally long.

    Never worse than the even cut, by the prediction under port accounting. Even where ranks are equally fast and see
    equally much, and for strategies whose parts are equal. `tp` cuts heads and columns in proportion. InputError where
    the strategy cannot be used.
    """
    alike = len(set(setting.speeds)) == 1
    sees_more = setting.shape.causal and strategy.split(":")[0] in BY_TOKENS  # a later token
    if strategy.split(":")[0] not in UNEVEN or (alike and not sees_more):
        return setting.even
    best = counts = setting.even
    shares = [max(n, 1) / setting.tokens for n in counts]
    least = _total(setting, strategy, best)
    for _ in range(_ROUNDS):
        work = STRATEGIES[strategy](setting.job(counts), setting.coding).work()
        seconds = [speeds.seconds(w) for speeds, w in zip(setting.speeds, work, strict=True)]
        mean = sum(seconds) / len(seconds)
        # half the step, because a rank with fewer tokens has more far ones
        shares = [share * (mean / max(s, 1e-12)) ** 0.5 for share, s in zip(shares, seconds, strict=True)]
        counts = [int(n) for n in partition.weighted(setting.tokens, shares)]
        total = _total(setting, strategy, counts)
        if total < least:
            best, least = counts, total
    return best


def best_way(setting: Setting, strategy: str, alone: int = 0) -> tuple[list[int], Cost]:
    """The best cut and what it costs. alone: the rank of `single`. InputError where the strategy cannot be used."""
    counts = best_cut(setting, strategy)
    job = setting.job(counts)
    return counts, single(job, alone) if strategy == "single" else STRATEGIES[strategy](job, setting.coding)


def _total(setting: Setting, strategy: str, counts: Sequence[int]) -> float:
    return latency(STRATEGIES[strategy](setting.job(counts), setting.coding), setting.speeds, setting.network).total


def memory_bytes(setting: Setting, cost: Cost, counts: Sequence[int]) -> int:
    """Of the rank that needs most: weights as they are kept, tables, one block's activations, far keys and messages."""
    config, shape = setting.config, setting.shape
    block = 2 * shape.project_q + shape.project_kv + shape.mlp
    weights = setting.weight_bytes * (cost.block_share * block * config.n_layers + shape.other_weights)
    by_tokens = cost.strategy.split(":")[0] in BY_TOKENS
    sinks = setting.coding.codec.sinks if cost.strategy.startswith("astra") else 0
    rows = shape.n_class + (max(counts) + sinks if by_tokens else setting.tokens)
    far = setting.tokens - min(counts) if by_tokens else 0
    numbers = rows * (6 * config.d_model + 2 * config.d_kv + config.d_ff) + far * 2 * config.d_kv
    received = max((sum(s.transfer.contributed) for s in cost.stages if s.transfer), default=0)
    return int(weights + cost.table_bytes + 4 * setting.batch * numbers + received)


def plan(setting: Setting) -> dict[str, Any]:
    """Every strategy under each accounting, as JSON types; see docs/explanation/planner.md for the fields."""
    alone_rank = fastest_rank(setting)
    single_s = latency(single(setting.job(setting.even), alone_rank), setting.speeds, setting.network).total
    rows = []
    for strategy in STRATEGIES:
        try:
            counts, cost = best_way(setting, strategy, alone_rank)
        except InputError as exc:
            rows.append({"strategy": strategy, "skipped": str(exc)})
            continue
        rows.append(_row(setting, cost, counts, single_s))
    cut = "causal" if setting.shape.causal else "even"
    weights = cut if len(set(setting.speeds)) == 1 else "auto"  # of which the rows' cuts are a prediction
    return {"single_s": single_s, "single_rank": alone_rank, "weights": weights, "strategies": rows}


def _row(setting: Setting, cost: Cost, counts: Sequence[int], single_s: float) -> dict[str, Any]:
    def needed(accounting: str) -> float | None:
        if cost.strategy == "single" or setting.size == 1:
            return None
        return break_even_bps(cost, setting.speeds, setting.network.rtt_s, accounting, single_s)

    ways = {kind: _way(setting, cost, counts, kind) for kind in ACCOUNTINGS}
    parts = {kind: part for kind, (part, _) in ways.items()}
    return {
        "strategy": cost.strategy,
        "exact": cost.exact,
        "cut": list(counts),
        "halves": ways["port"][1],
        "latency_s": {kind: part.total for kind, part in parts.items()},
        "compute_s": parts["port"].compute,
        "wait_s": {kind: part.wait for kind, part in parts.items()},
        "speedup": {kind: single_s / part.total for kind, part in parts.items()},
        "break_even_bps": {kind: needed(kind) for kind in ACCOUNTINGS},
        "contributed_bytes": cost.contributed_bytes(),
        "multiply_adds": max(work.multiply_adds for work in cost.work()),
        "memory_bytes": memory_bytes(setting, cost, counts),
    }


def _way(setting: Setting, cost: Cost, counts: Sequence[int], accounting: str) -> tuple[Latency, bool]:
    """What a pass takes, and whether as two half batches in turns."""
    if cost.strategy == "single":
        return latency(cost, setting.speeds, setting.network, accounting), False
    return quickest(setting, cost.strategy, counts, accounting)


def compare_codecs(setting: Setting, budget_bits: float | None) -> list[dict[str, Any]]:
    """`astra` with each codec measured for such models, most accurate first, and the setting's own if it is another.

    "best" marks the most accurate within the budget. Entries of codecs that are not the setting's are searched as where
    they were measured.
    """
    own = setting.coding
    about = measured(setting.config.family, setting.config.n_layers)
    known = about.codecs
    best = best_codec(float("inf") if budget_bits is None else budget_bits, known)
    d_model = setting.config.d_model
    others = [figure.coding(d_model) for figure in about.figures if not same_codes(figure.codec, own.codec)]
    rows = []
    for coding in [own, *(cheaper_remote(setting, other) for other in others)]:
        codec = coding.codec
        bits = codec.mean_bits(setting.config.n_layers)
        with_codec = replace(setting, coding=coding)
        total_s = _total(with_codec, "astra", best_cut(with_codec, "astra"))
        rank = next((i for i, other in enumerate(known) if same_codes(other, codec)), None)
        figure = about.like(codec, setting.config.n_layers)
        rows.append(
            {
                "codec": codec.as_dict(),
                "bits_per_token_per_block": bits,
                "accuracy_rank": rank,
                "measured": about.told(figure, setting.size),
                "calibrate": calibrate_options(codec, figure.fit if figure and rank is not None else ""),
                "fits": budget_bits is None or bits <= budget_bits,
                "best": best is not None and same_codes(codec, best),
                "used": coding is own,
                "remote": coding.remote,
                "latency_s": total_s,
            }
        )
    return sorted(rows, key=lambda row: len(known) if row["accuracy_rank"] is None else row["accuracy_rank"])

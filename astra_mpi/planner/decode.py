"""The strategy and way of decoding that are predicted to be fastest on given links (docs/explanation/planner.md)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from astra_mpi.config import require
from astra_mpi.costs.decode import MODES, MOST_ROWS, Decode, decode_cost, head_work, tokens_per_pass
from astra_mpi.costs.latency import Network, latency
from astra_mpi.costs.setting import Setting, compute_seconds, step_seconds, wait_seconds
from astra_mpi.costs.strategies import STRATEGIES, single
from astra_mpi.errors import InputError
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder
from astra_mpi.planner.plan import best_cut, fastest_rank

#: a way that is faster by less is not worth other results, nor other machines
_WORTH = 1.05


def decode_plan(setting: Setting, n_new: int, acceptance: float | None = None) -> dict[str, Any]:
    """Every strategy in the ways it generates, as JSON types. InputError for a model that does not generate.

    acceptance: also with as many drafts as pay, each of which is right with this probability where those before it are.
    """
    generates = issubclass(FAMILIES.get(getattr(setting.config, "family", ""), object), Decoder)
    require(generates, "--new-tokens is for decoders, and this model is none; leave it away")
    require(n_new >= 1, f"--new-tokens {n_new}: at least 1")
    known = acceptance is None or 0 <= acceptance < 1
    require(known, f"--draft-acceptance {acceptance}: a probability, from 0 to below 1")
    rows = [_row(setting, strategy, n_new, acceptance) for strategy in STRATEGIES]
    config = setting.config
    row_bytes = config.n_layers * 2 * config.d_kv * 4
    return {
        "new_tokens": n_new,
        "full_cache_bytes": setting.batch * (setting.tokens + n_new - 1) * row_bytes,
        "strategies": rows,
    }


def _row(setting: Setting, strategy: str, n_new: int, acceptance: float | None) -> dict[str, Any]:
    try:
        counts = best_cut(setting, strategy)
        decode_cost(setting.job(counts), setting.coding, strategy, "local", n_new)
    except InputError as exc:
        return {"strategy": strategy, "skipped": str(exc)}
    ways = steps(setting, strategy, n_new, counts)
    modes = {mode: _mode(setting, strategy, step, n_new) for mode, step in ways.items()}
    for mode, way in modes.items() if acceptance is not None else ():
        way["drafts"] = _drafted(setting, strategy, mode, n_new, counts, float(acceptance or 0))
    return {
        "strategy": strategy,
        "exact": strategy in ("single", "sp", "sp:kv"),
        "modes": modes,
        "best": min(modes, key=lambda mode: float(modes[mode]["total_s"])),
        "merged_beats_local_bps": crossover_bps(setting, ways),
    }


def steps(setting: Setting, strategy: str, n_new: int, counts: Sequence[int]) -> dict[str, Decode]:
    """The ways of decoding that can be used, after a prompt cut into these `counts`."""
    ways, job = {}, setting.job(counts)
    for mode in MODES:
        with suppress(InputError):
            ways[mode] = decode_cost(job, setting.coding, strategy, mode, n_new, fastest_rank(setting))
    return ways


def _drafted(
    setting: Setting, strategy: str, mode: str, n_new: int, counts: Sequence[int], acceptance: float
) -> dict[str, Any]:
    """With the number of drafts with which a token takes least, of those that one pass checks."""
    rest, job = (setting.coding, strategy, mode, n_new, fastest_rank(setting)), setting.job(counts)
    choices = []
    for drafts in range(max(MOST_ROWS // setting.batch, 1)):
        at_once = tokens_per_pass(acceptance, drafts)
        choices.append((step_seconds(setting, decode_cost(job, *rest, drafts)) / at_once, drafts, at_once))
    per_token_s, drafts, at_once = min(choices)
    return {
        "acceptance": acceptance,
        "draft_tokens": drafts,
        "tokens_per_pass": at_once,
        "per_token_s": per_token_s,
        "tokens_per_s": setting.batch / per_token_s,
    }


def _mode(setting: Setting, strategy: str, step: Decode, n_new: int) -> dict[str, Any]:
    job = setting.job(best_cut(setting, strategy))
    alone = strategy == "single"
    prefill = single(job, fastest_rank(setting)) if alone else STRATEGIES[strategy](job, setting.coding)
    sampled = setting.batch if alone or step.mode == "merged" else -(-setting.batch // setting.size)
    first_s = latency(prefill, setting.speeds, setting.network).total
    first_s += max(speeds.seconds(head_work(setting.shape, sampled)) for speeds in setting.speeds)
    per_token_s = step_seconds(setting, step)
    return {
        "first_token_s": first_s,
        "per_token_s": per_token_s,
        "wait_s": wait_seconds(step, setting.network),
        "total_s": first_s + (n_new - 1) * per_token_s,
        "decode_bytes": [sum(n * transfer.contributed[r] for n, transfer in step.transfers) for r in range(job.size)],
        "cache_bytes": list(step.cache_bytes),
    }


def crossover_bps(setting: Setting, ways: dict[str, Decode]) -> float | None:
    """Bandwidth above which merged decoding takes less per token than local; None where none is enough."""
    if len(ways) < 2 or not ways["merged"].transfers:
        return None
    spared_s = compute_seconds(setting, ways["local"]) - compute_seconds(setting, ways["merged"])
    spared_s -= wait_seconds(ways["merged"], Network(float("inf"), setting.network.rtt_s))
    return wait_seconds(ways["merged"], Network(1.0, 0.0)) / spared_s if spared_s > 0 else None


def decode_advice(plan: dict[str, Any]) -> list[str]:
    """What to use, in words; `plan` as `decode_plan` gives it."""
    rows, n_new = [row for row in plan["strategies"] if "skipped" not in row], plan["new_tokens"]
    alone = next(row for row in rows if row["strategy"] == "single")["modes"]["local"]
    others = [(row, mode) for row in rows if row["strategy"] != "single" for mode in row["modes"]]
    if not others:
        return []
    row, mode = min(others, key=lambda way: float(way[0]["modes"][way[1]]["total_s"]))
    way = row["modes"][mode]
    if alone["total_s"] < _WORTH * way["total_s"]:
        return [
            f"For {n_new} new tokens stay on one rank ({alone['total_s']:.3g} s in all): {row['strategy']}, decoded"
            f" {mode}, takes {way['total_s']:.3g} s."
        ]
    share = max(way["cache_bytes"]) / plan["full_cache_bytes"]
    kind = "exact" if row["exact"] else "approximate"
    return [
        f"For {n_new} new tokens use {row['strategy']} ({kind}), decoded {mode}: {way['total_s']:.3g} s against"
        f" {alone['total_s']:.3g} s on one rank; first token after {1e3 * way['first_token_s']:.1f} ms, then"
        f" {1e3 * way['per_token_s']:.2f} ms each, on one rank {1e3 * alone['per_token_s']:.2f} ms; the largest cache"
        f" of a rank is {share:.1%} of the full one."
    ]

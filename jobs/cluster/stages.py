"""A decoder by stages of blocks over emulated nodes, beside one node and ASTRA: a pass, a token, and several prompts.

mpirun -n 4 python jobs/cluster/stages.py MODEL.h5 [--network 100Mbps,rtt=1ms] [--speed 2] [--tokens 256] [--prompts 8]
    [--compute float32|bfloat16|int8] [--handed float32|float16|int8] [--only GRID,..]
MODEL.h5: a decoder with codebooks (astra-mpi init gpt2 ..). By the virtual clock: a CPU second counts as --speed ones,
2 for half a core. A pass and a token are of one prompt; the last columns of --prompts together, over one node's.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.costs.stages import HANDED
from astra_mpi.device.backend import COMPUTES
from astra_mpi.device.threads import set_threads


def ways(size: int) -> list[tuple[str, str]]:
    """Grid and strategy; the first is one node."""
    shared = f"1x1x{size}"
    both = [(f"1x2x{size // 2}", "astra")] if size > 2 and size % 2 == 0 else []
    return [(shared, "single"), (shared, "astra"), (f"1x{size}x1", "single"), *both]


def measured(model: Any, ids: np.ndarray, n_prompts: int, n_new: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds, after one to warm up."""
    rows: dict[str, list[float]] = {"pass_s": [], "token_s": [], "passes_s": [], "tokens_s": []}
    for r in range(-1, rounds):
        model(ids[:1])
        passed = model.report
        model.generate(ids[:1], max_new_tokens=n_new, decode="local")
        one = model.report["generation"]
        model(ids)
        many = model.report
        model.generate(ids, max_new_tokens=n_new, decode="local")
        made = model.report["generation"]
        if r >= 0:
            rows["pass_s"].append(passed["latency_s"]["total"])
            rows["token_s"].append(one["per_token_s"]["median"])
            rows["passes_s"].append(many["latency_s"]["total"])
            rows["tokens_s"].append(made["per_token_s"]["median"])
    told = {name: float(np.median(values)) for name, values in rows.items()}
    return told | {"weight_mb": max(passed["weight_bytes"]) / 1e6, "blocks": passed.get("blocks")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--network", default="100Mbps,rtt=1ms", help="default %(default)s")
    parser.add_argument("--speed", type=float, default=2.0, help="default %(default)s")
    parser.add_argument("--tokens", type=int, default=256, help="of a prompt (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=8, help="default %(default)s")
    parser.add_argument("--new", type=int, default=16, help="new tokens (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--compute", choices=COMPUTES, default="float32", help="default %(default)s")
    parser.add_argument("--handed", choices=tuple(HANDED), default="float16", help="default %(default)s")
    parser.add_argument("--stages", default="auto", help="auto or even (default %(default)s)")
    parser.add_argument("--only", help="these grids beside one node, by commas")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    set_threads(1)
    rows = []
    chosen, *others = ways(comm.size)
    for grid, strategy in (chosen, *(way for way in others if args.only is None or way[0] in args.only.split(","))):
        options: Any = dict(
            compute=args.compute,
            network=args.network,
            clock="virtual",
            speed=args.speed,
            stages=args.stages,
            handed_on=args.handed,
            weights="causal",
        )
        model = astra_mpi.load(args.model, comm=comm, grid=grid, strategy=strategy, **options)
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (args.prompts, args.tokens))
        rows.append({"grid": grid, "strategy": strategy, **measured(model, ids, args.prompts, args.new, args.rounds)})
    if comm.rank == 0:
        show(args, rows)


def show(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    one, n = rows[0], args.prompts
    print(f"{args.tokens} tokens, ports of {args.network}; nodes of 1/{args.speed:g} core, {args.compute}; {n} prompts")
    many = "".join(f"{f'{n} {what}':>11}" for what in ("passes", "tokens"))
    print(f"{'grid':<9}{'strategy':<10}{'pass ms':>9}{'token ms':>10}", f"{'MB':>7}  blocks", sep=many)
    for row in rows:
        name = "one node" if row is one else row["grid"]
        passes, tokens = one["passes_s"] / row["passes_s"], one["tokens_s"] / row["tokens_s"]
        print(
            f"{name:<9}{row['strategy']:<10}{1e3 * row['pass_s']:>9.1f}{1e3 * row['token_s']:>10.2f}{passes:>10.2f}x"
            f"{tokens:>10.2f}x{row['weight_mb']:>7.0f}  {'/'.join(map(str, row['blocks'] or ['all']))}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

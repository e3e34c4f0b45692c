"""A decoder by stages of blocks over emulated nodes, beside one node and ASTRA: a pass, a token, and several prompts.

mpirun -n 4 python jobs/cluster/stages.py MODEL.h5 [--network 100Mbps,rtt=1ms] [--speed 2] [--tokens 256] [--prompts 8]
    [--compute float32|bfloat16|int8] [--handed float32|float16|int8] [--only GRID,..]
MODEL.h5: a decoder with codebooks (astra-mpi init gpt2 ..). By the virtual clock: a CPU second counts as --speed ones,
2 for half a core. A pass and a token are of one prompt; the last columns of --prompts together, over one node's. All
take turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.costs.stages import HANDED
from astra_mpi.device.backend import COMPUTES
from astra_mpi.device.threads import set_threads


def ways(size: int) -> list[tuple[str, str]]:
    """Grid and strategy; the first is one node, which is a machine of its own and not one rank of several."""
    both = [(f"1x2x{size // 2}", "astra")] if size > 2 and size % 2 == 0 else []
    return [("1x1x1", "single"), (f"1x1x{size}", "astra"), (f"1x{size}x1", "single"), *both]


def one_round(model: Any, ids: np.ndarray, n_new: int) -> dict[str, float]:
    """Seconds of a pass and of a token, of one prompt and of all."""
    found = {}
    for what, some in (("", ids[:1]), ("s", ids)):
        model(some)
        found[f"pass{'es' if what else ''}_s"] = model.report["latency_s"]["total"]
        model.generate(some, max_new_tokens=n_new, decode="local")
        found[f"token{what}_s"] = model.report["generation"]["per_token_s"]["median"]
    return found


def in_turns(comm: MPI.Comm, models: Sequence[Any], ids: np.ndarray, n_new: int, rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds, after one to warm up, in which models take turns; and over those of the first model. What
    rank 0 returns counts."""
    every = []
    for _ in range(rounds + 1):
        every.append([])
        for model in models:
            comm.Barrier()
            every[-1].append({} if model is None else one_round(model, ids, n_new))
    if comm.rank:
        return []
    del every[0]
    rows = []
    for i, model in enumerate(models):
        told = {name: float(np.median([row[i][name] for row in every])) for name in every[0][i]}
        over = {f"{name}_over": float(np.median([row[0][name] / row[i][name] for row in every])) for name in told}
        rows.append(
            told | over | {"weight_mb": max(model.report["weight_bytes"]) / 1e6, "blocks": model.report.get("blocks")}
        )
    return rows


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
    one, *others = ways(comm.size)
    wanted = None if args.only is None else args.only.split(",")
    if wanted is not None and not {way[0] for way in others} & set(wanted):
        parser.error(f"--only {args.only}: use {', '.join(way[0] for way in others)}")
    taken = [one, *(way for way in others if wanted is None or way[0] in wanted)]
    options: Any = dict(
        compute=args.compute,
        network=args.network,
        clock="virtual",
        speed=args.speed,
        stages=args.stages,
        handed_on=args.handed,
        weights="causal",
    )
    alone = comm.Split(MPI.UNDEFINED if comm.rank else 0)
    models: list[Any] = []
    for grid, strategy in taken:
        there, model = comm if models else alone, None
        if there != MPI.COMM_NULL:
            model = astra_mpi.load(args.model, comm=there, grid=grid, strategy=strategy, **options)
        models.append(model)
    ids = np.random.default_rng(0).integers(0, models[-1].config.vocab_size, (args.prompts, args.tokens))
    measured = in_turns(comm, models, ids, args.new, args.rounds)
    if comm.rank == 0:
        rows = [{"grid": grid, "strategy": how, **row} for (grid, how), row in zip(taken, measured, strict=True)]
        show(args, rows)


def show(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    one, n = rows[0], args.prompts
    print(f"{args.tokens} tokens, ports of {args.network}; nodes of 1/{args.speed:g} core, {args.compute}; {n} prompts")
    many = "".join(f"{f'{n} {what}':>11}" for what in ("passes", "tokens"))
    print(f"{'grid':<9}{'strategy':<10}{'pass ms':>9}{'token ms':>10}", f"{'MB':>7}  blocks", sep=many)
    for row in rows:
        name = "one node" if row is one else row["grid"]
        print(
            f"{name:<9}{row['strategy']:<10}{1e3 * row['pass_s']:>9.1f}{1e3 * row['token_s']:>10.2f}"
            f"{row['passes_s_over']:>10.2f}x{row['tokens_s_over']:>10.2f}x"
            f"{row['weight_mb']:>7.0f}  {'/'.join(map(str, row['blocks'] or ['all']))}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

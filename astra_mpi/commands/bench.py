"""astra-mpi bench: measured latency, breakdown and bytes."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from astra_mpi.commands.model_options import add_model_options, load_model, write_json, write_text

if TYPE_CHECKING:
    from mpi4py import MPI


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measured latency, breakdown, bytes",
        description="Times forward passes on random inputs, strategies in turn: per strategy the median over repeats of"
        " the slowest rank, where the time goes, and the bytes sent. Start with mpirun or srun; one rank measures what"
        " one machine does.",
    )
    add_model_options(parser, batch=1, several_networks=True)
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="timed passes (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="passes before them (default %(default)s)")
    parser.add_argument("--trace", metavar="PATH", help="write one pass of the last strategy as a Chrome trace")
    parser.set_defaults(run=run, spmd=True)


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    from astra_mpi.config import require
    from astra_mpi.convert.synthetic import random_batch
    from astra_mpi.errors import collective
    from astra_mpi.job.progress import Progress
    from astra_mpi.job.summary import host, versions
    from astra_mpi.measure.bench import measure, trace
    from astra_mpi.network.spec import parse_network
    from astra_mpi.strategies import STRATEGIES

    model = load_model(args, comm, "single")
    names = args.strategies or [name for name in STRATEGIES if not model.obstacle(name)]
    with collective(comm):
        require(args.repeats >= 1 and args.warmup >= 0, "--repeats must be at least 1 and --warmup at least 0")
        networks = [parse_network(text, args.accounting) for text in args.network or ["real"]]
        require(
            args.clock == "wall" or comm.Get_size() == 1 or all(network.rate for network in networks),
            "the virtual clock cannot time the real network; give --network, such as 100Mbps,rtt=1ms",
        )
        inputs, mask = random_batch(model.config, args.batch, args.tokens, seed=args.seed)
    strategies = []
    for name in names:
        model.use(name, counted_keys=args.counted_keys == "on")
        strategies.append(model.strategy)
    n_passes = len(networks) * (args.warmup + args.repeats)
    bar = Progress(n_passes, unit="repeat") if comm.Get_rank() == 0 else None
    tables, passed = [], partial(bar.advance, 1) if bar else lambda: None
    for network in networks:
        model.exchange.connect(network)
        tables.append(measure(model, strategies, inputs, mask, args.repeats, args.warmup, passed))
    if bar:
        bar.close()
    text = trace(model, inputs, mask) if args.trace else None
    with collective(comm):
        if comm.Get_rank() == 0:
            for runs in tables:
                print(_table(args.model, runs))
            result = {
                "runs": [{"model": args.model, **one} for runs in tables for one in runs],
                "host": host(),
                "versions": versions(),
            }
            if args.json:
                write_json(args.json, result)
            if text is not None:
                write_text(args.trace, text)
    return 0


def computed_in(run: dict[str, Any]) -> str:
    """The type of products of a run: of a CPU `compute`, of a GPU `precision`."""
    choices = run["choices"]
    return str(choices.get("compute") or choices.get("precision", "float32"))


def _table(model: str, runs: list[dict[str, Any]]) -> str:
    first = runs[0]
    phases = [phase for phase in first["latency_s"]["phases"] if phase != "exchange"]
    charge = f", which charges {first['accounting']} bytes" if first["accounting"] else ""
    lines = [
        f"network {first['network']}{charge}; {first['clock']} clock; products in {computed_in(first)}",
        *([first["compute"]["why"]] if first.get("compute") else []),
        f"{model} on {first['ranks']} ranks, {len(first['tokens'])} x {max(first['tokens'])} tokens; milliseconds,"
        f" median of {first['spread']['repeats']}, slowest rank; bytes contributed by all ranks, at the busiest port,"
        " and as the paper counts",
        f"{'strategy':<17}{'total':>9}{'quartiles':>17}{'speed-up':>9}{'wait':>8}"
        + "".join(f"{phase:>10}" for phase in phases)
        + f"{'contributed':>13}{'port':>12}{'paper':>12}{'keys':>7}",
    ]
    for one in runs:
        latency, spread = one["latency_s"], one["spread"]
        quartiles = "{:.1f}..{:.1f}".format(*(1e3 * q for q in spread["quartiles"]))
        keys = "-" if one["distinct_keys"] is None else f"{one['distinct_keys']:.0f}"
        lines.append(
            f"{one['strategy']:<17}{1e3 * latency['total']:>9.1f}{quartiles:>17}{spread['over_first']:>8.2f}x"
            f"{1e3 * latency['exchange_wait']:>8.1f}"
            + "".join(f"{1e3 * latency['phases'][phase]:>10.1f}" for phase in phases)
            + f"{sum(one['contributed_bytes']):>13}{max(one['port_bytes']):>12}{one['paper_bytes']:>12}{keys:>7}"
        )
    lines += [f"{one['strategy']}: {one['note']}" for one in runs if "note" in one]
    lines += [f"{one['strategy']}: {_missed(one['missing'])}" for one in runs if one["missing"]]
    return "\n".join(lines)


def _missed(missing: dict[str, Any]) -> str:
    return "{lost} of {messages} messages lost and {late} late; missing codes: {treatment}".format(**missing)

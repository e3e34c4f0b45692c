"""astra-mpi verify: these ranks against the serial oracle, every strategy that applies."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from astra_mpi.commands.model_options import add_model_options, load_model, write_json

if TYPE_CHECKING:
    from mpi4py import MPI


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="these ranks against the serial oracle",
        description="Runs every strategy on these ranks with random inputs of uneven lengths and compares answers,"
        " hidden states, codes and bytes with a serial float64 computation. Start with mpirun or srun."
        " Exit code 4: disagreement.",
    )
    add_model_options(parser)
    parser.set_defaults(run=run, spmd=True)


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    from astra_mpi.config import require
    from astra_mpi.convert.synthetic import random_batch
    from astra_mpi.errors import VerifyError, collective
    from astra_mpi.oracle.verify import verify
    from astra_mpi.strategies import STRATEGIES

    names = args.strategies or list(STRATEGIES)
    model = load_model(args, comm, "single")
    with collective(comm):
        require(len(args.network or []) <= 1, "--network is given twice; verify takes one")
        inputs, mask = random_batch(model.config, args.batch, args.tokens, seed=args.seed, ragged=True)
    checks = verify(model, inputs, mask, names, args.counted_keys == "on")
    with collective(comm):
        if comm.Get_rank() == 0:
            told = model.report.get("tokens", "-")  # none where every strategy is skipped
            lengths, on = (
                told if mask is None else mask.sum(axis=1).tolist(),
                f", grid {args.grid}" if args.grid else "",
            )
            print(f"{args.model} on {comm.Get_size()} ranks{on}, {args.batch} sequences, lengths {lengths}")
            print(_table(checks))
            if model.chosen_compute:
                print(model.chosen_compute["why"])
            if args.json:
                write_json(args.json, {"ranks": comm.Get_size(), "checks": [check.as_dict() for check in checks]})
            failed = [check for check in checks if not check.passed]
            if failed:
                raise VerifyError("; ".join(f"{check.strategy} {check.reason}" for check in failed))
    return 0


def _table(checks: list[Any]) -> str:
    lines = [
        f"{'strategy':<16}{'max diff':>10}{'mean diff':>11}{'flips':>7}{'worst gap':>11}{'bytes':>10}{'formula':>10}"
    ]
    for c in checks:
        figures = f"{c.max_difference:>10.1e}{c.mean_difference:>11.1e}{c.flips:>7}{c.worst_gap:>11.1e}"
        verdict = c.reason or "agrees" + (f", {c.note}" if c.note else "")
        lines.append(f"{c.strategy:<16}{figures}{c.contributed_bytes:>10}{c.formula_bytes:>10}  {verdict}")
    return "\n".join(lines)

"""astra-mpi sweep: many measurements from one deck, resumable, and a report of them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="measure strategies x networks x ranks x tokens x codecs",
        description="Starts `mpirun -n P astra-mpi bench` (or the deck's own launcher) for every point of the deck,"
        " keeps what each gives, and writes <output>.json and the report <output>.html. A sweep that was ended goes on"
        " with the same command. Run it by itself, without mpirun. docs/reference/sweep.md has the keys.",
    )
    parser.add_argument("deck", metavar="DECK.toml", help="such as jobs/bench/sweep-small.toml")
    parser.add_argument("--retry", action="store_true", help="try again what failed for good, too")
    parser.set_defaults(run=run, uses_mpi=True)  # which the strategies bring


def run(args: argparse.Namespace) -> int:
    from astra_mpi.commands.report import write_report
    from astra_mpi.files import whole
    from astra_mpi.measure.sweep.deck import load_sweep
    from astra_mpi.measure.sweep.run import run_sweep

    deck = load_sweep(args.deck)
    result = run_sweep(deck, args.retry)
    path, report = deck.beside(".json"), deck.beside(".html")
    whole.write_text(path, json.dumps(result, indent=1) + "\n")
    failed = result["failures"]
    for one in failed:
        print(f"failed: {one['strategy']}, {one['network']}, {one['ranks']} ranks: {one['failure']}", file=sys.stderr)
    write_report([path], report)
    print(f"{path}: {len(result['runs'])} points" + (f", {len(failed)} failed" if failed else ""))
    return 0 if result["runs"] else 3

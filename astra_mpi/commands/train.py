"""astra-mpi train: noise-augmented training of a model, or of its codebooks alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_mpi.commands.options import require_torch

if TYPE_CHECKING:
    from mpi4py import MPI


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="noise-augmented training (needs PyTorch)",
        description="Trains what a deck says (docs/explanation/training.md): codebooks alone, or a whole model, on one"
        " process or on several under mpirun. A stopped run goes on where it was.",
    )
    parser.add_argument("deck", help="TOML file with [model] or [shape], [data] [codec] [train] [output]")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="instead of the deck's value")
    parser.set_defaults(run=run, spmd=True)


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    from astra_mpi.device.threads import set_threads
    from astra_mpi.errors import collective

    with collective(comm):
        require_torch("training")
        from astra_mpi.train.deck import load_train_deck

        deck = load_train_deck(args.deck, args.overrides)
        threads = set_threads(deck.train.threads)
    from astra_mpi.train.loop import Run

    figures = Run(deck, comm, threads, Path(args.deck).name)()
    if comm.Get_rank() == 0:
        print(json.dumps({"output": str(deck.output.path), **figures}))
    return 0

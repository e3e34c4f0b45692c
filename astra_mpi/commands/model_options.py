"""Options of the commands that run a model on these ranks."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.engine import Model


def add_model_options(parser: argparse.ArgumentParser, batch: int = 4) -> None:
    parser.add_argument("model", help="model file")
    parser.add_argument(
        "--strategies", type=_names, metavar="A,B", help="such as single,sp:int8; default: every one that applies"
    )
    parser.add_argument("--codebooks", metavar="FILE", help="codebook file, instead of the codebooks in the model")
    parser.add_argument("--tokens", type=int, metavar="T", help="content tokens of the longest sequence")
    parser.add_argument("--batch", type=int, default=batch, metavar="B", help="sequences (default %(default)s)")
    parser.add_argument("--backend", default="numpy", help="numpy or reference (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="per rank (default SLURM_CPUS_PER_TASK, else 1)")
    parser.add_argument("--weights", type=_numbers, metavar="W,..", help="relative speeds of the ranks, for the cut")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default %(default)s)")
    parser.add_argument("--counted-keys", choices=("on", "off"), default="on", help="default %(default)s")
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON; - for stdout")


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 2,1,1") from exc


def load_model(args: argparse.Namespace, comm: MPI.Comm, strategy: str) -> Model:
    """Collective: the model as the options say."""
    from astra_mpi.errors import collective
    from astra_mpi.loading import load
    from astra_mpi.strategies import parse
    from astra_mpi.threads import set_threads

    with collective(comm):
        for text in args.strategies or []:
            parse(text)
        set_threads(args.threads)
    return load(
        args.model,
        comm=comm,
        strategy=strategy,
        backend=args.backend,
        codebooks=args.codebooks,
        weights=args.weights,
        counted_keys=args.counted_keys == "on",
    )


def write_json(path: str, values: Any) -> None:
    """To `path`, or to stdout when it is "-"."""
    write_text(path, json.dumps(values, indent=2))


def write_text(path: str, text: str) -> None:
    """To `path`, or to stdout when it is "-". InputError if it cannot be written."""
    from astra_mpi.errors import InputError

    if path == "-":
        sys.stdout.write(text + "\n")
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as exc:
        raise InputError(f"{path} cannot be written ({exc.strerror}); check the folder") from exc

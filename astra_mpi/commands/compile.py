"""astra-mpi compile: kernels compiled before a job, so that no rank of it does."""

from __future__ import annotations

import argparse
import os
from typing import Any

from astra_mpi.commands.model_options import write_json


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compile",
        help="compile the kernels before a job",
        description="Compiles the kernels of backend numpy for this kind of processor and keeps them, for images and"
        " shared file systems: jobs on hosts of the same kind then start at once, also where the folder is read-only."
        " Several kinds of processors may share a folder: start it once on each.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only what these model files need (default: all)")
    parser.add_argument(
        "--compute", type=_types, metavar="A,B", help="types of products (default float32,bfloat16,int8)"
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="jobs then need NUMBA_CACHE_DIR=DIR (default: where this installation keeps kernels)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="at once (default: one per core)")
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON; - for stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from astra_mpi.config import require
    from astra_mpi.device.ahead import fill
    from astra_mpi.device.backend import COMPUTES
    from astra_mpi.kernels.cpu.ahead import parts

    computes = args.compute or COMPUTES
    for compute in computes:
        require(compute in COMPUTES, f"--compute {compute} is unknown; use {', '.join(COMPUTES)}")
    n_processes = len(os.sched_getaffinity(0)) if args.processes is None else args.processes
    require(n_processes > 0, f"--processes {n_processes} is not above zero; leave it out for one per core")
    decodes, in_blocks = _needs(args.models)
    filled = fill(parts(tuple(computes), decodes, in_blocks), args.folder, n_processes)
    if args.json != "-":
        for part, n_compiled in filled.n_compiled.items():
            what = f"{n_compiled} compiled" if n_compiled else "all there"
            print(f"{part:<10}{what:<14}{filled.took_s[part]:>6.1f} s")
        size = f"{filled.n_bytes / 1e6:.1f} MB"
        print(f"kernels for {filled.processor}, {size} in {filled.folder} ({filled.elapsed_s:.1f} s)")
        print("compiled again on another kind of processor, and with another version of Python, Numba or this package")
        if args.folder:
            print(f"jobs find them with NUMBA_CACHE_DIR={os.path.abspath(args.folder)}")
    if args.json:
        write_json(args.json, filled._asdict())
    return 0


def _needs(models: list[str]) -> tuple[bool, bool]:
    """Whether any of the model files is a decoder, and whether any has weights in blocks; both without files."""
    from astra_mpi.files.modelfile import read_model
    from astra_mpi.kernels.blocks import BLOCK_KINDS
    from astra_mpi.models import FAMILIES

    if not models:
        return True, True
    found = [read_model(path) for path in models]
    kinds = {str(weight.dtype) for model in found for weight in model.weights.values()}
    return any(FAMILIES[model.config.family].causal for model in found), bool(kinds & set(BLOCK_KINDS))


def _types(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))

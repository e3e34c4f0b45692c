"""What types of weights cost in accuracy: one model and one task, stored in each type, on one rank.

python jobs/accuracy/storage.py pairs MODEL.h5 TEST.tsv [--items N]      Spearman with human scores (STS-B's columns)
python jobs/accuracy/storage.py text MODEL.h5 TEXT[.gz] [--bytes N]      perplexity of windows side by side
MODEL.h5 is stored as float32. Each type is measured with products in float32 and in int8 (--types); a Markdown table
is printed last, and with --json PATH the figures are written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from compute import TASKS
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.hugging_face import restore
from astra_mpi.device.formats import DTYPES
from astra_mpi.files import whole
from astra_mpi.files.modelfile import write_model


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Per type of storage and of products: the figure, and what it takes from that of float32 in both."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in args.dtypes.split(","):
            path = Path(folder) / "model.h5"
            write_model(path, restore(args.model, dtype)[0])
            for compute in args.types.split(","):
                model = astra_mpi.load(str(path), comm=MPI.COMM_SELF, strategy="single", threads=1, compute=compute)
                figure = TASKS[args.task](model, args)
                exact = next(iter(results.values()), {"figure": figure})["figure"]
                loss = figure / exact - 1 if args.task == "text" else exact - figure
                results[f"{dtype} {compute}"] = {"figure": figure, "loss": loss, "weight_bytes": model.weight_bytes}
                print(dtype, compute, json.dumps(results[f"{dtype} {compute}"]), flush=True)
    return results


def table(args: argparse.Namespace, results: dict[str, Any]) -> str:
    """Figures, and in brackets what is lost."""
    types = args.types.split(",")
    lines = [
        f"| stored as | MiB | {' | '.join(f'products in {one}' for one in types)} |",
        f"|{'---|' * (len(types) + 2)}",
    ]
    for dtype in args.dtypes.split(","):
        told = [results[f"{dtype} {compute}"] for compute in types]
        cells = [f"{said(args.task, one['figure'])} ({lost(args.task, one['loss'])})" for one in told]
        lines.append(f"| {dtype} | {told[-1]['weight_bytes'] / 2**20:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def said(task: str, figure: float) -> str:
    return f"{figure:.3f}" if task == "text" else f"{figure:.4f}"


def lost(task: str, loss: float) -> str:
    return f"{loss:+.2%}" if task == "text" else f"{loss:+.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("pairs", "text"))
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="default %(default)s")
    parser.add_argument("--types", default="float32,int8", help="of products (default %(default)s)")
    parser.add_argument("--items", type=int, help="the first N pairs only")
    parser.add_argument("--bytes", type=int, default=44_000, help="of a text (default %(default)s)")
    parser.add_argument("--window", type=int, default=1024, help="tokens (default %(default)s)")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    results = measured(args)
    if args.json:
        whole.write_text(Path(args.json), json.dumps(results, indent=1) + "\n")
    print(table(args, results))


if __name__ == "__main__":
    main()

"""What products in bfloat16 and int8 cost in accuracy: one model and one task, in each type on one rank.

python jobs/accuracy/compute.py images MODEL.h5 TEST.npz [--items N]     share of right classes
python jobs/accuracy/compute.py pairs MODEL.h5 TEST.tsv [--items N]      Spearman with human scores (STS-B's columns)
python jobs/accuracy/compute.py text MODEL.h5 TEXT[.gz] [--bytes N] [--window T]     perplexity of windows side by side
python jobs/accuracy/compute.py table FILE.json ..     a Markdown table of what --json wrote
Each of the first three prints a line per type, and with --json PATH writes the figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from stsb import embed_all, read_pairs

import astra_mpi
from astra_mpi.device.backend import COMPUTES
from astra_mpi.engine import Model
from astra_mpi.files import whole
from astra_mpi.inputs.text import tokenizer_of

#: images or windows of a forward pass
BATCH, WINDOWS = 100, 2
#: what a type may cost: the most that the figure may fall, or of perplexities rise in relation to float32's
BARS = {
    "pairs": {"bfloat16": 0.001, "int8": 0.003},
    "text": {"bfloat16": 0.005, "int8": 0.02},
    "images": {"bfloat16": 0.002, "int8": 0.005},
}


def images(model: Model, args: argparse.Namespace) -> float:
    with np.load(args.data) as data:
        items, labels = data["images"][: args.items], data["labels"][: args.items]
    starts = range(0, len(items), BATCH)
    found = np.concatenate([model(items[start : start + BATCH]).argmax(axis=1) for start in starts])
    return float((found == labels).mean())


def pairs(model: Model, args: argparse.Namespace) -> float:
    from scipy.stats import spearmanr

    scores, first, second = (part[: args.items] for part in read_pairs(args.data))
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
    both, _ = embed_all(model, tokenizer, [*first, *second], 256)
    a, b = np.split(both / np.linalg.norm(both, axis=1, keepdims=True), 2)
    return float(spearmanr((a * b).sum(axis=1), scores).statistic)


def text(model: Model, args: argparse.Namespace) -> float:
    opened = gzip.open if args.data.endswith(".gz") else open
    with opened(args.data, "rb") as file:
        said = file.read(args.bytes).decode(errors="ignore")
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, open_ended=True, preprocess=model.preprocess)
    (ids,) = tokenizer.encode([said], 1 << 24)
    width = min(args.window, model.config.max_positions, len(ids))
    windows = ids[: len(ids) // width * width].reshape(-1, width)
    parts = [windows[start : start + WINDOWS] for start in range(0, len(windows), WINDOWS)]
    nll, scored = np.sum([model.nll(part, None, np.zeros(len(part), int)).sum(axis=0) for part in parts], axis=0)
    return float(np.exp(nll / scored))


TASKS: dict[str, Callable[[Model, argparse.Namespace], float]] = {"images": images, "pairs": pairs, "text": text}


def measured(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figure of each type, what it takes away, and CPU seconds."""
    types = {}
    for compute in args.types.split(","):
        model = astra_mpi.load(args.model, comm=MPI.COMM_SELF, strategy="single", threads=1, compute=compute)
        start_s = time.process_time()
        figure = TASKS[task](model, args)
        cpu_s = time.process_time() - start_s
        path = model.backend.choices.get("products", "blas")
        types[compute] = {"figure": figure, "cpu_s": cpu_s, "path": path, "weight_bytes": model.weight_bytes}
        exact = types.get("float32", types[compute])["figure"]
        types[compute]["loss"] = figure / exact - 1 if task == "text" else exact - figure
        print(compute, json.dumps(types[compute]), flush=True)
    return {"task": task, "name": args.name or Path(args.model).stem, "types": types}


def table(results: list[dict[str, Any]]) -> str:
    """Figures, and in brackets what is lost: of perplexities in percent, of classes in points."""
    lines = [f"| model | {' | '.join(COMPUTES)} | bar, bfloat16; int8 | within |", f"|{'---|' * (len(COMPUTES) + 3)}"]
    for one in results:
        task, cells = one["task"], []
        for compute in COMPUTES:
            told = one["types"][compute]
            lost = "" if compute == "float32" else f" ({_lost(task, told['loss'])})"
            cells.append(f"{_figure(task, told['figure'])}{lost}")
        bars = BARS[task]
        within = all(one["types"][compute]["loss"] <= bar for compute, bar in bars.items())
        told_bars = "; ".join(_lost(task, bar) for bar in bars.values())
        lines.append(f"| {one['name']} | {' | '.join(cells)} | {told_bars} | {'yes' if within else 'no'} |")
    return "\n".join(lines)


def _figure(task: str, figure: float) -> str:
    return {"images": f"{figure:.2%}", "pairs": f"{figure:.4f}", "text": f"{figure:.3f}"}[task]


def _lost(task: str, loss: float) -> str:
    return {"images": f"{100 * loss:+.2f} points", "pairs": f"{loss:+.4f}", "text": f"{loss:+.2%}"}[task]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    for name in TASKS:
        one = tasks.add_parser(name)
        one.add_argument("model")
        one.add_argument("data")
        one.add_argument("--types", default=",".join(COMPUTES), help="default %(default)s")
        one.add_argument("--items", type=int, help="the first N only")
        one.add_argument("--bytes", type=int, default=44_000, help="of a text (default %(default)s)")
        one.add_argument("--window", type=int, default=1024, help="tokens (default %(default)s)")
        one.add_argument("--name", help="in the table")
        one.add_argument("--json", metavar="PATH")
    tasks.add_parser("table").add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    if args.task == "table":
        print(table([json.loads(path.read_text()) for path in args.files]))
        return
    result = measured(args.task, args)
    if args.json:
        whole.write_text(Path(args.json), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

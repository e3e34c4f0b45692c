"""What storage in a narrow type saves and costs: float32, float16, bfloat16 and int8 of one model, side by side.

python jobs/bench/storage.py MODEL.h5 [--text FILE] [--tokens 128] [--rounds 7] [--json FILE]
Stores MODEL.h5 in every type (temporary files), loads each, and prints: MiB of weights in memory, seconds to load,
milliseconds of a pass over `tokens` tokens and of one over a single token, medians of rounds that take turns; and how
far answers are from the float32 model's: the cosine, the largest and the mean difference over the standard deviation,
and with --text, the perplexity of decoders. One thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.hugging_face import restore
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.formats import DTYPES
from astra_mpi.engine import Model
from astra_mpi.files import whole
from astra_mpi.files.modelfile import write_model
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.models.decoder import Decoder

MIB = 1 << 20


def stored(source: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """The model as `dtype`, loaded, and how long that took."""
    path = folder / f"{dtype}.h5"
    write_model(path, restore(source, dtype)[0])
    start = time.perf_counter()
    model = astra_mpi.load(str(path), comm=MPI.COMM_SELF, strategy="single", threads=1)
    return {"model": model, "load_s": time.perf_counter() - start}


def inputs_of(model: Model, text: Path | None, n_tokens: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Eight passages of the text, or random inputs: (8, n_tokens)."""
    if text is None:
        return random_batch(model.config, 8, None if model.config.family == "vit" else n_tokens)
    ids = text_ids(model, text)[: 8 * n_tokens]
    return ids[: len(ids) // n_tokens * n_tokens].reshape(-1, n_tokens), None


def text_ids(model: Model, text: Path) -> np.ndarray:
    return Tokenizer(model.tokenizer).encode([text.read_text(encoding="utf-8")], 1 << 20)[0]


def perplexity(model: Model, ids: np.ndarray, n_tokens: int) -> float:
    """Of windows that do not overlap, up to 16384 tokens."""
    windows = ids[: min(len(ids), 16384) // n_tokens * n_tokens].reshape(-1, n_tokens)
    sums = np.concatenate([model.nll(part, None, np.zeros(len(part), int)) for part in np.array_split(windows, 16)])
    return float(np.exp(sums[:, 0].sum() / sums[:, 1].sum()))


def differences(answers: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    cosines = (answers * exact).sum(axis=1) / np.linalg.norm(answers, axis=1) / np.linalg.norm(exact, axis=1)
    off = np.abs(answers - exact) / exact.std()
    return {"1-cosine": float(1 - cosines.min()), "max_off": float(off.max()), "mean_off": float(off.mean())}


def median_ms(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """In turns: A B C A B C."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first round warms up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(laps[1:])) * 1e3 for name, laps in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model file, best in float32")
    parser.add_argument("--text", type=Path, help="for models with a tokenizer; else inputs are random")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = {dtype: stored(args.model, Path(folder), dtype) for dtype in DTYPES}
        models = {dtype: found["model"] for dtype, found in kept.items()}
        inputs, mask = inputs_of(models["float32"], args.text, args.tokens)
        exact = models["float32"](inputs, mask)
        one = inputs[:1]
        passes = median_ms({dtype: lambda m=model: m(one) for dtype, model in models.items()}, args.rounds)
        short = passes if models["float32"].config.family == "vit" else None
        singles = short or median_ms({d: lambda m=model: m(one[:, :1]) for d, model in models.items()}, 3 * args.rounds)
        for dtype, model in models.items():
            row = {"weights_mib": model.report["weight_bytes"][0] / MIB, "load_s": kept[dtype]["load_s"]}
            row |= {"pass_ms": passes[dtype], "one_token_ms": singles[dtype]}
            row |= differences(model(inputs, mask), exact)
            if args.text and isinstance(model.family, Decoder):
                row["perplexity"] = perplexity(model, text_ids(model, args.text), args.tokens)
            rows[dtype] = row
    names = list(rows["float32"])
    print(f"{'':<10}" + "".join(f"{name:>14}" for name in names))
    for dtype, row in rows.items():
        print(f"{dtype:<10}" + "".join(f"{row[name]:>14.4g}" for name in names))
    if args.json:
        found = {"model": str(args.model), "tokens": args.tokens, "rows": rows}
        whole.write_text(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

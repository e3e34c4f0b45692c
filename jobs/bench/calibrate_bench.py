"""What `calibrate` fits beside faiss, one thread each, A B A B, medians: time and squared error, fitted and held out.

python jobs/bench/calibrate_bench.py MODEL.h5 --data FILE [--site kv] [--block N] [--samples 16384] [--stages 4]
    [--codebook-size 256] [--pairs 15]
On a block's own activations (at site kv the keys), the last ninth held out. k-means: ours against faiss.Kmeans with as
many iterations as fill our time, and with 25. Residual stages: ours against faiss.ResidualQuantizer, greedy as our
encoder is. Random starts differ by 10% in the error of k-means, hence so many of them. Times are CPU seconds, so that
they bear other work on the machine; errors are relative to the samples' spread, their ratios ours over faiss's. JSON
last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from mpi4py import MPI
from threadpoolctl import threadpool_limits

from astra_mpi.calibrate import shuffled_batches
from astra_mpi.calibrate.passes import Passes
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import energy, fit_codebook
from astra_mpi.codec.kmeans import kmeans
from astra_mpi.decks.deck import InputSection
from astra_mpi.device.backend import get_backend
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import read_model
from astra_mpi.inputs.opening import open_input
from astra_mpi.kernels import cpu


class Fit(NamedTuple):
    time_s: float
    error: float
    held_out: float


def samples_of(args: argparse.Namespace) -> np.ndarray:
    """(n, width) float32: what the block would send."""
    file = read_model(args.model)
    kind: Any = "text" if args.data.suffix in (".txt", ".jsonl", ".tsv") else "tokens"
    source = open_input(InputSection(args.data, kind, None), file.tokenizer, file.preprocess, file.config)
    model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
    passes = Passes(model, shuffled_batches(source, 0), args.site, args.samples * 9 // 8)
    for i in range(args.block + 1):
        samples = passes.room() if i == args.block else None
        for batch in passes.batches:
            passes.through(i, batch, samples)
    assert samples is not None
    return samples[0]


def residual_book(entries: np.ndarray) -> Codebook:
    return Codebook("residual", entries, entries.shape[2])


def faiss_kmeans(x: np.ndarray, n_entries: int, n_iterations: int, seed: int) -> Codebook:
    every = dict(min_points_per_centroid=1, max_points_per_centroid=len(x))  # neither warned of nor left out
    found = faiss.Kmeans(x.shape[1], n_entries, niter=n_iterations, seed=seed, **every)
    found.train(x)
    return residual_book(found.centroids[None])


def faiss_residual(x: np.ndarray, n_entries: int, n_stages: int) -> Codebook:
    found = faiss.ResidualQuantizer(x.shape[1], n_stages, (n_entries - 1).bit_length())
    found.max_beam_size, found.cp.min_points_per_centroid = 1, 1
    found.train(x)
    return residual_book(faiss.vector_to_array(found.codebooks).reshape(n_stages, n_entries, x.shape[1]))


def relative_error(book: Codebook, x: np.ndarray) -> float:
    return energy(x - book.decode(book.encode(x, cpu), cpu)) / energy(x - x.mean(axis=0))


def measured(fit: Callable[[int], Codebook], seed: int, x: np.ndarray, held_out: np.ndarray) -> Fit:
    start = time.process_time()
    book = fit(seed)
    took_s = time.process_time() - start
    return Fit(took_s, relative_error(book, x), relative_error(book, held_out))


def compared(
    ours: Callable[[int], Codebook],
    theirs: Callable[[int], Codebook],
    pairs: int,
    x: np.ndarray,
    held_out: np.ndarray,
) -> tuple[Fit, Fit]:
    """Medians over seeds, in turns."""
    laps = [[measured(fit, seed, x, held_out) for fit in (ours, theirs)] for seed in range(pairs)]
    columns = [[statistics.median(values) for values in zip(*fits, strict=True)] for fits in zip(*laps, strict=True)]
    return Fit(*columns[0]), Fit(*columns[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    parser.add_argument("--data", required=True, type=Path, help="as for calibrate")
    parser.add_argument("--site", default="kv")
    parser.add_argument("--block", type=int, default=0)
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=15)
    args = parser.parse_args()
    set_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    every = samples_of(args)
    x, held_out = (np.ascontiguousarray(part) for part in np.split(every, [len(every) - len(every) // 9]))
    size, stages, pairs = args.codebook_size, args.stages, args.pairs
    config = CodecConfig(args.site, stages=stages, codebook_size=size, encoder="exact")

    def ours(seed: int) -> Codebook:
        return residual_book(kmeans(x, size, seed, cpu)[None])

    took_s = statistics.median(measured(ours, seed, x, held_out).time_s for seed in range(3))
    one_s = measured(lambda seed: faiss_kmeans(x, size, 10, seed), 0, x, held_out).time_s / 10
    as_long = max(1, round(took_s / one_s))
    given = pairs, x, held_out
    rows = {}
    for n in dict.fromkeys((as_long, 25)):
        rows[f"k-means, faiss {n} iterations"] = compared(ours, partial(faiss_kmeans, x, size, n), *given)
    rows[f"{stages} stages, faiss greedy"] = compared(
        lambda seed: fit_codebook(x, config, seed, cpu), lambda seed: faiss_residual(x, size, stages), *given
    )
    print(f"{len(x)} samples of width {x.shape[1]}, block {args.block}, site {args.site}, {size} entries")
    print(f"{'':<32}{'ours s':>8}{'faiss s':>9}{'ratio':>7}{'error':>9}{'ratio':>8}{'held out':>10}{'ratio':>8}")
    for name, (a, b) in rows.items():
        figures = f"{a.time_s:>8.2f}{b.time_s:>9.2f}{a.time_s / b.time_s:>7.2f}{a.error:>9.4f}{a.error / b.error:>8.3f}"
        print(f"{name:<32}{figures}{a.held_out:>10.4f}{a.held_out / b.held_out:>8.3f}")
    print(json.dumps({name: {"ours": a._asdict(), "faiss": b._asdict()} for name, (a, b) in rows.items()}))


if __name__ == "__main__":
    main()

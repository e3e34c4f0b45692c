"""Semantic textual similarity: Spearman correlation of cosine similarities with human scores.

mpirun -n 4 python jobs/accuracy/stsb.py MODEL.h5 TEST.tsv [--strategy astra] [--codebooks FILE.h5]
    [--network real,loss=5%]
The TSV has a header with columns score, s1, s2 (STS-B's layout). Prints one JSON line on rank 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import time

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.commands.model_options import add_condition_options, condition_arguments
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.text import Tokenizer, tokenizer_of

BATCH = 64


def read_pairs(path: str) -> tuple[list[float], list[str], list[str]]:
    rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    return [float(r["score"]) for r in rows], [r["s1"] for r in rows], [r["s2"] for r in rows]


def embed_all(model, tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> tuple[np.ndarray, dict[str, int]]:
    """(n, D), in batches of sentences of similar length, and how many messages could be missed and were."""
    missed = dict.fromkeys(("messages", "lost", "late"), 0)
    rows = tokenizer.encode(texts, max_tokens)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.empty((len(rows), model.config.embedding_size or model.config.d_model), np.float32)
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        lengths = np.array([len(rows[i]) for i in chosen])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate([rows[i] for i in chosen])
        out[chosen] = model(ids, mask)
        for name in missed:
            missed[name] += (model.report["missing"] or {}).get(name, 0)
    return out, missed


def main(comm: MPI.Comm) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tsv")
    parser.add_argument("--strategy", default="sp")
    parser.add_argument("--codebooks")
    parser.add_argument("--encoder", default="auto", help="exact: without the codebooks' subspace")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="of what is lost")
    add_condition_options(parser)
    args = parser.parse_args()
    model = astra_mpi.load(
        args.model,
        comm=comm,
        strategy=args.strategy,
        codebooks=args.codebooks,
        encoder=args.encoder,
        seed=args.seed,
        **condition_arguments(args),
    )
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
    scores, first, second = read_pairs(args.tsv)
    start = time.perf_counter()
    both, missed = embed_all(model, tokenizer, first + second, args.max_tokens)
    wall_s = time.perf_counter() - start
    if comm.Get_rank() == 0:
        from scipy.stats import spearmanr

        a, b = np.split(both / np.linalg.norm(both, axis=1, keepdims=True), 2)
        result = {
            "spearman": round(float(spearmanr((a * b).sum(axis=1), scores).statistic), 4),
            "pairs": len(scores),
            "strategy": args.strategy,
            "ranks": comm.Get_size(),
            "codec": model.report["codec"],
            "bits_per_token_per_block": model.report["bits_per_token_per_block"],
            "network": model.report["network"],
            "missing": {"treatment": args.missing, "seed": args.seed, **missed},
            "wall_s": round(wall_s, 1),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main(MPI.COMM_WORLD)

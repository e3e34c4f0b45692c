"""Semantic textual similarity: Spearman correlation of cosine similarities with human scores.

mpirun -n 4 python jobs/accuracy/stsb.py MODEL.h5 TEST.tsv [--strategy astra] [--codebooks FILE.h5]
    [--network real,loss=5%]
python jobs/accuracy/stsb.py MODEL.h5 TEST.tsv --emulate 4 --strategy astra --codebooks FILE.h5
    in one process what ranks would compute (calibrate/emulated.py, which tests hold against ranks)
The TSV has a header with columns score, s1, s2 (STS-B's layout). Prints one JSON line on rank 0. With --exact, also the
mean cosine of embeddings to those of another run, which --embeddings wrote.
"""

from __future__ import annotations

import argparse
import csv
import json
import time

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.calibrate import emulated as emulating
from astra_mpi.commands.model_options import add_condition_options, condition_arguments
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files import codecfile, modelfile
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.text import Tokenizer, tokenizer_of

BATCH = 64


def read_pairs(path: str) -> tuple[list[float], list[str], list[str]]:
    rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    return [float(r["score"]) for r in rows], [r["s1"] for r in rows], [r["s2"] for r in rows]


class Emulated:
    """A model as `size` ranks would compute it with `astra` or `astra:late`, in one process."""

    def __init__(self, path: str, codebooks: str, size: int, late: bool) -> None:
        file = modelfile.read_model(path)
        self.codec, self.size, self.late = codecfile.read_codebooks(codebooks, file.digest), size, late
        self.model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
        self.config, self.tokenizer, self.preprocess = file.config, file.tokenizer, file.preprocess
        n_layers = file.config.n_layers
        bits = self.codec.config.mean_bits(n_layers, end=n_layers - late)  # late codes of the last block serve nothing
        described = {"codec": self.codec.config.as_dict(), "bits_per_token_per_block": bits}
        self.report = {**described, "network": f"{size} emulated", "missing": None}

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        emulated = emulating.Emulated(self.model, ids, mask, self.codec.config.site, self.size)
        see = emulating.AsCodes(self.codec.blocks, self.codec.config, emulated, late=self.late)
        return emulated.answer(emulated.passed(see, emulated.rows))


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
    parser.add_argument("--emulate", type=int, metavar="P", help="so many ranks in one process: astra or astra:late")
    parser.add_argument("--embeddings", metavar="FILE.npy", help="write all embeddings")
    parser.add_argument("--exact", metavar="FILE.npy", help="embeddings to compare with")
    add_condition_options(parser)
    args = parser.parse_args()
    if args.emulate:
        if args.strategy not in ("astra", "astra:late") or not args.codebooks or comm.Get_size() > 1:
            parser.error("--emulate takes --strategy astra or astra:late, --codebooks, and one process")
        model = Emulated(args.model, args.codebooks, args.emulate, args.strategy == "astra:late")
    else:
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

        unit = both / np.linalg.norm(both, axis=1, keepdims=True)
        a, b = np.split(unit, 2)
        if args.embeddings:
            np.save(args.embeddings, unit)
        result = {
            "spearman": round(float(spearmanr((a * b).sum(axis=1), scores).statistic), 4),
            "cosine": round(float((unit * np.load(args.exact)).sum(axis=1).mean()), 4) if args.exact else None,
            "pairs": len(scores),
            "strategy": args.strategy,
            "ranks": args.emulate or comm.Get_size(),
            "codec": model.report["codec"],
            "bits_per_token_per_block": model.report["bits_per_token_per_block"],
            "network": model.report["network"],
            "missing": {"treatment": args.missing, "seed": args.seed, **missed},
            "wall_s": round(wall_s, 1),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main(MPI.COMM_WORLD)

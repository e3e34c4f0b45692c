"""Semantic search over embeddings made exactly and with ASTRA, and the price of ASTRA in one table, beside that of
replicas, which share no passage.

mpirun -n 4 python jobs/search.py FOLDER [QUESTION ...]
FOLDER is what jobs/quickstart.sh fills: astra.h5 (the model), passages.jsonl, and the results sp.out.h5, astra.out.h5,
replicas.out.h5.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.inputs.text import Tokenizer, tokenizer_of

QUESTIONS = [
    "How do I catch an exception and clean up afterwards?",
    "What is the difference between a list and a tuple?",
    "How can a class customise attribute access?",
    "When are default parameter values evaluated?",
    "How do I format a number with two decimals?",
    "What does the yield expression do?",
]
TOP = 5


def embed(model: Any, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """(n, D) embeddings of a few short texts, one call."""
    rows = tokenizer.encode(texts, (model.preprocess or {}).get("max_tokens", model.config.max_positions))
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return model(ids, mask)


def nearest(question: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Indices of the TOP passages (n, D) nearest to a question (D,), best first."""
    return np.argsort(-(passages @ question), kind="stable")[:TOP]


def read_results(folder: Path, strategy: str) -> tuple[np.ndarray, dict[str, Any]]:
    with h5py.File(folder / f"{strategy}.out.h5", "r") as file:
        embeddings = file["outputs/embedding"][()]
    return embeddings, json.loads((folder / f"{strategy}.out.json").read_text())


def job_s(summary: dict[str, Any]) -> float:
    """Seconds of the whole job in the model: of replicas from the first batch to the last."""
    return summary["elapsed_s"] if "elapsed_s" in summary else summary["metrics"]["forward_s"]


def table(results: dict[str, tuple[np.ndarray, dict[str, Any]]], agreement: float) -> str:
    """results: of "sp", "astra" and "replicas". agreement: of the first answers of astra with those of sp."""

    def row(name: str, *cells: str) -> str:
        return f"{name:<42}" + "".join(f"{cell:>16}" for cell in cells)

    exact = results["sp"][0]
    every = [summary for _, summary in results.values()]
    cosines = [cosine(exact, values) for values, _ in results.values()]
    sent = [sum(s["contributed_bytes"]) for s in every]
    near = ["1" if c.min() > 1 - 1e-6 else f"{c.mean():.4f} / {c.min():.4f}" for c in cosines]
    replicas = f"{every[0]['ranks']}x1x1 (single)"
    lines = [
        row(f"{len(exact)} passages on {every[0]['ranks']} ranks", "exact (sp)", "astra", replicas),
        row("bits per token per block", *(f"{round(s['bits_per_token_per_block'], 1)}" for s in every)),
        row("bytes contributed, measured", *(f"{n}" for n in sent)),
        row("bytes contributed, formula", *(f"{sum(s['formula_bytes'])}" for s in every)),
        row("compression ratio", "1", f"{sent[0] / max(sent[1], 1):.0f}", "nothing is sent"),
        row("cosine to exact, mean / worst", *near),
        row(f"top-{TOP} agreement with exact", "100%", f"{agreement:.0%}", "100%"),
        row("forward per batch: total, ms", *(f"{s['latency_s']['total'] * 1e3:.1f}" for s in every)),
        row("  compute, ms", *(f"{s['latency_s']['compute'] * 1e3:.1f}" for s in every)),
        row("  waiting for the exchange, ms", *(f"{s['latency_s']['exchange_wait'] * 1e3:.1f}" for s in every)),
        row("all batches, s", *(f"{job_s(s):.1f}" for s in every)),
        "",
        "A job of many passages is best served by whole passages on each rank (parallel.grid), which is exact. Sharing",
        "one passage's tokens is right for one input, now: then nothing else makes it faster than one rank.",
    ]
    return "\n".join(lines)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) of rows (n, D)."""
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def main(comm: MPI.Comm) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("question", nargs="*")
    args = parser.parse_args()
    questions = args.question or QUESTIONS
    model = astra_mpi.load(str(args.folder / "astra.h5"), comm=comm, strategy="sp")
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
    asked = {}
    for strategy in ("sp", "astra"):
        model.use(strategy)
        asked[strategy] = embed(model, tokenizer, questions)
    if comm.Get_rank() != 0:
        return
    results = {name: read_results(args.folder, name) for name in (*asked, "replicas")}
    lines = (args.folder / "passages.jsonl").read_text("utf-8").rstrip("\n").split("\n")  # U+2028 ends no JSON line
    passages = [json.loads(line) for line in lines]
    hits = {s: [nearest(q, results[s][0]) for q in asked[s]] for s in asked}
    agreement = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(hits["sp"], hits["astra"], strict=True)])
    for i, question in enumerate(questions):
        print(f"\n{question}")
        for strategy, label in (("sp", "exact"), ("astra", "astra")):
            best = passages[hits[strategy][i][0]]
            text = textwrap.shorten(best["text"], 150)
            print(f"  {label}: [{best['source']}] {text}")
    print("\n" + table(results, float(agreement)))


if __name__ == "__main__":
    main(MPI.COMM_WORLD)

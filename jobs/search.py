"""Semantic search over embeddings made exactly and with ASTRA: answers side by side.

mpirun -n 4 python jobs/search.py FOLDER [QUESTION ...]
FOLDER is what jobs/quickstart.sh fills: astra.h5 (the model), passages.jsonl, and the results exact.out.h5 and
astra.out.h5. answers.json there gets the best passage for each question, and how many of the best agree.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from story import cosine, lines_of, packed, read_embeddings

import astra_mpi
from astra_mpi.files import whole
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
    return model(*packed(rows))


def nearest(question: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Indices of the TOP passages (n, D) nearest to a question (D,), best first."""
    return np.argsort(-(passages @ question), kind="stable")[:TOP]


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
    exact, coded = (read_embeddings(args.folder / f"{name}.out.h5") for name in ("exact", "astra"))
    passages = [json.loads(line) for line in lines_of(args.folder / "passages.jsonl")]
    hits = [
        (nearest(of_exact, exact), nearest(of_coded, coded))
        for of_exact, of_coded in zip(asked["sp"], asked["astra"], strict=True)
    ]
    told = []
    for question, best in zip(questions, hits, strict=True):
        print(f"\n{question}")
        found = {name: passages[best_of[0]] for name, best_of in zip(("exact", "astra"), best, strict=True)}
        shown = {name: {"source": p["source"], "text": textwrap.shorten(p["text"], 150)} for name, p in found.items()}
        told.append({"question": question, **shown})
        for name, passage in shown.items():
            print(f"  {name}: [{passage['source']}] {passage['text']}")
    agreement = float(np.mean([len(set(a) & set(b)) / len(a) for a, b in hits]))
    cosines = cosine(exact, coded)
    print(f"\nof the {TOP} best passages for each question {agreement:.0%} are those of the exact answer")
    print(f"cosine of {len(exact)} passages to exact: mean {cosines.mean():.4f}, worst {cosines.min():.4f}")
    answers = {"top": TOP, "agreement": agreement, "questions": told}
    whole.write_text(args.folder / "answers.json", json.dumps(answers, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(MPI.COMM_WORLD)

"""A job of texts on one rank, by compute type, against sentence-transformers on the same texts: one thread each.

python jobs/bench/versus_texts.py MODEL.h5 FOLDER PASSAGES.jsonl [--items 128] [--rounds 7]
    [--compute float32,bfloat16,int8] [--rivals torch,torch-bfloat16]
MODEL.h5 is converted from FOLDER, PASSAGES.jsonl is written by jobs/passages.py; both as jobs/quickstart.sh has them.
Every so many passages are taken, in batches of 16, up to 256 tokens each. Tokens are made in the time that is measured,
in both. sentence-transformers sorts texts by length. Prints and times as jobs/bench/versus.py does; JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from versus import Pass, compare

import astra_mpi
from astra_mpi.device.backend import COMPUTES
from astra_mpi.device.threads import set_threads
from astra_mpi.inputs.sources import padded
from astra_mpi.inputs.text import tokenizer_of

RIVALS = ("torch", "torch-bfloat16")
BATCH, MAX_TOKENS = 16, 256


def ours(path: str, compute: str, texts: list[str]) -> Pass:
    options: Any = dict(comm=MPI.COMM_SELF, strategy="single", threads=1, compute=compute)
    model = astra_mpi.load(path, **options)
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)

    def run() -> np.ndarray:
        batches = (tokenizer.encode(texts[i : i + BATCH], MAX_TOKENS) for i in range(0, len(texts), BATCH))
        return np.concatenate([model(*padded(rows)) for rows in batches])

    return run


def theirs(folder: str, kind: str, texts: list[str]) -> Pass:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    kinds = {"": torch.float32, "bfloat16": torch.bfloat16}
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"torch_dtype": kinds[kind]})
    model.max_seq_length = MAX_TOKENS

    def run() -> np.ndarray:
        options: Any = dict(batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
        return model.encode(texts, **options).float().numpy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", help="that it was converted from")
    parser.add_argument("texts", type=Path, help="JSON lines with a text each")
    parser.add_argument("--items", type=int, default=128)
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("--compute", **names, default=list(COMPUTES), help=",".join(COMPUTES))
    parser.add_argument("--rivals", **names, default=list(RIVALS), help=",".join(RIVALS))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    set_threads(1)
    lines = [json.loads(line)["text"] for line in args.texts.read_text().splitlines()]
    texts = lines[:: max(1, len(lines) // args.items)][: args.items]
    passes = {f"ours {compute}": ours(args.model, compute, texts) for compute in args.compute}
    passes |= {name: theirs(args.folder, name.partition("-")[2], texts) for name in args.rivals}
    compare({"model": args.model, "items": len(texts)}, passes, args.rounds)


if __name__ == "__main__":
    main()

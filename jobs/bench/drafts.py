"""Tokens per second with drafts and without, in turns, on text that repeats its prompt and on text that does not.

mpirun -n 4 python jobs/bench/drafts.py MODEL.h5 [--network 100Mbps,rtt=20ms] [--clock virtual] [--decode merged]
    [--document FILE] [--batch 1] [--new 96] [--rounds 2] [--draft lookup | DRAFT.h5] [--draft-tokens 15]
    [--compute int8]

MODEL.h5: a model with a chat template. Texts: `quote`, a part of the document that the model is asked to repeat, the
most likely tokens; `answer`, a question about the document, the most likely tokens; `story`, drawn at temperature 1, of
which nothing was said before. --batch: so many prompts at once, of other parts of the document. Without --network, the
links are those there are. Tokens per second are those of all prompts, the first of each left out. Prints a table, then
JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.decode.sampling import Sampler
from astra_mpi.device.threads import set_threads
from astra_mpi.files.utf8 import read_text
from astra_mpi.job.chat import ChatPrompts

N_DOCUMENT = 400


def document(prompts: ChatPrompts, file: str | None, part: int) -> str:
    """Of a text, or of a topic of the running Python's documentation."""
    from pydoc_data.topics import topics

    ids = prompts.tokenizer.encode_plain(read_text(file) if file else topics["try"], "the document")
    return prompts.tokenizer.decode(ids[part * N_DOCUMENT // 2 :][:N_DOCUMENT]).strip()


def texts(model: Any, file: str | None, part: int) -> dict[str, tuple[np.ndarray, float]]:
    """Name -> prompt (T,) and temperature."""
    prompts = ChatPrompts(model)
    text = document(prompts, file, part)
    asked = {
        "quote": (f"{text}\n\nRepeat the text above word for word.", 0.0),
        "answer": (f"{text}\n\nAnswer from the text above. When is the finally clause executed?", 0.0),
        "story": ("Write a story about a lighthouse.", 1.0),
    }
    return {name: (prompts.ids([{"role": "user", "content": said}]), t) for name, (said, t) in asked.items()}


def run(
    model: Any, batch: list[np.ndarray], temperature: float, args: argparse.Namespace, draft: Any
) -> dict[str, Any]:
    lengths = np.array([len(ids) for ids in batch])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(batch)
    settings = dict(max_new_tokens=args.new, decode=args.decode, sample=Sampler(temperature, seed=args.seed))
    drafted = {} if draft is None else dict(draft=draft, draft_tokens=args.draft_tokens)
    new = model.generate(ids, mask, **settings, **drafted)
    made, counts = model.report["generation"], (new >= 0).sum(axis=1)
    later_s = made["per_token_s"]["mean"] * (counts.max() - 1)
    return {"ids": new.tolist(), "per_s": float((counts - 1).sum() / later_s), "drafts": made["drafts"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--network", default="real")
    parser.add_argument("--clock", default="wall")
    parser.add_argument("--strategy", default="sp")
    parser.add_argument("--decode", default="merged")
    parser.add_argument("--document")
    parser.add_argument("--texts", default="quote,answer,story")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draft", default="lookup")
    parser.add_argument("--draft-tokens", type=int, default=15)
    parser.add_argument("--compute", default="float32")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    set_threads(1)
    strategy = args.strategy if comm.Get_size() > 1 else "single"
    conditions = dict(network=args.network, clock=args.clock, compute=args.compute)
    model = astra_mpi.load(args.model, comm=comm, strategy=strategy, **conditions)
    draft: Any = args.draft
    if draft != "lookup":
        draft = astra_mpi.load(draft, comm=MPI.COMM_SELF, strategy="single", compute=args.compute)
    rows = []
    parts = [texts(model, args.document, part) for part in range(args.batch)]
    for name in args.texts.split(","):
        batch, temperature = [of_part[name][0] for of_part in parts], parts[0][name][1]
        found = [[run(model, batch, temperature, args, d) for d in (None, draft)] for _ in range(args.rounds)]
        plain, drafted = ([pair[i] for pair in found] for i in (0, 1))
        speeds = [float(np.median([one["per_s"] for one in way])) for way in (plain, drafted)]
        same = all(one["ids"] == plain[0]["ids"] for one in plain + drafted)
        row = {"text": name, "prompt": len(batch[0]), "per_s": speeds, "same": same, **drafted[-1]["drafts"]}
        rows.append(row | {"ratio": float(np.median([b["per_s"] / a["per_s"] for a, b in found]))})
        if comm.Get_rank() == 0:
            print(f"{name:<8}{len(batch[0]):>5} + {args.new}: {speeds[0]:8.2f} -> {speeds[1]:8.2f} tokens/s,"
                  f" {rows[-1]['ratio']:5.2f}x; {row['tokens_per_pass']:.2f} tokens per pass,"
                  f" {row['accepted']} of {row['drafted']} drafts right; same tokens: {same}", flush=True)  # fmt: skip
    if comm.Get_rank() == 0:
        print(json.dumps({"ranks": comm.Get_size(), **vars(args), "rows": rows}))


if __name__ == "__main__":
    main()

"""What one machine, replicas, sp and astra do with passages on machines that slow links join, by the virtual clock.

python jobs/story.py sample FOLDER                 sample.jsonl: some of the passages, drawn at random
mpirun -n 4 python jobs/story.py measure FOLDER    story.json: latency, passages per second, bytes, cosine
python jobs/story.py tell FOLDER                   the table, and story.html, whose path comes last
FOLDER is what jobs/quickstart.sh fills: astra.h5, passages.jsonl, exact.out.h5, answers.json, and the summaries of a
job of replicas over the sample at each link, replicas.10.out.json and replicas.100.out.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.errors import AstraError
from astra_mpi.files import whole
from astra_mpi.network.spec import parse_network

#: Mbit/s -> the network
LINKS = {10: "10Mbps,rtt=2ms", 100: "100Mbps,rtt=2ms"}
#: what shares the tokens of a passage -> its strategy
SHARING = {"exact, shared (sp)": "sp", "astra": "astra:inputs"}
N_LONGEST, N_SAMPLE, BATCH, ROUNDS = 4, 64, 16, 3
MAX_TOKENS, NEAREST = 256, 5


def packed(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (n, longest) and their mask."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").rstrip("\n").split("\n")  # U+2028 ends no JSON line


def drawn(n_passages: int) -> np.ndarray:
    """Which passages are the sample."""
    return np.sort(np.random.default_rng(0).choice(n_passages, min(N_SAMPLE, n_passages), replace=False))


def tokens_of(folder: Path, model: Any) -> list[list[int]]:
    """Of every passage."""
    from astra_mpi.inputs.text import tokenizer_of

    texts = [json.loads(line)["text"] for line in lines_of(folder / "passages.jsonl")]
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
    longest = (model.preprocess or {}).get("max_tokens", model.config.max_positions)
    return tokenizer.encode(texts, min(MAX_TOKENS, longest))


def passes(model: Any, rows: list[list[int]], size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """(answers, report) of each batch."""
    for i in range(0, len(rows), size):
        answer = model(*packed(rows[i : i + size]))
        yield answer, model.report


def timed(model: Any, rows: list[list[int]], exact: np.ndarray) -> dict[str, Any]:
    """Collective: the latency of single passages, and a job of the sample in batches. exact: embeddings of all."""
    longest, sample = sorted(rows, key=len)[-N_LONGEST:], drawn(len(rows))
    list(passes(model, longest, 1))  # what is chosen or made once
    alone = [report["latency_s"]["total"] for _ in range(ROUNDS) for _, report in passes(model, longest, 1)]
    told = list(passes(model, [rows[i] for i in sample], BATCH))
    return {
        "latency_s": float(np.median(alone)),
        "per_s": len(sample) / sum(report["latency_s"]["total"] for _, report in told),
        "bytes": sum(sum(report["contributed_bytes"]) for _, report in told) / len(sample),
        **likeness(np.concatenate([answer for answer, _ in told]), exact[sample]),
        "longest_tokens": float(np.median([len(row) for row in longest])),
    }


def measure(folder: Path) -> None:
    """Under mpirun. Rank 0 alone computes what one machine does, while the others wait."""
    from mpi4py import MPI

    import astra_mpi

    comm, options = MPI.COMM_WORLD, dict(clock="virtual", network=LINKS[10])
    exact = read_embeddings(folder / "exact.out.h5")
    found = []
    if comm.Get_rank() == 0:
        one = astra_mpi.load(str(folder / "astra.h5"), comm=MPI.COMM_SELF, strategy="single", **options)
        alone = timed(one, tokens_of(folder, one), exact)
        for mbps in LINKS:
            job = json.loads((folder / f"replicas.{mbps}.out.json").read_text())
            near = likeness(read_embeddings(folder / f"replicas.{mbps}.out.h5"), exact[drawn(len(exact))])
            sent = sum(job["contributed_bytes"]) / job["items"]
            shared = alone | {"per_s": job["items"] / job["elapsed_s"], "bytes": sent, **near}
            found += [{"way": "one machine", "mbps": mbps, **alone}, {"way": "replicas", "mbps": mbps, **shared}]
    _meet(comm)
    model = astra_mpi.load(str(folder / "astra.h5"), comm=comm, strategy=None, **options)
    rows = tokens_of(folder, model)
    for way, strategy in SHARING.items():
        model.use(strategy)
        for mbps, network in LINKS.items():
            model.exchange.connect(parse_network(network))
            found.append({"way": way, "mbps": mbps, **timed(model, rows, exact)})
    if comm.Get_rank() == 0:
        told = {"ranks": comm.Get_size(), "sample": len(drawn(len(exact))), "batch": BATCH, "nearest": NEAREST}
        told["ways"] = found
        whole.write_text(folder / "story.json", json.dumps(told, indent=2) + "\n")


def _meet(comm: Any) -> None:
    """A barrier that leaves the cores to others."""
    arrived = comm.Ibarrier()
    while not arrived.Test():
        time.sleep(0.01)


def read_embeddings(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["outputs/embedding"][()]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) of rows (n, D)."""
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def likeness(embeddings: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Of embeddings (n, D) to exact ones: the mean cosine, and how many of the NEAREST others of each are the same."""

    n_near = min(NEAREST, len(exact) - 1)

    def others(rows: np.ndarray) -> np.ndarray:
        near = rows @ rows.T
        np.fill_diagonal(near, -np.inf)
        return np.argsort(-near, axis=1, kind="stable")[:, :n_near]

    same = [len(set(a) & set(b)) / max(n_near, 1) for a, b in zip(others(embeddings), others(exact), strict=True)]
    return {"cosine": float(cosine(embeddings, exact).mean()), "agreement": float(np.mean(same)) if n_near else 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("sample", "measure", "tell"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.step == "sample":
        lines = lines_of(args.folder / "passages.jsonl")
        whole.write_text(args.folder / "sample.jsonl", "".join(lines[i] + "\n" for i in drawn(len(lines))))
    elif args.step == "measure":
        measure(args.folder)
    else:
        from story_page import tell

        tell(args.folder)


if __name__ == "__main__":
    try:
        main()
    except AstraError as error:
        sys.exit(f"story: error: {error}")

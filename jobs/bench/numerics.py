"""Which choices give the same bits, and by how much others change answers: the table of docs/explanation/numerics.md.

    mpirun -n 4 python jobs/bench/numerics.py MODEL.h5 [--tokens 40] [--batch 4]

Runs MODEL.h5 twice per row, on random sequences of unequal lengths, and prints the largest difference of the answers
over the largest answer; 0 only if they are equal bit by bit. Rows that need codebooks, a subspace or a decoder are left
out where the model has none. Every rank must see the temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.hugging_face import restore
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.decode.sampling import greedy
from astra_mpi.device.formats import DTYPES
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model
from astra_mpi.errors import collective
from astra_mpi.files.modelfile import write_model
from astra_mpi.models import FAMILIES
from astra_mpi.ranks.broadcast import broadcast_text

SAME, LAST_BITS, LOSSY = "the same bits", "the last bits", "the answer"
#: new tokens of the rows about decoding
NEW_TOKENS = 4


@dataclass(frozen=True)
class Run:
    """How answers are made: options of `astra_mpi.load`, and what is not one of them."""

    strategy: str = "astra"
    options: dict[str, Any] = field(default_factory=dict)
    alone: bool = False  # on one rank
    one_by_one: bool = False  # every sequence a batch of its own
    dtype: str = "float32"  # of the stored weights
    decode: str = ""  # logits of new tokens instead of the answers of a pass


@dataclass(frozen=True)
class Row:
    """Two runs, and what differs between their answers."""

    what: str
    changes: str
    first: Run
    second: Run
    key: str  # of the deck, which fixes it
    needs: str = ""  # codebooks, one code, subspace, decoder


def rows() -> Iterator[Row]:
    """The table. Options timed otherwise are given, so that rows differ in one thing."""
    table = {"remote": "table"}
    astra, gemm = Run(options=table), Run(options={"remote": "gemm"})
    slow = {"network": "1Gbps,rtt=1ms", "clock": "virtual"}
    lossy = {**slow, "network": "1Gbps,rtt=1ms,loss=90%", **table}
    sp = Run("sp")
    yield Row("nothing, `sp`", SAME, sp, sp, "")
    yield Row("nothing, `astra`", SAME, astra, astra, "parallel.remote", "codebooks")
    emulated, on_sp = Run(options={**slow, **table}), Run("sp", slow)
    yield Row("real network; emulated network with virtual clock, `sp`", SAME, sp, on_sp, "parallel.network", "")
    yield Row("the same, `astra`", SAME, astra, emulated, "parallel.network", "codebooks")
    lost = Run(options=lossy)
    yield Row("nothing, with lost messages and the same seed", SAME, lost, lost, "run.seed", "codebooks")
    yield Row("one rank; several ranks with `sp`", LAST_BITS, Run("single", alone=True), sp, "ranks")
    yield Row("threads: 1; 2", LAST_BITS, Run("sp", {"threads": 1}), Run("sp", {"threads": 2}), "run.threads")
    yield Row("backend: numpy; reference", LAST_BITS, sp, Run("sp", {"backend": "reference"}), "parallel.backend")
    yield Row("sequences in a batch; each alone", LAST_BITS, sp, Run("sp", one_by_one=True), "run.batch")
    yield Row("a whole batch; two halves in turns", LAST_BITS, sp, Run("sp", {"halves": True}), "parallel.halves")
    yield Row("`sp`; `sp:kv`", LAST_BITS, sp, Run("sp:kv"), "parallel.gather")
    uncounted = Run(options={"counted_keys": False, **table})
    yield Row("counted keys on; off", LAST_BITS, astra, uncounted, "parallel.counted_keys", "one code")
    yield Row("far keys from tables; by GEMM", LAST_BITS, astra, gemm, "parallel.remote", "codebooks")
    exact = Run(options={"encoder": "exact", **table})
    yield Row("encoder: subspace; exact", LOSSY, astra, exact, "the model file", "subspace")
    for wire in ("float16", "int8"):
        yield Row(f"`sp`; `sp:{wire}`", LOSSY, sp, Run(f"sp:{wire}"), "parallel.wire")
    for dtype in sorted(set(DTYPES) - {"float32"}):
        yield Row(f"weights stored as float32; as {dtype}", LOSSY, sp, Run("sp", dtype=dtype), "the model file")
    yield Row("all messages; 90% lost and left out (`drop`)", LOSSY, astra, lost, "parallel.network", "codebooks")
    mean = Run(options={**lossy, "missing": "mean"})
    yield Row("all messages; 90% lost and replaced (`mean`)", LOSSY, astra, mean, "parallel.missing", "codebooks")
    yield Row("`sp`; `astra`", LOSSY, sp, astra, "parallel.strategy", "codebooks")
    given = Run("astra:inputs", table)
    yield Row("`astra`; `astra:inputs`", LOSSY, astra, given, "parallel.first", "codebooks")
    local, merged = Run("sp", decode="local"), Run("sp", decode="merged")
    yield Row("decode: local; merged, after `sp`", LAST_BITS, local, merged, "task.decode", "decoder")
    local, merged = Run(options=table, decode="local"), Run(options=table, decode="merged")
    yield Row("the same, after `astra`", LOSSY, local, merged, "task.decode", "decoder, codebooks")


class Bench:
    """Makes the answers of runs on one model file; each run once. Collective.

    files: dtype -> the model file stored so.
    """

    def __init__(self, comm: MPI.Comm, files: dict[str, str], n_tokens: int, batch: int) -> None:
        self.comm, self.files = comm, files
        model = astra_mpi.load(files["float32"], comm=comm, strategy="single")
        self.has = set(abilities(model))
        tokens = None if model.config.family == "vit" else n_tokens
        self.inputs, self.mask = random_batch(model.config, batch, tokens, ragged=True)

    def applies(self, row: Row) -> bool:
        return set(filter(None, row.needs.split(", "))) <= self.has

    def difference(self, row: Row) -> float:
        first, second = self.answers(row.first), self.answers(row.second)
        return difference(first, second)

    def answers(self, run: Run) -> np.ndarray:
        comm = MPI.COMM_SELF if run.alone else self.comm
        options = {"halves": False, **run.options}
        model = astra_mpi.load(self.files[run.dtype], comm=comm, strategy=run.strategy, **options)
        make: Callable[..., np.ndarray] = partial(new_logits, model, run.decode) if run.decode else model
        inputs, mask = self.inputs, self.mask
        if run.one_by_one:
            parts = [slice(i, i + 1) for i in range(len(inputs))]
            found = np.concatenate([make(inputs[i], mask if mask is None else mask[i]) for i in parts])
        else:
            found = make(inputs, mask)
        if "threads" in run.options:
            set_threads(1)
        return found


def abilities(model: Model) -> Iterator[str]:
    """What rows may need."""
    if FAMILIES[model.config.family].causal:
        yield "decoder"
    if model.codec is None:
        return
    yield "codebooks"
    books = [book for block in model.codec.blocks for book in block.codebooks]
    if model.codec.config.codes_per_token == 1:
        yield "one code"
    if any(book.basis is not None for book in books):
        yield "subspace"


def new_logits(model: Model, decode: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits of the first new tokens, (B, NEW_TOKENS, V), on every rank; each is known to one, which samples."""
    logits = np.zeros((len(ids), NEW_TOKENS, model.config.vocab_size), np.float32)

    def sample(found: np.ndarray, sequences: np.ndarray, step: int) -> np.ndarray:
        logits[sequences, step] = found
        return greedy(found, sequences, step)

    model.generate(ids, mask, max_new_tokens=NEW_TOKENS, sample=sample, decode=decode)
    every = np.empty_like(logits)
    model.comm.Allreduce(logits, every)
    return every


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference over the largest answer; 0 only for the same bits."""
    if first.tobytes() == second.tobytes():
        return 0.0
    smallest = float(np.finfo(np.float32).tiny)
    return max(float(np.abs(first - second).max() / max(np.abs(first).max(), smallest)), smallest)


def store(source: Path, folder: Path, comm: MPI.Comm) -> dict[str, str]:
    """The model in every type, written by rank 0: dtype -> path."""
    files = {dtype: str(folder / f"{dtype}.h5") for dtype in DTYPES}
    with collective(comm):
        if comm.Get_rank() == 0:
            for dtype, path in files.items():
                write_model(path, restore(source, dtype)[0])
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.h5")
    parser.add_argument("--tokens", type=int, default=40, help="of the longest sequence (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="sequences (default %(default)s)")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    root = comm.Get_rank() == 0
    with tempfile.TemporaryDirectory() as own:
        folder = Path(broadcast_text(comm, own))
        bench = Bench(comm, store(args.model, folder, comm), args.tokens, args.batch)
        if root:
            print(f"{comm.Get_size()} ranks\n")
            print("| what differs between two runs | what changes | largest difference | fixed by |\n|---|---|---|---|")
        for row in filter(bench.applies, rows()):
            found = bench.difference(row)
            if root:
                print(f"| {row.what} | {row.changes} | {found:.1e} | {row.key} |", flush=True)
        comm.Barrier()


if __name__ == "__main__":
    main()

"""How many first tokens of a decoder's sequences are attention sinks, measured on sequences themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise

import numpy as np
from mpi4py import MPI

from astra_mpi.caches.cache import HostCache
from astra_mpi.calibrate.passes import Passes
from astra_mpi.calibrate.tokens import Batch, Batches
from astra_mpi.codec.config import MAX_SINKS
from astra_mpi.engine import Model
from astra_mpi.errors import collective
from astra_mpi.layout import Layout
from astra_mpi.ranks.watched import alone

#: tokens that are looked at, about; and of sequences of so many at least, queries spread over their second half
LOOKED, LEAST_TOKENS, QUERIES = 2048, 32, 16
#: a sink gets this share of the attention at least, and as many times what a later token gets
SHARE, TIMES = 0.02, 8.0


def has_sinks(model: Model) -> bool:
    """Whether first tokens can be exact on every rank: they must see nothing but themselves."""
    return model.family.causal and not model.config.n_class


def with_sinks_counted(comm: MPI.Comm, model: Model, batches: Batches) -> tuple[int, Iterator[Batch]]:
    """Collective: how many sinks there are, by rank 0's measurement, and the same batches from their beginning."""
    rest, first, n_tokens = iter(batches), [], 0
    if not has_sinks(model):
        return 0, rest
    while n_tokens < LOOKED and (batch := next(rest, None)) is not None:
        first.append(batch)
        n_tokens += batch[0].size if batch[1] is None else int(np.count_nonzero(batch[1]))
    found = np.zeros(1, np.int64)
    with collective(comm), alone(comm, "looking for attention sinks"):
        if comm.Get_rank() == 0 and first:
            found[0] = measured(attention_paid(model, first))
            if found[0]:
                found[0] = max(found[0], measured(attention_paid(model, begun_twice(first))))
    comm.Bcast(found)
    return int(found[0]), chain(first, rest)


def begun_twice(batches: list[Batch]) -> Batches:
    """The same sequences, but their second token is the first one again.

    Such a text is rare in a sample, and where a first token is a sink for being alone, so is the same one behind it: it
    sees nothing else. SmolLM2 on WikiText-2, a window that begins with "= =": 1.35 times the exact perplexity with one
    exact token, 1.06 with two.
    """
    for inputs, mask in batches:
        again = inputs.copy()
        again[:, 1:2] = again[:, :1]
        yield again, mask


def measured(paid: np.ndarray) -> int:
    """Attention (MAX_SINKS + 1,) that each first token gets, and a later one on average -> the number of sinks: all
    tokens up to the last that stands out."""
    stands_out = paid[:-1] >= max(SHARE, TIMES * paid[-1])
    return int(np.flatnonzero(stands_out)[-1]) + 1 if stands_out.any() else 0


def attention_paid(model: Model, batches: Batches) -> np.ndarray:
    """The shares of attention (MAX_SINKS + 1,) that late tokens pay to each of the first MAX_SINKS, and to each later
    one on average: means over heads, blocks without a window, and sequences; zeros where there are none of these."""
    passes, watch = Passes(model, batches, "kv", LOOKED), _Watch(model)
    for i in range(model.config.n_layers):
        for batch in passes.batches:
            watch.layout = batch.layout
            passes.through(i, batch, None, watch)
        passes.leave(i)
    return watch.paid / max(watch.n_looks, 1)


class _Watch(HostCache):
    """Instead of keeping keys, adds up the attention that they get."""

    def __init__(self, model: Model) -> None:
        nothing, zeros = Layout(np.zeros((1, 1), np.int64), 0), np.zeros(1, np.int64)
        super().__init__(model.backend.kernels, model.config, nothing, zeros, np.zeros(1), False, zeros)
        self.paid, self.n_looks = np.zeros(MAX_SINKS + 1), 0

    def attend_past(self, i: int, q: np.ndarray, acc: np.ndarray, row_max: np.ndarray, row_sum: np.ndarray) -> None:
        self._queries = q  # (H, n, d), scaled and turned

    def keep_own(self, i: int, kv: np.ndarray, places: np.ndarray | None) -> None:
        if self.config.window(i):
            return
        for first, end in pairwise(self.layout.row_offsets):
            if end - first >= LEAST_TOKENS:
                rows = np.unique(np.linspace((end - first) // 2, end - first - 1, QUERIES).astype(np.int64))
                weights = self._weights(self._queries[:, first + rows], kv[first:end, : self.config.d_kv], rows)
                later = weights[:, :, MAX_SINKS:].sum(axis=2) / (rows + 1 - MAX_SINKS)
                self.paid += [*weights[:, :, :MAX_SINKS].mean(axis=(0, 1)), later.mean()]
                self.n_looks += 1

    def _weights(self, queries: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Queries (H, n, d) of `rows` (n,) of a sequence with keys (T, d_kv) -> their attention (H, n, T)."""
        shared, d, cap = self.config.n_kv_heads, self.config.d_head, self.config.score_cap
        grouped = queries.reshape(shared, -1, len(rows), d)  # (Hkv, r, n, d)
        scores = grouped @ keys.reshape(-1, shared, d).transpose(1, 2, 0)[:, None]  # (Hkv, r, n, T)
        scores = cap * np.tanh(scores / cap) if cap else scores
        scores = np.where(np.arange(len(keys)) <= rows[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=3, keepdims=True))
        weights /= weights.sum(axis=3, keepdims=True)
        return weights.reshape(len(queries), len(rows), len(keys))

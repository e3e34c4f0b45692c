"""Codebooks from activations, without training: run the model, keep what its blocks would send, and fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import ModuleType

import numpy as np
from mpi4py import MPI
from threadpoolctl import threadpool_limits

from astra_mpi.codec.codebook import BlockCodec, Codebook, Codec
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.codec.metric import keys_values_metric, pulled_back
from astra_mpi.codec.subspace import with_subspace
from astra_mpi.config import METRICS, CodecConfig, require
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.inputs.sources import Source
from astra_mpi.strategies import Spec
from astra_mpi.strategies.remote import projection
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.wire.exchange import Pending

Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


#: tokens per entry that a codebook should be fitted to, and with how many the command says that they are few. Error on
#: held-out tokens of all-MiniLM-L6-v2 over that with four times 128: 6 to 8% more, with 64 11 to 13%, with 39 19 to 22%
TOKENS_PER_ENTRY, FEW_TOKENS_PER_ENTRY = 128, 64


def too_few(n_tokens: int, wanted: int, n_entries: int, data: str, option: str) -> str:
    """What to say of codebooks of `n_entries` fitted to `n_tokens` of the `wanted` ones; "" if those are enough.

    data: where they come from; option: what asks for more.
    """
    if n_tokens >= FEW_TOKENS_PER_ENTRY * n_entries:
        return ""
    needed = TOKENS_PER_ENTRY * n_entries
    more = f"give {option} {needed}" if wanted < needed else ""
    if n_tokens < wanted:
        more = " and ".join(filter(None, [f"{data} has no more, give more of it", more]))
    repeated = ", with entries that repeat others" if n_tokens < n_entries else ""
    return f"{n_tokens} tokens are few for codebooks of {n_entries} entries{repeated}; {needed} are better: {more}"


class Recorder(TokenParallel):
    """Runs alone and keeps the content tokens at `site` of every block instead of sending them."""

    name = "record"
    sends = True

    def __init__(self, model: Model, site: str) -> None:
        super().__init__(model.parts(), Spec(self.name))
        self.site = site
        self.samples: list[list[np.ndarray]] = [[] for _ in self.blocks]

    def send(self, i: int, payload: np.ndarray) -> Pending | None:
        self.samples[i].append(payload.copy())
        return super().send(i, payload)


def shuffled_batches(source: Source, seed: int, batch: int = 8) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """All items of `source` once, batches in random order."""
    starts = np.arange(0, source.n_items, batch)
    np.random.default_rng(seed).shuffle(starts)
    for start in starts:
        yield source.batch(int(start), min(int(start) + batch, source.n_items))


def activations(model: Model, batches: Batches, site: str, n_samples: int) -> list[np.ndarray]:
    """Per block, up to `n_samples` activations (n, width) float32 at `site`, from as many batches as that takes."""
    model.strategy = recorder = Recorder(model, site)
    seen = 0
    for inputs, mask in batches:
        model(inputs, mask)
        seen = sum(len(part) for part in recorder.samples[0])
        if seen >= n_samples:
            break
    require(seen > 0, "there are no tokens to calibrate on; give more data")
    return [np.concatenate(parts)[:n_samples] for parts in recorder.samples]


def fit_codec(
    file: ModelFile,
    batches: Batches,
    config: CodecConfig,
    *,
    seed: int = 0,
    n_samples: int = 32768,
    threads: int = 1,
    metric: str = METRICS[0],
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> Codec:
    """Codebooks for every block of a model, deterministic by `seed`; `progress(done, total)` counts codebooks.
    `on_tokens(n)` is called with how many tokens there are to fit to, of the `n_samples` wanted.

    metric: "keys-values" (codec/metric.py), or "plain", which site kv and two groups or more always have.
    Fitted to `n_samples` tokens; an eighth as many more are held out where a subspace is to be chosen.
    Runs in one process, whatever launched it, and fits as many codebooks at once as there are `threads`: k-means has
    too many serial passes for threads within one to pay.
    """
    require(metric in METRICS, f"metric '{metric}' is unknown; use one of {', '.join(METRICS)}")
    backend = get_backend("numpy", MPI.COMM_SELF)
    model, kernels = Model(file, MPI.COMM_SELF, backend), backend.kernels
    parts = 2 if config.site == "kv" else 1
    n_held_out = n_samples // 8 if _may_project(config) else 0
    metrics = _metrics(model, config) if metric == "keys-values" else None
    blocks = activations(model, batches, config.site, n_samples + n_held_out)
    on_tokens(min(len(blocks[0]), n_samples))
    samples = [np.ascontiguousarray(piece) for x in blocks for piece in np.split(x, parts, axis=1)]
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        fits = [
            pool.submit(_fit, x, config, seed + i, kernels, metrics[i] if metrics else None)
            for i, x in enumerate(samples)
        ]
        for done, _ in enumerate(as_completed(fits), start=1):
            progress(done, len(fits))
    books = [fit.result() for fit in fits]
    return Codec(config, tuple(BlockCodec(tuple(books[i : i + parts])) for i in range(0, len(books), parts)))


def _may_project(config: CodecConfig) -> bool:
    return config.encoder != "exact" and config.full_width


def _metrics(model: Model, config: CodecConfig) -> list[np.ndarray] | None:
    """Per block the metric (D, D), where there is one and codebooks can be searched in it."""
    if config.site == "kv" or not config.full_width:
        return None
    return [keys_values_metric(projection(block, config.site)) for block in model.parts().blocks]


def _fit(
    x: np.ndarray, config: CodecConfig, seed: int, kernels: ModuleType, metric: np.ndarray | None = None
) -> Codebook:
    """Codebook of samples x (n, D), of which the last ninth is held out where a subspace is to be chosen."""
    if metric is not None:
        x = x @ metric.astype(np.float32)
    if _may_project(config):
        fitted, held_out = np.split(x, [len(x) - len(x) // 9])
        book = fit_codebook(fitted, config, seed, kernels)
        book = with_subspace(book, fitted, held_out, config.encoder, kernels, anyway=metric is not None)
    else:
        book = fit_codebook(x, config, seed, kernels)
    return book if metric is None else pulled_back(book, metric)

"""Codebooks of all blocks: the passes and the fits of this rank, over its threads, and the codebooks of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType

import numpy as np
from mpi4py import MPI
from threadpoolctl import threadpool_limits

from astra_mpi.calibrate.closed_loop import ClosedLoop
from astra_mpi.calibrate.crew import Crew
from astra_mpi.calibrate.gathering import gathered
from astra_mpi.calibrate.maps import with_maps
from astra_mpi.calibrate.passes import Passes, Passing
from astra_mpi.calibrate.sharing import shared_kernels
from astra_mpi.calibrate.sinks import has_sinks, with_sinks_counted
from astra_mpi.calibrate.tokens import Batches
from astra_mpi.calibrate.work import Work, shares, work_of
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import METRICS, CodecConfig
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.codec.metric import Weighings, keys_values_metric, pulled_back, root
from astra_mpi.codec.subspace import with_subspace
from astra_mpi.config import require
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError, collective
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.ranks.watched import alone
from astra_mpi.strategies.coded.remote import projection

Step = Callable[[float], None]  # (work done)


def fit_codec(
    file: ModelFile,
    batches: Batches,
    config: CodecConfig,
    *,
    comm: MPI.Comm = MPI.COMM_SELF,
    seed: int = 0,
    n_samples: int = 32768,
    threads: int = 1,
    metric: str = METRICS[0],
    weigh: Callable[[CodecConfig], Weighings] | None = None,
    find_sinks: bool = False,
    progress: Callable[[float, float], None] = lambda done, total: None,
    on_tokens: Callable[[int], None] = lambda n: None,
    rank: int | None = None,
    embedded: bool = False,
    codebooks: Codec | None = None,
    n_awaited: int | None = 0,
) -> Codec | None:
    """Codebooks for every block of a model, on rank 0 (None elsewhere). Collective: the same arguments on every rank.

    Deterministic by seed, whatever the ranks and threads: those share the work and change no result.
    `progress(done, total)` counts blocks on rank 0, in parts of a block: what all ranks have done. `on_tokens(n)` is
    called with how many tokens there are to fit to, of the `n_samples` wanted.

    metric: "keys-values" (codec/metric.py), "output" by what `weigh` finds on rank 0 of the config that is fitted, or
    "plain". Two groups or more always have "plain", and so has site kv instead of "keys-values".
    find_sinks: the codec's number of attention sinks is measured, whatever the config says (`sinks.py`). InputError on
    a config with sinks for an encoder, whose first tokens see all others.
    Fitted to `n_samples` tokens, none of them sinks; an eighth as many more are held out where a subspace is to be
    chosen.
    embedded: fit residual stages that are a codec without those after them, to allot stages by (allotting.py).
    rank: of the maps of blocks, where `config` has them; 0: whole matrices, None: as large as each block needs.
    n_awaited: with predict "linear", how many blocks are awaited where codes are late, those in which that changes most
    by `metric` (`awaiting.py`); 0: those that `config` names; None: those that stand out, if `metric` is "output".
    codebooks: those of the model, which stay, where `config` has maps that codes are not made with (predict "next").
    A rank's threads take batches through a block and fit codebooks, one each: k-means has too many serial passes for
    threads within one to pay.
    """
    require(metric in METRICS, f"metric '{metric}' is unknown; use one of {', '.join(METRICS)}")
    backend = get_backend("numpy", comm)
    model = Model(file, MPI.COMM_SELF, backend)
    require(
        not config.sinks or has_sinks(model),
        f"sinks = {config.sinks} is for decoders: first tokens of a {model.config.family} model see all others; use 0",
    )
    if find_sinks:
        with threadpool_limits(1):
            n_sinks, batches = with_sinks_counted(comm, model, batches)
        config = replace(config, sinks=n_sinks)
    output = None
    if metric == "output":
        if weigh is None:
            raise InputError("metric 'output' needs gradients of the model's answers; use another metric here")
        output = _same_weighings(comm, weigh, config, model)
    require(n_awaited in (None, 0) or config.predicts, "how many blocks are awaited is measured with predict 'linear'")
    require(not n_awaited or metric != "plain", "metric 'plain' does not say which blocks to await; use another one")
    if embedded and not config.predicts:  # a subspace's entries are refitted together
        config = replace(config, encoder="exact")
    if config.predicts:
        with threadpool_limits(1), shared_kernels(backend.kernels, comm, threads) as kernels:
            passes = Passes(model, batches, config.site, n_samples, threads, config.sinks)
            on_tokens(passes.n_tokens)
            n, in_metric = len(model.blocks), metric != "plain"
            told = comm.Get_rank() == 0
            loop = ClosedLoop(
                passes,
                config,
                seed,
                kernels,
                comm,
                in_metric,
                rank,
                lambda done: progress(done, n) if told else None,
                embedded,
                output,
                0 if n_awaited is None and output is None else n_awaited,
            )
            codec = loop.fit()
        return codec if comm.Get_rank() == 0 else None
    n_held_out = n_samples // 8 if _may_project(config) else 0
    with threadpool_limits(1):
        n_blocks = len(model.blocks)
        passes = Passes(model, batches, config.site, n_samples + n_held_out, threads, config.sinks)
        on_tokens(min(passes.n_tokens, n_samples))
        rows = [batch.rows.copy() for batch in passes.batches] if config.has_maps and comm.Get_rank() == 0 else []
        if codebooks is not None:
            return _mapped(comm, passes, rows, codebooks.blocks, config, rank, backend.kernels)
        work = work_of(model.config, model.blocks[0], config, passes.n_passing, passes.n_tokens)
        every = shares(n_blocks, comm.Get_size(), work.passing, work.fitting)
        total = sum(len(share) * work.fitting + share.stop * work.passing for share in every if share)
        crew = Crew(
            comm, "fitting codebooks", lambda done: progress(done / total * len(model.blocks), len(model.blocks))
        )
        fits = _Fits(passes, config, seed, backend.kernels, metric, work, crew, embedded, output)
        blocks: dict[int, BlockCodec] = {}
        failure: Exception | None = None
        try:
            blocks = fits.run(every[comm.Get_rank()], threads)
        except Exception as exc:
            failure = exc
        crew.end(failure)
        books = gathered(comm, blocks, every, config)
        if config.has_maps:
            return _mapped(comm, passes, rows, books, config, rank, backend.kernels)
    return None if books is None else Codec(config, books)


def _mapped(
    comm: MPI.Comm,
    passes: Passes,
    rows: list[np.ndarray],
    books: tuple[BlockCodec, ...] | None,
    config: CodecConfig,
    rank: int | None,
    kernels: ModuleType,
) -> Codec | None:
    """Collective: the codec with maps on rank 0, None elsewhere."""
    codec: Codec | None = None
    with collective(comm), alone(comm, "fitting maps"):
        if comm.Get_rank() == 0:
            assert books is not None
            codec = with_maps(passes, rows, books, config, rank, kernels)
    return codec


class _Fits:
    """This rank's passes and fits."""

    def __init__(
        self,
        passes: Passes,
        config: CodecConfig,
        seed: int,
        kernels: ModuleType,
        metric: str,
        work: Work,
        crew: Crew,
        embedded: bool = False,
        output: Weighings | None = None,
    ) -> None:
        self.embedded, self.output = embedded, output
        self.passes, self.config, self.seed, self.kernels = passes, config, seed, kernels
        known = metric == "output" or (metric == "keys-values" and config.site != "kv")
        self.in_metric = known and (config.full_width or config.rule.transforms)
        self.work, self.crew = work, crew

    def run(self, blocks: range, threads: int) -> dict[int, BlockCodec]:
        """The codebooks of these blocks. The pool takes the fits of a block before the passes of the next one, so that
        no more blocks' samples are in memory than there are threads, and one.
        """
        fits: dict[int, list[Future[Codebook]]] = {}
        pool = ThreadPoolExecutor(threads)
        try:
            for i in range(blocks.stop if blocks else 0):
                samples = self.passes.room() if i in blocks else None
                passing = [pool.submit(self._pass, i, batch, samples) for batch in self.passes.batches]
                self.crew.wait(passing)
                self.passes.leave(i)
                if samples is not None:
                    first = self.seed + i * len(samples)
                    parts = self.config.of(i)
                    fits[i] = [
                        pool.submit(self._fit, i, part, parts[part], [x], first + part)
                        for part, x in enumerate(samples)
                    ]
                    del samples
                for fit in (fit for found in fits.values() for fit in found if fit.done()):
                    fit.result()  # may raise
            self.crew.wait(fit for found in fits.values() for fit in found)
        finally:
            self.crew.stopped.set()
            pool.shutdown(cancel_futures=True)
        return {i: BlockCodec(tuple(fit.result() for fit in found)) for i, found in fits.items()}

    def _pass(self, i: int, batch: Passing, samples: list[np.ndarray] | None) -> None:
        self.passes.through(i, batch, samples)
        self.crew.step(self.work.passing / len(self.passes.batches))

    def _fit(self, i: int, part: int, config: CodecConfig, samples: list[np.ndarray], seed: int) -> Codebook:
        """Codebook of the samples [x (n, D)], taken out of the list so that they are kept no longer than needed."""
        x, metric = samples.pop(), None
        if self.in_metric:
            if self.output is not None:
                metric = root(self.output[i][part])
            else:
                metric = keys_values_metric(projection(self.passes.model.blocks[i], self.config.site))
            x = x @ metric.astype(np.float32)
        book = _fitted(x, config, seed, self.kernels, metric is not None, self.work, self.crew.step, self.embedded)
        return book if metric is None else pulled_back(book, metric)


def _same_weighings(
    comm: MPI.Comm, weigh: Callable[[CodecConfig], Weighings], config: CodecConfig, model: Model
) -> Weighings:
    """Collective: what rank 0 finds."""
    n_parts, width = (2, model.config.d_kv) if config.site == "kv" else (1, model.config.d_model)
    found = np.empty((model.config.n_layers, n_parts, width, width))
    with collective(comm), alone(comm, "measuring what errors change"):
        if comm.Get_rank() == 0:
            found[:] = weigh(config)
    for weighing in found.reshape(-1, width, width):
        comm.Bcast(weighing)
    return [list(parts) for parts in found]


def _may_project(config: CodecConfig) -> bool:
    return config.encoder != "exact" and config.full_width and not config.near


def _fitted(
    x: np.ndarray,
    config: CodecConfig,
    seed: int,
    kernels: ModuleType,
    in_metric: bool,
    work: Work,
    step: Step,
    embedded: bool,
) -> Codebook:
    """Codebook of samples x (n, D), of which the last ninth is held out where a subspace is to be chosen."""
    fitted, held_out = np.split(x, [len(x) - len(x) // 9]) if _may_project(config) else (x, None)
    book = fit_codebook(fitted, config, seed, kernels, lambda done, n: step(work.starting / n), embedded)
    if held_out is not None and book.size > 1:
        step(work.refining / 2)
        book = with_subspace(book, fitted, held_out, config.encoder, kernels, anyway=in_metric)
    step(work.refining / (1 if held_out is None or book.size == 1 else 2))
    return book

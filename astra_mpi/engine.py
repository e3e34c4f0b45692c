"""Load a model and run its forward pass over the ranks of a communicator."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi import codecfile, modelfile
from astra_mpi.backend import Backend, get_backend
from astra_mpi.config import require
from astra_mpi.errors import InputError, collective, raise_together, same_on_all
from astra_mpi.exchange import Exchange
from astra_mpi.models import FAMILIES
from astra_mpi.models.batch import Batch
from astra_mpi.models.block import Block
from astra_mpi.partition import Layout, cut
from astra_mpi.report import Laps, collect
from astra_mpi.strategies import STRATEGIES, Astra, SequenceParallel, Single
from astra_mpi.strategies.base import TokenParallel
from astra_mpi.strategies.remote import choose_remote

if TYPE_CHECKING:
    from mpi4py import MPI


def load(
    path: str,
    *,
    comm: MPI.Comm,
    strategy: str = "astra",
    backend: str = "numpy",
    codebooks: str | None = None,
    weights: Sequence[float] | None = None,
    counted_keys: bool = True,
    remote: str = "auto",
    gather: str = "x",
    pooling: str | None = None,
    normalize: bool | None = None,
) -> Model:
    """Load the model file at `path` on every rank of `comm`. Collective.

    strategy: "single", "sp" or "astra". backend: "numpy" or "reference". codebooks: a codebook file for this model,
    instead of the codebooks inside it. weights: relative speeds of the ranks, for an uneven cut. counted_keys: let
    far tokens of equal code share a key (exact). remote: "table", "gemm" or "auto" (timed), how far keys come from
    codes. gather: "x" or "kv", what `sp` sends. pooling, normalize: instead of the model's own (BERT).

    Raises InputError on all ranks alike: files that cannot be read or differ between ranks, or options that do not fit.
    """
    require(strategy in STRATEGIES, f"strategy '{strategy}' is unknown; use one of {', '.join(STRATEGIES)}")
    with collective(comm):
        cut(np.zeros(1, np.int64), comm.Get_size(), weights)  # checks `weights` before any work
        file = modelfile.read_model(path)
        codec = codecfile.read_codebooks(codebooks, file.digest) if codebooks else file.codec
        changes = {name: value for name, value in (("pooling", pooling), ("normalize", normalize)) if value is not None}
        unknown = [name for name in changes if not hasattr(file.config, name)]
        require(not unknown, f"{path}: a {file.config.family} model has no option {', '.join(unknown)}")
        config = dataclasses.replace(file.config, **changes)
        if strategy == "astra" and codec is None:
            raise InputError(f"{path} holds no codebooks, which strategy astra needs; run `astra-mpi calibrate` first")
        if codec is not None:
            codecfile.check_codec(codec, config, codebooks or path)
    _same_everywhere(comm, f"{path} differs between ranks; copy the same file to every machine", file.digest)
    _same_everywhere(
        comm, "the codebooks differ between ranks; copy the same file to every machine", codec.digest if codec else ""
    )
    model = Model(dataclasses.replace(file, config=config, codec=codec), comm, get_backend(backend, comm), weights)
    model.use(strategy, counted_keys=counted_keys, remote=remote, gather=gather)
    return model


def _same_everywhere(comm: MPI.Comm, message: str, digest: str) -> None:
    mine = np.frombuffer(digest.ljust(64).encode(), dtype=np.uint8)
    every = np.empty((comm.Get_size(), 64), dtype=np.uint8)
    comm.Allgather(mine, every)
    other = np.flatnonzero((every != every[0]).any(axis=1))
    if other.size:
        raise same_on_all(InputError(f"{message} (rank {other[0]} has another than rank 0)"))


class Model:
    """A model at work on the ranks of one communicator. Call it with inputs; `report` describes the last call."""

    def __init__(
        self, file: modelfile.ModelFile, comm: MPI.Comm, backend: Backend, weights: Sequence[float] | None = None
    ) -> None:
        self.comm, self.backend, self.cut_weights = comm, backend, weights
        self.config, self.codec = file.config, file.codec
        self.tokenizer, self.preprocess = file.tokenizer, file.preprocess
        self.weights, self.digest = file.weights, file.digest
        self.codec_digest = file.codec.digest if file.codec else ""
        family = FAMILIES[file.config.family]
        self.family = family(file.config, file.weights, backend.kernels)
        self.blocks = [
            Block(file.config, family.recipe, file.weights, i, backend.kernels) for i in range(file.config.n_layers)
        ]
        self.laps = Laps()
        self.exchange = Exchange(comm, self.laps)
        self.report: dict[str, Any] = {}
        self._layouts: dict[bytes, Layout] = {}

    def use(self, strategy: str, *, counted_keys: bool = True, remote: str = "auto", gather: str = "x") -> None:
        """Choose the strategy (see `load`). Collective."""
        parts = (self.blocks, self.exchange, self.backend.kernels)
        self.strategy: TokenParallel
        if strategy == "astra":
            if self.codec is None:
                raise InputError(
                    "the model has no codebooks, which strategy astra needs; run `astra-mpi calibrate` first"
                )
            tables = choose_remote(self.comm, self.blocks, self.codec, self.backend.kernels, remote)
            self.strategy = Astra(*parts, self.codec, tables, counted_keys)
        elif strategy == "sp":
            self.strategy = SequenceParallel(*parts, gather)
        else:
            self.strategy = Single(*parts)
        self._layouts.clear()

    def __call__(self, inputs: np.ndarray, mask: np.ndarray | None = None, gather: bool = False) -> Any:
        """Run the forward pass; collective, with the same inputs on every rank.

        ViT: float32 images (B, channels, height, width) -> logits (B, classes). BERT: token ids (B, T) and an optional
        mask (B, T), 0 = drop -> embeddings (B, D). With `gather`, rank 0 gets (answer, hidden) and the others
        (answer, None): hidden states (B, n_class + T, D) after the last norm, zero beyond a sequence's end.
        """
        batch = self._prepare(inputs, mask)
        layout = self._layout(batch.lengths)
        failure: Exception | None = None
        answer = hidden = None
        self.exchange.reset()
        self.strategy.begin(layout)
        self.laps.start()
        share = np.zeros((len(batch.lengths), self.config.d_model), np.float32)
        try:
            rows = self._forward(batch, layout)
            share = self.family.pool(rows, layout)
            self.laps.mark("head")
        except Exception as exc:
            failure = exc
            self.strategy.abandon()
        pooled, failed = self.exchange.sum(share, failure is not None)
        if failed:
            raise_together(self.comm, failure)
        answer = self.family.head(pooled, batch.lengths)
        self.laps.mark("head")
        self.report = self._report(layout)
        if gather:
            hidden = self._gather(rows, layout)
            return answer, hidden
        return answer

    def _forward(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> this rank's rows (n, D) after the last block."""
        x = self.family.embed(batch, layout)
        self.laps.mark("embed")
        for i in range(len(self.blocks)):
            x = self.strategy.block(i, x)
        return x

    def _prepare(self, inputs: np.ndarray, mask: np.ndarray | None) -> Batch:
        """Validate on every rank, and check that all ranks were given the same."""
        failure: Exception | None = None
        mine = np.zeros(2, dtype=np.int64)  # failed, checksum of the batch
        try:
            batch = self.family.prepare(inputs, mask)
            mine[1] = zlib.crc32(batch.values.tobytes(), zlib.crc32(batch.lengths.tobytes()))
        except Exception as exc:
            failure = exc
            mine[0] = 1
        every = np.empty((self.comm.Get_size(), 2), dtype=np.int64)
        self.comm.Allgather(mine, every)
        if every[:, 0].any():
            raise_together(self.comm, failure)
        if (every[:, 1] != every[0, 1]).any():
            raise same_on_all(InputError("the inputs differ between ranks; give every rank the same batch"))
        return batch

    def _layout(self, lengths: np.ndarray) -> Layout:
        key = lengths.tobytes()
        if key not in self._layouts:
            if len(self._layouts) >= 64:
                self._layouts.clear()
            n_class = self.config.n_class
            self._layouts[key] = self.strategy.layout(lengths, n_class, self.family.causal, self.cut_weights)
        return self._layouts[key]

    def _gather(self, rows: np.ndarray, layout: Layout) -> np.ndarray | None:
        """Hidden states of all ranks on rank 0, (B, n_class + T, D) after the last norm."""
        every = self.exchange.gather_rows(layout.content(rows), layout.token_counts)
        classes, _ = self.exchange.sum(layout.class_share(rows), False)
        if every is None:
            return None
        lengths = layout.lengths
        n_class = layout.n_class
        hidden = np.zeros((len(lengths), n_class + int(lengths.max(initial=0)), rows.shape[1]), np.float32)
        present = np.arange(hidden.shape[1] - n_class) < lengths[:, None]  # (B, T)
        hidden[:, n_class:][present] = self.family.final(every[layout.sequence_order])
        if n_class:
            hidden[:, 0] = self.family.final(classes)
        return hidden

    def _report(self, layout: Layout) -> dict[str, Any]:
        size = self.exchange.size
        latency, contributed, other = collect(
            self.comm, self.laps.seconds, self.exchange.contributed_bytes, self.exchange.other_bytes
        )
        n_exchanges = self.strategy.n_exchanges
        return {
            "family": self.config.family,
            "strategy": self.strategy.name,
            "ranks": size,
            "tokens": [int(t) for t in layout.lengths],
            "contributed_bytes": contributed,
            "formula_bytes": [n_exchanges * n for n in self.strategy.message_bytes(layout)],
            "other_bytes": other,
            "distinct_keys": self.strategy.distinct_keys(),
            "latency_s": latency,
            **self.strategy.describe(),
        }

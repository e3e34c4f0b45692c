"""Sequences on their way through a model, all of them through one block at a time."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

import numpy as np

from astra_mpi.caches.cache import Cache
from astra_mpi.calibrate.tokens import Batches
from astra_mpi.codec.predictor import inputs_before
from astra_mpi.config import require
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import forget
from astra_mpi.engine import Model
from astra_mpi.layout import Layout
from astra_mpi.strategies import Parts, Spec
from astra_mpi.strategies.positions import Positions
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.wire.pending import Pending


class Recorder(TokenParallel):
    """Runs alone, and gives the content tokens at `site` to `keep` instead of sending them."""

    name = "record"
    keep: Callable[[np.ndarray], None] | None = None

    def __init__(self, parts: Parts, site: str) -> None:
        super().__init__(parts, Spec(self.name))
        self.site = site

    @property
    def sends(self) -> bool:
        return self.keep is not None

    def send(self, i: int, payload: np.ndarray) -> Pending | None:
        assert self.keep is not None
        self.keep(payload)
        return super().send(i, payload)


@dataclass
class Passing:
    """A batch of sequences on its way."""

    layout: Layout
    positions: Positions
    rows: np.ndarray  # (n, D) after the blocks that it has passed
    first: int  # tokens of the batches before it

    def keep(self, samples: list[np.ndarray], rows: np.ndarray) -> None:
        """Of rows (n, w) those of tokens that are samples, into `samples` side by side."""
        self.keep_content(samples, self.layout.content(rows))

    def keep_content(self, samples: list[np.ndarray], content: np.ndarray) -> None:
        """The same of content tokens (T, w)."""
        _keep(samples, self.first, content[~self.layout.gathered_sinks] if self.layout.sinks else content)


class Passes:
    """The first batches with together `n_samples` tokens or more, before the first block of a model of one process."""

    def __init__(
        self, model: Model, batches: Batches, site: str, n_samples: int, threads: int = 1, sinks: int = 0
    ) -> None:
        """threads: how many batches may pass at once. sinks: first tokens of each sequence that are no samples.
        InputError where there are no tokens."""
        parts = model.parts()
        model.strategy = first = Recorder(parts, site)
        self._recorders: SimpleQueue[Recorder] = SimpleQueue()
        for recorder in (first, *(Recorder(_apart(parts), site) for _ in range(threads - 1))):
            self._recorders.put(recorder)
        self.model, self.site = model, site
        self.batches: list[Passing] = []
        seen = self.n_passing = 0
        for inputs, mask in batches:
            batch = model.prepare(inputs, mask)
            layout = replace(model.layout(batch.lengths), sinks=sinks)
            rows = model.family.embed(batch, layout)
            self.batches.append(Passing(layout, Positions(model.family, batch), rows, seen))
            seen += int(layout.sent_counts.sum())
            self.n_passing += int(batch.lengths.sum())
            if seen >= n_samples:
                break
        require(seen > 0, "there are no tokens to calibrate on; give more data")
        self.n_tokens = min(seen, n_samples)

    def room(self) -> list[np.ndarray]:
        """Where the tokens of a block are to be kept: float32 (n_tokens, width) per quantised vector at the site."""
        config = self.model.config
        widths = [config.d_kv, config.d_kv] if self.site == "kv" else [config.d_model]
        return [np.empty((self.n_tokens, width), np.float32) for width in widths]

    def through(self, i: int, batch: Passing, samples: list[np.ndarray] | None, watch: Cache | None = None) -> None:
        """Take a batch through block i, whose tokens at the site are kept in `samples` if there are any.

        watch: is given queries, keys and values. Threads may call it at once, for other batches.
        """
        recorder = self._recorders.get()
        try:
            recorder.positions = batch.positions
            recorder.keep = None if samples is None else partial(_keep, samples, batch.first)
            recorder.cache = watch
            recorder.begin(batch.layout)
            batch.rows = recorder.block(i, batch.rows)
        finally:
            recorder.cache = None
            self._recorders.put(recorder)

    def inputs_before(self, batch: Passing, n: int) -> np.ndarray | None:
        """Of a batch before the first block: what enters its attention, of every token and of those before
        (codec/predictor.py), content tokens alone."""
        rows = self.model.blocks[0].attention_input(batch.layout.content(batch.rows))
        return inputs_before(rows, batch.layout.lengths, n)

    def leave(self, i: int) -> None:
        """All have passed block i: its mapped weights need no memory any more."""
        for weight in self.model.blocks[i].w.values():
            forget(weight)


def _apart(parts: Parts) -> Parts:
    """The same model with buffers of its own, so that another thread can compute with it."""
    scratch = Scratch(parts.blocks[0].scratch.xp, parts.blocks[0].scratch.dtype)
    blocks = [copy(block) for block in parts.blocks]
    for block in blocks:
        block.scratch = scratch
    return replace(parts, blocks=blocks)


def _keep(samples: list[np.ndarray], first: int, payload: np.ndarray) -> None:
    for kept, columns in zip(samples, np.split(payload, len(samples), axis=1), strict=True):
        kept[first : first + len(columns)] = columns[: max(len(kept) - first, 0)]


def activations(model: Model, batches: Batches, site: str, n_samples: int) -> list[np.ndarray]:
    """Per block, up to `n_samples` activations (n, width) float32 at `site`, from as many batches as that takes."""
    passes, found = Passes(model, batches, site, n_samples), []
    for i in range(model.config.n_layers):
        samples = passes.room()
        for batch in passes.batches:
            passes.through(i, batch, samples)
        found.append(np.concatenate(samples, axis=1))
    return found

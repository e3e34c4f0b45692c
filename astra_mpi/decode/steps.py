"""New tokens through the blocks: the rank with a sequence's last token alone, or all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import numpy as np

from astra_mpi.caches.cache import Cache, HostCache
from astra_mpi.caches.kept import Softmax
from astra_mpi.caches.new import NewTokens
from astra_mpi.caches.packed import PackedCache
from astra_mpi.caches.past import Past
from astra_mpi.decode.compiled import CompiledStep
from astra_mpi.decode.prefill import Engine
from astra_mpi.device.xp import settle, take, to_host
from astra_mpi.kernels.cpu.token.tables import MAX_ROWS, N_STEPS, OUTPUT
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.decoder import Decoder
from astra_mpi.strategies.positions import PlacedRows, Positions
from astra_mpi.strategies.token_parallel import TokenParallel


class Local:
    """The rank with a sequence's last token decodes it alone, from what it holds and what it has seen of others."""

    mode: ClassVar[str] = "local"
    #: sequences, ascending, whose new tokens this rank computes, and those that it samples
    computed: np.ndarray
    sampled: np.ndarray
    cache: Cache
    #: of blocks that follow those of other ranks: gives the rows (n, D) of new tokens, in place of an embedding
    enter: Callable[[Batch], np.ndarray] | None = None

    def __init__(
        self, model: Engine, layout: Layout, room: np.ndarray, first: np.ndarray, past: Past | None = None
    ) -> None:
        """room (B,): tokens that each sequence may get; first (B,): positions of the first ones. past: of a
        conversation, one sequence."""
        assert isinstance(model.family, Decoder) and isinstance(model.strategy, TokenParallel)
        self.family, self.blocks, self.backend, self.laps = model.family, model.blocks, model.backend, model.laps
        self.config, self.scratch, self.exchange = model.config, model.scratch, model.exchange
        self.layout, self.first_places, self.past, self.site = layout, first, past, model.strategy.site
        self._plan(room - 1)  # the last token of a sequence goes through no block
        self.compiled = model.compiled
        self._room = int(room.max(initial=0))

    def _plan(self, room: np.ndarray) -> None:
        self.computed = self.sampled = np.flatnonzero(self.layout.last_rank == self.layout.rank)
        self.cache = self._cache(room, keeps_far=True)

    def _cache(self, room: np.ndarray, keeps_far: bool) -> Cache:
        if self.past is not None:
            self.past.open(self.layout, int(room[0]) if len(self.computed) else 0)
            return self.past
        kept = self.config, self.layout, self.computed, room, keeps_far, self.first_places
        on_host = self.backend.xp is np
        return HostCache(self.backend.kernels, *kept) if on_host else PackedCache(self.backend, *kept)

    @property
    def share_width(self) -> int:
        """Width of what ranks share after the prefill."""
        return 0

    def prefilled(self, rows: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) after the last block of the prefill -> this rank's share (B, share_width)."""
        self._last = take(rows, layout.last_rows[1])
        settle(self._last)  # the first token is timed with the prompt's work
        return np.zeros((len(layout.counts), 0), np.float32)

    def first(self, shared: np.ndarray) -> np.ndarray:
        """What the ranks have shared, summed up (B, share_width) -> last rows of the sequences `computed`."""
        return self._last

    def announce(self, n: int) -> None:
        """The next pass has n new tokens, on all ranks that compute them."""
        self._counts = [4 * n * Softmax.width(self.config)] * self.layout.size

    def step(self, ids: np.ndarray, sequences: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """New tokens ids (n,) of `sequences` (n,) -> rows (n, D) after the last block.

        steps (n,): how many tokens their sequence got before each. A sequence's follow one another.
        """
        n = len(ids)
        positions = self.first_places[sequences] + steps
        new = NewTokens(sequences, positions, self._keeps(steps))
        self.cache.plan(new)
        batch = Batch(np.ones(n, np.int64), ids, positions)
        x = self._embed(batch) if self.enter is None else self.enter(batch)
        placed = PlacedRows(Positions(self.family, batch), np.arange(n), self.blocks)
        self.laps.mark("embed")
        if self.compiled is not None and n <= MAX_ROWS:
            return self._compiled_step(x, new, placed)
        return self._step(x, placed)

    def drop(self, sequence: int, first: int, last: int) -> None:
        """Of the tokens that a sequence got, those from `first` to `last` are none of it: the last ones computed."""
        n = int(np.count_nonzero(self._keeps(np.arange(first, last))))
        self.cache.drop(sequence, n)
        if "_steps" in self.__dict__:
            self._steps.drop(sequence, n)

    def _embed(self, batch: Batch) -> np.ndarray:
        return self.family.embed(batch, Layout(np.ones((len(batch.lengths), 1), np.int64), 0))

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Rows after the last block (n, D) -> logits (n, V), on the host."""
        if self.compiled is not None and self.compiled.has_head and len(rows) <= MAX_ROWS:
            return self.family.capped(self._steps.logits(rows))
        return self.backend.fetch(self.family.final(rows))

    @cached_property
    def _steps(self) -> CompiledStep:
        """After the prefill, which fills the cache."""
        assert self.compiled is not None and isinstance(self.cache, HostCache)
        return CompiledStep(self.compiled, self.cache, None if self.past is None else self.site, self._room)

    def _compiled_step(self, x: np.ndarray, new: NewTokens, placed: PlacedRows) -> np.ndarray:
        """The blocks as compiled calls: as few as exchanges, and keys that are kept as codes, allow."""
        steps, n_blocks, done = self._steps, len(self.blocks), 0
        turns = [placed.turns(i) for i in range(n_blocks)]
        x = steps.begin(x, new, turns)
        for i in range(n_blocks) if self.merges or not steps.readable else ():
            steps.run(done, N_STEPS * i + OUTPUT)
            done = N_STEPS * i + OUTPUT
            if not steps.readable:
                self.laps.mark("project")
                self.cache.attend(i, *steps.queries_keys_values, steps.softmax)
            self.laps.mark("attention")
            self._merge(steps.softmax)
        steps.run(done, N_STEPS * n_blocks)
        self.laps.mark("mlp")
        if self.past is not None and self.site is not None:
            for i in range(n_blocks):
                self.past.note(i, steps.noted(i))
        return x

    def _step(self, x: np.ndarray, placed: PlacedRows) -> np.ndarray:
        """The blocks one operation after another."""
        for i, block in enumerate(self.blocks):
            h = block.attention_input(x)
            q, kv = block.queries_keys_values(h)
            if self.past is not None and self.site is not None:
                self.past.note(i, {"hidden": x, "normed": h, "kv": kv}[self.site])
            turns = placed.turns(i)
            if turns is not None:
                block.turn(turns)
            self.laps.mark("project")
            attended = self._attended(i, q, kv)
            self.laps.mark("attention")
            x = block.output(x, attended)
            self.laps.mark("mlp")
        return x

    def _keeps(self, steps: np.ndarray) -> np.ndarray:
        """(n,) whether this rank keeps keys and values of the tokens of these steps (n,)."""
        return np.ones(len(steps), bool)

    def _attended(self, i: int, q: np.ndarray, kv: np.ndarray) -> np.ndarray:
        """Scaled queries q (n, D) and new [K | V] (n, 2 d_kv) of block i -> what attention gives (n, H d)."""
        rows = self._partial(i, q, kv)
        self._merge(rows)
        return self._finished(rows)

    @property
    def merges(self) -> bool:
        """Whether ranks exchange something in every block."""
        return False

    def _merge(self, rows: np.ndarray) -> None:
        """Rows (n, H (d + 2)) of this rank's keys become those of all."""

    def _partial(self, i: int, q: np.ndarray, kv: np.ndarray) -> np.ndarray:
        """Attention to what is kept here -> (n, H (d + 2)), rows of `Softmax`."""
        rows = self.scratch("softmax rows", len(q), Softmax.width(self.config), dtype=np.float32)
        self.cache.attend(i, q, kv, rows)
        return rows

    def _finished(self, rows: np.ndarray) -> np.ndarray:
        """Rows of `Softmax` (n, H (d + 2)) -> (n, D)."""
        out = self.scratch("attended", len(rows), self.config.d_queries)
        self.cache.finish(rows, out)
        return out

    def abandon(self, n_before: int) -> None:
        """After a failure in a step that began after `n_before` exchanges: let the other ranks finish it."""


class Merged(Local):
    """Every rank keeps keys and values of its own tokens; ranks merge partial softmaxes, one exchange per block.

    New tokens' keys and values go to one rank after another. All ranks compute everything else, to the same bits.
    """

    mode = "merged"

    def _plan(self, room: np.ndarray) -> None:
        rank, size = self.layout.rank, self.layout.size
        self.computed = np.arange(len(self.layout.counts))
        self.sampled = self.computed if rank == 0 else self.computed[:0]
        own_room = np.maximum(room - rank + size - 1, 0) // size  # tokens rank, rank + size, ..
        self.cache = self._cache(own_room, keeps_far=False)

    @property
    def share_width(self) -> int:
        return self.config.d_model

    def prefilled(self, rows: np.ndarray, layout: Layout) -> np.ndarray:
        share = np.zeros((len(layout.counts), self.share_width), np.float32)
        sequences, last = layout.last_rows
        share[sequences] = to_host(take(rows, last))
        return share

    def first(self, shared: np.ndarray) -> np.ndarray:
        return self.backend.put(shared)

    def _keeps(self, steps: np.ndarray) -> np.ndarray:
        return np.asarray(steps % self.layout.size == self.layout.rank)

    @property
    def merges(self) -> bool:
        return self.layout.size > 1

    def _merge(self, rows: np.ndarray) -> None:
        if self.merges:
            self.laps.mark("attention")
            parts = self.exchange.start(rows.reshape(-1).view(np.uint8), self._counts).wait()
            self.cache.merge([part.view(np.float32).reshape(rows.shape) for part in parts], rows)

    def abandon(self, n_before: int) -> None:
        if self.layout.size > 1:
            self.exchange.drain(self._counts, n_before + len(self.blocks))


MODES: dict[str, type[Local]] = {mode.mode: mode for mode in (Local, Merged)}

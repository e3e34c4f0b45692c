"""Steps of decoding as compiled calls: all blocks in one, or what lies between two exchanges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_mpi.caches.cache import HostCache
from astra_mpi.caches.new import NewTokens
from astra_mpi.device.backend import Backend
from astra_mpi.kernels.aligned import address, aligned
from astra_mpi.kernels.cpu import _team, token
from astra_mpi.kernels.cpu._barrier import barrier_words
from astra_mpi.kernels.cpu.token import tables as t
from astra_mpi.models.block import Block
from astra_mpi.models.decoder import Decoder
from astra_mpi.models.family import Family
from astra_mpi.models.token_table import BlockTable, HeadTable, model_numbers

#: what conversations note, in the order of SITE
SITES = (None, "hidden", "normed", "kv")


class CompiledBlocks:
    """Blocks and buffers of a model, for steps of up to MAX_ROWS new tokens."""

    def __init__(self, blocks: Sequence[Block], family: Decoder) -> None:
        """ValueError where a block's matrix is of a format that the compiled token does not read."""
        self._tables = [BlockTable(block) for block in blocks]
        self.has_head = True
        try:
            self._tables.append(HeadTable(family))
        except (ValueError, KeyError):  # a format that is not read, or a head that other ranks have
            self.has_head = False
        self.rows = np.stack([table.row for table in self._tables])
        self.numbers, self.factors = model_numbers(blocks[0], family)
        self.n_layers = len(blocks)
        config = self.config = blocks[0].config
        n, h, d, widest = t.MAX_ROWS, config.n_heads, config.d_head, max(config.d_model, config.d_queries, config.d_ff)
        shared = {
            t.X: (n, config.d_model),
            t.QKV: (n, config.d_queries + 2 * config.d_kv),
            t.ADDED: (n, config.d_model),
            t.INNER: (n, config.d_ff),
            t.GATES: (n, config.d_ff),
            t.SOFTMAX: (n, h * (d + 2)),
            t.ONES: (d,),
            t.ZEROS: (widest,),
        }
        self.shared = {place: aligned(shape) for place, shape in shared.items()}
        self.shared[t.ONES][:] = 1
        self._widest = widest
        self._own: list[list[np.ndarray]] = []
        self.barrier = barrier_words()

    def own(self, index: int) -> np.ndarray:
        """(N_OWN,) addresses of the buffers of thread `index`."""
        while len(self._own) <= index:
            self._own.append(self._buffers())
        return np.array([address(buffer) for buffer in self._own[index]], np.int64)

    def _buffers(self) -> list[np.ndarray]:
        config, n, widest = self.config, t.MAX_ROWS, self._widest
        repeat = config.n_heads // config.n_kv_heads
        shapes = {
            t.TAKEN: (n, max(config.d_model, config.d_queries)),
            t.NARROWED: (max(n, repeat), widest + 64),
            t.FACTORS: (n, widest // 32 + 1),
            t.ROW_SUMS: (n, widest // 32 + 1),
            t.TILE: (4, 64),
            t.SCORES: (repeat, t.TILE_KEYS),
        }
        return [aligned(shapes[place]) for place in range(t.N_OWN)]

    def rows_of(self, buffer: int, n: int) -> np.ndarray:
        """(n, width) of a shared buffer."""
        return self.shared[buffer][:n]


def compiled_blocks(blocks: Sequence[Block], family: Family, backend: Backend) -> CompiledBlocks | None:
    """None where the compiled token does not read the weights, or another backend computes."""
    if backend.name != "numpy" or not isinstance(family, Decoder):
        return None
    try:
        return CompiledBlocks(blocks, family)
    except ValueError:
        return None


class CompiledStep:
    """Steps of one generation: `blocks` with the caches of some sequences."""

    def __init__(self, blocks: CompiledBlocks, cache: HostCache, site: str | None, room: int) -> None:
        """site: of what a conversation is to note of every new token. room: tokens that a sequence may still get."""
        self.blocks, self.cache, self.site = blocks, cache, site
        n_layers = self.n_layers = blocks.n_layers
        self.numbers = blocks.numbers.copy()
        self.numbers[t.SITE] = SITES.index(site)
        config = blocks.config
        width = 2 * config.d_kv if site == "kv" else config.d_model
        self.notes = aligned((n_layers, t.MAX_ROWS, width) if site else (1,))
        self._shared = np.zeros(t.N_SHARED, np.int64)
        for place, buffer in blocks.shared.items():
            self._shared[place] = address(buffer)
        self._shared[t.NOTES] = address(self.notes)
        self._own = [blocks.own(index) for index in range(_team.size())]
        self.rows = blocks.rows.copy()
        for i in range(n_layers):
            self.rows[i, t.WINDOW] = config.window(i)
        self._keep(room)

    def _keep(self, room: int) -> None:
        """Tables of what the cache keeps: per block and sequence what is far, then what is its own."""
        cache = self.cache
        n_sequences = 1 + int(cache.sequences.max(initial=-1))
        segments: list[np.ndarray] = []
        self.spans = np.zeros((self.n_layers, n_sequences + 1), np.int64)
        self._last = np.zeros((self.n_layers, n_sequences), np.int64)  # where own keys are among the segments
        self._places: list[np.ndarray] = []
        self.readable = True
        for i in range(self.n_layers):
            for s in range(n_sequences):
                self.spans[i, s] = len(segments)
                far = cache.far[i][s].segments() if s in cache.far[i] else []
                own = cache.own[i][s].segments() if s in cache.own[i] else []
                if far is None or own is None:
                    self.readable, far = False, []
                if s in cache.far_places[i]:
                    self._place(far, cache.far_places[i][s], 0)
                if s in cache.own_places[i]:
                    self._place(own or [], cache.own_places[i][s], room)
                segments += far + (own or [])
                self._last[i, s] = len(segments) - 1
            self.spans[i, n_sequences] = len(segments)
        self.segments = np.stack(segments) if segments else np.zeros((1, t.N_SEGMENT), np.int64)

    def _place(self, segments: list[np.ndarray], places: list[int], room: int) -> None:
        """The positions of keys, of blocks with a window."""
        for one in segments:
            every = np.zeros(len(places) + room, np.int32)
            every[: len(places)] = places
            one[t.PLACES] = address(every)
            self._places.append(every)

    def begin(self, x: np.ndarray, new: NewTokens, turns: list[np.ndarray | None]) -> np.ndarray:
        """Tokens x (n, D); turns: (n, d) of each block. -> rows (n, D) that the steps change."""
        rows = self.blocks.rows_of(t.X, len(x))
        rows[:] = x
        self._new = np.stack([new.sequences, new.positions, new.behind, new.keeps], axis=1).astype(np.int64)
        distinct = {id(one): one for one in turns if one is not None}
        order = {key: place + 1 for place, key in enumerate(distinct)}
        self.rows[: self.n_layers, t.TURNS] = [0 if one is None else order[id(one)] for one in turns]
        self._turns = [np.ascontiguousarray(one, np.float32) for one in distinct.values()]
        self._turn_addresses = np.array([address(one) for one in self._turns] or [0], np.int64)
        self.numbers[t.SEVERAL], self.numbers[t.ATTENDS] = new.several, self.readable
        if self.readable and new.keeps.any():
            np.add.at(self.segments[:, t.COUNT], self._last[:, new.sequences[new.keeps]], 1)
            self._note_places(new)
            self.cache.grow()
        return rows

    def drop(self, sequence: int, n: int) -> None:
        """As `Cache.drop`, for the next pass."""
        if self.readable:
            self.segments[self._last[:, sequence], t.COUNT] -= n

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Rows after the last block x (n, D) -> what the head gives (n, V)."""
        n = len(x)
        rows, made = self.blocks.rows_of(t.X, n), np.empty((n, int(self.numbers[t.VOCABULARY])), np.float32)
        if rows is not x:
            rows[:] = x
        self._shared[t.LOGITS] = address(made)
        self._new = np.zeros((n, t.N_NEW), np.int64)
        self._turn_addresses = np.zeros(1, np.int64)
        first = t.N_STEPS * self.n_layers
        self.run(first, first + 1)
        return made

    def _note_places(self, new: NewTokens) -> None:
        if not self._places:
            return
        known = {address(every): every for every in self._places}
        for i in np.flatnonzero(self.rows[:, t.WINDOW]):
            for s, position, behind in zip(
                *(x[new.keeps] for x in (new.sequences, new.positions, new.behind)), strict=True
            ):
                one = self.segments[self._last[i, s]]
                known[int(one[t.PLACES])][one[t.COUNT] - 1 - behind] = position

    def run(self, first: int, last: int) -> None:
        """Steps first .. last, N_STEPS of each block; attention follows the first of these."""
        before = first, last, self.numbers, self.blocks.factors, self.rows, self._shared
        after = self.segments, self.spans, self._new, self._turn_addresses
        barrier = address(self.blocks.barrier)

        def share(index: int, count: int) -> None:
            token.advance(*before, self._own[index], *after, barrier, index, count)

        _team.run(share)

    @property
    def n(self) -> int:
        """New tokens of the step under way."""
        return len(self._new)

    @property
    def softmax(self) -> np.ndarray:
        """Rows (n, H (d + 2)) of `Softmax`, which attention leaves."""
        return self.blocks.rows_of(t.SOFTMAX, self.n)

    @property
    def queries_keys_values(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the projection: scaled queries (n, H d) and [K | V] (n, 2 d_kv), turned."""
        qkv = self.blocks.rows_of(t.QKV, self.n)
        return qkv[:, : self.blocks.config.d_queries], qkv[:, self.blocks.config.d_queries :]

    def noted(self, i: int) -> np.ndarray:
        """What is noted of block i, (n, width)."""
        flat = self.notes.reshape(-1, self.notes.shape[-1])
        return flat[i * self.n : (i + 1) * self.n]

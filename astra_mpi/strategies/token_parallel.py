"""Token parallelism: what `single`, `sp`, `segment_means` and `astra` share.

A rank owns whole weights and its slice of every sequence. A block has at most one exchange. It starts as soon as
its payload exists, and is waited for after the local attention, so that projection and local attention hide it.
"""

from __future__ import annotations

import numpy as np

from astra_mpi.attention import Attention
from astra_mpi.caches.earlier import Earlier
from astra_mpi.costs.cut import token_cost
from astra_mpi.costs.wires import Wire
from astra_mpi.costs.work import shape_of
from astra_mpi.device.xp import take, to_host
from astra_mpi.layout import Layout
from astra_mpi.partition import Cut, Hears, cut, rotated
from astra_mpi.strategies.base import Parts, Steps
from astra_mpi.strategies.far_keys import FarKeys
from astra_mpi.strategies.keeping import Keeping
from astra_mpi.strategies.positions import PlacedRows, near
from astra_mpi.strategies.reach import Reach, whole_reach, window_reach
from astra_mpi.strategies.spec import Spec
from astra_mpi.wire.pending import Pending


class TokenParallel(Keeping):
    """As it stands, it sends nothing."""

    #: what is sent: "hidden" block inputs, "normed" attention inputs, "kv" keys and values, or nothing
    site: str | None = None
    #: it sends the tokens alone that a window of another rank holds
    sends_reached: bool = False
    #: its answer bears messages that do not come
    may_miss: bool = False
    #: exchanges of a pass that are under way at once
    at_once: int = 1
    #: of a pass that goes through the blocks piece by piece, all on this rank
    earlier: Earlier | None = None
    #: a pass begins with what enters the first block of all tokens, on every rank: their inputs or, in a stage behind
    #: another, what `begin_with` is told
    begins_with_all: bool = False
    #: the pass under way exchanges nothing
    quiet: bool = False
    #: first tokens of a decoder's sequences that every rank computes itself
    sinks: int = 0

    def __init__(self, parts: Parts, spec: Spec) -> None:
        super().__init__(parts, spec)
        for block in self.blocks:
            block.make_ready()

    def layout(self, lengths: np.ndarray, n_class: int, causal: bool, weights: Cut, spread: bool = False) -> Layout:
        size, compute = self.exchange.size, getattr(self.kernels, "compute", "float32")
        cost = token_cost(shape_of(self.config), self.wire_costs(), compute) if causal else None
        if not spread or len(lengths) < 2:
            counts = cut(lengths, size, weights, cost)
            return Layout(counts, self.exchange.rank, n_class, causal, replicas=size, sinks=self.sinks)
        places = rotated(len(lengths), size)
        counts = np.empty_like(places)
        for s, mine in enumerate(places):  # speeds are ranks', slices have places
            speeds: Cut = (
                weights if weights is None or isinstance(weights, str) else [weights[r] for r in np.argsort(mine)]
            )
            counts[s] = cut(lengths[s : s + 1], size, speeds, cost)[0, mine]
        return Layout(counts, self.exchange.rank, n_class, causal, size, places, sinks=self.sinks)

    def wire_costs(self) -> Wire:
        """What sending a token and using it elsewhere costs, for causal cuts."""
        return Wire(None)

    def message_bytes(self, layout: Layout) -> list[int]:
        """Per rank, the bytes it puts into one exchange."""
        return [0] * layout.size

    def bytes_in(self, i: int, layout: Layout) -> list[int]:
        """`message_bytes` of block i, for strategies whose blocks differ in them."""
        return self.message_bytes(layout)

    def sent_bytes(self, i: int, layout: Layout) -> list[int]:
        """`bytes_in`, but that under causal attention the last rank has nobody to send to."""
        counts = self.bytes_in(i, layout)
        return [*counts[:-1], 0] if layout.forward else counts

    def formula_bytes(self, layout: Layout) -> list[int]:
        reaches = self.reaches if layout is self.planned or not self._windowed else self._reaches(layout)
        every = [
            self.bytes_of(i, reaches[i]) if self._windowed else self.sent_bytes(i, layout) for i in self.exchanging
        ]
        return [sum(of_rank) for of_rank in zip(*every, strict=True)] if every else [0] * layout.size

    def bytes_of(self, i: int, reach: Reach) -> list[int]:
        """Per rank, the bytes of its message of block i with the tokens of `reach`, where those alone are sent."""
        raise NotImplementedError(f"strategy {self.name} sends all tokens")

    @property
    def _windowed(self) -> bool:
        """Whether some blocks send fewer tokens than others, for nobody's window holds them."""
        return self.sends_reached and any(self.config.windows)

    def _reaches(self, layout: Layout) -> list[Reach]:
        """Per block, which far tokens are sent and seen; blocks with the same window share one."""
        whole, made = whole_reach(layout), dict[int, Reach]()
        windows = [self.config.window(i) if self._windowed else 0 for i in range(len(self.blocks))]
        for window in set(windows) - {0}:
            assert self.positions is not None and self.positions.places is not None
            made[window] = window_reach(layout, self.positions.places, window)
        return [made.get(window, whole) for window in windows]

    def begin_with(self, rows: np.ndarray, inputs: np.ndarray | None) -> None:
        """What enters the first block: rows (T, D) of all tokens, sequence by sequence in order of position. inputs
        (T, D): what entered that of the whole model, where `first_inputs` of the stage before has it."""

    @property
    def first_inputs(self) -> np.ndarray | None:
        """(n_r, D) of this rank's content tokens what entered the attention of the model's first block, where stages of
        blocks behind this one ask for it."""
        return None

    def send(self, i: int, payload: np.ndarray) -> Pending | None:
        """Start the exchange of block i; payload: this rank's content tokens at `site`, (n_r, width)."""
        return None

    def receive(self, i: int, pending: Pending) -> FarKeys:
        """Wait for block i's exchange and turn what came into far keys and values."""
        raise NotImplementedError(f"strategy {self.name} receives nothing")

    @property
    def n_exchanges(self) -> int:
        return len(self.exchanging)

    @property
    def exchanging(self) -> tuple[int, ...]:
        """The blocks with an exchange, in order; the same on every rank."""
        return tuple(range(len(self.blocks))) if self.sends else ()

    @property
    def sends(self) -> bool:
        """Whether exchanges take place: not on one rank."""
        return self.exchange.size > 1 and self.site is not None and not self.quiet

    def begin(self, layout: Layout) -> None:
        again = layout is getattr(self, "planned", None) and not self._windowed
        super().begin(layout)
        self.quiet = layout.quiet
        self.reaches = self._reaches(layout)
        self._sizes: dict[int, tuple[list[int], Hears]] = self._sizes if again else {}
        self.at, self.reach = 0, self.reaches[0] if self.reaches else whole_reach(layout)
        self.here = PlacedRows(self.positions, layout.packed_rows, self.blocks)
        if self.earlier is not None and self.positions is not None and self.positions.places is not None:
            self.earlier.place(self.positions.places[layout.packed_rows])
        self.gathered = PlacedRows(self.positions, layout.packed_content, self.blocks)

    @property
    def takes_halves(self) -> bool:
        return self.cache is None and super().takes_halves

    def start(self, message: np.ndarray) -> Pending:
        """Send a message of this block to the ranks that need it, as `_exchanged` says."""
        counts, forward = self._exchanged(self.at)
        at_once = self.at_once * self.n_turns
        pending = self.exchange.start(message, counts, self.may_miss, forward=forward, at_once=at_once)
        self.begun.append(pending)
        return pending

    def _exchanged(self, i: int) -> tuple[list[int], Hears]:
        """Bytes (P,) of the messages of block i, and who hears whom; counted once for a layout."""
        if i not in self._sizes:
            reach = self.reaches[i]
            whole = reach.sent is None
            sizes = self.sent_bytes(i, self.planned) if whole else self.bytes_of(i, reach)
            self._sizes[i] = sizes, self.planned.forward if whole else reach.hears
        return self._sizes[i]

    def begin_empty(self, n: int) -> Pending:
        counts, forward = self._exchanged(self.exchanging[n])
        return self.exchange.start_empty(counts, self.may_miss, forward, self.at_once * self.n_turns)

    def steps(self, i: int, x: np.ndarray) -> Steps:
        block, pending = self.blocks[i], None
        self.at, self.reach = i, self.reaches[i]
        if self.site == "hidden":
            pending = self._start(i, x)
        h = block.attention_input(x)
        if self.site == "normed":
            pending = self._start(i, h)
        q, kv = block.queries_keys_values(h)
        self.laps.mark("project")
        if self.site == "kv":
            pending = self._start(i, kv)
        turns = self.here.turns(i)
        if turns is not None:
            block.turn(turns)
        heads, scores = (block.config.n_heads, block.config.n_kv_heads), near(self.config, i, self.positions, self.here)
        attention = Attention(q, self.planned, *heads, self.kernels, block.scratch, scores)
        if self.earlier is not None:
            self._attend_earlier(i, attention, kv, self.earlier)
        else:
            attention.local(kv, last=not self.sends and self.cache is None)
            if self.cache is not None:
                self.cache.attend_past(i, attention.heads, *attention.sums)
                self.cache.keep_own(i, kv, self._kept_places(i, self.planned.packed_rows))
        self.laps.mark("attention")
        if pending is not None:
            pending.send()
            yield
        far = self.far_keys(i, pending)
        if far is not None:
            tokens = self.turn_far(i, far)
            self.laps.mark("decode")
            if self.cache is not None and self.keeps_now(i):
                self.keep_far(i, far)
            places = None
            if scores is not None and scores.placed:
                assert self.gathered.places is not None
                places = take(self.gathered.places, tokens)
            kv = far.kv.astype(self.dtype, copy=False)
            attention.far(kv, far.offsets, far.bias, far.rows, far.ends, places, last=True)
        attended = attention.result()
        self.laps.mark("attention")
        x = block.output(x, attended)
        self.laps.mark("mlp")
        return x

    def _attend_earlier(self, i: int, attention: Attention, kv: np.ndarray, earlier: Earlier) -> None:
        """To a piece's own keys kv and those of pieces before it; decoding keeps all of them at once."""
        kept = earlier.keep(i, kv, lasting=self.cache is not None)
        so_far = earlier.so_far(i)
        if so_far is not None:
            attention.so_far(*so_far)
        else:
            before = earlier.before(i)
            attention.local(kv, last=before is None)
            if before is not None:
                attention.far(before.kv, before.offsets, None, places=before.places, last=True)
        if self.cache is not None and earlier.is_last:
            self.cache.keep_own(i, kept, earlier.places if self.config.window(i) else None)

    def far_keys(self, i: int, pending: Pending | None) -> FarKeys | None:
        """Of block i, from the exchange that it started, if any; None: there are none."""
        return None if pending is None else self.receive(i, pending)

    def turn_far(self, i: int, far: FarKeys) -> np.ndarray:
        """Turn the keys of block i, in place: what travels, or is looked up, is not turned yet. -> (m,) where its
        tokens lie among the gathered ones."""
        tokens, turns = self.planned.far_index if far.tokens is None else far.tokens, self.gathered.turns(i)
        if turns is not None:
            self.kernels.rotate(far.kv, take(turns, tokens), self.blocks[i].config.n_kv_heads)
        return tokens

    def _start(self, i: int, rows: np.ndarray) -> Pending | None:
        content = self.planned.content(rows)
        if self.cache is not None:
            self.cache.note(i, content)
        if not self.sends:
            return None
        if self.reach.own is not None:
            return self.send(i, take(content, self.reach.own))
        nobody_behind = self.planned.forward and self.planned.rank == self.exchange.size - 1 > 0
        return self.send(i, content[:0] if nobody_behind else content)

    def all_rows(self, own: np.ndarray) -> np.ndarray:
        """Collective: rows (n_r, ...) of every rank's content tokens -> those of all, rank after rank."""
        counts = self.planned.token_counts
        own = np.ascontiguousarray(to_host(own))
        n_bytes = own.dtype.itemsize * int(np.prod(own.shape[1:]))
        every = np.empty((int(counts.sum()), *own.shape[1:]), own.dtype)
        self.exchange.comm.Allgatherv(own.view(np.uint8), [every.view(np.uint8), counts * n_bytes])
        return every

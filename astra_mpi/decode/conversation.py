"""A conversation: what earlier turns have left is kept on the ranks, and only what is new goes through the model.

docs/explanation/decode.md, Conversations, has what ranks hold and tell each other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mpi4py import MPI

from astra_mpi.caches.past import Chunk, Past
from astra_mpi.caches.sinks import Sinks
from astra_mpi.decode.choice import pays_to_cut
from astra_mpi.decode.generation import Generation, agreed, check, generate
from astra_mpi.decode.prefill import Engine
from astra_mpi.decode.request import Request
from astra_mpi.errors import collective
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.family import Turns
from astra_mpi.strategies.positions import Positions
from astra_mpi.strategies.token_parallel import TokenParallel


class Conversation:
    """Turns of one conversation with a model. Every rank has one and makes the same calls.

    Where a strategy or a device does not keep what earlier turns left, and with decode = "merged", each turn goes
    through the model from its beginning.
    """

    def __init__(self, model: Engine, goes_on: bool = True) -> None:
        """goes_on: False where one turn is all, of which no other will ask anything."""
        self.model, self.goes_on = model, goes_on
        self._forget()

    def _forget(self) -> None:
        self.ids = np.empty(0, np.int64)  # whose keys and values are kept
        self.past = Past(self.model.backend.kernels, self.model.config, self.goes_on)
        self.answering = 0  # the rank that knows all

    def say(self, ids: np.ndarray, request: Request, cut: bool | None = None) -> np.ndarray:
        """Collective: what follows the whole conversation ids (T,) -> new ids (n,) int32.

        As far as it begins with what earlier calls got and gave, only the rest is computed. cut: whether that is cut
        over the ranks, None where it pays. `model.report` tells of this turn; under "conversation" what was kept,
        and what ranks told each other before this turn.
        """
        model = self.model
        with collective(model.comm):
            check(model, request)
        if not self.keeps(request):
            new = generate(model, ids[None], None, request)[0]
            told = {"told_bytes": [0] * model.exchange.size, "told_s": 0.0}
            model.report["conversation"] = {"kept_tokens": 0, **told}
            return new[new >= 0]
        try:
            return self._say(np.asarray(ids, np.int64), request, cut)
        except BaseException:
            self._forget()
            raise

    def rest(self) -> None:
        """Between turns, while a person reads: what others have not heard becomes what they will be told, which is
        smaller. Not collective."""
        strategy = self.model.strategy
        if isinstance(strategy, TokenParallel):
            for chunk in self.past.chunks:
                for i in list(chunk.raw):
                    self.past.tell(i, chunk, strategy.as_seen)

    def keeps(self, request: Request) -> bool:
        """Whether later turns go on from earlier ones."""
        strategy = self.model.strategy
        continues = isinstance(strategy, TokenParallel) and strategy.continues
        config = self.model.config  # what a window hides, and turns that depend on the length, are not kept
        fixed = not any(config.windows) and getattr(config, "rope_type", "") != "longrope"
        return continues and fixed and self.model.backend.xp is np and request.decode != "merged"

    def _say(self, ids: np.ndarray, request: Request, cut: bool | None) -> np.ndarray:
        model, past = self.model, self.past
        same = self.ids[: len(ids) - 1] == ids[: len(self.ids)][: max(len(ids) - 1, 0)]
        past.truncate(int(np.argmin(same)) if len(same) and not same.all() else len(same))
        n_kept = past.n_tokens
        if not n_kept:
            past.n_sinks = self._strategy.sinks
        batch = model.prepare(ids[None], (np.arange(len(ids)) >= n_kept)[None])
        streams = agreed(model.comm, request)
        with collective(model.comm):
            first, room = request.room(batch, model.config)
        self._told_s = 0.0
        self._strategy.keeps_codes = request.far == "codes"
        layout, told_bytes = self._placed(batch, cut)
        generation = Generation(model, request, layout, first, room, streams, [ids], past)
        generation.prefill(batch)
        self.answering = int(layout.last_rank[0])
        past.answer(self.answering)
        generation.decode()
        new = generation.tokens.ids[0]
        new = new[new >= 0]
        model.report = generation.report()
        told = {"told_bytes": told_bytes, "told_s": self._told_s}
        model.report["conversation"] = {"kept_tokens": n_kept, **told}
        past.close(len(new) - 1)
        self.ids = np.concatenate([ids, new[:-1]])
        return new

    def _placed(self, batch: Batch, cut: bool | None) -> tuple[Layout, list[int]]:
        """Where the new tokens go, and what ranks tell each other first, in bytes of each."""
        model = self.model
        owed = self._owed()
        if not (pays_to_cut(model, int(batch.lengths[0]), sum(owed)) if cut is None else cut):
            counts = np.zeros((1, model.exchange.size), np.int64)
            counts[0, self.answering] = batch.lengths[0]
            return self._quiet(counts), [0] * len(owed)
        self._catch_up(owed)
        layout = model.layout(batch.lengths)
        if self.past.n_tokens:  # the conversation's first tokens are kept
            layout = replace(layout, sinks=0)
        return (layout if _cut(layout) else self._quiet(layout.counts)), owed

    def _quiet(self, counts: np.ndarray) -> Layout:
        size = self.model.exchange.size
        return Layout(counts, self.model.exchange.rank, 0, True, size, quiet=True)

    def _owed(self) -> list[int]:
        """(P,) bytes of what each rank has not told all others yet."""
        strategy, n_blocks = self._strategy, self.model.config.n_layers
        chunks, size = self.past.chunks, self.model.exchange.size
        if strategy.site is None:
            return [0] * size
        return [
            sum(strategy.seen_bytes(i, int(c.told_counts[r])) for c in chunks if c.untold(r) for i in range(n_blocks))
            for r in range(size)
        ]

    @property
    def _strategy(self) -> TokenParallel:
        assert isinstance(self.model.strategy, TokenParallel)
        return self.model.strategy

    def _catch_up(self, owed: list[int]) -> None:
        """Collective: all ranks learn of all tokens, at once and for all blocks."""
        model, past, strategy = self.model, self.past, self._strategy
        if past.n_sinks:
            with collective(model.comm), model.clock.running():
                self._compute_sinks()
            if not sum(owed):
                past.told()
        if not sum(owed):
            return
        rank, chunks = model.exchange.rank, past.chunks
        with collective(model.comm), model.clock.running():
            begin_s = model.clock.now()
            mine = [
                strategy.pack_seen(i, past.tell(i, chunk, strategy.as_seen))
                for chunk in chunks
                if chunk.untold(rank)
                for i in range(model.config.n_layers)
            ]
            message = np.concatenate([np.empty(0, np.uint8), *mine])
            packed_s = model.clock.now() - begin_s
        model.exchange.reset()
        with model.clock.running():
            begin_s = model.clock.now()
            messages = model.exchange.start(message, owed).wait()
            failure: Exception | None = None
            try:
                for sender, heard in enumerate(messages):
                    self._learn(sender, heard)
            except Exception as exc:
                failure = exc
            took_s = np.array([packed_s + model.clock.now() - begin_s])
        model.exchange.settle()
        model.comm.Allreduce(MPI.IN_PLACE, took_s, op=MPI.MAX)
        self._told_s = float(took_s[0])
        past.told()
        with collective(model.comm):
            if failure is not None:
                raise failure

    def _compute_sinks(self) -> None:
        """The conversation's first tokens, where this rank does not keep them: alone, for they see nothing else."""
        model, strategy = self.model, self._strategy
        missing = self.past.missing_sinks()
        if not missing:
            return
        n = missing.stop
        batch, alone = Batch(np.array([n]), self.ids[:n], np.arange(n)), Layout(np.array([[n]]), 0, 0, True, quiet=True)
        strategy.positions, strategy.cache = Positions(model.family, batch), Sinks(self.past)
        try:
            strategy.begin(alone)
            x = model.family.embed(batch, alone)
            for i in range(len(model.blocks)):
                x = strategy.block(i, x)
        finally:
            strategy.cache = None
        self.past.known_sinks = n

    def _learn(self, sender: int, message: np.ndarray) -> None:
        """What `sender` has told of its tokens: of each chunk that some rank did not know of, block after block."""
        model, strategy, rank = self.model, self._strategy, self.model.exchange.rank
        start = 0
        for chunk in self.past.chunks:
            if not chunk.untold(sender):
                continue
            n_tokens, new = int(chunk.told_counts[sender]), chunk.unheard(sender, rank)
            turns = self._turns(chunk, sender) if new else None
            for i in range(model.config.n_layers):
                n_bytes = strategy.seen_bytes(i, n_tokens)
                part, start = message[start : start + n_bytes], start + n_bytes
                if new:
                    turned = None if turns is None else turns[i]
                    self.past.add(i, chunk, strategy.kept_of(i, strategy.unpack_seen(i, part, n_tokens), turned))

    def _turns(self, chunk: Chunk, rank: int) -> Turns | None:
        """How far the keys of a rank's tokens of a chunk are turned, (n, d) per block."""
        begin = chunk.first + int(chunk.counts[:rank].sum()) + int(chunk.sinks[rank])
        positions = np.arange(begin, begin + int(chunk.told_counts[rank]))
        return self.model.family.turns(Batch(np.array([len(positions)]), positions, positions))


def _cut(layout: Layout) -> bool:
    return int((layout.token_counts > 0).sum()) > 1

"""A model's forward pass over the ranks of a communicator."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.decode.compiled import CompiledBlocks, compiled_blocks
from astra_mpi.decode.drafts import MOST_DRAFTS
from astra_mpi.decode.drafts.source import draft_of
from astra_mpi.decode.generation import generate
from astra_mpi.decode.request import Ends, OnTokens, Request
from astra_mpi.decode.sampling import Sample, greedy
from astra_mpi.device.backend import Backend
from astra_mpi.device.scratch import Scratch
from astra_mpi.errors import InputError, collective, raise_together, same_on_all
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.gathered import gathered
from astra_mpi.layout import Layout
from astra_mpi.models import FAMILIES
from astra_mpi.models.batch import Batch
from astra_mpi.models.block import Block, block_weights
from astra_mpi.models.decoder import Decoder
from astra_mpi.models.images import Preprocess
from astra_mpi.network.clock import WallClock
from astra_mpi.network.conditions import Conditions
from astra_mpi.partition import Cut
from astra_mpi.report import report_of
from astra_mpi.strategies import STRATEGIES, Parts, Strategy, parse
from astra_mpi.strategies.base import Steps
from astra_mpi.strategies.positions import Positions
from astra_mpi.turns import Part, Pass, Taken, halves, in_turns
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.laps import Laps

if TYPE_CHECKING:
    from mpi4py import MPI


Pool = Callable[[np.ndarray, Layout], np.ndarray]
AskHalves = Callable[["Model", Layout], bool]


class Model:
    """A model at work on the ranks of one communicator. Call it with inputs; `report` describes the last call."""

    def __init__(
        self,
        file: ModelFile,
        comm: MPI.Comm,
        backend: Backend,
        weights: Cut = None,
        conditions: Conditions | None = None,
        clock: WallClock | None = None,
    ) -> None:
        """clock: one that ranks beyond `comm` share, in place of one of its own."""
        self.comm, self.backend, self.cut_weights = comm, backend, weights
        self.config, self.codec = file.config, file.codec
        self.tokenizer, self.preprocess = file.tokenizer, file.preprocess
        self.weights, self.digest = file.weights, file.digest
        self.codec_digest = file.codec.digest if file.codec else ""
        family = FAMILIES[file.config.family]
        weights_there = backend.upload(file.weights)
        self.family = family(file.config, weights_there, backend.kernels, backend.memory)
        self.family.make_ready()
        self.scratch = Scratch(backend.xp, backend.dtype)
        blocks = block_weights(weights_there, file.config.n_layers)
        of = file.config, family.recipe_of(file.config)
        self.blocks = [Block(*of, own, backend.kernels, self.scratch, backend.memory) for own in blocks]
        conditions = conditions or Conditions()
        self.clock = clock or conditions.make_clock(comm)
        #: called after every block and decoded token: what else this rank has to do now and then
        self.meanwhile: Callable[[], None] = lambda: None
        #: of blocks that follow those of other ranks: gives the rows (n, D) of this rank, in place of an embedding
        self.enter: Callable[[Batch], np.ndarray] | None = None
        self.hands_on = False  # blocks of other ranks follow: a pass ends with all rows that are held here
        self.laps = Laps(self.clock)
        self.exchange = Exchange(comm, self.laps, conditions.missing, backend.staging)
        self.exchange.connect(conditions.network)
        self.report: dict[str, Any] = {}
        self.chosen: dict[str, Any] | None = None  # how the strategy was chosen, where nobody named it (`auto.py`)
        self.chosen_grid: str | None = None  # the same of the grid
        self.chosen_compute: dict[str, Any] | None = None  # the same of the type of products (`compute.py`)
        #: whether a batch is computed as two halves in turns, or what is asked once a batch has two sequences or more
        #: (docs/explanation/waiting.md); collective, the same on all ranks
        self.halves: bool | AskHalves = False
        self._layouts: dict[tuple[Strategy, bytes, bool], Layout] = {}
        self._planned: Layout | None = None  # of the last pass
        self.chosen_halves: bool | None = None  # of the last pass that could be two
        self.taken: list[Taken] = []  # the passes that the last call took, two of halves

    def use(self, strategy: str, *, counted_keys: bool = True, remote: str = "auto") -> None:
        """Choose the strategy (see `astra_mpi.load`). Collective. It stays in `strategy` and can be put back there."""
        spec = parse(strategy)
        self.chosen = self.chosen_halves = None
        self.strategy: Strategy = STRATEGIES[spec.name](self.parts(counted_keys, remote), spec)

    def parts(self, counted_keys: bool = True, remote: str = "auto") -> Parts:
        """What a strategy at work on this model is made from."""
        speeds = None if isinstance(self.cut_weights, str) else self.cut_weights
        own = self.config, self.blocks, self.exchange, self.backend.kernels, self.codec, speeds
        return Parts(*own, counted_keys, remote)

    @cached_property
    def compiled(self) -> CompiledBlocks | None:
        """The blocks as decoding computes them, in compiled calls; None where it cannot."""
        return compiled_blocks(self.blocks, self.family, self.backend)

    def obstacle(self, strategy: str) -> str | None:
        """Why this strategy cannot be used on this model and these ranks, or None."""
        spec = parse(strategy)
        return STRATEGIES[spec.name].obstacle(spec, self.config, self.codec, self.comm.Get_size())

    def __call__(
        self, inputs: np.ndarray, mask: np.ndarray | None = None, gather: bool = False, spread: bool = False
    ) -> Any:
        """Run the forward pass; collective, with the same inputs on every rank.

        ViT: float32 images already normalised (B, channels, height, width), or uint8 (B, height, width, channels) to be
        resized and normalised as the model file says -> logits (B, classes), or embeddings. Others: ids (B, T) and a
        mask (B, T) or none, 0 = drop -> BERT: embeddings (B, D), or logits (B, classes) of a classifier, which takes
        ids and types (B, T, 2) as well; GPT-2 and Llama: logits (B, V) after the last token,
        zeros where there is none. With `gather`, rank 0 gets (answer, hidden) and the others (answer, None): hidden
        states (B, n_class + T, D) after the last norm, or logits (B, T, V), zero beyond a sequence's end. spread: cut
        decoders' sequences as `generate` does, so that all ranks have the last tokens of some.
        """
        batch = self.prepare(inputs, mask)
        layout = self.layout(batch.lengths, spread)
        rows, pooled = self.run(batch, layout, self.family.pool, self.family.share_width, self.config.merged_heads)
        answer: np.ndarray | None = None
        failure: Exception | None = None
        try:
            with self.clock.running():
                answer = np.concatenate([self._head(pooled, part) for part, _ in self.taken])
                self.laps.mark("head")
        except Exception as exc:
            failure = exc
        self.report = self.describe(layout, self.laps.seconds, self.exchange.counted(), failure)
        return (answer, gathered(self, rows, layout)) if gather else answer

    def nll(self, ids: np.ndarray, mask: np.ndarray | None, n_context: np.ndarray) -> np.ndarray:
        """How well a decoder predicts; collective, with the same inputs on every rank.

        Token ids (B, T) and mask (B, T) as in a call -> (B, 2) on every rank: negative log-likelihoods in nats, added
        up over the tokens of a sequence but its first max(1, n_context (B,)), and the number of those tokens.
        """
        family = self.family
        if not isinstance(family, Decoder):
            raise InputError(f"a {self.config.family} model predicts no tokens; give a decoder, such as Llama")
        batch = self.prepare(ids, mask)
        layout = self.layout(batch.lengths)

        def pool(rows: np.ndarray, layout: Layout) -> np.ndarray:
            part = next(part for part, _ in self.taken if part.layout is layout)
            return family.nll(rows, layout, part.batch, n_context[part.sequences])

        _, sums = self.run(batch, layout, pool, 2)
        self.report = self.describe(layout, self.laps.seconds, self.exchange.counted())
        return sums

    def generate(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        max_new_tokens: int,
        sample: Sample = greedy,
        stop: Sequence[int] = (),
        decode: str = "auto",
        far: str = "keys",
        on_tokens: OnTokens | None = None,
        ends: Ends | None = None,
        enough: Callable[[], bool] | None = None,
        draft: str | Model | None = None,
        draft_tokens: int = MOST_DRAFTS,
    ) -> np.ndarray:
        """Go on from prompts; collective, with the same arguments on every rank but for `on_tokens`.

        ids (B, T) and mask (B, T) as in a call -> new ids (B, max_new_tokens) int32 on every rank, -1 after a
        sequence's end: a token of `stop`, which is given too, or the model's last position.
        sample(logits (n, V), sequences (n,), step) -> ids (n,) chooses the next tokens; it runs on one rank for each
        sequence and must depend on its arguments alone. decode: "local", "merged", "auto"; far: "keys" or "codes",
        how far tokens that came as codes are kept for "local"; docs/explanation/decode.md.
        on_tokens(step, ids (B,)) is called on rank 0 after each step. ends(new ids (n,)) -> whether they end a
        sequence too, the same on all ranks. enough(): whether this rank wants no more, asked at every step where
        `on_tokens` is given; all then end. draft: "lookup", or a small model with the same tokens, loaded with
        comm = MPI.COMM_SELF: what guesses up to `draft_tokens` next tokens, which one pass checks; the tokens stay the
        same (docs/explanation/drafts.md). `report["generation"]` has times and bytes.
        """
        chosen = max_new_tokens, sample, tuple(stop), decode, on_tokens, ends, enough, far
        with collective(self.comm):
            request = Request(*chosen, draft_of(draft, self), draft_tokens)
        return generate(self, ids, mask, request)

    def run(
        self, batch: Batch, layout: Layout, pool: Pool, width: int, merged_heads: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """-> the rows (n, D) that this rank answers for, and what `pool` makes of them, (B, width), summed up.

        merged_heads: what `pool` makes are softmaxes of so many heads, to be merged (`Exchange.merge`).
        """
        whole, known = Part(batch, layout, slice(0, len(batch.lengths))), layout is self._planned
        self.exchange.reset(self.checksum)
        self.taken = [Taken(whole, self.strategy)]
        with nullcontext() if known else collective(self.comm):  # which takes memory
            self._begin(self.strategy, whole)
        if self._in_halves(layout):
            with nullcontext() if known else collective(self.comm):
                self.taken = [Taken(part, self.strategy.twin()) for part in halves(whole)]
                for part, strategy in self.taken:
                    strategy.n_turns = len(self.taken)
                    self._begin(strategy, part)
        self._planned = layout
        with self.clock.running():
            self.laps.start()
            rows, share, failure = self._share(pool, width)
            pooled, failed = self.exchange.merge(share, merged_heads, failure is not None)
        self.exchange.settle()  # every rank has started every exchange, a failed one too
        if failed:
            raise_together(self.comm, failure)
        return rows, pooled

    def _begin(self, strategy: Strategy, part: Part) -> None:
        strategy.positions = Positions(self.family, part.batch)
        strategy.begin(part.layout)

    def _in_halves(self, layout: Layout) -> bool:
        """Whether a pass takes two halves in turns. What decoding keeps of a prompt, and rows that come from another
        stage or go on to one, are those of a whole batch."""
        whole = len(layout.counts) < 2 or layout.quiet or self.exchange.size == 1
        whole = whole or self.enter is not None or self.hands_on
        if whole or not self.strategy.takes_halves:
            return False
        self.chosen_halves = self.halves if isinstance(self.halves, bool) else self.halves(self, layout)
        return self.chosen_halves

    def _share(self, pool: Pool, width: int) -> tuple[np.ndarray, np.ndarray, Exception | None]:
        """-> the rows (n, D) that this rank answers for, its share (B, width) of the sum, and what failed if so."""
        passes = [Pass(strategy, self._forward(strategy, part.batch)) for part, strategy in self.taken]
        in_turns(passes, self._switch)
        last = self.taken[-1][0]
        share = np.zeros((last.sequences.stop, width), np.float32)
        failure = next((one.failure for one in passes if one.failure is not None), None)
        if failure is not None:
            return share, share, failure
        try:
            pairs = zip(passes, self.taken, strict=True)
            share = np.concatenate([self.backend.fetch(pool(one.rows, part.layout)) for one, (part, _) in pairs])
            rows = passes[0].rows if len(passes) == 1 else self.backend.xp.concatenate([one.rows for one in passes])
            self.laps.mark("head")
        except Exception as exc:
            return share, share, exc
        return rows, share, None

    def _switch(self, turn: int) -> None:
        self.scratch.turn = self.laps.turn = turn

    def _forward(self, strategy: Strategy, batch: Batch) -> Steps:
        """-> the rows (n, D) that this rank answers for, after the last block."""
        embed = partial(self.family.embed, batch)
        x = strategy.enter(embed) if self.enter is None else self.enter(batch)
        self.laps.mark("embed")
        for i in range(len(self.blocks)):
            x = yield from strategy.steps(i, x)
            self.meanwhile()
        strategy.end()
        return x if self.hands_on else strategy.answered(x)

    def _head(self, pooled: np.ndarray, part: Part) -> np.ndarray:
        own = self.backend.put(pooled[part.sequences])
        return self.backend.fetch(self.family.head(own, part.batch.lengths))

    def prepare(self, inputs: np.ndarray, mask: np.ndarray | None) -> Batch:
        """Validate on every rank, and check that all ranks were given the same."""
        failure: Exception | None = None
        mine = np.zeros(2, dtype=np.int64)  # failed, checksum of the batch
        try:
            batch = self.family.prepare(self.normalised(inputs), mask)
            mine[1] = zlib.crc32(batch.values.tobytes(), zlib.crc32(batch.lengths.tobytes()))
            if batch.types is not None:
                mine[1] = zlib.crc32(batch.types.tobytes(), int(mine[1]))
        except Exception as exc:
            failure = exc
            mine[0] = 1
        every = np.empty((self.comm.Get_size(), 2), dtype=np.int64)
        self.comm.Allgather(mine, every)
        if every[:, 0].any():
            raise_together(self.comm, failure)
        self.checksum = int(every[0, 1])
        if (every[:, 1] != every[0, 1]).any():
            raise same_on_all(InputError("the inputs differ between ranks; give every rank the same batch"))
        return batch

    def normalised(self, inputs: np.ndarray) -> np.ndarray:
        """uint8 images (B, height, width, channels) -> float32 (B, channels, height, width); else the inputs."""
        if self.config.family == "vit" and np.asarray(inputs).dtype == np.uint8:
            none = (
                "uint8 images need the model's preprocessing, and its file has none; give float32, already normalised"
            )
            require(bool(self.preprocess), none)
            return Preprocess(**(self.preprocess or {}))(np.asarray(inputs))
        return inputs

    def layout(self, lengths: np.ndarray, spread: bool = False) -> Layout:
        key = self.strategy, lengths.tobytes(), spread
        if key not in self._layouts:
            causal = self.family.causal
            cut = lengths, self.config.n_class, causal, self.cut_weights
            with collective(self.comm):
                layout = self.strategy.layout(*cut, spread and causal)
            if len(self._layouts) >= 64:
                self._layouts.clear()
            self._layouts[key] = layout
        return self._layouts[key]

    @property
    def weight_bytes(self) -> int:
        """Of the weights that this rank computes with, as they are stored or packed."""
        return self.family.nbytes + self.strategy.block_bytes

    def describe(
        self, layout: Layout, seconds: dict[str, float], counts: Sequence[float], failure: Exception | None = None
    ) -> dict[str, Any]:
        """Collective: `report_of` a pass."""
        return report_of(self, layout, seconds, counts, failure)
